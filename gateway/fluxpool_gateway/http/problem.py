"""Error responses: RFC 9457 problem documents with an `error` member that OpenAI clients read.

Owns the document, its schema and the closed set of codes. Knows nothing of routes.
"""

import json
from collections.abc import Mapping, Sequence
from enum import StrEnum
from http import HTTPStatus
from typing import Any, Final, Self
from urllib.parse import quote

from pydantic import BaseModel, ConfigDict

from fluxpool_contract.bounds import cut_text
from fluxpool_contract.problems import FieldProblem

MEDIA_TYPE = "application/problem+json"
TYPE_PREFIX = "urn:fluxpool:problem:"
MAX_DETAIL_BYTES: Final = 1024
"""The text appears twice in a document; `errors` names each problem anyway."""
MAX_INSTANCE_BYTES: Final = 512
RETRY_AFTER_SECONDS: Final = 1
"""Kafka and the store answer within a second again in most outages that a retry outlives."""


class ProblemCode(StrEnum):
    """The stable name of a refused request; clients branch on it."""

    status: HTTPStatus
    summary: str

    def __new__(cls, code: str, status: int, summary: str) -> Self:
        """A code with its HTTP status and the `title` of its documents."""
        member = str.__new__(cls, code)
        member._value_ = code
        member.status = HTTPStatus(status)
        member.summary = summary
        return member

    INVALID_REQUEST = "invalid_request", 400, "The request is not valid"
    INVALID_SIZE = "invalid_size", 422, "The image size is not possible"
    UNSUPPORTED_PARAMETER = "unsupported_parameter", 400, "The request holds an unknown field"
    UNSUPPORTED_MEDIA_TYPE = "unsupported_media_type", 415, "The request body is not plain JSON"
    PAYLOAD_TOO_LARGE = "payload_too_large", 413, "The request body is too large"
    URI_TOO_LONG = "uri_too_long", 414, "The address is too long"
    HEADERS_TOO_LARGE = "headers_too_large", 431, "The headers are too large"
    REQUEST_TIMEOUT = "request_timeout", 408, "The request did not arrive in time"
    TOO_MANY_CONNECTIONS = "too_many_connections", 503, "Too many connections are open"
    IDEMPOTENCY_CONFLICT = "idempotency_conflict", 422, "The key or id was used for another request"
    IDEMPOTENCY_IN_PROGRESS = "idempotency_in_progress", 409, "Another request with this key or id is in progress"
    UNAUTHORIZED = "unauthorized", 401, "The request needs a valid API key or token"
    INSUFFICIENT_SCOPE = "insufficient_scope", 403, "The API key or token does not allow this"
    NOT_ENTITLED = "not_entitled", 403, "The API key or token does not allow a value"
    RATE_LIMIT_EXCEEDED = "rate_limit_exceeded", 429, "The tenant or the key submits more than it may"
    OUTSTANDING_LIMIT_EXCEEDED = "outstanding_limit_exceeded", 429, "The tenant has too many unfinished tasks"
    QUEUE_TOO_LONG = "queue_too_long", 429, "More tasks wait than the request allows"
    WOULD_START_LATE = "would_start_late", 429, "The task would not begin in time"
    WOULD_END_LATE = "would_end_late", 429, "The task would not end in time"
    TOO_MANY_EVENT_STREAMS = "too_many_event_streams", 429, "Too many event streams are read"
    NOT_FOUND = "not_found", 404, "There is nothing at this address"
    NOT_ACCEPTABLE = "not_acceptable", 406, "The response has no form that the request accepts"
    METHOD_NOT_ALLOWED = "method_not_allowed", 405, "The method is not allowed here"
    KEY_NOT_ACTIVE = "key_not_active", 409, "The API key is not active"
    WEBHOOK_DISABLED = "webhook_disabled", 409, "The endpoint is disabled"
    WEBHOOK_OF_REQUESTS = "webhook_of_requests", 409, "The endpoint is that of requests"
    TOO_MANY_WEBHOOKS = "too_many_webhooks", 409, "The tenant has too many endpoints"
    NOT_FINISHED = "not_finished", 409, "The task is not finished"
    ALREADY_RESOLVED = "already_resolved", 409, "The dead letter was replayed"
    NO_IMAGES = "no_images", 409, "The task has no images"
    IMAGE_UNREADABLE = "image_unreadable", 409, "The image cannot be decoded"
    GONE = "gone", 410, "It is no longer stored"
    TASK_REJECTED = "task_rejected", 400, "A worker refused the task"
    TASK_FAILED = "task_failed", 500, "The task failed"
    TASK_EXPIRED = "task_expired", 504, "The deadline passed before the task ended"
    TASK_CANCELED = "task_canceled", 409, "The task was canceled"
    WAIT_TIMEOUT = "wait_timeout", 504, "The wait ended before the task"
    QUEUE_UNAVAILABLE = "queue_unavailable", 503, "The queue is not available"
    STORE_UNAVAILABLE = "store_unavailable", 503, "The state of tasks is not available"
    IDENTITY_UNAVAILABLE = "identity_unavailable", 503, "Who calls cannot be found out at the moment"
    WEBHOOKS_UNAVAILABLE = "webhooks_unavailable", 503, "Webhooks cannot be read or written at the moment"
    STORAGE_FAILED = "storage_failed", 503, "The image store is not available"
    INTERNAL = "internal", 500, "The gateway failed"


class RefusedWait(BaseModel):
    """The wait that a request does not accept."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    limit: str
    """The field of the request that limits it: `max_queue_position`, `start_within_s` or `deadline_s`."""
    position: int | None
    """Tasks that are likely to begin before it."""
    starts_in_seconds: float | None
    """Until a worker would begin it."""
    eta_seconds: float | None
    """Until its result."""
    why: str
    """What the estimate comes from."""


class ProblemError(Exception):
    """One refusal, complete but for the ids of the request it answers; raised, it ends a route with its document."""

    def __init__(
        self,
        code: ProblemCode,
        detail: str,
        *,
        fields: Sequence[FieldProblem] = (),
        headers: Sequence[tuple[str, str]] = (),
        status: HTTPStatus | None = None,
        request_id: str | None = None,
        wait: RefusedWait | None = None,
    ) -> None:
        """`status` in place of the code's own; `request_id` of the task where the refused request has one."""
        self.wait = wait
        self.code = code
        self.detail = detail
        self.fields = fields
        self.headers = headers
        self.status = status or code.status
        self.request_id = request_id
        super().__init__(detail)

    def render(self, *, correlation_id: str, instance: str | None = None) -> bytes:
        """The JSON document; `instance` is the path asked for, `correlation_id` the `x-request-id` of the answer."""
        detail = cut_text(self.detail, MAX_DETAIL_BYTES)
        document: dict[str, Any] = {
            "type": TYPE_PREFIX + self.code.replace("_", "-"),
            "title": self.code.summary,
            "status": self.status.value,
            "detail": detail,
        }
        if instance is not None:
            document["instance"] = cut_text(quote(instance), MAX_INSTANCE_BYTES)
        document["correlation_id"] = correlation_id
        if self.fields:
            document["errors"] = [{"pointer": problem.pointer, "detail": problem.message} for problem in self.fields]
        if self.wait is not None:
            document["wait"] = self.wait.model_dump()
        document["error"] = self._error(detail)
        if self.request_id is not None:
            # In the error as well, which is all that the OpenAI SDK keeps of a document.
            document["request_id"] = document["error"]["request_id"] = self.request_id
        return json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode(errors="replace")

    def openai_error(self) -> "OpenAIError":
        """The `error` member alone."""
        return OpenAIError.model_validate(self._error(cut_text(self.detail, MAX_DETAIL_BYTES)))

    def _error(self, message: str) -> dict[str, Any]:
        return {
            "message": message,
            "type": "invalid_request_error" if self.status < HTTPStatus.INTERNAL_SERVER_ERROR else "server_error",
            "param": next((problem.field for problem in self.fields if problem.field), None),
            "code": self.code.value,
        }


def unavailable(code: ProblemCode, detail: str) -> ProblemError:
    """503 with `Retry-After`: the same request may succeed later."""
    return ProblemError(code, detail, headers=[("retry-after", str(RETRY_AFTER_SECONDS))])


def invalid_header(name: str, message: str) -> ProblemError:
    """400 for one header."""
    problem = FieldProblem(name, message)
    return ProblemError(ProblemCode.INVALID_REQUEST, str(problem), fields=[problem])


class FieldProblemDocument(BaseModel):
    """One field and what is wrong with it."""

    pointer: str
    detail: str


class OpenAIError(BaseModel):
    """The error as clients of the OpenAI API read it."""

    message: str
    type: str
    param: str | None
    code: str
    request_id: str = ""
    """Id of the task; absent where there is none."""


class ProblemDocument(BaseModel):
    """The schema of `ProblemError.render` for the OpenAPI document; it renders nothing, because it would cost more."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    type: str
    title: str
    status: int
    detail: str
    instance: str = ""
    """Path of the request; absent when it is unknown."""
    correlation_id: str
    """The `x-request-id` of this response."""
    request_id: str = ""
    """Id of the task whose images were waited for; absent where there is none."""
    wait: RefusedWait | None = None
    """The wait that the request does not accept; absent when it was refused for something else."""
    errors: list[FieldProblemDocument] = []
    """Each invalid field; absent when no field is at fault."""
    error: OpenAIError


BODY_PROBLEMS: Final = {
    400: "The body is not JSON.",
    415: "The body is not application/json.",
    422: "A value is not allowed; `errors` names each field.",
}
"""Of routes whose body FastAPI reads."""


def problems(descriptions: Mapping[int, str]) -> dict[int | str, dict[str, Any]]:
    """Responses of a route as FastAPI declares them, from statuses and what they mean there."""
    return {status: {"model": ProblemDocument, "description": text} for status, text in descriptions.items()}
