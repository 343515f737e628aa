"""Both clients of the HTTP API before a real gateway over a real task store, without Kafka."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from fluxpool_client import (
    AsyncClient,
    Client,
)
from fluxpool_gateway.store import task_state
from kit.gateways.keyed_gateway import IMAGE, NOW_MS, Gateway, keyed_gateway, keyed_settings, succeeded

ID = "01890a5d-ac96-774b-bcce-b302099a8057"
CLIENTS = ("blocking", "asyncio")


@dataclass(slots=True)
class Wire(httpx.AsyncBaseTransport):
    """Between a client and the gateway; what stands first in `instead` is what the next request comes to."""

    gateway: httpx.AsyncBaseTransport
    instead: list[httpx.Response | httpx.RequestError] = field(default_factory=list)
    asked: list[httpx.Request] = field(default_factory=list)
    on_response: Callable[[httpx.Response], None] = lambda _response: None

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        self.asked.append(request)
        if not self.instead:
            response = await self.gateway.handle_async_request(request)
            self.on_response(response)
            return response
        outcome = self.instead.pop(0)
        if isinstance(outcome, httpx.RequestError):
            raise outcome
        return outcome


@dataclass(slots=True)
class FromThread(httpx.BaseTransport):
    """Gives the requests of another thread to a wire in the test's loop."""

    wire: Wire
    loop: asyncio.AbstractEventLoop

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        async def ask() -> httpx.Response:
            response = await self.wire.handle_async_request(
                httpx.Request(
                    request.method, request.url, headers=request.headers, content=content, extensions=request.extensions
                )
            )
            await response.aread()
            return response

        content = request.read()
        answer = asyncio.run_coroutine_threadsafe(ask(), self.loop).result(60)
        return httpx.Response(answer.status_code, headers=answer.headers, content=answer.content)


@dataclass(slots=True)
class Caller:
    """One of both clients; its calls are awaited."""

    client: Client | AsyncClient
    wire: Wire

    async def __call__(self, name: str, *arguments: Any, **options: Any) -> Any:
        call = getattr(self.client, name)
        if isinstance(self.client, AsyncClient):
            return await call(*arguments, **options)
        return await asyncio.to_thread(call, *arguments, **options)

    async def tasks(self, **fields: Any) -> list[str]:
        if isinstance(self.client, AsyncClient):
            return [task.request_id async for task in self.client.tasks(**fields)]
        client = self.client
        return await asyncio.to_thread(lambda: [task.request_id for task in client.tasks(**fields)])


@dataclass(slots=True)
class World:
    """A gateway and the client that calls it."""

    gateway: Gateway
    kind: str
    images: Path

    def caller(self, key: str | None = None, **options: Any) -> Caller:
        wire = Wire(httpx.ASGITransport(app=self.gateway.one.app))
        options = {"api_key": key or self.gateway.admin, **options}
        url = "http://gateway/"
        if self.kind == "asyncio":
            return Caller(AsyncClient(url, http=httpx.AsyncClient(transport=wire), **options), wire)
        bridge = FromThread(wire, asyncio.get_running_loop())
        return Caller(Client(url, http=httpx.Client(transport=bridge), **options), wire)

    def succeed(self, request_id: str) -> None:
        self.gateway.project(succeeded(request_id, "default"))
        folder = self.images / "default" / "2026/04/05" / request_id
        folder.mkdir(parents=True)
        (folder / "0.png").write_bytes(IMAGE)

    def project_accepted(self) -> None:
        """What the gateway wrote to Kafka, as its projector would."""
        self.gateway.project(
            *(
                queued(value["request_id"], NOW_MS + number, group_id=value.get("group_id"))
                for number, value in enumerate(self.gateway.records.values)
            )
        )


def queued(request_id: str, created_at_ms: int, *, group_id: str | None) -> task_state.TaskSeen:
    return task_state.TaskSeen(
        request_id=request_id,
        body='{"prompt": "a fox"}',
        priority="standard",
        tenant="default",
        created_at_ms=created_at_ms,
        group_id=group_id,
    )


@asynccontextmanager
async def client_world(kind: str, folder: Path) -> AsyncIterator[World]:
    """A gateway, and callers of it by one of `CLIENTS`."""
    async with keyed_gateway(keyed_settings(folder)) as gateway:
        yield World(gateway, kind, folder / "images")
