"""The response that sends events until there are no more: pings, a last word, and the end of slow readers.

Owns when the response ends; the events come from an iterator, framed by fastapi.sse. Starlette's `StreamingResponse`
and sse-starlette cancel the sender when the server stops or a send takes too long: the client would not learn why.
"""

import asyncio
import json
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import KW_ONLY, dataclass
from typing import Any, Final

from fastapi import Response
from fastapi.sse import KEEPALIVE_COMMENT, format_sse_event

from fluxpool_gateway.http.problem import ProblemError
from fluxpool_gateway.http.request_context import EVENT_STREAM_HEADERS, PING_SECONDS, Receive, Scope, Send, disconnected
from fluxpool_gateway.live.readers import EventReaders

SLOW_SECONDS: Final = 20.0
"""For which the connection of a reader may have no room. Less than the 30 s after which `http.protocol` resets it: a
reader that goes on in between learns that it was dropped."""
HALF_CLOSED_PING_SECONDS: Final = 1.0
"""A client that closed its sending side may read on, or is gone: the second ping fails then."""
RETRY_MILLISECONDS: Final = 2000
"""Until a client connects again; `EventSource` takes 3 to 5 s otherwise."""

Events = AsyncGenerator[bytes, None]


@dataclass(frozen=True, slots=True)
class Closing:
    """Why the server ends a stream that is not over; the client may connect again."""

    reason: str
    detail: str

    def as_event(self) -> bytes:
        """The event `closed`. It has no id, so that a client keeps the last one it got."""
        return format_sse_event(event="closed", data_str=json.dumps({"reason": self.reason, "detail": self.detail}))


_STOPPING: Final = Closing("server_stopping", "the server is stopping; connect again with the last event's id")
_TOO_SLOW: Final = Closing(
    "too_slow", f"nothing was read for {SLOW_SECONDS:g} s; read faster, and connect again with the last event's id"
)


class EventResponse(Response):
    """One client's events."""

    def __init__(
        self,
        events: Events,
        *,
        tenant: str,
        readers: EventReaders,
        stopping: asyncio.Event,
        half_closed: asyncio.Event | None,
        check: Callable[[], Awaitable[None]],
        ping_seconds: float = PING_SECONDS,
        slow_seconds: float = SLOW_SECONDS,
    ) -> None:
        """`half_closed` is set when the client closes its sending side.

        `check` is called at every ping, and raises `ProblemError` when the client may read no more. `events` may raise
        it as well: both are told to the client.
        """
        super().__init__()
        self.raw_headers = list(EVENT_STREAM_HEADERS)
        self._events = events
        self._tenant = tenant
        self._readers = readers
        self._stopping = stopping
        self._half_closed = half_closed or asyncio.Event()
        self._check = check
        self._ping_seconds = ping_seconds
        self._slow_seconds = slow_seconds

    async def __call__(self, _scope: Scope, receive: Receive, send: Send) -> None:  # type: ignore[override]
        """Send the response; raises `ProblemError` when there are too many readers, before anything is sent."""
        client = _Client(
            send,
            gone=asyncio.ensure_future(disconnected(receive)),
            stopping=asyncio.ensure_future(self._stopping.wait()),
            half_closed=asyncio.ensure_future(self._half_closed.wait()),
        )
        try:
            with self._readers.place(self._tenant):
                await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
                closing = await self._stream(client)
            # The place is free: a slow reader takes its time for the last word.
            body = b"" if closing is None else closing.as_event()
            await send({"type": "http.response.body", "body": body, "more_body": False})
        finally:
            await _cancel(client.gone, client.stopping, client.half_closed)
            await self._events.aclose()

    async def _stream(self, client: "_Client") -> Closing | None:
        """Send events until there is no more to send; returns what is to be told when it is not for their end."""
        loop = asyncio.get_running_loop()
        part = format_sse_event(retry=RETRY_MILLISECONDS)
        pinged_at = loop.time()
        coming: asyncio.Future[bytes | None] | None = None
        try:
            while True:
                if not await client.take(part, within_seconds=self._slow_seconds):
                    self._readers.drop()
                    return _TOO_SLOW
                if coming is None:
                    coming = asyncio.ensure_future(anext(self._events, None))
                ping_at = pinged_at + (HALF_CLOSED_PING_SECONDS if client.half_closed.done() else self._ping_seconds)
                await client.wait_for(coming, seconds=max(0.0, ping_at - loop.time()))
                # First: uvicorn tells applications that their clients are gone when the server stops.
                if client.stopping.done():
                    return _STOPPING
                if client.gone.done():
                    return None
                part = b""
                if coming.done():
                    event, coming = coming.result(), None
                    if event is None:
                        return None
                    part = event
                if loop.time() >= ping_at:
                    await self._check()
                    pinged_at = loop.time()
                    part += KEEPALIVE_COMMENT
        except ProblemError as problem:
            return Closing(problem.code.value, problem.detail)
        finally:
            if coming is not None:
                await _cancel(coming)


@dataclass(frozen=True, slots=True)
class _Client:
    send: Send
    _: KW_ONLY
    gone: asyncio.Future[None]
    half_closed: asyncio.Future[Any]
    """It sends no more."""
    stopping: asyncio.Future[Any]
    """The server is."""

    async def take(self, part: bytes, *, within_seconds: float) -> bool:
        """Whether the connection had room for a part of the body within the time, if there is a client still."""
        message = {"type": "http.response.body", "body": part, "more_body": True}
        sending = asyncio.ensure_future(self.send(message))
        await asyncio.wait(
            {sending, self.gone, self.stopping}, timeout=within_seconds, return_when=asyncio.FIRST_COMPLETED
        )
        if sending.done():
            sending.result()
            return True
        # It waits for room in the connection: of this part nothing was written.
        await _cancel(sending)
        return self.gone.done() or self.stopping.done()

    async def wait_for(self, awaited: asyncio.Future[Any], *, seconds: float) -> None:
        """Return when it is done, the time is over, something new of the client, or the server about to stop."""
        ends = {awaited, self.gone, self.stopping} | (set() if self.half_closed.done() else {self.half_closed})
        await asyncio.wait(ends, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)


async def _cancel(*futures: asyncio.Future[Any]) -> None:
    for future in futures:
        future.cancel()
    # What one of them raises meanwhile changes nothing: the response ends, or goes on without it.
    await asyncio.gather(*futures, return_exceptions=True)
