"""Error answers: RFC 9457 problem documents with an `error` member that OpenAI clients read.

Owns the shape and the closed set of codes. Knows nothing of routes, and takes no decision about who is at fault.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from http import HTTPStatus
from typing import Any, Final

from fluxpool_contract.problems import FieldProblem

MEDIA_TYPE = "application/problem+json"
TYPE_PREFIX = "urn:fluxpool:problem:"


class ProblemCode(StrEnum):
    """The stable name of a refused request; clients branch on it."""

    INVALID_REQUEST = "invalid_request"
    INVALID_SIZE = "invalid_size"
    UNSUPPORTED_PARAMETER = "unsupported_parameter"
    UNSUPPORTED_MEDIA_TYPE = "unsupported_media_type"
    PAYLOAD_TOO_LARGE = "payload_too_large"
    IDEMPOTENCY_CONFLICT = "idempotency_conflict"
    NOT_FOUND = "not_found"
    METHOD_NOT_ALLOWED = "method_not_allowed"
    NOT_FINISHED = "not_finished"
    QUEUE_UNAVAILABLE = "queue_unavailable"
    STORE_UNAVAILABLE = "store_unavailable"
    STORAGE_FAILED = "storage_failed"
    INTERNAL = "internal"


_TITLES: Final = {
    ProblemCode.INVALID_REQUEST: "The request is not valid",
    ProblemCode.INVALID_SIZE: "The image size is not possible",
    ProblemCode.UNSUPPORTED_PARAMETER: "The request holds an unknown field",
    ProblemCode.UNSUPPORTED_MEDIA_TYPE: "The request body is not JSON",
    ProblemCode.PAYLOAD_TOO_LARGE: "The request body is too large",
    ProblemCode.IDEMPOTENCY_CONFLICT: "The Idempotency-Key was used for another request",
    ProblemCode.NOT_FOUND: "There is nothing at this address",
    ProblemCode.METHOD_NOT_ALLOWED: "The method is not allowed here",
    ProblemCode.NOT_FINISHED: "The task has no such image",
    ProblemCode.QUEUE_UNAVAILABLE: "The queue is not available",
    ProblemCode.STORE_UNAVAILABLE: "The state of tasks is not available",
    ProblemCode.STORAGE_FAILED: "The image store is not available",
    ProblemCode.INTERNAL: "The gateway failed",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One refusal, complete but for the ids of the exchange it answers."""

    status: HTTPStatus
    code: ProblemCode
    detail: str
    fields: Sequence[FieldProblem] = ()
    headers: Sequence[tuple[str, str]] = field(default=())

    def render(self, *, exchange_id: str, instance: str) -> bytes:
        """The JSON document; `instance` is the path asked for, `exchange_id` the `x-request-id` of the answer."""
        document: dict[str, Any] = {
            "type": TYPE_PREFIX + self.code.replace("_", "-"),
            "title": _TITLES[self.code],
            "status": self.status.value,
            "detail": self.detail,
            "instance": instance,
            "request_id": exchange_id,
        }
        if self.fields:
            document["errors"] = [{"pointer": problem.pointer, "detail": problem.message} for problem in self.fields]
        named = next((problem.field for problem in self.fields if problem.field), None)
        document["error"] = {
            "message": self.detail,
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
