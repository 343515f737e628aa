"""Requests to an API server that is slow or overloaded."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from kubernetes.aio.client import ApiClient, Configuration

from fluxpool_operator.cluster import ClusterClient, ClusterUnreachableError

ANSWER_SECONDS = 0.2
DEADLINE_SECONDS = 3.0


class _SlowServer:
    """Delays every response; never responds to a path below /hang."""

    def __init__(self) -> None:
        self.asked = 0
        self._most_at_once = 0
        self._now = 0
        self.url = ""

    async def answer(self, request: web.Request) -> web.Response:
        self.asked += 1
        self._now += 1
        self._most_at_once = max(self._most_at_once, self._now)
        try:
            await asyncio.sleep(3600 if request.path.startswith("/hang") else ANSWER_SECONDS)
            return web.json_response({"path": request.path})
        finally:
            self._now -= 1

    @property
    def most_at_once(self) -> int:
        return self._most_at_once


@pytest.fixture
async def server() -> AsyncIterator[_SlowServer]:
    slow = _SlowServer()
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", slow.answer)
    async with TestServer(app) as running:
        slow.url = str(running.make_url("")).rstrip("/")
        yield slow


def _client(server: _SlowServer) -> ClusterClient:
    return ClusterClient(ApiClient(Configuration(host=server.url)), deadline_seconds=DEADLINE_SECONDS)


async def test_requests_that_wait_for_a_slot_do_not_time_out(server: _SlowServer) -> None:
    """A thousand pools that start at once send more requests than the server answers within one deadline."""
    async with _client(server) as client:
        paths = [f"/pools/{number}" for number in range(1000)]
        answers = await asyncio.gather(*(client.get(path) for path in paths))
    assert [answer["path"] for answer in answers] == paths
    assert server.asked == len(paths), "some requests were repeated"
    rounds = len(paths) / server.most_at_once
    assert rounds * ANSWER_SECONDS > DEADLINE_SECONDS, "no request waited longer than the deadline"


async def test_a_request_without_an_answer_ends_at_its_deadline(server: _SlowServer) -> None:
    async with _client(server) as client:
        with pytest.raises(ClusterUnreachableError, match=r"GET /hang: no answer within 3 s"):
            await client.get("/hang")
        assert (await client.get("/pools/1"))["path"] == "/pools/1"
