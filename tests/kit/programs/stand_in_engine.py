"""An engine with a stand-in for the model: the real process loop, with a duration of images set by the prompt.

For tests of everything around the model. A prompt may contain `seconds=2.5`; the time is divided evenly over the steps.
With the prompt of a `kit.workers.gate.Gate`, it waits after the first step until the gate is open.
With `ends=...` it fails at its first step: `error`, `rejected`, `memory` (except in the mode that needs least memory),
`full` (always out of memory), `device` (lost), `killed` (the process), `hung`.
"""

import os
import re
import signal
import socket
import threading
import time
from collections.abc import Callable

import numpy as np

from fluxpool_contract.families import TINY
from fluxpool_worker.engine.generator import (
    DeviceLostError,
    DeviceMemoryError,
    GenerationCanceledError,
    LatentPreview,
    RejectedError,
    Rendering,
    StartPhases,
)
from fluxpool_worker.engine.process import run_engine
from fluxpool_worker.engine.protocol import EngineSpec, GenerationInputs

DEFAULT_SECONDS = 0.05
GATE_LOOK_SECONDS = 0.05


class StandInGenerator:
    """Generates one flat colour, chosen by the seed."""

    model = "stand-in"
    family = TINY
    device = "none"

    def generate(
        self,
        inputs: GenerationInputs,
        *,
        on_step: Callable[[int, int], None],
        is_canceled: Callable[[], bool],
        on_preview: Callable[[LatentPreview], None] | None = None,
    ) -> Rendering:
        """Take the time in the prompt; the contract is that of `Generator.generate`."""
        match = re.search(r"seconds=([0-9.]+)", inputs.prompt)
        seconds = float(match[1]) if match else DEFAULT_SECONDS
        _fail_as_requested(inputs)
        total_steps = inputs.steps * inputs.n
        for step in range(1, total_steps + 1):
            time.sleep(seconds / total_steps)
            if is_canceled():
                raise GenerationCanceledError
            if on_preview is not None and inputs.preview_every_steps and step % inputs.preview_every_steps == 0:
                shade = np.full((8, 8, 3), step % 256, dtype=np.uint8)
                on_preview(LatentPreview(step, total_steps, (step - 1) // inputs.steps, shade.copy))
            on_step(step, total_steps)
            if step == 1:
                _wait_for_gate(inputs.prompt, is_canceled=is_canceled)
                if is_canceled():
                    raise GenerationCanceledError
        images = tuple(
            np.full((inputs.height, inputs.width, 3), (inputs.seed + index) % 251, dtype=np.uint8)
            for index in range(inputs.n)
        )
        return Rendering(images=images, timings_ms={"denoise": seconds * 1000})


def _wait_for_gate(prompt: str, *, is_canceled: Callable[[], bool]) -> None:
    """Return when the gate of that prompt is open, at once when it names none, or when the task is canceled."""
    named = re.search(r"until=([0-9.]+):([0-9]+)", prompt)
    if named is None:
        return
    # A gate never accepts. The end of its listening socket ends this connection or refuses it.
    try:
        with socket.create_connection((named[1], int(named[2]))) as connection:
            connection.settimeout(GATE_LOOK_SECONDS)
            while not is_canceled():
                try:
                    connection.recv(1)
                except TimeoutError:
                    continue
                return
    except ConnectionError:
        return


def _fail_as_requested(inputs: GenerationInputs) -> None:
    match = re.search(r"ends=([a-z]+)", inputs.prompt)
    match match[1] if match else None:
        case "error":
            raise RuntimeError("told to fail")
        case "rejected":
            raise RejectedError("told to refuse")
        case "memory" | "full" as kind if kind == "full" or not inputs.low_memory:
            raise DeviceMemoryError("out of memory on request")
        case "device":
            raise DeviceLostError("device lost on request")
        case "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        case "hung":
            threading.Event().wait()


def load(_spec: EngineSpec, _phases: StartPhases) -> StandInGenerator:
    """Nothing to load."""
    return StandInGenerator()


if __name__ == "__main__":
    run_engine(load)
