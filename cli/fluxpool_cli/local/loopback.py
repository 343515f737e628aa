"""Free ports on the loopback address, from a range that the kernel gives to no outgoing connection."""

import random
import socket
from collections.abc import Container, Sequence
from contextlib import closing
from typing import Final

HOST: Final = "127.0.0.1"
PORTS: Final = range(20_000, 32_000)
"""Below the ports that Linux (32768) and macOS (49152) hand to outgoing connections: while a server is down, a client
that keeps dialling its address could otherwise be given that very port, connect to itself and keep the server out."""

_ATTEMPTS: Final = 200


class NoFreePortError(OSError):
    """Nothing in the range is free."""


def is_free(port: int) -> bool:
    """Whether a server can listen there now; connections of an earlier run that linger in TIME_WAIT do not count."""
    with closing(socket.socket()) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True


def free_port(*, taken: Container[int] = (), among: Sequence[int] = PORTS) -> int:
    """A port of `among` that is free now and not in `taken`; raises `NoFreePortError`.

    Another process may take it before the caller listens; the caller's own start then fails and is repeated.
    """
    for _ in range(_ATTEMPTS):
        port = random.choice(among)  # noqa: S311 - spreads parallel runs, guards nothing
        if port not in taken and is_free(port):
            return port
    raise NoFreePortError(f"no free port found on {HOST} between {among[0]} and {among[-1]}")
