"""One server process: uvicorn on an inherited listening socket, until SIGTERM."""

import gc
import logging
import math
import signal
import socket
from collections.abc import Callable
from typing import Final

import uvicorn

from fluxpool_gateway.app import build_application
from fluxpool_gateway.child import SHUTDOWN_MARGIN_SECONDS
from fluxpool_gateway.settings import GatewaySettings

KEEP_ALIVE_SECONDS: Final = 75
"""Longer than the idle time of common load balancers (60 s), which otherwise meet connections that are just closing."""


class _Server(uvicorn.Server):
    """Tells when it serves."""

    def __init__(self, config: uvicorn.Config, ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._ready = ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start, and say so when that succeeded."""
        await super().startup(sockets)
        if self.started:
            # What the application is made of stays for good; no collection in mid-request needs to look at it again.
            gc.collect()
            gc.freeze()
            self._ready()


def run_server(settings: GatewaySettings, *, listen_fd: int, ready: Callable[[], None]) -> int:
    """Serve until SIGTERM, then finish what is under way; returns the exit status.

    `ready` is called once requests are answered.
    """
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    # uvicorn raises the signal that stopped it once more when it is done; here that must not end the process by it.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    server = _Server(
        uvicorn.Config(
            build_application(settings),
            http="httptools",
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
    return 0 if server.started else 1
