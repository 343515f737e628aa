"""What a call of the client can fail with; a refusal is made of the gateway's problem document (RFC 9457)."""

from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Final

import httpx
from pydantic import ValidationError

from fluxpool_client.models import FieldError, ProblemDocument, RefusedWait, Task


class FluxpoolError(Exception):
    """Any failure of a call."""


class UnreachableError(FluxpoolError):
    """No response, or none in time; whether the gateway got the request is unknown."""


class UnexpectedResponseError(FluxpoolError):
    """The response is not one of a gateway."""


class CorruptImageError(FluxpoolError):
    """The bytes of an image are not those that its worker stored."""


class WaitTimeoutError(FluxpoolError):
    """The task did not end in time, and goes on."""

    def __init__(self, task: Task, timeout_seconds: float) -> None:
        self.task = task
        """Its last known state."""
        super().__init__(f"task {task.request_id} is {task.status} after {timeout_seconds:g} s, and goes on")


class RefusedError(FluxpoolError):
    """The gateway refused the request; the subclasses are by HTTP status."""

    def __init__(
        self,
        detail: str,
        *,
        status: int,
        code: str = "",
        fields: Sequence[FieldError] = (),
        correlation_id: str = "",
        retry_after_seconds: float | None = None,
        wait: RefusedWait | None = None,
    ) -> None:
        self.detail = detail
        self.status = status
        self.code = code
        """The stable name of the refusal; empty when the response is that of a proxy."""
        self.fields = tuple(fields)
        """Each field at fault."""
        self.correlation_id = correlation_id
        """The gateway's log has it."""
        self.retry_after_seconds = retry_after_seconds
        self.wait = wait
        """The estimate of a request that would wait longer than it allows; it is not repeated."""
        super().__init__(f"{detail} ({code or status})")


class BadRequestError(RefusedError):
    """The request is not valid: 400, 405, 413, 414, 415, 422 and 431."""


class AuthenticationError(RefusedError):
    """401: there is no valid API key."""


class PermissionDeniedError(RefusedError):
    """403: the API key does not allow this."""


class NotFoundError(RefusedError):
    """404: there is no such task, or it is another tenant's."""


class ConflictError(RefusedError):
    """409: the state of the task does not allow this, or the key or id was used for another request."""


class GoneError(RefusedError):
    """410: it is no longer stored."""


class RateLimitedError(RefusedError):
    """429: a limit of the tenant is reached, or the request would wait longer than it allows."""


class UnavailableError(RefusedError):
    """408, 502, 503 and 504: the same request may succeed later."""


class GatewayFailedError(RefusedError):
    """Any other status of 500 and above."""


_BY_STATUS: Final[Mapping[int, type[RefusedError]]] = {
    HTTPStatus.UNAUTHORIZED: AuthenticationError,
    HTTPStatus.FORBIDDEN: PermissionDeniedError,
    HTTPStatus.NOT_FOUND: NotFoundError,
    HTTPStatus.REQUEST_TIMEOUT: UnavailableError,
    HTTPStatus.CONFLICT: ConflictError,
    HTTPStatus.GONE: GoneError,
    HTTPStatus.TOO_MANY_REQUESTS: RateLimitedError,
    HTTPStatus.BAD_GATEWAY: UnavailableError,
    HTTPStatus.SERVICE_UNAVAILABLE: UnavailableError,
    HTTPStatus.GATEWAY_TIMEOUT: UnavailableError,
}


def refusal(status: int, headers: httpx.Headers, body: bytes) -> FluxpoolError:
    """The error of a response without success; `body` is a problem document unless a proxy sent it."""
    if status < HTTPStatus.BAD_REQUEST:
        return UnexpectedResponseError(f"HTTP {status} to {headers.get('location', 'nowhere')}: check the URL")
    otherwise = GatewayFailedError if status >= HTTPStatus.INTERNAL_SERVER_ERROR else BadRequestError
    kind = _BY_STATUS.get(status, otherwise)
    retry_after = _seconds(headers.get("retry-after", ""))
    try:
        problem = ProblemDocument.model_validate_json(body)
    except ValidationError:
        return kind(f"HTTP {status} without a problem document", status=status, retry_after_seconds=retry_after)
    return kind(
        problem.detail,
        status=status,
        code=problem.error.code,
        fields=problem.errors,
        correlation_id=problem.correlation_id,
        retry_after_seconds=retry_after,
        wait=problem.wait,
    )


def _seconds(retry_after: str) -> float | None:
    """None also for a date, which only a proxy sends."""
    is_number = retry_after.isascii() and retry_after.isdigit()
    # The first digits: one who asks for centuries must not be asked again at once.
    return float(retry_after[:10]) if is_number else None
