"""The faults of the chaos tests' TCP proxy."""

import asyncio
import time
from collections.abc import AsyncIterator

import pytest

from fluxpool_cli.local.loopback import HOST
from kit.faults.tcp_proxy import Direction, TcpProxy
from kit.ports import own_port
from kit.waiting import wait_until

pytestmark = pytest.mark.on_change

ANSWER_SECONDS = 20.0
"""A loopback response takes microseconds; this is for a busy machine."""
SILENCE_SECONDS = 0.3


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(1024):
            writer.write(data)
            await writer.drain()
    except ConnectionError:
        pass
    finally:
        writer.close()


class Client:
    """One connection through the proxy."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    def say(self, words: bytes) -> None:
        self.writer.write(words)

    async def hear(self, count: int, *, within_seconds: float = ANSWER_SECONDS) -> bytes:
        async with asyncio.timeout(within_seconds):
            return await self.reader.readexactly(count)

    async def ask(self, words: bytes) -> bytes:
        self.say(words)
        return await self.hear(len(words))


@pytest.fixture
async def proxy() -> AsyncIterator[TcpProxy]:
    server = await asyncio.start_server(echo, HOST, 0)
    async with TcpProxy(server.sockets[0].getsockname()[1]) as proxy:
        yield proxy
    server.close()


@pytest.fixture
async def clients(proxy: TcpProxy) -> AsyncIterator[list[Client]]:
    """Two connections that have been used."""
    clients = [await connect(proxy) for _ in range(2)]
    for client in clients:
        assert await client.ask(b"hello") == b"hello"
    yield clients
    for client in clients:
        client.writer.transport.abort()


async def connect(proxy: TcpProxy) -> Client:
    async with asyncio.timeout(ANSWER_SECONDS):
        return Client(*await asyncio.open_connection(HOST, proxy.port))


async def assert_reset(client: Client) -> None:
    with pytest.raises((ConnectionResetError, BrokenPipeError)):
        await client.hear(1)


async def test_data_larger_than_a_chunk_arrives_complete(proxy: TcpProxy, clients: list[Client]) -> None:
    sent = bytes(range(256)) * 4096
    clients[0].say(sent)
    assert await clients[0].hear(len(sent)) == sent
    assert proxy.connections == 2


async def test_an_end_of_stream_is_forwarded_after_all_data(proxy: TcpProxy, clients: list[Client]) -> None:
    clients[0].say(b"goodbye")
    clients[0].writer.write_eof()
    async with asyncio.timeout(ANSWER_SECONDS):
        assert await clients[0].reader.read() == b"goodbye"
    await wait_until(lambda: proxy.connections == 1, deadline_seconds=20, what="the connection to end")


async def test_a_delay_applies_to_request_and_response(proxy: TcpProxy, clients: list[Client]) -> None:
    await proxy.delay(0.2)
    began = time.monotonic()
    assert await clients[0].ask(b"slowly") == b"slowly"
    assert time.monotonic() - began >= 0.4


async def test_a_black_hole_keeps_connections_and_delivers_once_it_is_restored(
    proxy: TcpProxy, clients: list[Client]
) -> None:
    await proxy.black_hole()
    clients[0].say(b"anybody?")
    newcomer = await connect(proxy)
    newcomer.say(b"hello?")
    await wait_until(lambda: proxy.held_bytes[Direction.TO_SERVER] > 0, deadline_seconds=20, what="held words")
    with pytest.raises(TimeoutError):
        await clients[0].hear(1, within_seconds=SILENCE_SECONDS)
    assert proxy.held_bytes == {Direction.TO_SERVER: len(b"anybody?"), Direction.TO_CLIENT: 0}
    await proxy.pass_all()

    assert await clients[0].hear(8) == b"anybody?"
    assert await newcomer.hear(6) == b"hello?"
    assert await clients[1].ask(b"me too") == b"me too"
    assert proxy.held_bytes == dict.fromkeys(Direction, 0)
    newcomer.writer.transport.abort()


async def test_a_link_that_drops_responses_forwards_requests(proxy: TcpProxy, clients: list[Client]) -> None:
    await proxy.black_hole(Direction.TO_CLIENT)
    clients[0].say(b"did you hear?")
    await wait_until(
        lambda: proxy.held_bytes[Direction.TO_CLIENT] == 13, deadline_seconds=20, what="the response to be held"
    )
    await proxy.pass_all()
    assert await clients[0].hear(13) == b"did you hear?"


async def test_a_client_that_disconnects_in_a_black_hole_is_dropped_once_it_is_restored(
    proxy: TcpProxy, clients: list[Client]
) -> None:
    await proxy.black_hole()
    clients[0].say(b"never mind")
    clients[0].writer.transport.abort()
    assert proxy.connections == 2
    await proxy.pass_all()
    await wait_until(lambda: proxy.connections == 1, deadline_seconds=20, what="the connection to be dropped")
    assert await clients[1].ask(b"still here") == b"still here"


async def test_a_dropping_link_resets_old_and_new_connections(proxy: TcpProxy, clients: list[Client]) -> None:
    await proxy.drop()
    for client in clients:
        await assert_reset(client)
    await assert_reset(await connect(proxy))
    await proxy.pass_all()
    again = await connect(proxy)
    assert await again.ask(b"back") == b"back"
    again.writer.transport.abort()


async def test_a_refusing_link_accepts_no_connection(proxy: TcpProxy, clients: list[Client]) -> None:
    await proxy.refuse()
    for client in clients:
        await assert_reset(client)
    with pytest.raises(ConnectionRefusedError):
        await connect(proxy)
    await proxy.pass_all()
    again = await connect(proxy)
    assert await again.ask(b"back") == b"back"
    again.writer.transport.abort()


async def test_a_reset_ends_open_connections_only(proxy: TcpProxy, clients: list[Client]) -> None:
    proxy.reset_connections()
    for client in clients:
        await assert_reset(client)
    again = await connect(proxy)
    assert await again.ask(b"back") == b"back"
    again.writer.transport.abort()


async def test_a_dead_server_ends_the_clients_connection() -> None:
    async with TcpProxy(own_port()) as proxy:
        await assert_reset(await connect(proxy))
