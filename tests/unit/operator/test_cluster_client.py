"""Requests to an API server that is slow or overloaded. Time is the loop's clock, which the tests advance."""

import asyncio
from collections.abc import Callable, Coroutine

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from kubernetes.aio.client import ApiClient, Configuration

from fluxpool_operator.cluster import ClusterClient, ClusterUnreachableError
from fluxpool_operator.cluster.client import CONNECTIONS

DEADLINE_SECONDS = 60.0
"""Many times what a busy machine needs for a request that the server answers at once."""


class _LeapingLoop(asyncio.SelectorEventLoop):
    """An event loop whose clock is also advanced by calls."""

    leapt_seconds = 0.0

    def time(self) -> float:
        return super().time() + self.leapt_seconds


class _HoldingServer:
    """Answers a request when the test says so."""

    def __init__(self, loop: _LeapingLoop) -> None:
        self.loop = loop
        self.url = ""
        self.arrived: asyncio.Queue[asyncio.Event] = asyncio.Queue()
        self.asked: list[str] = []

    async def answer(self, request: web.Request) -> web.Response:
        self.asked.append(request.path)
        answered = asyncio.Event()
        self.arrived.put_nowait(answered)
        await answered.wait()
        return web.json_response({"path": request.path})


def _run(scenario: Callable[[_HoldingServer, ClusterClient], Coroutine[None, None, None]]) -> None:
    async def run() -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, _LeapingLoop)
        server = _HoldingServer(loop)
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", server.answer)
        async with TestServer(app) as running:
            server.url = str(running.make_url("")).rstrip("/")
            configuration = Configuration(host=server.url)
            configuration.connection_pool_maxsize = CONNECTIONS
            async with ClusterClient(ApiClient(configuration), deadline_seconds=DEADLINE_SECONDS) as client:
                await scenario(server, client)

    with asyncio.Runner(loop_factory=_LeapingLoop) as runner:
        runner.run(run())


def test_requests_that_wait_for_a_slot_do_not_time_out() -> None:
    """A thousand pools that start at once send more requests than the server answers within one deadline."""
    rounds = 4

    async def scenario(server: _HoldingServer, client: ClusterClient) -> None:
        paths = [f"/pools/{number}" for number in range(rounds * CONNECTIONS)]
        async with asyncio.TaskGroup() as group:
            requests = [group.create_task(client.get(path)) for path in paths]
            for _ in range(rounds):
                arrived = [await server.arrived.get() for _ in range(CONNECTIONS)]
                server.loop.leapt_seconds += DEADLINE_SECONDS / 2
                for answered in arrived:
                    answered.set()
        assert [request.result()["path"] for request in requests] == paths
        assert sorted(server.asked) == sorted(paths), "some requests were repeated"

    _run(scenario)


def test_a_request_without_an_answer_ends_at_its_deadline() -> None:
    async def scenario(server: _HoldingServer, client: ClusterClient) -> None:
        async def ask() -> None:
            request = asyncio.create_task(client.get("/pools/1"))
            (await server.arrived.get()).set()
            assert (await request)["path"] == "/pools/1"

        hanging = asyncio.create_task(client.get("/hang"))
        unanswered = await server.arrived.get()
        server.loop.leapt_seconds += DEADLINE_SECONDS / 2
        await ask()
        assert not hanging.done(), "the request ended before its deadline"
        server.loop.leapt_seconds += DEADLINE_SECONDS / 2
        with pytest.raises(ClusterUnreachableError, match=r"GET /hang: no answer within 60 s"):
            await hanging
        unanswered.set()
        await ask()

    _run(scenario)
