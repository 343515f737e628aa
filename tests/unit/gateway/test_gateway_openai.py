"""The OpenAI endpoint over a real task store: its responses, and what each end of a task is answered with."""

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest

from fluxpool_contract.messages.derived import idempotent_request_id
from fluxpool_contract.messages.progress import Preview
from fluxpool_contract.messages.result import GenerationResult, ImageDescription, ResultStatus, TaskError
from fluxpool_contract.problems import ErrorClass, ErrorCode
from fluxpool_gateway.http.openai.ending import ping_seconds, read_timeout_seconds, wait_seconds
from fluxpool_gateway.http.openai.image_request import ImageRequest
from fluxpool_gateway.http.openai.image_response import PartialImages
from fluxpool_gateway.live.previews import PreviewView
from fluxpool_gateway.store.task_state import ResultSeen, TaskKey, TaskStatus
from fluxpool_gateway.tasks.producer import DeliveryError, DeliveryFailure
from kit.gateways.keyed_gateway import Gateway, keyed_gateway, keyed_settings
from kit.waiting import wait_until

PATH = "/v1/images/generations"
KEY = "once"
TASK = idempotent_request_id("default", KEY)
STATUSES = {
    ResultStatus.SUCCESS: TaskStatus.SUCCEEDED,
    ResultStatus.FAILED: TaskStatus.FAILED,
    ResultStatus.EXPIRED: TaskStatus.EXPIRED,
    ResultStatus.CANCELED: TaskStatus.CANCELED,
}


@pytest.fixture
async def gateway(tmp_path: Path) -> AsyncIterator[Gateway]:
    async with keyed_gateway(keyed_settings(tmp_path)) as running:
        yield running


def image(index: int, *, folder: str = "default") -> ImageDescription:
    return ImageDescription(
        index=index,
        url=f"http://gateway/v1/generations/{TASK}/images/{index}",
        object=f"{folder}/{TASK}/{index}.png",
        width=64,
        height=96,
        seed=7 + index,
        format="png",
        content_type="image/png",
        bytes=3,
        sha256="",
    )


def end(status: ResultStatus = ResultStatus.SUCCESS, **fields: Any) -> ResultSeen:
    """The end of the key's task; its images are stored by `store`."""
    result = GenerationResult(request_id=TASK, image_url=None, status=status, **fields)
    body, ended = result.model_dump_json(), STATUSES[status]
    return ResultSeen(request_id=TASK, status=ended, body=body, completed_at_ms=9, tenant="default")


def store(gateway: Gateway, *payloads: bytes) -> None:
    for index, payload in enumerate(payloads):
        file = Path(str(gateway.settings.task_store_file())).parent / "images" / image(index).object
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(payload)


async def ask(gateway: Gateway, *, key: str | None = KEY, timeout: float = 0.1, **fields: Any) -> httpx.Response:
    headers = {"x-stainless-read-timeout": str(timeout)} | ({} if key is None else {"idempotency-key": key})
    return await gateway.one.ask("POST", PATH, gateway.admin, headers=headers, json={"prompt": "a fox"} | fields)


async def ask_until(gateway: Gateway, ended: ResultSeen, **fields: Any) -> httpx.Response:
    """The answer to a request whose task ends while it waits."""
    asking = asyncio.ensure_future(ask(gateway, timeout=60, **fields))
    await wait_until(lambda: bool(gateway.records.values), deadline_seconds=30, what="the task's record")
    gateway.project(ended)
    return await asking


def events(answer: httpx.Response) -> list[tuple[str, Any]]:
    """The events of a stream, without comments."""
    blocks = [block.splitlines() for block in answer.text.split("\n\n") if block and not block.startswith(":")]
    return [(name.removeprefix("event: "), json.loads(data.removeprefix("data: "))) for name, data in blocks]


async def test_images_come_with_their_files_and_addresses(gateway: Gateway) -> None:
    store(gateway, b"one", b"two")
    answer = await ask_until(
        gateway,
        end(images=(image(0), image(1)), model="FLUX.1-dev", warnings=("too long",), seed=7),
        user="ann",
        quality="high",
        what=1,
    )
    document = answer.json()
    assert (answer.status_code, answer.headers["cache-control"]) == (200, "no-store")
    assert document.pop("created") > 0
    assert document == {
        "background": "opaque",
        "output_format": "png",
        "quality": "high",
        "size": "64x96",
        "safety_identifier": "ann",
        "request_id": TASK,
        "model": "FLUX.1-dev",
        "warnings": [
            "what has no effect: it is not a known field",
            "quality high is the pool's default: the gateway knows of no pool with exact",
            "too long",
        ],
        "data": [
            {"b64_json": base64.b64encode(payload).decode(), "url": image(index).url, "seed": 7 + index}
            for index, payload in enumerate((b"one", b"two"))
        ],
    }


async def test_addresses_alone_need_no_files(gateway: Gateway) -> None:
    answer = await ask_until(gateway, end(images=(image(0),)), response_format="url")
    assert answer.json()["data"] == [{"url": image(0).url, "seed": 7}]


async def test_a_file_that_only_lies_in_the_store_has_the_address_of_the_gateway(gateway: Gateway) -> None:
    answer = await ask_until(
        gateway, end(images=(image(0).model_copy(update={"url": "s3://bucket/0.png"}),)), response_format="url"
    )
    assert answer.json()["data"][0]["url"] == image(0).url


async def test_a_stream_has_one_event_for_each_image(gateway: Gateway) -> None:
    store(gateway, b"one", b"two")
    answer = await ask_until(
        gateway, end(images=(image(0), image(1))), stream=True, partial_images=3, response_format="url", n=2
    )
    assert (answer.status_code, answer.headers["content-type"]) == (200, "text/event-stream; charset=utf-8")
    assert answer.text.startswith(": ping\n\n")
    shown = events(answer)
    assert [name for name, _ in shown] == ["image_generation.completed"] * 2
    for index, (name, event) in enumerate(shown):
        assert event["type"] == name
        assert (event["index"], event["seed"], event["size"], event["quality"]) == (index, 7 + index, "64x96", "auto")
        assert base64.b64decode(event["b64_json"]) == (b"one", b"two")[index]


async def test_a_stream_has_previews_of_each_image_before_the_images(gateway: Gateway) -> None:
    store(gateway, b"one", b"two")
    previews = gateway.one.app.state.services.previews
    asking = asyncio.ensure_future(ask(gateway, timeout=60, stream=True, partial_images=1, size="64x96", n=2))
    await wait_until(lambda: bool(gateway.records.values), deadline_seconds=30, what="the task's record")
    assert gateway.records.values[0]["preview"] is True
    await previews.wait_watched()
    for step in (2, 4, 6, 12, 16):
        preview = Preview(content_type="image/webp", data="UklGRg==", index=step > 8)
        previews.show(TaskKey(TASK, "default"), preview, attempt=1, step=step, total_steps=16)
        for _ in range(20):
            await asyncio.sleep(0)
    gateway.project(end(images=(image(0), image(1))))
    shown = events(await asking)
    assert [name.removeprefix("image_generation.") for name, _ in shown] == [*["partial_image"] * 2, *["completed"] * 2]
    for index, (name, event) in enumerate(shown[:2]):
        assert event["type"] == name
        assert (event["index"], event["partial_image_index"], event["size"]) == (index, 0, "64x96")
        assert (event["output_format"], base64.b64decode(event["b64_json"])) == ("webp", b"RIFF")
    assert not previews.is_watched


@pytest.mark.parametrize(
    ("most", "n", "sent"),
    [
        (3, 1, [(8, 0, 0), (16, 0, 1), (24, 0, 2)]),
        (2, 1, [(12, 0, 0), (24, 0, 1)]),
        (1, 2, [(8, 0, 0), (24, 1, 0)]),
        (0, 1, []),
    ],
)
def test_partial_images_are_spread_over_the_steps_of_each_image(
    most: int, n: int, sent: list[tuple[int, int, int]]
) -> None:
    chosen = PartialImages(wanted=ImageRequest(prompt="a", n=n, stream=True, partial_images=most), size="64x64")
    found = []
    for step in range(4, 32, 4):
        index = (step - 1) // (32 // n)
        preview = PreviewView(
            request_id="r", attempt=1, step=step, total_steps=32, index=index, content_type="image/webp", data=""
        )
        if event := chosen.event(preview, now=datetime(2026, 4, 5, tzinfo=UTC)):
            found.append((step, index, json.loads(event.decode().split("data: ")[1])["partial_image_index"]))
    assert found == sent


ENDS = [
    (ResultStatus.FAILED, ErrorClass.TRANSIENT, 500, "task_failed"),
    (ResultStatus.FAILED, ErrorClass.REJECTED, 400, "task_rejected"),
    (ResultStatus.FAILED, ErrorClass.INVALID, 400, "task_rejected"),
    (ResultStatus.EXPIRED, ErrorClass.EXPIRED, 504, "task_expired"),
    (ResultStatus.CANCELED, ErrorClass.CANCELED, 409, "task_canceled"),
]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("status", "kind", "http_status", "code"), ENDS)
async def test_an_end_without_images_is_an_error_that_is_not_repeated(
    gateway: Gateway, status: ResultStatus, kind: ErrorClass, http_status: int, code: str, *, stream: bool
) -> None:
    error = TaskError(code=ErrorCode.GENERATION_FAILED, error_class=kind, message="steps: too many", field="steps")
    answer = await ask_until(gateway, end(status, error=error), stream=stream)
    if stream:
        ((name, document),) = events(answer)
        assert (answer.status_code, name) == (200, "error")
    else:
        document = answer.json()
        assert answer.status_code == http_status
        assert answer.headers["x-should-retry"] == "false"
        assert answer.headers["location"] == f"http://gateway/v1/generations/{TASK}"
    assert (document["error"]["code"], document["error"]["request_id"], document["status"]) == (code, TASK, http_status)
    assert "steps: too many" in document["error"]["message"]
    assert [item["detail"] for item in document.get("errors", ())] == ["too many"] * (status is ResultStatus.FAILED)
    assert document["error"]["param"] == ("steps" if status is ResultStatus.FAILED else None)


async def test_a_success_without_images_or_files_is_an_error(gateway: Gateway) -> None:
    assert (await ask_until(gateway, end())).json()["error"]["code"] == "task_failed"


async def test_a_file_that_is_gone_is_an_error_but_its_address_is_not(gateway: Gateway) -> None:
    assert (await ask_until(gateway, end(images=(image(0),)))).json()["error"]["code"] == "gone"
    assert (await ask(gateway, response_format="url")).is_success


async def test_a_result_leads_to_no_files_of_another_tenant(gateway: Gateway) -> None:
    secret = Path(str(gateway.settings.task_store_file())).parent / "images" / "acme" / TASK / "0.png"
    secret.parent.mkdir(parents=True)
    secret.write_bytes(b"secret of acme")
    assert (await ask_until(gateway, end(images=(image(0, folder="acme"),)))).json()["error"]["code"] == "gone"


async def test_a_wait_that_is_over_names_the_task_which_goes_on(gateway: Gateway) -> None:
    answer = await ask(gateway, key=None)
    document = answer.json()
    assert (answer.status_code, document["error"]["code"]) == (504, "wait_timeout")
    assert answer.headers["x-should-retry"] == "false"
    (task,) = gateway.records.values
    assert document["error"]["request_id"] == document["request_id"] == task["request_id"]
    assert not gateway.records.commands
    state = await gateway.one.ask("GET", answer.headers["location"], gateway.admin)
    assert state.json()["status"] == "queued"


async def test_a_wait_ends_with_the_task_and_not_before(gateway: Gateway) -> None:
    asking = asyncio.ensure_future(ask(gateway, timeout=60, response_format="url"))
    await wait_until(lambda: bool(gateway.records.values), deadline_seconds=30, what="the task's record")
    await asyncio.wait([asking], timeout=0.2)
    assert not asking.done()
    gateway.project(end(images=(image(0),)))
    assert (await asking).is_success


async def test_a_refused_submission_is_answered_as_such_also_for_a_stream(gateway: Gateway) -> None:
    gateway.records.failure = DeliveryError(DeliveryFailure.TIMED_OUT, "no answer")
    answer = await ask(gateway, stream=True)
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "queue_unavailable")
    assert "x-should-retry" not in answer.headers


@pytest.mark.parametrize(
    ("fields", "code", "param"),
    [
        ({"n": 9}, "invalid_request", "n"),
        ({"response_format": {"type": "url"}}, "invalid_request", "response_format"),
        ({"output_format": "gif"}, "invalid_request", "output_format"),
        ({"size": "10x10"}, "invalid_size", "size"),
        ({"background": "transparent"}, "unsupported_parameter", "background"),
        ({"steps": 1000}, "invalid_request", "steps"),
        ({"prompt": 7}, "invalid_request", "prompt"),
    ],
)
async def test_an_invalid_request_is_a_bad_request_and_no_task(
    gateway: Gateway, fields: dict[str, Any], code: str, param: str
) -> None:
    answer = await ask(gateway, **fields)
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert (error["code"], error["param"], error["type"]) == (code, param, "invalid_request_error")
    assert not gateway.records.values


@pytest.mark.parametrize(
    ("body", "status"),
    [(b"", 400), (b"[]", 400), (b"{", 400), (b"null", 400), (b'{"prompt": "\xff"}', 400), (b"[" * 60_000, 400),
     (b'{"prompt": "\\ud800"}', 400), (b'{"prompt": "a", "seed": ' + b"9" * 9000 + b"}", 400)],
)  # fmt: skip
async def test_an_odd_body_is_a_bad_request(gateway: Gateway, body: bytes, status: int) -> None:
    headers = {"content-type": "application/json", "x-stainless-read-timeout": "0.1"}
    answer = await gateway.one.ask("POST", PATH, gateway.admin, headers=headers, content=body)
    assert (answer.status_code, answer.json()["error"]["type"]) == (status, "invalid_request_error"), answer.text


async def test_rights_of_the_key_hold_here_as_well(gateway: Gateway) -> None:
    limited = await gateway.create("submit", "read", priorities=["standard"])
    answer = await gateway.one.ask("POST", PATH, limited, json={"prompt": "a", "priority": "vip"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (403, "not_entitled")
    for scope in ("submit", "read"):
        answer = await gateway.one.ask("POST", PATH, await gateway.create(scope), json={"prompt": "a"})
        assert (answer.status_code, answer.json()["error"]["code"]) == (403, "insufficient_scope")


@pytest.mark.parametrize(
    ("headers", "waited", "pinged"),
    [
        ([], 600, 15),
        ([(b"x-stainless-read-timeout", b"600")], 595, 15),
        ([(b"x-stainless-read-timeout", b"600.0")], 595, 15),
        ([(b"x-stainless-timeout", b"60")], 55, 15),
        ([(b"x-stainless-read-timeout", b"6")], 3, 2),
        ([(b"x-stainless-read-timeout", b"86400")], 600, 15),
        *(([(b"x-stainless-read-timeout", odd)], 600, 15) for odd in (b"", b"nan", b"inf", b"-1", b"0", b"None")),
    ],
)
def test_the_wait_ends_before_the_client_gives_up(
    headers: list[tuple[bytes, bytes]], waited: float, pinged: float
) -> None:
    timeout = read_timeout_seconds(headers)
    assert (wait_seconds(timeout), ping_seconds(timeout)) == (waited, pinged)
