"""The limits of a connection, over real sockets, in front of a test application."""

import asyncio
import itertools
import json
import resource
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, cast

import pytest
import uvicorn
from uvicorn.server import ServerState

from fluxpool_gateway.http import protocol as http_protocol
from fluxpool_gateway.http.generation_request import MAX_BATCH_BYTES, MAX_BODY_BYTES
from fluxpool_gateway.http.protocol import BoundedHttpProtocol, sweep_connections
from fluxpool_gateway.http.request_context import WHOLE_RESPONSE
from fluxpool_gateway.server import KEEP_ALIVE_SECONDS
from kit.waiting import PATIENCE, wait_until

POST = b"POST /v1/generations HTTP/1.1\r\nHost: a\r\n"
GET = b"GET /healthz HTTP/1.1\r\nHost: a\r\n"
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n"
LATER_SECONDS = 60.0
ANSWER_SECONDS = 30.0 * PATIENCE
TCP_CLOSE = 7
"""State of a connection that was reset, in `struct tcp_info` of tcp(7)."""


@dataclass(slots=True)
class Application:
    """Reads a request to its end and answers 200 with what it read."""

    bodies: list[bytes] = field(default_factory=list)
    """Bodies of the complete requests."""
    headers: list[dict[bytes, bytes]] = field(default_factory=list)
    incomplete: int = 0
    answers_whole: bool = False
    may_answer: asyncio.Event = field(default_factory=asyncio.Event)

    async def __call__(self, scope: Any, receive: Callable[[], Awaitable[Any]], send: Any) -> None:
        self.headers.append(dict(scope["headers"]))
        body = b""
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                self.incomplete += 1
                return
            body += message["body"]
            if not message["more_body"]:
                break
        self.bodies.append(body)
        await self.may_answer.wait()
        headers = [(b"content-length", b"%d" % len(body))]
        if self.answers_whole:
            assert scope["state"][WHOLE_RESPONSE](200, headers, body)
            return
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})


@dataclass(slots=True)
class Server:
    """A listening server."""

    application: Application
    port: int
    state: ServerState
    received: list[int]
    """The size of each piece of data that its connections took from their sockets."""

    def pass_time(self, seconds: float = LATER_SECONDS) -> None:
        """Advance the clock of all connections."""
        sweep_connections(self.state, asyncio.get_running_loop().time() + seconds)

    async def send(self, data: bytes, *, half_close: bool = False) -> bytes:
        """Everything that the server sends after these bytes until it closes the connection."""
        async with self.connect() as (reader, writer):
            writer.write(data)
            if half_close:
                writer.write_eof()
            return await asyncio.wait_for(reader.read(), ANSWER_SECONDS)

    @asynccontextmanager
    async def connect(self, **options: Any) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
        """A client's connection; aborted at the end, because bytes that the server did not read would keep it open."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port, **options)
        try:
            yield reader, writer
        finally:
            writer.transport.abort()
            with suppress(OSError):
                await writer.wait_closed()


@asynccontextmanager
async def serving(*, max_connections: int = 100) -> AsyncIterator[Server]:
    application = Application()
    application.may_answer.set()
    config = uvicorn.Config(
        application,
        http=BoundedHttpProtocol,
        ws="none",
        log_config=None,
        access_log=False,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
    )
    config.load()
    state = ServerState()
    received: list[int] = []

    class Protocol(BoundedHttpProtocol):
        """The protocol with the limit of a test, which counts what it gets."""

        def data_received(self, data: bytes) -> None:
            received.append(len(data))
            super().data_received(data)

    Protocol.max_connections = max_connections
    server = await asyncio.get_running_loop().create_server(lambda: Protocol(config, state, {}), "127.0.0.1", 0)
    try:
        yield Server(application, server.sockets[0].getsockname()[1], state, received)
    finally:
        server.close()
        for connection in list(state.connections):
            cast("asyncio.WriteTransport", connection.transport).abort()
        for task in list(state.tasks):
            task.cancel()
        # An aborted transport closes its socket in a later round of the loop, which must not end before.
        await until(lambda: not state.connections and not state.tasks)


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    async with serving() as started:
        yield started


def status_of(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1])


def problem_of(answer: bytes) -> dict[str, Any]:
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"content-type: application/problem+json" in head
    assert b"connection: close" in head
    document: dict[str, Any] = json.loads(body)
    assert document["status"] == status_of(answer)
    return document


async def until(condition: Callable[[], bool]) -> None:
    await wait_until(condition, deadline_seconds=10, what="the server to reach that state")


async def test_a_request_in_any_pieces_is_one_request(server: Server) -> None:
    async with server.connect() as (reader, writer):
        for byte in POST + b"Content-Length: 5\r\n\r\nhello":
            writer.write(bytes([byte]))
            await writer.drain()
            await asyncio.sleep(0)
        assert (await reader.readuntil(b"hello")).startswith(b"HTTP/1.1 200")
    assert server.application.bodies == [b"hello"]


@pytest.mark.parametrize(
    ("data", "status", "code"),
    [
        (b"GET /" + b"x" * 17_000 + b" HTTP/1.1\r\nHost: a\r\n\r\n", 414, "uri_too_long"),
        (b"GET /" + b"x" * 300_000, 414, "uri_too_long"),
        (GET + b"X: " + b"y" * 33_000 + b"\r\n\r\n", 431, "headers_too_large"),
        (GET + b"X: " + b"y" * 300_000, 431, "headers_too_large"),
        (GET + b"".join(b"X-%d: y\r\n" % number for number in range(5000)) + b"\r\n", 431, "headers_too_large"),
        (POST + b"Content-Length: 100000000\r\n\r\n", 413, "payload_too_large"),
        (POST + b"Expect: 100-continue\r\nContent-Length: 100000000\r\n\r\n", 413, "payload_too_large"),
        (CHUNKED + b"2710\r\n%s\r\n" % (b"x" * 10_000) * 9, 413, "payload_too_large"),
        (CHUNKED + b"1;x=" + b"y" * 400_000, 431, "headers_too_large"),
        (CHUNKED + b"1\r\nx\r\n0\r\nX: " + b"y" * 400_000, 431, "headers_too_large"),
        (CHUNKED + b"1;x=%s\r\nx\r\n" % (b"y" * 30_000) * 40, 413, "payload_too_large"),
        (b"GET / HTTP/2.0\r\nHost: a\r\n\r\n", 400, "invalid_request"),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400, "invalid_request"),
        (b"GET /\r\n\r\n", 400, "invalid_request"),
        (b"GET / HTTP/1.1\r\n\r\n", 400, "invalid_request"),
        (b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400, "invalid_request"),
        (b"BREW / HTTP/1.1\r\nHost: a\r\n\r\n", 400, "invalid_request"),
        (b"CONNECT a:80 HTTP/1.1\r\nHost: a\r\n\r\n", 400, "invalid_request"),
        (b"GET /\xff HTTP/1.1\r\nHost: a\r\n\r\n", 400, "invalid_request"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400, "invalid_request"),
        (POST + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello", 400, "invalid_request"),
        (POST + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400, "invalid_request"),
        (CHUNKED + b"zz\r\n", 400, "invalid_request"),
        (b"\r\n" * 20_000, 431, "headers_too_large"),
    ],
)  # fmt: skip
async def test_an_invalid_or_too_large_request_gets_a_problem_document_at_once(
    server: Server, data: bytes, status: int, code: str
) -> None:
    problem = problem_of(await server.send(data))
    assert (problem["status"], problem["error"]["code"]) == (status, code)
    assert server.application.bodies == []


async def test_an_answer_reaches_a_client_that_is_still_sending(server: Server) -> None:
    async with server.connect() as (reader, writer):
        writer.write(POST + b"Content-Length: 100000000\r\n\r\n")
        for _ in range(200):
            writer.write(b"x" * 100_000)
            await writer.drain()
        assert problem_of(await reader.read())["status"] == 413


async def test_the_largest_body_is_read_whole(server: Server) -> None:
    body = b"x" * MAX_BODY_BYTES
    answer = await server.send(POST + b"Connection: close\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
    assert status_of(answer) == 200
    assert server.application.bodies == [body]


async def test_a_batch_may_be_larger_up_to_a_bound_of_its_own(server: Server) -> None:
    batch = POST.replace(b"/v1/generations", b"/v1/generations/batch?x")
    body = b"x" * MAX_BATCH_BYTES
    answer = await server.send(batch + b"Connection: close\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
    assert status_of(answer) == 200
    assert server.application.bodies == [body]
    # The next request of a connection has the usual bound again.
    small = batch + b"Content-Length: 100000\r\n\r\n" + body[:100_000]
    assert b"413 " in await server.send(small + POST + b"Content-Length: 100000\r\n\r\n")
    too_large = (
        b"Content-Length: %d\r\n\r\n" % (len(body) + 1),
        b"Transfer-Encoding: chunked\r\n\r\n" + (b"2710\r\n%s\r\n" % (b"x" * 10_000)) * 79,
    )
    for data in too_large:
        problem = problem_of(await server.send(batch + data))
        assert (problem["status"], problem["error"]["code"]) == (413, "payload_too_large")
        assert f"at most {MAX_BATCH_BYTES} bytes" in problem["detail"]
    assert len(server.application.bodies) == 2


async def test_a_response_sent_whole_is_the_same_as_one_in_two_messages(server: Server) -> None:
    requests = (POST + b"Content-Length: 3\r\n\r\none") * 2 + POST + b"Connection: close\r\nContent-Length: 1\r\n\r\n1"
    in_two_messages = await server.send(requests)
    assert in_two_messages.count(b"HTTP/1.1 200") == 3
    server.application.answers_whole = True
    assert await server.send(requests) == in_two_messages


async def test_trailers_are_no_headers(server: Server) -> None:
    data = POST + b"Connection: close\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\nIdempotency-Key: y\r\n\r\n"
    assert status_of(await server.send(data)) == 200
    assert b"idempotency-key" not in server.application.headers[0]


@pytest.mark.parametrize(
    "complete", [b"Content-Length: 5\r\n\r\nhello", b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"]
)
async def test_a_client_that_closes_its_sending_side_gets_its_answer(server: Server, complete: bytes) -> None:
    server.application.may_answer.clear()
    answering = asyncio.create_task(server.send(POST + complete, half_close=True))
    await until(lambda: server.application.bodies == [b"hello"])
    server.application.may_answer.set()
    assert status_of(await answering) == 200


@pytest.mark.parametrize("incomplete", [
    b"GET /health",
    GET,
    POST + b"Content-Length: 4000\r\n\r\n{}",
    POST + b"Content-Length: 4000\r\n\r\n",
    POST + b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n",
    POST + b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n",
])  # fmt: skip
async def test_a_request_that_ends_early_is_no_request(server: Server, incomplete: bytes) -> None:
    problem = problem_of(await server.send(incomplete, half_close=True))
    assert (problem["status"], "before the request was complete" in problem["detail"]) == (400, True)
    await until(lambda: not server.state.tasks)
    assert server.application.bodies == []


@pytest.mark.parametrize(
    "upgrade",
    [b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n", b"Connection: upgrade\r\nUpgrade: websocket\r\n"],
)
@pytest.mark.parametrize(
    "body", [b"Content-Length: 5\r\n\r\nhello", b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"]
)
@pytest.mark.parametrize("pieces", [1, 7])
async def test_an_offered_upgrade_is_ignored_and_the_next_request_served(
    server: Server, upgrade: bytes, body: bytes, pieces: int
) -> None:
    data = (POST + upgrade + body) * 2
    async with server.connect() as (reader, writer):
        for start in range(0, len(data), -(-len(data) // pieces)):
            writer.write(data[start : start - (-len(data) // pieces)])
            await writer.drain()
            await asyncio.sleep(0.001)
        for _ in range(2):
            assert (await reader.readuntil(b"hello")).startswith(b"HTTP/1.1 200")
    assert server.application.bodies == [b"hello", b"hello"]


async def test_thousands_of_upgrades_in_one_packet_are_parsed_one_after_the_other(server: Server) -> None:
    data = (b"GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n") * 3000
    answer = await server.send(data, half_close=True)
    assert answer.count(b"HTTP/1.1 200") == 3000


async def test_pipelined_requests_are_answered_before_the_refusal_behind_them(server: Server) -> None:
    server.application.may_answer.clear()
    data = POST + b"Content-Length: 1\r\n\r\na" + POST + b"Content-Length: 1\r\n\r\nb" + b"nonsense\r\n\r\n"
    answering = asyncio.create_task(server.send(data))
    await until(lambda: server.application.bodies == [b"a"])
    server.application.may_answer.set()
    answer = await answering
    assert [part[:3] for part in answer.split(b"HTTP/1.1 ")[1:]] == [b"200", b"200", b"400"]


async def test_a_refused_body_does_not_cut_off_the_answer_before_it(server: Server) -> None:
    server.application.may_answer.clear()
    data = POST + b"Content-Length: 1\r\n\r\na" + POST + b"Content-Length: 5\r\n\r\nb"
    answering = asyncio.create_task(server.send(data, half_close=True))
    await until(lambda: server.application.bodies == [b"a"])
    server.application.may_answer.set()
    answer = await answering
    assert [part[:3] for part in answer.split(b"HTTP/1.1 ")[1:]] == [b"200", b"400"]


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (GET, 408),
        (b"GE", 408),
        (POST + b"Content-Length: 1000\r\n\r\n{", 408),
        (CHUNKED + b"1\r\n{\r\n", 408),
        (b"", None),
        (b"\r\n", None),
    ],
)
async def test_a_request_that_is_late_is_refused(server: Server, sent: bytes, status: int | None) -> None:
    answering = asyncio.create_task(server.send(sent))
    await until(lambda: bool(server.state.connections))
    await until(lambda: sum(server.received) == len(sent))
    if sent.startswith(POST):
        await until(lambda: bool(server.application.headers))
    server.pass_time(http_protocol.HEAD_SECONDS - 1)
    assert not answering.done()
    server.pass_time()
    answer = await answering
    assert (problem_of(answer)["status"] if answer else None) == status
    await until(lambda: not server.state.connections)
    assert server.application.bodies == []


async def test_many_half_headers_are_ended_by_the_clock_while_idle_connections_keep_being_served(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, seconds in {"HEAD_SECONDS": PATIENCE, "LINGER_SECONDS": 0.2, "SWEEP_SECONDS": 0.05}.items():
        monkeypatch.setattr(http_protocol, name, seconds)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(4096, hard)), hard))
    async with serving(max_connections=2048) as server, AsyncExitStack() as clients:
        idle = []
        for _ in range(1000):
            idle.append(await clients.enter_async_context(server.connect()))
            idle[-1][1].write(GET + b"\r\n")
        await until(lambda: len(server.application.headers) == len(idle))
        halves = [await clients.enter_async_context(server.connect()) for _ in range(200)]
        for _, writer in halves:
            writer.write(POST + b"Content-Le")
        answers = [await asyncio.wait_for(reader.read(), ANSWER_SECONDS) for reader, _ in halves]
        assert {problem_of(answer)["status"] for answer in answers} == {408}
        await until(lambda: len(server.state.connections) == len(idle))
        # Nothing that these clients do brought this about: they neither write on nor close.
        await until(lambda: {kernel_state(writer) for _, writer in halves} == {TCP_CLOSE})
        assert status_of(await server.send(GET + b"Connection: close\r\n\r\n")) == 200
        for reader, writer in idle:
            writer.write(GET + b"Connection: close\r\n\r\n")
            assert (await asyncio.wait_for(reader.read(), ANSWER_SECONDS)).count(b"HTTP/1.1 200") == 2


def kernel_state(writer: asyncio.StreamWriter) -> int:
    client: socket.socket = writer.get_extra_info("socket")
    return client.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0]


async def test_a_slow_response_of_the_server_does_not_time_out_the_client(server: Server) -> None:
    server.application.may_answer.clear()
    data = POST + b"Connection: close\r\nContent-Length: 1\r\n\r\na"
    answering = asyncio.create_task(server.send(data))
    await until(lambda: server.application.bodies == [b"a"])
    server.pass_time()
    server.application.may_answer.set()
    assert status_of(await answering) == 200


async def test_a_connection_without_a_request_is_closed_once_its_keep_alive_time_has_passed(server: Server) -> None:
    async with server.connect() as (reader, writer):
        writer.write(GET + b"\r\n")
        assert status_of(await reader.readuntil(b"\r\n\r\n")) == 200
        server.pass_time(KEEP_ALIVE_SECONDS - 1)
        writer.write(GET + b"\r\n")
        await until(lambda: len(server.application.headers) == 2)
        assert b"HTTP/1.1 200" in await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), ANSWER_SECONDS)
        server.pass_time(KEEP_ALIVE_SECONDS + 1)
        await asyncio.wait_for(reader.read(), ANSWER_SECONDS)
    await until(lambda: not server.state.connections)


async def test_a_client_that_does_not_read_its_responses_is_disconnected() -> None:
    # The client's buffer is full after a byte, then nothing is taken from the socket.
    async with serving() as server, server.connect(limit=1) as (_, writer):
        body = b"x" * MAX_BODY_BYTES
        data = (POST + b"Content-Length: %d\r\n\r\n" % len(body) + body) * 400
        sending = asyncio.create_task(write_all(writer, data))
        await until(lambda: any(unsent(connection.transport) for connection in server.state.connections))
        later = itertools.count(LATER_SECONDS, LATER_SECONDS)

        def given_up() -> bool:
            server.pass_time(next(later))
            return not server.state.connections

        await until(given_up)
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)


def unsent(transport: asyncio.BaseTransport | None) -> bool:
    return isinstance(transport, asyncio.WriteTransport) and transport.get_write_buffer_size() > MAX_BODY_BYTES


async def write_all(writer: asyncio.StreamWriter, data: bytes) -> None:
    writer.write(data)
    await writer.drain()


async def test_too_many_connections_get_a_problem_document() -> None:
    async with serving(max_connections=2) as server, server.connect():
        async with server.connect():
            await until(lambda: len(server.state.connections) == 2)
            assert problem_of(await server.send(b""))["error"]["code"] == "too_many_connections"
        await until(lambda: len(server.state.connections) == 1)
        assert status_of(await server.send(GET + b"Connection: close\r\n\r\n")) == 200
