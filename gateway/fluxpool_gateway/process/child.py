"""The entry of a gateway's child processes: `python -m fluxpool_gateway.process.child server|projector`.

Owns what both need: settings from the environment, logging, the end of the parent, and the word "ready" on a pipe.
"""

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from enum import StrEnum
from typing import assert_never

from fluxpool_gateway.settings import GatewaySettings
from fluxpool_transport.process import ParentGoneError, configure_logging, die_with_parent

EXIT_CONFIGURATION = 2
"""What is wrong stays wrong: the parent does not start such a child again."""
SHUTDOWN_MARGIN_SECONDS = 2
"""What a server takes beyond the produce deadline to finish the requests under way."""


class Role(StrEnum):
    """What a child does."""

    SERVER = "server"
    PROJECTOR = "projector"


def child_command(role: Role, *, ready_fd: int, listen_fd: int) -> list[str]:
    """The command line of a child; it inherits both file descriptors and the environment."""
    return [
        *(sys.executable, "-m", "fluxpool_gateway.process.child", role.value),
        *("--parent-pid", str(os.getpid()), "--ready-fd", str(ready_fd), "--listen-fd", str(listen_fd)),
    ]


def main(arguments: Sequence[str]) -> int:
    """Run one child; returns its exit status."""
    parser = argparse.ArgumentParser(prog="fluxpool_gateway.process.child")
    parser.add_argument("role", type=Role)
    parser.add_argument("--parent-pid", type=int, required=True)
    parser.add_argument("--ready-fd", type=int, required=True)
    parser.add_argument("--listen-fd", type=int, required=True)
    options = parser.parse_args(arguments)
    try:
        # SIGTERM, because requests under way may still be answered by a server whose parent was killed.
        die_with_parent(options.parent_pid, with_signal=signal.SIGTERM)
    except ParentGoneError as error:
        sys.exit(str(error))
    role: Role = options.role
    configure_logging(service=f"gateway-{role}")
    settings = GatewaySettings.from_environment(os.environ)

    def ready() -> None:
        # A gateway that ends meanwhile has closed its side; SIGTERM is on its way.
        with suppress(BrokenPipeError):
            os.write(options.ready_fd, b"1")
        os.close(options.ready_fd)

    # Imported here: the projector needs no HTTP server, and the servers no migrations.
    match role:
        case Role.SERVER:
            from fluxpool_gateway.process.server_process import run_server  # noqa: PLC0415

            return run_server(settings, listen_fd=options.listen_fd, ready=ready)
        case Role.PROJECTOR:
            from fluxpool_gateway.process.projector_process import run_projector  # noqa: PLC0415

            return run_projector(settings, ready=ready)
        case _:
            assert_never(role)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
