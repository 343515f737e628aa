"""The engine of `soak.py`: the tests' stand-in for the model, with a journal of the generations it begins.

The journal is one file of all engines, a line with the request id for each begin, so that a generation which a kill
cuts short counts as much as one that ended. Knows nothing of Kafka, stores or agents.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Final

from fluxpool_worker.engine.generator import LatentPreview, Rendering, StartPhases
from fluxpool_worker.engine.process import run_engine
from fluxpool_worker.engine.protocol import EngineSpec, GenerationInputs
from kit.programs.stand_in_engine import StandInGenerator

JOURNAL_VARIABLE: Final = "SOAK_JOURNAL"


class JournalingGenerator(StandInGenerator):
    """Records each generation before its first step."""

    def __init__(self, journal: Path) -> None:
        """Append to `journal`, beside other engines."""
        # One write of one short line: it is atomic, also with concurrent writers and kills.
        self._journal = os.open(journal, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)

    def generate(
        self,
        inputs: GenerationInputs,
        *,
        on_step: Callable[[int, int], None],
        is_canceled: Callable[[], bool],
        on_preview: Callable[[LatentPreview], None] | None = None,
    ) -> Rendering:
        """Take the time in the prompt; the contract is that of `Generator.generate`."""
        os.write(self._journal, f"{inputs.embedded['request_id']}\n".encode())
        return super().generate(inputs, on_step=on_step, is_canceled=is_canceled, on_preview=on_preview)


def read_journal(journal: Path) -> list[str]:
    """The request id of every generation that was begun."""
    return journal.read_text().splitlines() if journal.exists() else []


def load(_spec: EngineSpec, _phases: StartPhases) -> JournalingGenerator:
    """Nothing to load."""
    return JournalingGenerator(Path(os.environ[JOURNAL_VARIABLE]))


if __name__ == "__main__":
    run_engine(load)
