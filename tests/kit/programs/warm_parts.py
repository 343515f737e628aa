"""Lets fork servers start the parts of a local stack or of the cluster's demo, which start their parts themselves.

Its supervisor is always executed: it writes its own pid into the state file, and that of a forked one is another.
"""

import sys
from pathlib import Path
from typing import Final

from kit.programs.fork_server import Imports
from kit.programs.warm_start import warm_program

WARM_LOCAL: Final = Path(__file__).with_name("warm_local")
_PARTS: Final = {
    "fluxpool_gateway": Imports.PROGRAMS,
    "fluxpool_gateway.projector": Imports.PROGRAMS,
    "fluxpool_gateway.dispatcher": Imports.PROGRAMS,
    "fluxpool_worker": Imports.PROGRAMS,
    "fluxpool_worker.engine": Imports.ENGINE,
    "fluxpool_worker.engine.tiny_checkpoint": Imports.ENGINE,
}


def warm_parts(*modules: str) -> dict[str, str]:
    """The environment in which these parts, by default all, are forked; its PYTHONPATH included."""
    # Elsewhere there are no fork servers.
    forked = (modules or tuple(_PARTS)) if sys.platform == "linux" else ()
    commands = {warm_variable(name): ",".join(warm_program(_PARTS[name])) for name in forked}
    return {"PYTHONPATH": str(WARM_LOCAL), **commands}


def warm_variable(module: str) -> str:
    """The variable with the command of a module; a part is executed where it is empty."""
    return f"TEST_WARM_{module.replace('.', '_')}"
