"""The body of a submission: accepted fields, refusals with their texts, and the bytes of the record."""

import json
from http import HTTPStatus
from typing import Any

import pytest

from fluxpool_contract.messages.decoding import decode_task
from fluxpool_contract.messages.derived import task_digest
from fluxpool_contract.messages.task import MAX_TASK_BYTES, GenerationParameters, Quality
from fluxpool_gateway.http.generation_request import (
    GenerationRequest,
    Priority,
    check_idempotency_key,
    check_image_folder,
    check_quality,
    parse_request,
    render_task,
)
from fluxpool_gateway.http.problem import ProblemCode, ProblemError


def refusal_of(body: bytes) -> ProblemError:
    with pytest.raises(ProblemError) as caught:
        parse_request(body)
    return caught.value


def test_a_task_holds_the_id_and_the_given_fields_alone() -> None:
    request = parse_request(b'{"width": 512, "prompt": "a cat", "priority": "vip"}')
    assert render_task(request, "r-1") == b'{"request_id":"r-1","prompt":"a cat","width":512}'
    assert request.priority is Priority.VIP


def test_a_task_decodes_as_the_worker_reads_it() -> None:
    request = parse_request('{"prompt": "Füße 🦶 \\"quoted\\"", "seed": 7, "metadata": {"a": "b"}}'.encode())
    decoded = decode_task(render_task(request, "r-1"), [])
    assert (decoded.task.prompt, decoded.task.seed, decoded.task.metadata) == ('Füße 🦶 "quoted"', 7, {"a": "b"})
    assert decoded.task.model_extra == {}


def test_a_picture_to_start_from_reaches_the_task_and_counts_the_steps_that_are_run() -> None:
    request = parse_request(b'{"prompt": "a cat", "image": "_inputs/default/cat.png", "strength": 0.5, "steps": 20}')
    decoded = decode_task(render_task(request, "r-1"), [])
    assert (decoded.task.image, decoded.task.strength) == ("_inputs/default/cat.png", 0.5)
    assert request.relative_work == pytest.approx(10 / 28)


@pytest.mark.parametrize(
    "address",
    ["_inputs/acme/cat.png", "s3://bucket/_inputs/pool-a/acme/cats/cat.png", "file:///srv/_inputs/acme/a.png"],
)
def test_a_picture_in_a_folder_of_the_tenant_is_accepted(address: str) -> None:
    check_image_folder(parse_request(json.dumps({"prompt": "a", "image": address}).encode()), "acme")


@pytest.mark.parametrize("address", ["_inputs/default/cat.png", "_inputs/acme-2/cat.png", "acme", "_inputs/b/acme"])
def test_a_picture_in_the_folder_of_another_tenant_is_refused_with_the_folder_of_the_callers(address: str) -> None:
    with pytest.raises(ProblemError, match="must be in the folder of the tenant acme, such as _inputs/acme/cat"):
        check_image_folder(parse_request(json.dumps({"prompt": "a", "image": address}).encode()), "acme")


@pytest.mark.parametrize(
    ("body", "field"),
    [
        (b'{"prompt": "a", "strength": 0.5}', "strength"),
        (b'{"prompt": "a", "image": "https://example.com/a.png"}', "image"),
        (b'{"prompt": "a", "image": "_inputs/default/../claims/a"}', "image"),
    ],
)
def test_a_picture_that_no_pool_reads_is_refused_at_once(body: bytes, field: str) -> None:
    problem = refusal_of(body)
    assert problem.status is HTTPStatus.UNPROCESSABLE_ENTITY
    assert problem.fields[0].field == field


def test_the_same_fields_in_another_order_and_under_other_names_are_the_same_bytes() -> None:
    one = parse_request(b'{"prompt":"a","num_inference_steps":4,"guidance_scale":3}')
    two = parse_request(b'{ "guidance": 3.0, "steps": 4, "prompt": "a" }')
    assert render_task(one, "r") == render_task(two, "r")
    assert task_digest(render_task(one, "r")) == task_digest(render_task(two, "r"))


@pytest.mark.parametrize(
    ("body", "status", "code", "field"),
    [
        (b"", 400, ProblemCode.INVALID_REQUEST, ""),
        (b"{", 400, ProblemCode.INVALID_REQUEST, ""),
        (b"[1]", 400, ProblemCode.INVALID_REQUEST, ""),
        (b'{"prompt":"\xff"}', 400, ProblemCode.INVALID_REQUEST, ""),
        (b'{"prompt":"a","step":3}', 400, ProblemCode.UNSUPPORTED_PARAMETER, "step"),
        (b'{"prompt":"a","request_id":"mine"}', 400, ProblemCode.UNSUPPORTED_PARAMETER, "request_id"),
        (b'{"prompt":"a","steps":3,"num_inference_steps":4}', 400, ProblemCode.UNSUPPORTED_PARAMETER,
         "num_inference_steps"),
        (b"{}", 422, ProblemCode.INVALID_REQUEST, "prompt"),
        (b'{"prompt":"  "}', 422, ProblemCode.INVALID_REQUEST, "prompt"),
        (b'{"prompt":"a","width":1000}', 422, ProblemCode.INVALID_SIZE, "width"),
        (b'{"prompt":"a","height":"512"}', 422, ProblemCode.INVALID_SIZE, "height"),
        (b'{"prompt":"a","num_inference_steps":0}', 422, ProblemCode.INVALID_REQUEST, "num_inference_steps"),
        (b'{"prompt":"a","seed":4294967295,"n":2}', 422, ProblemCode.INVALID_REQUEST, "seed"),
        (b'{"prompt":"a","priority":"urgent"}', 422, ProblemCode.INVALID_REQUEST, "priority"),
        (b'{"prompt":"a","guidance":NaN}', 422, ProblemCode.INVALID_REQUEST, "guidance"),
        (b'{"prompt":"a","metadata":{"k":1}}', 422, ProblemCode.INVALID_REQUEST, "metadata.k"),
        (b'{"prompt":"a","stepz":1,"steps":0}', 422, ProblemCode.INVALID_REQUEST, "steps"),
    ],
)  # fmt: skip
def test_a_refusal_has_its_status_its_code_and_names_the_field(
    body: bytes, status: int, code: ProblemCode, field: str
) -> None:
    problem = refusal_of(body)
    assert (problem.status, problem.code) == (status, code)
    assert field in [named.field for named in problem.fields]


def test_a_problem_document_has_the_members_of_rfc_9457_and_the_error_that_openai_clients_read() -> None:
    document = json.loads(
        refusal_of(b'{"prompt":"a","metadata":{"k/~":1}}').render(correlation_id="x-1", instance="/v1/generations")
    )
    assert document["type"] == "urn:fluxpool:problem:invalid-request"
    assert (document["status"], document["correlation_id"], document["instance"]) == (422, "x-1", "/v1/generations")
    assert [error["pointer"] for error in document["errors"]] == ["#/metadata/k~1~0"]
    assert document["error"] == {
        "message": document["detail"],
        "type": "invalid_request_error",
        "param": "metadata.k/~",
        "code": "invalid_request",
    }


def test_a_refusal_of_thousands_of_fields_is_shorter_than_its_request() -> None:
    body = json.dumps({"prompt": "a"} | dict.fromkeys(map(str, range(5_000)), 1)).encode()
    document = refusal_of(body).render(correlation_id="x-1", instance="/v1/generations")
    assert len(document) < 10_000
    assert b"and 4,980 more" in document


@pytest.mark.parametrize("members", [b'"":1', b'"a":1'])
def test_entries_are_not_validated_when_there_are_too_many_or_all_have_one_name(members: bytes) -> None:
    problems = refusal_of(b'{"prompt":"a","metadata":{%s}}' % b",".join([members] * 11_000)).fields
    assert len(problems) <= 2
    many = refusal_of(json.dumps({"prompt": "a", "metadata": dict.fromkeys(map(str, range(17)), 1)}).encode())
    assert [str(problem) for problem in many.fields] == ["metadata: must have at most 16 entries"]


def test_a_byte_order_mark_before_a_request_is_ignored() -> None:
    assert parse_request(b'\xef\xbb\xbf{"prompt":"a"}').prompt == "a"


def test_the_refusal_of_another_encoding_names_it() -> None:
    assert "it is encoded as UTF-16; send JSON in UTF-8" in refusal_of('{"prompt":"a"}'.encode("utf-16")).detail


def test_a_body_that_is_too_large_with_its_id_is_refused() -> None:
    metadata = {str(index): "x" * 512 for index in range(16)}
    body = {"prompt": "🦶" * 10_000, "negative_prompt": "🦶" * 4_000, "metadata": metadata}
    fits = parse_request(json.dumps(body, ensure_ascii=False).encode())
    assert len(render_task(fits, "r")) < MAX_TASK_BYTES
    outgrows = parse_request(json.dumps(body | {"negative_prompt": "🦶" * 5_000}, ensure_ascii=False).encode())
    with pytest.raises(ProblemError) as caught:
        render_task(outgrows, "r")
    assert caught.value.status == HTTPStatus.REQUEST_ENTITY_TOO_LARGE


@pytest.mark.parametrize("key", [b"", b"a b", b"\xe4", b"x" * 256, b"a\x00"])
def test_a_malformed_idempotency_key_is_refused_by_name(key: bytes) -> None:
    with pytest.raises(ProblemError, match="Idempotency-Key") as caught:
        check_idempotency_key(key)
    assert caught.value.status == HTTPStatus.BAD_REQUEST


def test_fields_with_a_second_name_have_the_limits_of_the_contract() -> None:
    def limits(model: type[GenerationParameters], field: str) -> dict[str, Any]:
        schema: dict[str, Any] = model.model_json_schema()["properties"][field]
        return {key: value for key, value in schema.items() if key != "description"}

    for field in GenerationParameters.model_fields:
        assert limits(GenerationRequest, field) == limits(GenerationParameters, field)


@pytest.mark.parametrize(
    ("body", "allowed"),
    [
        (b'{"prompt":"a"}', (Quality.EXACT,)),
        (b'{"prompt":"a","quality":"exact"}', (Quality.EXACT,)),
        (b'{"prompt":"a","quality":"fast"}', tuple(Quality)),
        (b'{"prompt":"a","quality":"fast"}', ()),
    ],
    ids=["none", "exact", "fast", "unknown pools"],
)
def test_a_quality_that_the_pools_allow_is_taken(body: bytes, allowed: tuple[Quality, ...]) -> None:
    check_quality(parse_request(body), allowed)


def test_a_quality_that_no_pool_allows_is_refused_with_those_that_are_allowed() -> None:
    with pytest.raises(ProblemError) as caught:
        check_quality(parse_request(b'{"prompt":"a","quality":"fast"}'), (Quality.EXACT,))
    problem = caught.value
    assert problem.status == HTTPStatus.UNPROCESSABLE_ENTITY
    assert [str(field) for field in problem.fields] == ["quality: fast is not allowed here; use exact, or leave it out"]
