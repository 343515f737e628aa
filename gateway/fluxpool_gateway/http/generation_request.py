"""A submission's body: from bytes to a validated request, and from that to the value and headers of a Kafka record.

Pure. Owns the HTTP names of fields and the answer to an invalid body; the limits themselves are the contract's.
"""

import json
from collections.abc import Collection, Iterable, Mapping
from datetime import datetime, timedelta
from enum import StrEnum
from http import HTTPStatus
from types import MappingProxyType
from typing import Annotated, Any, Final

from pydantic import AliasChoices, ConfigDict, Field, ValidationError

from fluxpool_contract import header_names
from fluxpool_contract.bounds import MAX_COUNT
from fluxpool_contract.json_body import without_bom
from fluxpool_contract.kafka import TopicNames
from fluxpool_contract.messages import (
    MAX_STEPS,
    MAX_TASK_BYTES,
    PRESET_PATTERN,
    GenerationParameters,
    Quality,
    TaskWebhook,
    format_time,
    input_folder,
)
from fluxpool_contract.problems import FieldProblem, explain, summarize
from fluxpool_gateway.http.problem import ProblemCode, ProblemError, invalid_header

MAX_BODY_BYTES: Final = MAX_TASK_BYTES
MAX_BATCH_BYTES: Final = 768 * 1024
"""Of the body of a batch; with its framing it is a message of at most `protocol.MAX_MESSAGE_BYTES`."""
MAX_WAIT_SECONDS: Final = 86_400
MAX_IDEMPOTENCY_KEY_CHARACTERS: Final = 255
EVENT_SOURCE: Final = "/fluxpool/gateway"
_MAX_TRACE_BYTES: Final = 512


class Priority(StrEnum):
    """The task topic of a request."""

    STANDARD = "standard"
    VIP = "vip"

    def topic(self, topics: TopicNames) -> str:
        """The topic of its tasks."""
        return topics.tasks_vip if self is Priority.VIP else topics.tasks


class GenerationRequest(GenerationParameters):
    """A request for images."""

    model_config = ConfigDict(extra="forbid", title="GenerationRequest")

    steps: Annotated[int, Field(ge=1, le=MAX_STEPS, validation_alias=AliasChoices("steps", "num_inference_steps"))] = 28
    """Denoising steps; when absent 4 with FLUX.1-schnell. `num_inference_steps` is understood as well."""
    guidance: Annotated[float, Field(ge=0, le=20, validation_alias=AliasChoices("guidance", "guidance_scale"))] = 3.5
    """Distilled guidance, costs nothing; no effect with FLUX.1-schnell. `guidance_scale` is understood as well."""
    priority: Annotated[Priority, Field(strict=False)] = Priority.STANDARD
    """standard or vip."""
    preset: Annotated[str, Field(pattern=PRESET_PATTERN)] | None = None
    """Name of one of the gateway's presets, which sets some parameters, or auto for the one that people are likely to
    prefer. A parameter that the preset sets is refused beside it."""
    max_queue_position: Annotated[int, Field(ge=0, le=MAX_COUNT)] | None = None
    """Refuse the request when more tasks than this are likely to begin before it."""
    start_within_s: Annotated[int, Field(ge=1, le=MAX_WAIT_SECONDS)] | None = None
    """Refuse the request when no worker is likely to begin it within this time. Compared once, when it is accepted."""
    deadline_s: Annotated[int, Field(ge=1, le=MAX_WAIT_SECONDS)] | None = None
    """Refuse the request when its result is not likely within this time, and end an accepted task as `expired` then."""
    webhook: TaskWebhook | None = None
    """Where to post the end of the task, as `{"url": "https://..."}`, signed with the secret of the tenant's requests;
    with `events` only of these: generation.succeeded, .failed, .canceled, .expired."""

    @property
    def limits_wait(self) -> bool:
        """Whether it is to be refused rather than to wait too long."""
        return self.max_queue_position is not None or self.start_within_s is not None or self.deadline_s is not None


_ALIASES = {"num_inference_steps": "steps", "guidance_scale": "guidance"}
_VALIDATE = GenerationRequest.__pydantic_validator__.validate_json
_SERIALIZE = GenerationRequest.__pydantic_serializer__.to_json
# The lane is said by the topic and a header, and the deadline by a header; in the body they would make one request with
# two priorities or limits two requests.
_PRIORITY = {"priority"}
_NOT_IN_THE_TASK = _PRIORITY | {"max_queue_position", "start_within_s", "deadline_s"}


def parse_request(body: bytes) -> GenerationRequest:
    """The request in a body.

    Raises `ProblemError`: 400 for bad JSON and unknown fields, 422 for values that are not allowed, each field named.
    """
    try:
        request: GenerationRequest = _VALIDATE(without_bom(body))
    except ValidationError as error:
        raise _refusal(error, body) from None
    return request


def check_quality(request: GenerationRequest, allowed: Collection[Quality]) -> None:
    """Raises `ProblemError` (422) for a quality that no pool allows; with `allowed` empty that is unknown."""
    if not allowed or request.quality is None or request.quality in allowed:
        return
    names = " or ".join(quality.value for quality in allowed)
    raise _not_allowed("quality", f"{request.quality.value} is not allowed here; use {names}, or leave it out")


def check_image_folder(request: GenerationRequest, tenant: str) -> None:
    """Raises `ProblemError` (422) for a picture that no pool reads for the tenant: it is in no folder of its name.

    Which folders these are is the pool's choice (`image.inputPrefix`), and its workers check the whole of them.
    """
    if request.image is not None and tenant not in request.image.split("/")[:-1]:
        folder = input_folder("_inputs/", tenant)
        raise _not_allowed("image", f"must be in the folder of the tenant {tenant}, such as {folder}cat.png")


def _not_allowed(field: str, reason: str) -> ProblemError:
    problem = FieldProblem(field, reason)
    return ProblemError(
        ProblemCode.INVALID_REQUEST, str(problem), fields=[problem], status=HTTPStatus.UNPROCESSABLE_ENTITY
    )


def render_task(
    request: GenerationRequest,
    request_id: str,
    *,
    parent_id: str | None = None,
    more: Mapping[str, Any] = MappingProxyType({}),
) -> bytes:
    """The value of the task's record: the id and the given fields alone, as compact JSON, with `more` behind.

    Defaults are left to the worker, so that a repeat of the same request is the same bytes whatever the release.
    Raises `ProblemError` (413) when it is larger than a task may be.
    """
    # Each excluded name costs, and most requests have none of the limits.
    exclude = _NOT_IN_THE_TASK if request.limits_wait else _PRIORITY
    fields = _SERIALIZE(request, exclude_unset=True, exclude=exclude)
    value = b'{"request_id":"%s",%s' % (request_id.encode(), fields[1:])
    if parent_id is not None:
        value = b'{"parent_id":"%s",%s' % (parent_id.encode(), value[1:])
    if more:
        added = json.dumps(dict(more), ensure_ascii=False, separators=(",", ":")).encode()
        value = b"%s,%s" % (value[:-1], added[1:])
    if len(value) > MAX_TASK_BYTES:
        raise body_too_large()
    return value


# Encoded once: only ids and times differ between records.
_CONSTANT_HEADERS: Final = [
    (header_names.CE_SPECVERSION, b"1.0"),
    (header_names.CE_TYPE, header_names.TYPE_REQUESTED.encode()),
    (header_names.CE_SOURCE, EVENT_SOURCE.encode()),
    (header_names.CONTENT_TYPE, b"application/json"),
]
_PRIORITY_HEADER: Final = {priority: (header_names.PRIORITY, priority.value.encode()) for priority in Priority}


def render_headers(
    request_id: str,
    priority: Priority,
    *,
    tenant: str,
    tenant_proof: str | None = None,
    accepted_at: datetime,
    deadline_s: int | None = None,
    trace: Iterable[tuple[str, bytes | None]],
) -> list[tuple[str, bytes]]:
    """The same headers as `cloud_event_headers` and `render_envelope` give, at less cost for each record.

    `trace` is traceparent and then tracestate, as received; what is invalid ends it.
    """
    time_text = format_time(accepted_at).encode()
    encoded_id = request_id.encode()
    rendered = [
        *_CONSTANT_HEADERS,
        (header_names.TENANT, tenant.encode()),
        (header_names.CE_ID, encoded_id),
        (header_names.CE_SUBJECT, encoded_id),
        (header_names.CE_TIME, time_text),
        (header_names.FIRST_SEEN, time_text),
        _PRIORITY_HEADER[priority],
    ]
    if deadline_s is not None:
        rendered.append((header_names.DEADLINE, format_time(accepted_at + timedelta(seconds=deadline_s)).encode()))
    if tenant_proof is not None:
        rendered.append((header_names.TENANT_PROOF, tenant_proof.encode()))
    for name, value in trace:
        if value is None or len(value) > _MAX_TRACE_BYTES or not value.isascii():
            break
        rendered.append((name, value))
    return rendered


def check_idempotency_key(raw: bytes) -> str:
    """The key itself; raises `ProblemError` (400) when it is empty, too long or not printable ASCII."""
    if not (0 < len(raw) <= MAX_IDEMPOTENCY_KEY_CHARACTERS and all(0x21 <= byte <= 0x7E for byte in raw)):
        raise invalid_header(
            "Idempotency-Key",
            f"must be 1 to {MAX_IDEMPOTENCY_KEY_CHARACTERS} printable ASCII characters without blanks, such as a UUID",
        )
    return raw.decode("ascii")


def body_too_large(maximum_bytes: int = MAX_BODY_BYTES) -> ProblemError:
    """The refusal of a body past the limit."""
    return ProblemError(
        ProblemCode.PAYLOAD_TOO_LARGE,
        f"the request may be at most {maximum_bytes} bytes long, with its request_id; shorten it",
        headers=[("connection", "close")],
    )


def _refusal(error: ValidationError, body: bytes) -> ProblemError:
    kinds = {item["type"] for item in error.errors(include_url=False, include_context=False, include_input=False)}
    problems = [_http_words(problem) for problem in explain(error, body=body)]
    status, code = None, ProblemCode.INVALID_REQUEST
    if kinds == {"extra_forbidden"}:
        code = ProblemCode.UNSUPPORTED_PARAMETER
    elif not kinds & {"json_invalid", "model_type"}:
        if problems[0].field in {"width", "height"}:
            code = ProblemCode.INVALID_SIZE
        status = HTTPStatus.UNPROCESSABLE_ENTITY
    return ProblemError(code, summarize(problems), fields=problems, status=status)


def _http_words(problem: FieldProblem) -> FieldProblem:
    """The problem under the field it is about: checks across fields name theirs in the message, and aliases explain."""
    if not problem.field:
        name, separator, message = problem.message.partition(": ")
        if separator and name in GenerationRequest.model_fields:
            return FieldProblem(name, message)
    if problem.field in _ALIASES and problem.message.startswith("is not a known field"):
        original = _ALIASES[problem.field]
        return FieldProblem(problem.field, f"is another name of {original}; give one of the two")
    return problem
