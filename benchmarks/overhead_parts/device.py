"""The stand-in for a GPU in `worker_overhead.py`: takes a fixed time, returns 1024x1024 pixels, keeps a journal.

Both ways under measurement generate with this class. Run as a program it is an engine: the worker's process loop with
this device in place of the model. Knows nothing of Kafka, stores or agents.
"""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import numpy as np

from fluxpool_contract.families import TINY
from fluxpool_worker.engine.generator import GenerationCanceledError, LatentPreview, Pixels, Rendering, StartPhases
from fluxpool_worker.engine.process import run_engine
from fluxpool_worker.engine.protocol import EngineSpec, GenerationInputs

JOURNAL_VARIABLE: Final = "OVERHEAD_JOURNAL"
TASKS_VARIABLE: Final = "OVERHEAD_TASKS"
SECONDS_VARIABLE: Final = "OVERHEAD_SECONDS_PER_TASK"


class StandInDevice:
    """A device that behaves like an awaited GPU kernel: the processor is free meanwhile."""

    model = "stand-in"
    family = TINY
    device = "none"

    def __init__(self, *, seconds_per_task: float, journal: Path, tasks: int) -> None:
        """Generate each image in `seconds_per_task`; record up to twice `tasks` begins and ends in `journal`."""
        self._seconds_per_task = seconds_per_task
        # Memory that outlives the process. Writing to a file would release the interpreter's lock to another thread,
        # and the wait for it would count as idle.
        self._journal = np.memmap(journal, dtype=np.int64, mode="w+", shape=(2 * tasks, 2))
        self._generated = 0
        self._picture = _picture()

    def draw(self, *, seed: int, steps: int, on_step: Callable[[int], None]) -> Pixels:
        """One image, a different one for each seed; `on_step` gets the number of finished steps, from 1 on."""
        began = time.monotonic_ns()
        for step in range(1, steps + 1):
            time.sleep(self._seconds_per_task / steps)
            on_step(step)
        pixels = np.roll(self._picture, seed % len(self._picture), axis=0)
        self._journal[self._generated] = began, time.monotonic_ns()
        self._generated += 1
        return pixels

    def generate(
        self,
        inputs: GenerationInputs,
        *,
        on_step: Callable[[int, int], None],
        is_canceled: Callable[[], bool],
        on_preview: Callable[[LatentPreview], None] | None = None,  # noqa: ARG002 - it has nothing to show
    ) -> Rendering:
        """Generate the first image of a job; the contract is that of `Generator.generate`."""

        def stepped(step: int) -> None:
            if is_canceled():
                raise GenerationCanceledError
            on_step(step, inputs.steps)

        pixels = self.draw(seed=inputs.seed, steps=inputs.steps, on_step=stepped)
        return Rendering(images=(pixels,), timings_ms={"denoise": self._seconds_per_task * 1000})


def device_of_environment() -> StandInDevice:
    """The device described by the environment of the benchmark's child processes."""
    return StandInDevice(
        seconds_per_task=float(os.environ[SECONDS_VARIABLE]),
        journal=Path(os.environ[JOURNAL_VARIABLE]),
        tasks=int(os.environ[TASKS_VARIABLE]),
    )


def read_journal(journal: Path) -> tuple[list[int], list[int]]:
    """Begins and ends of all images, monotonic nanoseconds, in the device's order."""
    noted = np.fromfile(journal, dtype=np.int64).reshape(-1, 2)
    noted = noted[noted[:, 1] > 0]
    return noted[:, 0].tolist(), noted[:, 1].tolist()


def _picture() -> Pixels:
    """Smooth shapes and a photograph's grain: as hard to compress as a generated image, about 1.5 MB as PNG."""
    rows, columns = np.mgrid[0:1024, 0:1024] / 1024
    grain = np.random.default_rng(0).normal(0, 1.2, (1024, 1024, 3))
    shapes = [np.sin(7 * rows * columns + phase) * np.cos(11 * columns - 3 * rows + phase) for phase in (0, 1, 2)]
    return np.clip(127 + 100 * np.stack(shapes, axis=-1) + grain, 0, 255).astype(np.uint8)


def load(_spec: EngineSpec, _phases: StartPhases) -> StandInDevice:
    """Nothing to load."""
    return device_of_environment()


if __name__ == "__main__":
    run_engine(load)
