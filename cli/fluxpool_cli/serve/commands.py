"""`fluxpool serve`: becomes one of the programs of the product, with the settings of the environment."""

import os
import sys
from enum import StrEnum
from typing import Annotated, Final

import typer

from fluxpool_cli.serve.rooms import require_room


class Program(StrEnum):
    """The programs of the product."""

    GATEWAY = "gateway"
    PROJECTOR = "projector"
    DISPATCHER = "dispatcher"
    WORKER = "worker"
    OPERATOR = "operator"


_MODULES: Final = {
    Program.GATEWAY: ("fluxpool_gateway", "gateway"),
    Program.PROJECTOR: ("fluxpool_gateway.projector", "gateway"),
    Program.DISPATCHER: ("fluxpool_gateway.dispatcher", "gateway"),
    Program.WORKER: ("fluxpool_worker", "worker"),
    Program.OPERATOR: ("fluxpool_operator", "operator"),
}
"""Module and extra of each."""


def serve(
    program: Annotated[Program, typer.Argument(help="gateway, projector, dispatcher, worker or operator.")],
) -> None:
    """Run one program of the product until SIGTERM.

    The gateway answers HTTP, the projector writes its task store, the dispatcher delivers webhooks, a worker makes
    images, the operator scales pools. Each is configured by its FLUXPOOL_* variables alone, logs to standard error,
    and ends with its own exit code: 2 when a setting is wrong. This process becomes the program, so that signals reach
    it. `fluxpool local up` starts all of them on this machine without any setting.

    Exits 2 when packages of the program are missing here.
    """
    module, extra = _MODULES[program]
    require_room(extra, purpose=f"the {program}")
    sys.stdout.flush()
    sys.stderr.flush()
    # -P: no file of the current folder can take the place of a module.
    os.execv(sys.executable, [sys.executable, "-P", "-m", module])  # noqa: S606 - no shell is meant
