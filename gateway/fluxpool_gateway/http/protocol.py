"""The HTTP/1.1 protocol of one connection: uvicorn's, with bounds on what a client may send and how long it may take.

uvicorn's protocol bounds neither the size of a head nor the time of a request, drops a request whose client has closed
its sending side, and drops the body of a request that offers an upgrade. Owns the limits and the answers to incomplete
requests; knows no route but that of batches, which are larger. Complete requests continue in `http.app`.
"""

import asyncio
import math
import socket
import struct
from collections.abc import Iterable
from typing import Any, Final, cast
from urllib.parse import unquote
from weakref import WeakSet

import httptools
from uvicorn import Config
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from fluxpool_gateway.http.generation_request import MAX_BATCH_BYTES, MAX_BODY_BYTES, body_too_large
from fluxpool_gateway.http.problem import MEDIA_TYPE, ProblemCode, ProblemError, unavailable
from fluxpool_gateway.http.request_context import (
    BATCH_PATH,
    CORRELATION_ID_HEADER,
    HALF_CLOSED,
    METRICS,
    STOPPING,
    WHOLE_RESPONSE,
    RawPairs,
    correlation_id_of,
    find_header,
)
from fluxpool_gateway.metrics.gateway_metrics import NO_ROUTE, OTHER_METHOD, GatewayMetrics

MAX_TARGET_BYTES: Final = 16 * 1024
MAX_HEAD_BYTES: Final = 32 * 1024
"""Request line and headers; also what may come without a byte of the body between, as chunk extensions and trailers."""
MAX_MESSAGE_BYTES: Final = 1024 * 1024
"""A whole request with its framing. A body of the largest size in chunks of one byte is 400 kB."""
HEAD_SECONDS: Final = 10.0
"""From the first byte, or from the connection where there is none, to the end of the head."""
BODY_SECONDS: Final = 30.0
"""From the end of the head to the end of the body: 64 KiB at 2 KiB/s."""
LINGER_SECONDS: Final = 3.0
"""A connection that is closed on a client that still sends loses the answer, hence so long is read on and dropped."""
READ_SECONDS: Final = 30.0
"""Longest time for which a client may take nothing of its answer."""
SWEEP_SECONDS: Final = 1.0
"""Deadlines are looked at so often, all at once: a timer for each request would cost as much as its parsing."""

_BATCH_TARGET: Final = BATCH_PATH.encode()
_RESET_ON_CLOSE: Final = struct.pack("ii", 1, 0)
"""SO_LINGER with a time of 0, socket(7)."""
_SWEPT: Final[WeakSet[ServerState]] = WeakSet()
"""Servers whose connections are swept."""


class BoundedHttpProtocol(HttpToolsProtocol):
    """One connection."""

    max_connections = 2048
    """Of this process; `server` sets it from the settings."""

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        self._half_closed = asyncio.Event()
        own_state = {HALF_CLOSED: self._half_closed, WHOLE_RESPONSE: self._send_whole}
        super().__init__(config, server_state, app_state | own_state, _loop)
        self._running: RequestResponseCycle | None = None
        """The request that the application is answering; `self.cycle` is the one parsed last."""
        self._receiving = self._in_head = self._in_body = False
        self._upgrade_offered = False
        self._head_bytes = self._body_bytes = 0
        self._max_body_bytes = MAX_BODY_BYTES
        self._bare_bytes = 0
        """Since the last byte of a body or the last complete request."""
        self._message_bytes = 0
        self._deadline = math.inf
        self._unsent_bytes = -1
        self._read_deadline = math.inf
        self._refused = False
        """Nothing more is parsed."""
        self._refusal: bytes | None = None
        """To be sent once the requests before it are answered."""

    # What the transport calls

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take a connection, or refuse it when there are too many."""
        full = len(self.connections) >= self.max_connections
        super().connection_made(transport)
        self._deadline = self.loop.time() + HEAD_SECONDS
        if self.server_state not in _SWEPT:
            _SWEPT.add(self.server_state)
            _sweep_regularly(self.server_state, self.loop)
        if full:
            self._refused = True
            detail = "too many connections are open; close idle ones, or try again"
            transport.write(self._render(unavailable(ProblemCode.TOO_MANY_CONNECTIONS, detail)))
            transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        """Cancel the request that is being answered; it may be an earlier one than the one parsed last."""
        if self._running is not None and not self._running.response_complete:
            self._running.disconnected = True
            self._running.message_event.set()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse what came, within the limits."""
        if self._refused:
            return
        size_bytes = len(data)
        self._bare_bytes += size_bytes
        self._message_bytes += size_bytes
        try:
            self._feed(data)
            if self._bare_bytes > MAX_HEAD_BYTES:
                raise _head_too_large()
            if self._message_bytes > MAX_MESSAGE_BYTES:
                raise body_too_large(self._max_body_bytes)
        except httptools.HttpParserError as error:
            # What a callback of the parser raised is only the context of the parser's own error.
            refused = error.__context__
            self._refuse(refused if isinstance(refused, ProblemError) else _malformed(error))
        except ProblemError as error:
            self._refuse(error)
        else:
            self._set_deadline()

    def eof_received(self) -> bool | None:  # type: ignore[override]
        """Answer what was asked before the client closed its sending side; true keeps the connection open for that."""
        if self._refused:
            # The transport sends what is buffered before it closes.
            return self._refusal is not None
        if self._receiving:
            detail = "the connection was closed before the request was complete; nothing was accepted"
            self._refuse(ProblemError(ProblemCode.INVALID_REQUEST, detail), more_may_come=False)
            return True
        if self._idle():
            return None
        self._deadline = math.inf
        self.cycle.keep_alive = False
        # A client that is gone and one that still reads look alike until something is sent.
        self._half_closed.set()
        return True

    # What the server calls

    def shutdown(self) -> None:
        """Close once the request under way is answered; one that waits for a task is answered now."""
        stopping = self.app_state.get(STOPPING)
        if stopping is not None:
            stopping.set()
        super().shutdown()

    def sweep(self, now: float) -> None:
        """Act on deadlines that have passed; `now` is the event loop's time."""
        if self.flow.write_paused or self.transport.is_closing():
            self._check_reading(now)
        elif self._deadline > now:
            return
        elif self._refused:
            self._reset()
        elif self.pipeline or self.flow.read_paused:
            # The client is waiting for us.
            self._deadline = now + HEAD_SECONDS
        elif self._receiving:
            self._refuse(_timed_out("headers", HEAD_SECONDS) if self._in_head else _timed_out("body", BODY_SECONDS))
        else:
            self.transport.close()

    def _check_reading(self, now: float) -> None:
        """Abort a client that reads nothing of its response; a slow reader is left alone."""
        unsent_bytes = self.transport.get_write_buffer_size()
        if unsent_bytes != self._unsent_bytes:
            self._unsent_bytes = unsent_bytes
            self._read_deadline = now + READ_SECONDS
        elif self._read_deadline <= now:
            self._reset()

    def _reset(self) -> None:
        """Drop a client that had its time: by RST, or the kernel would keep the half-closed connection for minutes."""
        self.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        self.transport.abort()

    # What the parser calls

    def on_message_begin(self) -> None:
        """A request begins."""
        super().on_message_begin()
        self._receiving = self._in_head = True
        self._in_body = self._upgrade_offered = False
        self._head_bytes = self._body_bytes = 0
        self._deadline = math.inf

    def on_url(self, url: bytes) -> None:
        """A part of the request's target."""
        super().on_url(url)
        if len(self.url) > MAX_TARGET_BYTES:
            raise ProblemError(
                ProblemCode.URI_TOO_LONG, f"the address of a request may be at most {MAX_TARGET_BYTES} bytes long"
            )

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header, or a trailer, which is no header (RFC 9110 section 6.5.1) and is dropped."""
        if self._in_head:
            super().on_header(name, value)
            self._head_bytes += len(name) + len(value) + 4
            if self._head_bytes > MAX_HEAD_BYTES:
                raise _head_too_large()

    def on_headers_complete(self) -> None:
        """The head is complete: hand the request to the application, or refuse it."""
        is_batch = self.url.partition(b"?")[0] == _BATCH_TARGET
        self._max_body_bytes = MAX_BATCH_BYTES if is_batch else MAX_BODY_BYTES
        _check_head(self.parser.get_http_version(), self.headers, max_body_bytes=self._max_body_bytes)
        if self.parser.should_upgrade():
            # Without another protocol on offer the request is an ordinary one, but its body is not parsed as such.
            self._upgrade_offered = True
            return
        self._in_head = False
        self._in_body = True
        super().on_headers_complete()
        self._deadline = math.inf

    def on_body(self, body: bytes) -> None:
        """A part of the body."""
        self._bare_bytes = 0
        self._body_bytes += len(body)
        if self._body_bytes > self._max_body_bytes:
            raise body_too_large(self._max_body_bytes)
        super().on_body(body)

    def on_message_complete(self) -> None:
        """The request is complete."""
        if self._upgrade_offered:
            return
        self._receiving = self._in_body = False
        self._bare_bytes = self._message_bytes = 0
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """A response is complete: begin the next, or send the refusal that waited for it.

        In place of uvicorn's, which starts a timer for each request.
        """
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            return
        self.flow.resume_reading()
        if self.pipeline:
            self._start_asgi_task(*self.pipeline.pop())
        elif self._refusal is not None:
            answer, self._refusal = self._refusal, None
            self._write_last(answer)
        elif not self._receiving:
            self._deadline = self.loop.time() + self.timeout_keep_alive

    # Ours

    def _feed(self, data: bytes) -> None:
        rest = memoryview(data)
        while rest:
            try:
                self.parser.feed_data(rest)
            except httptools.HttpParserUpgrade as upgrade:
                # Java's HttpClient offers h2c with every first request, a POST with its body as well. The offer is
                # ignored as RFC 9110 section 7.8 allows: the head is parsed once more without it, then what followed.
                rest = rest[upgrade.args[0] :]
                head = self._head_without_upgrade()
                self.parser = httptools.HttpRequestParser(self)
                self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
                self.parser.feed_data(head)
            else:
                return

    def _head_without_upgrade(self) -> bytes:
        method = self.parser.get_method()
        if method == b"CONNECT":
            raise _malformed("CONNECT is not served here")
        dropped = {b"upgrade", b"connection", b"http2-settings"}
        lines = [b"%s: %s\r\n" % header for header in self.headers if header[0] not in dropped]
        closing = any(
            token.strip().lower() == b"close"
            for name, value in self.headers
            if name == b"connection"
            for token in value.split(b",")
        )
        if closing:
            lines.append(b"connection: close\r\n")
        version = self.parser.get_http_version().encode()
        return b"%s %s HTTP/%s\r\n%s\r\n" % (method, self.url, version, b"".join(lines))

    def _start_asgi_task(self, cycle: Any, app: Any) -> None:
        self._running = cycle
        super()._start_asgi_task(cycle, app)

    def _send_whole(self, status: int, headers: RawPairs, body: bytes) -> bool:
        """What uvicorn does for both messages of a response; false where it must wait, or the client is gone."""
        cycle = self._running
        if cycle is None or cycle.disconnected or self.flow.write_paused:
            return False
        lines = [b"%s: %s\r\n" % header for header in (*cycle.default_headers, *headers)]
        closing = b"" if cycle.keep_alive else b"connection: close\r\n"
        self.transport.write(b"".join([STATUS_LINE[status], *lines, closing, b"\r\n", body]))
        cycle.response_started = cycle.response_complete = True
        cycle.waiting_for_100_continue = False
        cycle.message_event.set()
        if not cycle.keep_alive:
            self.transport.close()
        cycle.on_response()
        return True

    def _idle(self) -> bool:
        return self._running is None or self._running.response_complete

    def _set_deadline(self) -> None:
        """After each part: what is still to come must come in time."""
        if self._receiving:
            if self._deadline == math.inf:
                self._deadline = self.loop.time() + (HEAD_SECONDS if self._in_head else BODY_SECONDS)
        elif self._idle():
            # Blank lines before a request; they have ended the keep-alive time.
            self._deadline = self.loop.time() + HEAD_SECONDS
        else:
            self._deadline = math.inf

    def _refuse(self, problem: ProblemError, *, more_may_come: bool = True) -> None:
        """Answer the request being received with a problem, after those before it, and close the connection."""
        answer = self._render(problem)
        self._refused = True
        self._deadline = math.inf
        refused = self.cycle if self._in_body else None
        if refused is not None:
            self._abandon(refused)
            if refused.response_started and not refused.response_complete:
                self.transport.abort()
                return
            if refused.response_complete:
                # It was answered before its body ended: nothing more can be said on this connection.
                answer = b""
        if self.pipeline or not (self._running is refused or self._idle()):
            self._refusal = answer
        else:
            self._write_last(answer, more_may_come=more_may_come)

    def _abandon(self, cycle: RequestResponseCycle) -> None:
        """Let the application see the end of the connection; its response to this request is not sent."""
        cycle.disconnected = True
        cycle.waiting_for_100_continue = False
        cycle.message_event.set()
        if self.pipeline and self.pipeline[0][0] is cycle:
            self.pipeline.popleft()

    def _write_last(self, answer: bytes, *, more_may_come: bool = True) -> None:
        """Send the last answer of the connection, then read on for a while and drop what comes."""
        self._deadline = self.loop.time() + LINGER_SECONDS
        self.transport.write(answer)
        if more_may_come:
            self.flow.resume_reading()
            self.transport.write_eof()
        else:
            self.transport.close()

    def _render(self, problem: ProblemError) -> bytes:
        """The whole answer of a refusal that no route makes."""
        headers = self.headers if self._receiving else ()
        correlation_id = correlation_id_of(find_header(headers, CORRELATION_ID_HEADER))
        path = unquote(self.url.partition(b"?")[0]) if self._receiving and self.url else None
        body = problem.render(correlation_id=correlation_id, instance=path)
        self._count(problem)
        fields: Iterable[tuple[bytes, bytes]] = (
            *self.server_state.default_headers,
            (b"content-type", MEDIA_TYPE.encode()),
            (b"content-length", b"%d" % len(body)),
            (CORRELATION_ID_HEADER, correlation_id.encode()),
            *((name.encode(), value.encode("latin-1", "replace")) for name, value in problem.headers),
            *(() if any(name == "connection" for name, _ in problem.headers) else ((b"connection", b"close"),)),
        )
        if self._receiving and self.parser.get_method() == b"HEAD":
            body = b""
        return b"".join([STATUS_LINE[problem.status], *(b"%s: %s\r\n" % header for header in fields), b"\r\n", body])

    def _count(self, problem: ProblemError) -> None:
        metrics: GatewayMetrics | None = self.app_state.get(METRICS)
        if metrics is not None:
            method = self.parser.get_method().decode("latin-1") if self._receiving else OTHER_METHOD
            metrics.count_request(method, NO_ROUTE, problem.status)
            metrics.count_refusal(problem.code)


def _check_head(version: str, headers: Iterable[tuple[bytes, bytes]], *, max_body_bytes: int) -> None:
    """Raises `ProblemError` for a request that HTTP/1.1 does not allow or whose body is too large."""
    if version not in {"1.1", "1.0"}:
        raise _malformed(f"HTTP/{version} is not spoken here, only HTTP/1.1 and HTTP/1.0")
    hosts = 0
    for name, value in headers:
        if name == b"host":
            hosts += 1
        elif name == b"content-length" and int(value) > max_body_bytes:
            raise body_too_large(max_body_bytes)
    if hosts > 1 or (hosts == 0 and version == "1.1"):
        # RFC 9112 section 3.2.
        raise _malformed("an HTTP/1.1 request has exactly one Host header")


def _malformed(reason: object) -> ProblemError:
    return ProblemError(ProblemCode.INVALID_REQUEST, f"this is not a valid HTTP request: {reason}")


def _timed_out(part: str, seconds: float) -> ProblemError:
    detail = f"the {part} of the request did not arrive within {seconds:g} s; nothing was accepted"
    return ProblemError(ProblemCode.REQUEST_TIMEOUT, detail)


def _head_too_large() -> ProblemError:
    detail = f"the headers of a request may be at most {MAX_HEAD_BYTES} bytes long, all together"
    return ProblemError(ProblemCode.HEADERS_TOO_LARGE, detail)


def _sweep_regularly(state: ServerState, loop: asyncio.AbstractEventLoop) -> None:
    """One timer for all connections of a server, from its first one on, because uvicorn has no hook of its own."""
    sweep_connections(state, loop.time())
    loop.call_later(SWEEP_SECONDS, _sweep_regularly, state, loop)


def sweep_connections(state: ServerState, now: float) -> None:
    """Act on all deadlines that have passed."""
    for connection in list(state.connections):
        cast("BoundedHttpProtocol", connection).sweep(now)
