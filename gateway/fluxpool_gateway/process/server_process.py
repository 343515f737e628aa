"""One server process: uvicorn on an inherited listening socket, until SIGTERM."""

import asyncio
import gc
import logging
import math
import resource
import signal
import socket
from collections.abc import Callable
from typing import Final

import uvicorn

from fluxpool_gateway.http.app import build_application
from fluxpool_gateway.http.protocol import SWEEP_SECONDS, BoundedHttpProtocol, sweep_connections
from fluxpool_gateway.process.child import SHUTDOWN_MARGIN_SECONDS
from fluxpool_gateway.settings import GatewaySettings

KEEP_ALIVE_SECONDS: Final = 75
"""Longer than the idle time of common load balancers (60 s), which otherwise meet connections that are just closing."""


_OTHER_FILES: Final = 256
"""Brokers, the object store, the task store."""


class _Server(uvicorn.Server):
    """Tells when it serves, and watches over the deadlines of its connections."""

    def __init__(self, config: uvicorn.Config, ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._ready = ready
        self._sweep_at = 0.0
        self.failed = False

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start, and say so when that succeeded."""
        await super().startup(sockets)
        if self.started:
            # What the application is made of stays for good; no collection in mid-request needs to look at it again.
            gc.collect()
            gc.freeze()
            self._ready()

    async def on_tick(self, counter: int) -> bool:
        """Called ten times a second by uvicorn."""
        now = asyncio.get_running_loop().time()
        if now >= self._sweep_at:
            self._sweep_at = now + SWEEP_SECONDS
            sweep_connections(self.server_state, now)
        return await super().on_tick(counter)

    def fail(self) -> None:
        """End with an exit status other than 0, once what is under way is answered."""
        self.failed = self.should_exit = True


def run_server(settings: GatewaySettings, *, listen_fd: int, ready: Callable[[], None]) -> int:
    """Serve until SIGTERM, then finish what is under way; returns the exit status.

    `ready` is called once requests are answered.
    """
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    # uvicorn raises the signal that stopped it once more when it is done; here that must not end the process by it.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    BoundedHttpProtocol.max_connections = _possible_connections(settings.max_connections)
    server = _Server(
        uvicorn.Config(
            build_application(settings, on_failure=lambda: server.fail()),  # noqa: PLW0108 - `server` is not yet there
            http=BoundedHttpProtocol,
            ws="none",
            lifespan="on",
            log_config=None,
            access_log=False,
            server_header=False,
            # Addresses are settings (`public_url`), not what a header of some proxy claims.
            proxy_headers=False,
            timeout_keep_alive=KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=math.ceil(settings.produce_deadline_seconds) + SHUTDOWN_MARGIN_SECONDS,
        ),
        ready,
    )
    server.run(sockets=[socket.socket(fileno=listen_fd)])
    return 0 if server.started and not server.failed else 1


def _possible_connections(wanted: int) -> int:
    """As many of the wanted connections as this process may have open files for, with what else it opens."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = wanted + _OTHER_FILES
    if soft != resource.RLIM_INFINITY and soft < needed:
        soft = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        return max(1, soft - _OTHER_FILES)
    return wanted
