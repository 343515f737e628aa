"""The response that sends events, over real sockets: pings, slow readers and the end."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import httpx
import pytest
from fastapi.sse import format_sse_event

from fluxpool_gateway.http.problem import ProblemCode, ProblemError
from fluxpool_gateway.live.event_response import EventResponse, Events
from fluxpool_gateway.live.readers import EventReaders
from fluxpool_gateway.metrics.gateway_metrics import EVENT_STREAM_PREFIX, GatewayMetrics
from kit.http.event_streams import EventReader, Server, serving
from kit.waiting import wait_until

BLOCK = "x" * 65_536


def number_of(metrics: GatewayMetrics, name: str) -> float:
    (sample,) = (
        sample
        for collector in metrics.collectors
        for metric in collector.collect()
        for sample in metric.samples
        if sample.name == f"{EVENT_STREAM_PREFIX}{name}"
    )
    return sample.value


@dataclass(slots=True)
class Streams:
    """One response, served again and again."""

    server: Server
    readers: EventReaders
    metrics: GatewayMetrics
    made: list[int] = field(default_factory=list)
    """Numbers of the events that were made."""
    closed: int = 0


@asynccontextmanager
async def streams(
    *, ping_seconds: float = 60, slow_seconds: float = 60, refuse: bool = False
) -> AsyncIterator[Streams]:
    """An endless stream of blocks of 64 KiB."""

    async def blocks() -> Events:
        try:
            while True:
                found.made.append(len(found.made))
                yield format_sse_event(id=str(found.made[-1]), data_str=f'"{BLOCK}"')
                # The event loop also serves the client.
                await asyncio.sleep(0)
        finally:
            found.closed += 1

    async def silence() -> Events:
        await asyncio.Event().wait()
        yield b""

    async def check() -> None:
        if refuse:
            raise ProblemError(ProblemCode.UNAUTHORIZED, "the API key was revoked")

    async def application(scope: object, receive: object, send: object) -> None:
        assert isinstance(scope, dict)
        response = EventResponse(
            silence() if scope["path"] == "/silence" else blocks(),
            tenant="default",
            readers=found.readers,
            stopping=asyncio.Event(),
            half_closed=None,
            check=check,
            ping_seconds=ping_seconds,
            slow_seconds=slow_seconds,
        )
        await response(scope, receive, send)  # type: ignore[arg-type]

    async with serving(application) as server:
        metrics = GatewayMetrics()
        found = Streams(server, EventReaders(most=1, most_of_tenant=1, metrics=metrics), metrics)
        yield found


async def test_a_slow_reader_is_dropped_and_told_and_costs_a_bounded_memory() -> None:
    async with streams(slow_seconds=0.3) as found:
        client = socket.socket()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.setblocking(False)
        await asyncio.get_running_loop().sock_connect(client, ("127.0.0.1", found.server.port))
        reader, writer = await asyncio.open_connection(sock=client, limit=2**16)
        writer.write(b"GET /blocks HTTP/1.1\r\nHost: a\r\n\r\n")

        def is_dropped() -> bool:
            return number_of(found.metrics, "dropped_readers_total") == 1

        await wait_until(is_dropped, deadline_seconds=20, what="a dropped reader")
        # Its place is another's while it still has to read what it was sent.
        assert number_of(found.metrics, "readers") == 0
        made = len(found.made)
        async with asyncio.timeout(60):
            text = b""
            while b"event: closed" not in text:
                text = text[-200:] + await reader.read(2**20)
            text += await reader.readuntil(b"0\r\n\r\n") if not text.endswith(b"0\r\n\r\n") else b""
        assert b"too_slow" in text
        # What the sockets of both sides hold, and one more.
        assert len(found.made) == made < 200
        writer.close()
    assert found.closed == 1


async def test_a_reader_that_keeps_up_is_not_dropped() -> None:
    async with (
        streams(slow_seconds=0.5) as found,
        httpx.AsyncClient(base_url=found.server.url) as client,
        client.stream("GET", "/blocks") as response,
    ):
        reader = EventReader(response)
        for number in range(300):
            event = await reader.next()
            assert event is not None
            assert event.id == str(number)
        assert number_of(found.metrics, "dropped_readers_total") == 0
        assert number_of(found.metrics, "readers") == 1
    await wait_until(lambda: found.closed == 1, deadline_seconds=10, what="the end of the events")


async def test_silence_is_broken_by_pings() -> None:
    async with (
        streams(ping_seconds=0.05) as found,
        httpx.AsyncClient(base_url=found.server.url) as client,
        client.stream("GET", "/silence") as response,
    ):
        chunks = response.aiter_raw()
        assert await anext(chunks) == b"retry: 2000\n\n"
        assert [await anext(chunks) for _ in range(3)] == [b": ping\n\n"] * 3


@pytest.mark.parametrize("path", ["/silence", "/blocks"])
async def test_a_client_that_may_read_no_more_is_told_at_a_ping(path: str) -> None:
    async with (
        streams(ping_seconds=0.05, refuse=True) as found,
        httpx.AsyncClient(base_url=found.server.url) as client,
        client.stream("GET", path) as response,
    ):
        *_, last = await EventReader(response).rest()
        assert (last.name, last.data["reason"]) == ("closed", "unauthorized")
        assert last.data["detail"] == "the API key was revoked"


async def test_a_client_that_resets_its_connection_frees_its_place() -> None:
    async with streams() as found:
        _, writer = await asyncio.open_connection("127.0.0.1", found.server.port)
        writer.write(b"GET /blocks HTTP/1.1\r\nHost: a\r\n\r\n")
        await wait_until(lambda: found.made, deadline_seconds=10, what="an event")
        writer.transport.abort()
        await wait_until(lambda: found.closed == 1, deadline_seconds=10, what="the end of the events")
        assert number_of(found.metrics, "readers") == 0
        assert number_of(found.metrics, "dropped_readers_total") == 0
