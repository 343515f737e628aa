"""Receivers of webhooks: one real HTTP server on loopback whose paths answer, refuse, hang, redirect, close and lie."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from ipaddress import ip_network
from typing import Any

LOOPBACK = (ip_network("127.0.0.0/8"),)
Respond = Callable[["Message", asyncio.StreamWriter], Coroutine[Any, Any, None]]


@dataclass(frozen=True, slots=True)
class Message:
    """A request that arrived."""

    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def event_id(self) -> str:
        return self.headers["webhook-id"]


@dataclass(slots=True)
class Receiver:
    """The server; a path that `responses` does not name answers 200."""

    url: str = ""
    messages: list[Message] = field(default_factory=list)
    responses: dict[str, Respond] = field(default_factory=dict)
    writers: set[asyncio.StreamWriter] = field(default_factory=set)
    """Of the open connections."""

    @property
    def open_connections(self) -> int:
        return len(self.writers)

    def to(self, path: str) -> list[Message]:
        return [message for message in self.messages if message.path == path]

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.writers.add(writer)
        try:
            with suppress(ConnectionError, asyncio.IncompleteReadError):
                message = await _read(reader)
                self.messages.append(message)
                respond = self.responses.get(message.path, answering(200, b"thanks"))
                await _while_connected(respond(message, writer), reader)
                await writer.drain()
        finally:
            self.writers.discard(writer)
            writer.close()


async def _read(reader: asyncio.StreamReader) -> Message:
    head = (await reader.readuntil(b"\r\n\r\n")).decode()
    request, *lines = head.strip().split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    return Message(request.split()[1], headers, await reader.readexactly(int(headers["content-length"])))


def answering(status: int, body: bytes = b"", **headers: str) -> Respond:
    """Answers every request alike; an underscore in the name of a header is a hyphen."""
    extra = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items())
    head = f"HTTP/1.1 {status} Word\r\ncontent-length: {len(body)}\r\n{extra}\r\n".encode()
    return saying(head + body)


def saying(everything: bytes) -> Respond:
    """Sends these bytes and closes the connection."""

    async def respond(_message: Message, writer: asyncio.StreamWriter) -> None:
        writer.write(everything)

    return respond


async def hanging(_message: Message, _writer: asyncio.StreamWriter) -> None:
    """Never answers; ends when the client does."""
    await asyncio.Event().wait()


async def never_ending(_message: Message, writer: asyncio.StreamWriter) -> None:
    """Answers 200 with a body that has no end."""
    writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
    while not writer.is_closing():
        writer.write(b"x" * 65_536)
        await writer.drain()


async def dripping(_message: Message, writer: asyncio.StreamWriter) -> None:
    """Sends a header a byte at a time, for ever."""
    writer.write(b"HTTP/1.1 200 OK\r\nx-slow: ")
    while not writer.is_closing():
        writer.write(b"x")
        await writer.drain()
        await asyncio.sleep(0.01)


async def _while_connected(responding: Coroutine[Any, Any, None], reader: asyncio.StreamReader) -> None:
    """Respond, and give up when the client closes the connection."""
    response, client = asyncio.create_task(responding), asyncio.create_task(reader.read())
    try:
        await asyncio.wait({response, client}, return_when=asyncio.FIRST_COMPLETED)
        if response.done():
            response.result()
    finally:
        for task in (response, client):
            task.cancel()
        await asyncio.wait({response, client})


@asynccontextmanager
async def running_receiver() -> AsyncIterator[Receiver]:
    """A receiver on a free port, for a block."""
    receiver = Receiver()
    server = await asyncio.start_server(receiver.serve, "127.0.0.1", 0)
    receiver.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield receiver
    finally:
        server.close()
        for writer in receiver.writers:
            writer.close()
        while receiver.open_connections:  # noqa: ASYNC110 - they end by themselves
            await asyncio.sleep(0.01)
