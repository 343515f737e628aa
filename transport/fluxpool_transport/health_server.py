"""Probes and metrics over HTTP for the worker and the operator. Owns the server; what is healthy is its user's word.

Needs aiohttp, which is no part of the `transport` extra: the gateway serves its own.
"""

from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Final, Self

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest

SHUTDOWN_SECONDS: Final = 1.0


class HealthServer:
    """`/healthz`, `/readyz` and `/metrics` on one port; an async context manager."""

    def __init__(
        self,
        *,
        host: str,
        port: int,
        why_not_alive: Callable[[], str | None],
        why_not_ready: Callable[[], str | None],
        registry: CollectorRegistry,
    ) -> None:
        self._host = host
        self._port = port

        async def metrics(_request: web.Request) -> web.Response:
            return web.Response(body=generate_latest(registry), headers={"Content-Type": CONTENT_TYPE_LATEST})

        application = web.Application()
        application.router.add_get("/healthz", _probe(why_not_alive))
        application.router.add_get("/readyz", _probe(why_not_ready))
        application.router.add_get("/metrics", metrics)
        self._runner = web.AppRunner(application, access_log=None)

    async def __aenter__(self) -> Self:
        """Listen; raises `OSError` when the port is taken."""
        await self._runner.setup()
        await web.TCPSite(self._runner, self._host, self._port, shutdown_timeout=SHUTDOWN_SECONDS).start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop listening."""
        await self._runner.cleanup()

    @property
    def port(self) -> int:
        """The port it listens on."""
        return int(self._runner.addresses[0][1])


def _probe(why_not: Callable[[], str | None]) -> Callable[[web.Request], Awaitable[web.Response]]:
    async def answer(_request: web.Request) -> web.Response:
        reason = why_not()
        return web.Response(text="ok\n") if reason is None else web.Response(status=503, text=reason + "\n")

    return answer
