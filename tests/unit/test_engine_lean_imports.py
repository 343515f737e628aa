"""What an engine imports of torch, in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import sys
from fluxpool_worker.engine.__main__ import load
from fluxpool_worker.engine.generator import StartPhases
from fluxpool_worker.engine.protocol import Device, EngineSpec, GenerationInputs

def compiler_is_imported():
    return "torch._dynamo.convert_frame" in sys.modules

generator = load(EngineSpec(model=sys.argv[1], device=Device.CPU, offline=True), StartPhases())
inputs = GenerationInputs(prompt="a lighthouse", width=64, height=64, steps=1, seed=1)
drawn = generator.generate(inputs, on_step=lambda *_: None, is_canceled=lambda: False)
print(len(drawn.images), compiler_is_imported())

import torch._dynamo.utils
print(torch._dynamo.utils is sys.modules["torch._dynamo.utils"], compiler_is_imported())
compiled = torch.compile(lambda number: number + 1, backend="eager")
print(compiled(torch.ones(2)).tolist(), torch.distributed.is_available())
"""


@pytest.mark.timeout(400)  # imports torch and diffusers
def test_an_engine_does_not_import_the_compiler_before_something_compiles(tiny_checkpoint: Path) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tiny_checkpoint)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONWARNINGS": "ignore"},
    )
    assert ended.returncode == 0, ended.stderr
    assert [line for line in ended.stdout.splitlines() if "[info" not in line] == [
        "1 False",
        "True True",
        "[2.0, 2.0] True",
    ]
