"""The agent's side of one real engine process, and a stand-in for its model, for tests of the process loop.

Knows the protocol and no expectations of tests.
"""

import contextlib
import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fluxpool_contract.messages.task import EmbedParameters
from fluxpool_worker.engine.protocol import (
    FRAME_HEADER,
    EngineSpec,
    Failed,
    FromEngine,
    Generated,
    GenerationInputs,
    Ready,
    ToEngine,
    encode_frame,
    head_bytes,
    head_for_agent,
)
from fluxpool_worker.engine.start_mark import StartMark
from kit.programs.processes import whole_lines
from kit.waiting import PATIENCE

DEADLINE_SECONDS = 75.0 * PATIENCE
"""Importing torch and diffusers takes seconds, and many when the machine is busy."""

SECRET_PROMPT = "a secret lighthouse"
INPUTS = GenerationInputs(
    prompt=SECRET_PROMPT, width=64, height=64, steps=2, seed=1, embed_parameters=EmbedParameters.ALL
)

REAL_ENGINE = (sys.executable, "-m", "fluxpool_worker.engine")

STAND_IN_ENGINE = (
    sys.executable,
    "-c",
    """
import threading
import numpy as np
from fluxpool_contract.families import TINY
from fluxpool_worker.engine.generator import (
    CheckpointError, DeviceMemoryError, GenerationCanceledError, InputsError, NotFiniteError, Rendering)
from fluxpool_worker.engine.process import run_engine

ERRORS = {
    "memory": DeviceMemoryError("too large"),
    "not finite": NotFiniteError("NaN"),
    "inputs": InputsError("width: 1 is wrong"),
    "bug": RuntimeError("x" * 100_000),
}


class StandIn:
    model = "stand-in"
    family = TINY
    device = "none"

    def generate(self, inputs, *, on_step, is_canceled, on_preview):
        if inputs.prompt in ERRORS:
            raise ERRORS[inputs.prompt]
        if inputs.prompt == "hang":
            threading.Event().wait()
        step = 0
        while step < inputs.steps or inputs.prompt == "until canceled":
            if is_canceled():
                raise GenerationCanceledError("canceled")
            step += 1
            on_step(step, inputs.steps)
        noise = np.random.default_rng(inputs.seed)
        pixels = noise.integers(0, 256, (inputs.height, inputs.width, 3), dtype=np.uint8)
        return Rendering(images=(pixels,) * inputs.n, timings_ms={"denoise": 1.0}, warnings=("stand-in",))


def load(spec, phases):
    if spec.model == "missing":
        raise CheckpointError("model 'missing': there is no such folder; mount it")
    if spec.model == "bug":
        raise RuntimeError("unexpected")
    if spec.model == "slow":
        threading.Event().wait()
    phases.end("imports")
    return StandIn()


run_engine(load)
""",
)


def engine_arguments(theirs: socket.socket, mark: StartMark) -> list[str]:
    return ["--socket-fd", str(theirs.fileno()), "--started-fd", str(mark.descriptor)]


class Engine:
    """The agent's side of one engine process."""

    def __init__(self, command: tuple[str, ...], *, stderr: Path, environment: dict[str, str] | None = None) -> None:
        self.socket, theirs = socket.socketpair()
        self.socket.settimeout(DEADLINE_SECONDS)
        self.stderr = stderr
        self.mark = StartMark.create()
        with theirs, stderr.open("wb") as stderr_file:
            self.process = subprocess.Popen(
                [*command, *engine_arguments(theirs, self.mark), "--parent-pid", str(os.getpid())],
                pass_fds=[theirs.fileno(), self.mark.descriptor],
                stderr=stderr_file,
                env={**os.environ, **(environment or {})},
            )

    def send(self, message: ToEngine | FromEngine) -> None:
        self.socket.sendall(b"".join(encode_frame(message)))

    def receive(self) -> ToEngine | FromEngine:
        head = head_for_agent(self._read(head_bytes(self._read(FRAME_HEADER.size))))
        return head.complete([self._read(size) for size in head.payload_bytes])

    def receive_until(self, condition: Callable[[ToEngine | FromEngine], bool]) -> list[ToEngine | FromEngine]:
        messages = [self.receive()]
        while not condition(messages[-1]):
            messages.append(self.receive())
        return messages

    def load(self, spec: EngineSpec) -> Ready:
        self.send(spec)
        message = self.receive()
        assert isinstance(message, Ready), message
        return message

    def exit_code(self) -> int:
        return self.process.wait(DEADLINE_SECONDS)

    def log_lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in whole_lines(self.stderr)]

    def close(self) -> None:
        self.socket.close()
        self.process.kill()
        self.process.wait()
        self.mark.close()

    def _read(self, length: int) -> bytes:
        received = bytearray()
        while len(received) < length:
            part = self.socket.recv(length - len(received))
            if not part:
                raise EOFError(f"the engine closed its end; its log: {self.stderr.read_text()[-4000:]}")
            received += part
        return bytes(received)


def ends(job_id: int) -> Callable[[ToEngine | FromEngine], bool]:
    return lambda message: isinstance(message, Generated | Failed) and message.job_id == job_id


def the_end(messages: list[ToEngine | FromEngine], job_id: int) -> ToEngine | FromEngine:
    (end,) = [message for message in messages if ends(job_id)(message)]
    return end


StartEngine = Callable[..., Engine]


@pytest.fixture
def start_engine(tmp_path: Path) -> Iterator[StartEngine]:
    """Starts engines and ends those that remain."""
    with contextlib.ExitStack() as started:

        def start(command: tuple[str, ...] = STAND_IN_ENGINE, *, environment: dict[str, str] | None = None) -> Engine:
            engine = Engine(command, stderr=tmp_path / "engine.log", environment=environment)
            started.callback(engine.close)
            return engine

        yield start


@pytest.fixture
def stand_in_engine(start_engine: StartEngine) -> Engine:
    """An engine that is ready, with the stand-in as its model."""
    engine = start_engine()
    assert engine.load(EngineSpec(model="any")).model == "stand-in"
    return engine
