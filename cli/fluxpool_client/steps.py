"""A call as steps: the requests it sends, which of them it repeats, and how it reads their responses; without I/O.

A call is a generator. It yields a request, and is sent its response or why there is none; or it yields a pause. Its
return value is the call's. `operations` has the calls, the clients run them.
"""

import json
import math
import random
from collections.abc import Callable, Coroutine, Generator, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from http import HTTPStatus
from typing import Any, Final, Protocol, TypeVar
from urllib.parse import urlencode

import httpx
from pydantic import BaseModel, ValidationError

from fluxpool_client.errors import FluxpoolError, RefusedError, UnexpectedResponseError, UnreachableError, refusal

MAX_RESPONSE_BYTES: Final = 16 * 1024 * 1024
"""A page of 200 tasks with eight images each is below 2 MB."""
MAX_IMAGE_BYTES: Final = 512 * 1024 * 1024
"""More than an uncompressed image of the largest size."""
MAX_PAUSE_SECONDS: Final = 60.0
"""A longer `Retry-After` is left to the caller."""
FIRST_PAUSE_SECONDS: Final = 0.5
LONGEST_PAUSE_SECONDS: Final = 8.0
_LAST_PORT: Final = 65_535
_REPEATED: Final = frozenset(
    {
        HTTPStatus.REQUEST_TIMEOUT,
        HTTPStatus.TOO_MANY_REQUESTS,
        HTTPStatus.BAD_GATEWAY,
        HTTPStatus.SERVICE_UNAVAILABLE,
        HTTPStatus.GATEWAY_TIMEOUT,
    }
)
_IN_PROGRESS: Final = "idempotency_in_progress"

T = TypeVar("T")
Answer = TypeVar("Answer", bound=BaseModel)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outgoing:
    """One HTTP request."""

    method: str
    path: str
    """Of the gateway, or a whole URL with `is_signed`."""
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes | None = None
    max_bytes: int = MAX_RESPONSE_BYTES
    """Of the response."""
    wait_seconds: int = 0
    """The gateway may take that much longer to respond."""
    timeout_seconds: float = math.inf
    """A shorter timeout than the client's."""
    is_repeatable: bool = True
    may_redirect: bool = False
    is_signed: bool = False
    """The URL has its own permission: the API key is not for this server."""


@dataclass(frozen=True, slots=True)
class Response:
    """One HTTP response."""

    status: int
    headers: httpx.Headers
    body: bytes


@dataclass(frozen=True, slots=True)
class Pause:
    """Time to let pass."""

    seconds: float


Steps = Generator[Outgoing | Pause, Response | httpx.RequestError | None, T]


def append(body: bytearray, chunk: bytes, *, outgoing: Outgoing, is_late: bool) -> None:
    """Add to the body of a response; raises `UnexpectedResponseError` past its limit, and `ReadTimeout`."""
    body += chunk
    if is_late:
        raise httpx.ReadTimeout("the response takes too long")
    if len(body) > outgoing.max_bytes:
        raise UnexpectedResponseError(f"the response to {_shown(outgoing)} is longer than {outgoing.max_bytes} bytes")


@dataclass(frozen=True, slots=True, kw_only=True)
class Calls:
    """Calls of one request, and what all others are made of; raises `FluxpoolError`."""

    max_attempts: int
    clock: Callable[[], float]
    """Monotonic, in seconds."""

    def call(
        self, model: type[Answer], method: str, path: str, body: Mapping[str, Any] | None = None, *, repeatable: bool
    ) -> Steps[Answer]:
        """One request without more to it; a `repeatable` one changes nothing that a second one would change again."""
        outgoing = Outgoing(method=method, path=path) if body is None else json_request(method, path, body)
        return self.ask(model, replace(outgoing, is_repeatable=repeatable))

    def remove(self, path: str) -> Steps[None]:
        """Delete what is at a path."""
        yield from self.exchange(Outgoing(method="DELETE", path=path))

    def ask(self, model: type[Answer], outgoing: Outgoing, *, until: float | None = None) -> Steps[Answer]:
        """The content of the response to one request."""
        response = yield from self.exchange(outgoing, until=until)
        return read_response(model, response, outgoing)

    def exchange(self, outgoing: Outgoing, *, until: float | None = None) -> Steps[Response]:
        """The response; failures that may pass are repeated `max_attempts` times, with `until` as long as that."""
        pause_seconds = FIRST_PAUSE_SECONDS
        attempt = 1
        while True:
            outcome = yield outgoing
            if isinstance(outcome, Response) and _is_expected(outcome.status, outgoing):
                return outcome
            failure = failure_of(outgoing, outcome)
            now = self.clock()
            is_last = attempt >= self.max_attempts if until is None else now >= until
            is_last = is_last or not outgoing.is_repeatable
            wanted_seconds = wanted_pause(failure, otherwise=random.uniform(pause_seconds / 2, pause_seconds))  # noqa: S311
            if is_last or wanted_seconds is None or wanted_seconds > MAX_PAUSE_SECONDS:
                raise failure
            yield Pause(wanted_seconds if until is None else min(wanted_seconds, until - now))
            pause_seconds = min(2 * pause_seconds, LONGEST_PAUSE_SECONDS)
            attempt += 1


def read_response(model: type[Answer], response: Response, outgoing: Outgoing) -> Answer:
    """The content of a response; raises `UnexpectedResponseError` when it is no such model."""
    try:
        return model.model_validate_json(response.body)
    except ValidationError as error:
        problem = error.errors(include_url=False, include_input=False, include_context=False)[0]
        where = ".".join(map(str, problem["loc"]))
        raise UnexpectedResponseError(
            f"the response to {outgoing.method} {outgoing.path} is not a gateway's: {where} {problem['msg']}"
        ) from None


def is_http_url(text: str) -> bool:
    """Whether httpx can send a request there."""
    try:
        url = httpx.URL(text)
    except httpx.InvalidURL:
        return False
    return url.scheme in {"http", "https"} and bool(url.host) and (url.port or 1) <= _LAST_PORT


def _is_expected(status: int, outgoing: Outgoing) -> bool:
    is_success = HTTPStatus.OK <= status < HTTPStatus.MULTIPLE_CHOICES
    return is_success or (outgoing.may_redirect and status == HTTPStatus.FOUND)


def failure_of(outgoing: Outgoing, outcome: Response | httpx.RequestError | None) -> FluxpoolError:
    """The error of a request without the expected response."""
    if isinstance(outcome, Response):
        return refusal(outcome.status, outcome.headers, outcome.body)
    reason = f"{type(outcome).__name__} {outcome}".rstrip()
    error = UnreachableError(f"no response to {outgoing.method} {_shown(outgoing)}: {reason}")
    error.__cause__ = outcome
    return error


def _shown(outgoing: Outgoing) -> str:
    """Its path, without the signature, which is as good as a key."""
    return outgoing.path.partition("?")[0] if outgoing.is_signed else outgoing.path


def wanted_pause(failure: FluxpoolError, *, otherwise: float) -> float | None:
    """Seconds before the same request may succeed, `otherwise` where the response has none; None when it will not."""
    if isinstance(failure, UnreachableError):
        return otherwise
    if isinstance(failure, RefusedError) and failure.wait is not None:
        # The caller has said that it would rather know than wait.
        return None
    if isinstance(failure, RefusedError) and (failure.status in _REPEATED or failure.code == _IN_PROGRESS):
        # Not at once after a 0 either: a wait would ask without end.
        return failure.retry_after_seconds or otherwise
    return None


def json_request(method: str, path: str, body: Mapping[str, Any], headers: Mapping[str, str] | None = None) -> Outgoing:
    """A request with a JSON body."""
    text = json.dumps(body, ensure_ascii=False, separators=(",", ":"), default=text_of)
    return Outgoing(
        method=method,
        path=path,
        headers={"content-type": "application/json", **(headers or {})},
        # A lone surrogate is no character; the gateway's refusal names the field.
        body=text.encode(errors="surrogatepass"),
    )


def query_of(fields: Mapping[str, Any]) -> str:
    """The query with these fields, with its question mark; empty without any. A list is its items."""
    query = [
        (name, text_of(item))
        for name, value in fields.items()
        if value is not None
        for item in (value if isinstance(value, list | tuple) else [value])
    ]
    return f"?{urlencode(query)}" if query else ""


def text_of(value: object) -> str:
    """A moment in ISO 8601; other values as Python writes them."""
    return value.isoformat() if isinstance(value, datetime) else str(value)


class Run(Protocol):
    """Runs a call with the blocking client."""

    def __call__(self, steps: Steps[T], /) -> T: ...


class RunAsync(Protocol):
    """Runs a call with the asyncio client."""

    def __call__(self, steps: Steps[T], /) -> Coroutine[Any, Any, T]: ...
