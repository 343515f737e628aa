"""What every response carries: the correlation id (`x-request-id`) and URLs; what a submission reads and answers.

Works on ASGI's raw headers and messages, without a framework.
"""

import re
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Final

from fluxpool_contract.bounds import cut_text
from fluxpool_contract.messages import REQUEST_ID, new_request_id
from fluxpool_contract.problems import FieldProblem
from fluxpool_gateway.http.problem import MEDIA_TYPE, RETRY_AFTER_SECONDS, ProblemCode, ProblemError, invalid_header

RawPairs = Iterable[tuple[bytes, bytes]]
Scope = dict[str, Any]
SendWhole = Callable[[int, RawPairs, bytes], bool]
"""Takes status, headers and body; false where the response must be sent as any other."""
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]

PATH = "/v1/generations"
BATCH_PATH = PATH + "/batch"
CORRELATION_ID_HEADER = b"x-request-id"
EVENT_STREAM_HEADERS = (
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-store"),
    (b"x-accel-buffering", b"no"),  # nginx would keep the events until the response ends
)
PING_SECONDS = 15.0
"""Proxies commonly give up on a silent response after 60 to 120 s."""
STOPPING = "fluxpool.stopping"
"""Where the state of the lifespan has the event that is set when the server is about to stop."""
METRICS = "fluxpool.metrics"
"""Where the state of the lifespan has the metrics: some requests are answered before they reach the application."""
HALF_CLOSED = "fluxpool.half_closed"
"""Where the state of a request has the event that is set when the client closes its sending side."""
ASKED_BY_HEAD = "fluxpool.asked_by_head"
"""Where the scope of a request that is served as GET says that it is one of HEAD."""
WHOLE_RESPONSE: Final = "fluxpool.whole_response"
"""Where the state of a request has what sends its response at once (`http.protocol`). As ASGI's two messages, whose
headers are checked one by one, the response to a submission costs a tenth of all that is done for it."""
_MAX_SHOWN_BYTES: Final = 100
_PREFERENCE = re.compile(r'(?:[^,"]|"(?:\\.|[^"\\])*")+')
_WAIT = re.compile(r'\s*wait\s*(?:=\s*"?(?P<seconds>[0-9]{1,9})"?\s*)?(?:;.*)?', re.IGNORECASE)
_HOST = re.compile(rb"[A-Za-z0-9.:\[\]_-]{1,255}")


@dataclass(slots=True)
class RequestHeaders:
    """The headers that a submission has, raw."""

    authorization: bytes | None = None
    content_encoding: bytes | None = None
    content_type: bytes | None = None
    host: bytes | None = None
    idempotency_key: bytes | None = None
    traceparent: bytes | None = None
    tracestate: bytes | None = None
    x_request_id: bytes | None = None


_READ: Final = {field.replace("_", "-").encode(): field for field in RequestHeaders.__slots__}
_GIVEN_ONCE: Final = frozenset({"authorization", "content_encoding", "content_type", "idempotency_key"})
"""With two values a proxy may have acted on the other one."""


class ClientGoneError(Exception):
    """The client closed the connection before its request was complete; it reads no answer."""


def correlation_id_of(offered: bytes | None) -> str:
    """The caller's own `x-request-id` when it has the form of an id, else a new one."""
    if offered is not None:
        text = offered.decode("latin-1")
        if REQUEST_ID.fullmatch(text):
            return text
    return new_request_id()


async def disconnected(receive: Receive) -> None:
    """Return when the connection of a request is lost."""
    while (await receive())["type"] != "http.disconnect":
        pass


def read_headers(raw: RawPairs, *, into: RequestHeaders) -> None:
    """Those of a submission. Raises `ProblemError` (400) when a header that decides something is given twice."""
    twice = None
    for name, value in raw:
        field = _READ.get(name)
        if field is not None:
            if field in _GIVEN_ONCE and getattr(into, field) is not None:
                twice = name.decode().title()
            setattr(into, field, value)
    if twice is not None:
        raise invalid_header(twice, "is given more than once")


async def read_body(receive: Receive) -> bytes:
    """The whole body, whose size the server bounds.

    Raises `ClientGoneError` when the connection ends first: what came of an incomplete request is no request, even
    where it happens to be valid (RFC 9112 section 8).
    """
    parts: list[bytes] = []
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGoneError
        parts.append(message.get("body", b""))
        if not message.get("more_body", False):
            return parts[0] if len(parts) == 1 else b"".join(parts)


def find_header(headers: RawPairs, name: bytes) -> bytes | None:
    """The first value of a header, by its lower-case name."""
    return next((value for key, value in headers if key == name), None)


def find_authorization(headers: RawPairs) -> bytes | None:
    """The `Authorization` header; raises `ProblemError` (400) when it is given twice, as to two readers."""
    found = [value for key, value in headers if key == b"authorization"]
    if len(found) > 1:
        raise invalid_header("Authorization", "is given more than once")
    return found[0] if found else None


def preferred_wait_seconds(prefer: str, *, maximum: int) -> int | None:
    """The wait that a `Prefer` header (RFC 7240) asks for, at most `maximum`, which a bare `wait` means.

    None without one; what is not understood is ignored, as section 2 says. Of several the first counts.
    """
    for preference in _PREFERENCE.findall(prefer):
        wait = _WAIT.fullmatch(preference)
        if wait is not None:
            return maximum if wait["seconds"] is None else min(int(wait["seconds"]), maximum)
    return None


def base_url(*, public_url: str | None, scheme: str, host: bytes | None) -> str:
    """The address of the gateway as this client sees it, ending in a slash.

    Only `/` when the `Host` header is missing or holds what no host has: links are relative then.
    """
    if public_url is not None:
        return public_url
    if host is None or not _HOST.fullmatch(host):
        return "/"
    return f"{scheme}://{host.decode('ascii')}/"


def status_url_of(request_id: str, *, base: str) -> str:
    """The address of a task's state; `base` as `base_url` makes it."""
    return f"{base}{PATH[1:]}/{request_id}"


async def send_accepted(
    scope: Scope,
    send: Send,
    *,
    request_id: str,
    base: str,
    correlation_id: str,
    more: Iterable[tuple[str, str]] = (),
    status: HTTPStatus = HTTPStatus.ACCEPTED,
) -> None:
    """The broker has acknowledged the record. `more` are further headers."""
    status_url = status_url_of(request_id, base=base).encode()
    body = b'{"request_id":"%s","status":"queued","status_url":"%s"}' % (request_id.encode(), status_url)
    headers = [
        (CORRELATION_ID_HEADER, correlation_id.encode()),
        (b"location", status_url),
        (b"retry-after", b"%d" % RETRY_AFTER_SECONDS),
        *((name.encode(), value.encode()) for name, value in more),
    ]
    # Only here: the headers of a problem may say something of the request, and the server checks them.
    send_whole: SendWhole | None = scope.get("state", {}).get(WHOLE_RESPONSE)
    if send_whole is None or not send_whole(status.value, _framed(b"application/json", body, headers), body):
        await _send(send, status.value, b"application/json", body, headers)


async def send_problem(send: Send, problem: ProblemError, *, correlation_id: str, instance: str) -> None:
    """The problem document; `instance` is the path of the request."""
    body = problem.render(correlation_id=correlation_id, instance=instance)
    extra = [(name.encode(), value.encode("latin-1", "replace")) for name, value in problem.headers]
    headers = [(CORRELATION_ID_HEADER, correlation_id.encode()), *extra]
    await _send(send, problem.status.value, MEDIA_TYPE.encode(), body, headers)


async def _send(send: Send, status: int, media_type: bytes, body: bytes, headers: RawPairs) -> None:
    await send({"type": "http.response.start", "status": status, "headers": _framed(media_type, body, headers)})
    await send({"type": "http.response.body", "body": body})


def _framed(media_type: bytes, body: bytes, headers: RawPairs) -> list[tuple[bytes, bytes]]:
    return [(b"content-type", media_type), (b"content-length", b"%d" % len(body)), *headers]


def check_content_type(raw: bytes | None) -> None:
    """Raises `ProblemError` (415) for a body that says it is something other than JSON."""
    if raw is None or raw == b"application/json":
        return
    if raw.partition(b";")[0].strip().lower() != b"application/json":
        raise ProblemError(
            ProblemCode.UNSUPPORTED_MEDIA_TYPE,
            f"Content-Type {_shown(raw)} is not understood; send application/json",
            fields=[FieldProblem("Content-Type", "must be application/json")],
            headers=[("accept", "application/json")],
        )


def check_content_encoding(raw: bytes | None) -> None:
    """A compressed body would have to be unpacked before its size is known, and a request is small."""
    if raw is None or raw.strip().lower() in {b"", b"identity"}:
        return
    raise ProblemError(
        ProblemCode.UNSUPPORTED_MEDIA_TYPE,
        f"Content-Encoding {_shown(raw)} is not understood; send the JSON as it is, without this header",
        fields=[FieldProblem("Content-Encoding", "must be absent: bodies are not unpacked")],
        headers=[("accept-encoding", "identity")],
    )


def _shown(value: bytes) -> str:
    return cut_text(value.decode("latin-1"), _MAX_SHOWN_BYTES)
