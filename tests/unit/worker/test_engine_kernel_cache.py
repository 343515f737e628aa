"""Kernels compiled ahead: what an image's build makes without a GPU, and how an engine takes it over."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fluxpool_worker.engine.kernel_cache import seed_kernels


def kernel(folder: Path, name: str, content: str = "code") -> None:
    (folder / name).mkdir(parents=True)
    (folder / name / "kernel.cubin").write_text(content)


def test_an_engine_takes_over_the_kernels_that_it_lacks(tmp_path: Path) -> None:
    image, cache = tmp_path / "image", tmp_path / "mount" / "triton"
    kernel(image, "A")
    kernel(image, "B", "of the image")
    kernel(cache, "B", "of its own")
    assert seed_kernels(image, cache) == 1
    assert (cache / "A" / "kernel.cubin").read_text() == "code"
    assert (cache / "B" / "kernel.cubin").read_text() == "of its own"
    assert sorted(path.name for path in cache.iterdir()) == ["A", "B"]
    assert seed_kernels(image, cache) == 0


def test_an_image_without_kernels_is_no_trouble(tmp_path: Path) -> None:
    assert seed_kernels(tmp_path / "nothing", tmp_path / "cache") == 0
    assert not (tmp_path / "cache").exists()


@pytest.mark.on_change("worker/fluxpool_worker/engine")
@pytest.mark.timeout(400)
def test_every_kernel_is_compiled_without_a_gpu(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = ("-m", "fluxpool_worker.engine.kernel_cache", "--folder", str(tmp_path), "--capability", "90")
    subprocess.run([sys.executable, *command], check=True, env={**environment, "CUDA_VISIBLE_DEVICES": ""})
    compiled = {path.stem for path in tmp_path.glob("*/*.cubin")}
    engine = Path(__file__).parents[3] / "worker" / "fluxpool_worker" / "engine"
    launched = {
        line.removeprefix("def ").partition("(")[0]
        for path in engine.rglob("*kernels.py")
        for before, line in zip(["", *path.read_text().splitlines()], path.read_text().splitlines(), strict=False)
        if before.startswith("@triton.jit") and line.startswith("def ") and "_kernel(" in line
    }
    assert launched
    assert compiled == launched
