"""An application behind real sockets, and a client of server-sent events."""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self, cast

import httpx
import uvicorn
from uvicorn.server import ServerState

from fluxpool_gateway.http.protocol import BoundedHttpProtocol
from fluxpool_gateway.http.request_context import STOPPING
from kit.gateways.keyed_gateway import Gateway, keyed_gateway, keyed_settings
from kit.waiting import PATIENCE


@dataclass(slots=True)
class Event:
    """One event as a client gets it."""

    name: str = "message"
    data: Any = None
    id: str | None = None


@dataclass(slots=True)
class EventReader:
    """Reads the body of a response as section 9.2.6 of the HTML standard says."""

    response: httpx.Response | None = None
    """None: the events are known already."""
    retry: int | None = None
    events: list[Event] = field(default_factory=list)
    """All that came so far."""
    _chunks: AsyncIterator[bytes] | None = None
    _rest: bytes = b""

    @classmethod
    def of(cls, text: str) -> Self:
        """A reader that got this."""
        reader = cls()
        for block in text.rstrip("\n").split("\n\n"):
            if (event := reader._parsed(block.encode())) is not None:
                reader.events.append(event)
        return reader

    async def next(self, *, deadline_seconds: float = 30) -> Event | None:
        """The next event; None at the end of the response."""
        async with asyncio.timeout(PATIENCE * deadline_seconds):
            while True:
                block, end, rest = self._rest.partition(b"\n\n")
                if not end:
                    if self._chunks is None:
                        assert self.response is not None
                        self._chunks = self.response.aiter_raw()
                    chunk = await anext(self._chunks, None)
                    if chunk is None:
                        assert not self._rest, "a part of an event"
                        return None
                    self._rest += chunk
                    continue
                self._rest = rest
                event = self._parsed(block)
                if event is not None:
                    self.events.append(event)
                    return event

    async def rest(self) -> list[Event]:
        """All events up to the end of the response."""
        found = []
        while (event := await self.next()) is not None:
            found.append(event)
        return found

    def _parsed(self, block: bytes) -> Event | None:
        event, data = Event(), []
        for line in block.decode().split("\n"):
            name, _, value = line.partition(":")
            value = value.removeprefix(" ")
            match name:
                case "":
                    pass  # a comment, which keeps the connection open
                case "event":
                    event.name = value
                case "id":
                    event.id = value
                case "data":
                    data.append(value)
                case "retry":
                    self.retry = int(value)
                case _:
                    raise AssertionError(f"not a field of an event: {line}")
        if not data:
            return None
        event.data = json.loads("\n".join(data))
        return event


@asynccontextmanager
async def reading(client: httpx.AsyncClient, path: str, **headers: str) -> AsyncIterator[EventReader]:
    """The events of an address, for a block; other responses than 200 fail the test."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    async with client.stream("GET", path, headers=named) as response:
        if response.status_code != 200:
            raise AssertionError(f"{response.status_code}: {(await response.aread()).decode()}")
        assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
        assert response.headers["cache-control"] == "no-store"
        yield EventReader(response)


async def first_event(application: Any, target: str, headers: Mapping[str, str]) -> httpx.Response:
    """The response up to its first event, after which the client goes away; all of a response that has none."""
    path, _, query = target.partition("?")
    scope = {
        "type": "http", "method": "GET", "path": path, "raw_path": path.encode(), "query_string": query.encode(),
        "scheme": "http", "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
        "http_version": "1.1", "root_path": "", "server": ("gateway", 80), "client": None,
    }  # fmt: skip
    received = iter([{"type": "http.request", "body": b"", "more_body": False}])
    sent: list[Any] = []
    has_event = asyncio.Event()

    async def receive() -> dict[str, Any]:
        if (message := next(received, None)) is not None:
            return message
        await has_event.wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)
        if b"data:" in message.get("body", b""):
            has_event.set()

    async with asyncio.timeout(30):
        await application(scope, receive, send)
    body = b"".join(message.get("body", b"") for message in sent[1:])
    return httpx.Response(sent[0]["status"], headers=sent[0]["headers"], content=body)


@dataclass(slots=True)
class Server:
    """An application that listens."""

    port: int
    state: ServerState

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def shut_down(self) -> None:
        """What uvicorn does first when it is to stop."""
        for connection in list(self.state.connections):
            connection.shutdown()


@asynccontextmanager
async def serving(application: Any, state: dict[str, Any] | None = None) -> AsyncIterator[Server]:
    """Serve an ASGI application by the gateway's own protocol; `state` is that of its lifespan."""
    config = uvicorn.Config(
        application, http=BoundedHttpProtocol, ws="none", log_config=None, access_log=False, proxy_headers=False
    )
    config.load()
    servers = ServerState()
    loop = asyncio.get_running_loop()
    listening = await loop.create_server(lambda: BoundedHttpProtocol(config, servers, state or {}), "127.0.0.1", 0)
    try:
        yield Server(listening.sockets[0].getsockname()[1], servers)
    finally:
        listening.close()
        for connection in list(servers.connections):
            cast("asyncio.WriteTransport", connection.transport).abort()
        # Their applications end by themselves; nothing of a test outlives it.
        await asyncio.gather(*servers.tasks, return_exceptions=True)


@dataclass(slots=True)
class Listening:
    """A gateway of two processes that share a store, each with a client over sockets."""

    gateway: Gateway
    one: httpx.AsyncClient
    two: httpx.AsyncClient
    server: Server

    async def readers(self) -> float:
        """How many the metrics of the first process tell."""
        text = (await self.one.get("/metrics")).text
        (line,) = (line for line in text.splitlines() if line.startswith("fluxpool_event_stream_readers "))
        return float(line.rpartition(" ")[2])


@asynccontextmanager
async def listening_gateway(folder: Path) -> AsyncIterator[Listening]:
    """Run it for a block; a process has places for three readers, and for two of one tenant."""
    settings = keyed_settings(folder).model_copy(update={"event_streams": 3, "event_streams_of_tenant": 2})
    async with keyed_gateway(settings) as gateway, AsyncExitStack() as stack:
        clients, servers = [], []
        for replica in (gateway.one, gateway.two):
            state = {STOPPING: replica.app.state.services.stopping}
            servers.append(await stack.enter_async_context(serving(replica.app, state)))
            client = httpx.AsyncClient(
                base_url=servers[-1].url, headers={"authorization": f"Bearer {gateway.admin}"}, timeout=60
            )
            clients.append(await stack.enter_async_context(client))
        one, two = clients
        yield Listening(gateway, one, two, servers[0])
