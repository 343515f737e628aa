"""The tiny FLUX checkpoint for tests: written once a session, loaded by the real engine."""

import os
import sys
from pathlib import Path

import pytest

from kit.programs.fork_server import Imports
from kit.programs.warm_start import start_program
from kit.waiting import PATIENCE

WRITE_SECONDS = 120 * PATIENCE


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the tiny checkpoint of seed 0; tests must not write into it."""
    folder = tmp_path_factory.mktemp("models") / "flux-tiny"
    if "torch" in sys.modules:
        from fluxpool_worker.engine.tiny_checkpoint import write_tiny_checkpoint  # noqa: PLC0415

        write_tiny_checkpoint(folder)
        return folder
    # torch and diffusers take seconds to import, which this process then need not pay: its tests start engines.
    log = folder.with_name("tiny-checkpoint.log")
    with log.open("wb") as output:
        program = start_program(
            "fluxpool_worker.engine.tiny_checkpoint",
            str(folder),
            environment=os.environ,
            output=output,
            imported=Imports.ENGINE,
        )
    assert program.wait(WRITE_SECONDS) == 0, log.read_text()
    return folder
