"""Error answers: RFC 9457 problem documents with an `error` member that OpenAI clients read.

Owns the shape and the closed set of codes. Knows nothing of routes, and takes no decision about who is at fault.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from http import HTTPStatus
from typing import Any, Final
from urllib.parse import quote

from fluxpool_contract.bounds import cut_text
from fluxpool_contract.problems import FieldProblem

MEDIA_TYPE = "application/problem+json"
TYPE_PREFIX = "urn:fluxpool:problem:"
MAX_DETAIL_BYTES: Final = 1024
"""The text appears twice in a document; `errors` names each problem anyway."""
MAX_INSTANCE_BYTES: Final = 512


class ProblemCode(StrEnum):
    """The stable name of a refused request; clients branch on it."""

    INVALID_REQUEST = "invalid_request"
    INVALID_SIZE = "invalid_size"
    UNSUPPORTED_PARAMETER = "unsupported_parameter"
    UNSUPPORTED_MEDIA_TYPE = "unsupported_media_type"
    PAYLOAD_TOO_LARGE = "payload_too_large"
    URI_TOO_LONG = "uri_too_long"
    HEADERS_TOO_LARGE = "headers_too_large"
    REQUEST_TIMEOUT = "request_timeout"
    TOO_MANY_CONNECTIONS = "too_many_connections"
    IDEMPOTENCY_CONFLICT = "idempotency_conflict"
    IDEMPOTENCY_IN_PROGRESS = "idempotency_in_progress"
    NOT_FOUND = "not_found"
    METHOD_NOT_ALLOWED = "method_not_allowed"
    NOT_FINISHED = "not_finished"
    NO_IMAGES = "no_images"
    QUEUE_UNAVAILABLE = "queue_unavailable"
    STORE_UNAVAILABLE = "store_unavailable"
    STORAGE_FAILED = "storage_failed"
    INTERNAL = "internal"


_TITLES: Final = {
    ProblemCode.INVALID_REQUEST: "The request is not valid",
    ProblemCode.INVALID_SIZE: "The image size is not possible",
    ProblemCode.UNSUPPORTED_PARAMETER: "The request holds an unknown field",
    ProblemCode.UNSUPPORTED_MEDIA_TYPE: "The request body is not plain JSON",
    ProblemCode.PAYLOAD_TOO_LARGE: "The request body is too large",
    ProblemCode.URI_TOO_LONG: "The address is too long",
    ProblemCode.HEADERS_TOO_LARGE: "The headers are too large",
    ProblemCode.REQUEST_TIMEOUT: "The request did not arrive in time",
    ProblemCode.TOO_MANY_CONNECTIONS: "Too many connections are open",
    ProblemCode.IDEMPOTENCY_CONFLICT: "The Idempotency-Key was used for another request",
    ProblemCode.IDEMPOTENCY_IN_PROGRESS: "Another request with this Idempotency-Key is in progress",
    ProblemCode.NOT_FOUND: "There is nothing at this address",
    ProblemCode.METHOD_NOT_ALLOWED: "The method is not allowed here",
    ProblemCode.NOT_FINISHED: "The task is not finished",
    ProblemCode.NO_IMAGES: "The task has no images",
    ProblemCode.QUEUE_UNAVAILABLE: "The queue is not available",
    ProblemCode.STORE_UNAVAILABLE: "The state of tasks is not available",
    ProblemCode.STORAGE_FAILED: "The image store is not available",
    ProblemCode.INTERNAL: "The gateway failed",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One refusal, complete but for the ids of the request it answers."""

    status: HTTPStatus
    code: ProblemCode
    detail: str
    fields: Sequence[FieldProblem] = ()
    headers: Sequence[tuple[str, str]] = field(default=())

    def render(self, *, correlation_id: str, instance: str | None = None) -> bytes:
        """The JSON document; `instance` is the path asked for, `correlation_id` the `x-request-id` of the answer."""
        detail = cut_text(self.detail, MAX_DETAIL_BYTES)
        document: dict[str, Any] = {
            "type": TYPE_PREFIX + self.code.replace("_", "-"),
            "title": _TITLES[self.code],
            "status": self.status.value,
            "detail": detail,
        }
        if instance is not None:
            document["instance"] = cut_text(quote(instance), MAX_INSTANCE_BYTES)
        document["correlation_id"] = correlation_id
        if self.fields:
            document["errors"] = [{"pointer": problem.pointer, "detail": problem.message} for problem in self.fields]
        named = next((problem.field for problem in self.fields if problem.field), None)
        document["error"] = {
            "message": detail,
            "type": "invalid_request_error" if self.status < HTTPStatus.INTERNAL_SERVER_ERROR else "server_error",
            "param": named,
            "code": self.code.value,
        }
        return json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode(errors="replace")


class ProblemError(Exception):
    """Ends a route with a problem document."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        super().__init__(problem.detail)
