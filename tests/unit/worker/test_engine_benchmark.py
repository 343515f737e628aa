"""The engine's benchmark: its arithmetic, and every part's way through the code on the tiny checkpoint."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.on_change("benchmarks")

BENCHMARKS = Path(__file__).parents[3] / "benchmarks"


@pytest.fixture
def ground(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("engine_parts.ground")


@pytest.fixture
def speed(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("engine_parts.speed")


def test_a_forward_has_as_many_operations_as_torch_counts(ground: Any) -> None:
    assert ground.tflop_per_forward(width=1024, height=1024) == pytest.approx(74.38, abs=0.005)


def test_ratios_compare_with_the_fastest_plain_run_of_the_same_case_and_the_ceiling_of_the_same_dtype(
    speed: Any,
) -> None:
    main, larger = speed.Case(side=1024, steps=28), speed.Case(side=1536, steps=28)

    def row(way: str, case: Any, dtype: str, seconds: float, phases: list[dict[str, float]]) -> Any:
        return speed.speed_row(way, case, dtype=dtype, first=9.0, seconds=[seconds], phases=phases, measured={})

    rows = speed.with_shares(
        [
            row("plain", main, "bfloat16", 6.0, []),
            row("plain", main, "float16", 5.0, []),
            row("exact", main, "float16", 4.0, [{"denoise": 3500.0}]),
            row("exact", larger, "float16", 8.0, [{"denoise": 7500.0}]),
        ],
        ceilings={"float16": 640.0},
    )
    assert rows[2]["times_plain"] == 5.0 / 4.0
    assert rows[2]["of_sustained"] == pytest.approx(28 * 74.38 / 3.5 / 640.0, rel=1e-4)
    assert rows[2]["of_floor"] == pytest.approx(28 * 74.38 / 4.0 / 790.0, rel=1e-4)
    assert rows[3]["times_plain"] is None


@pytest.mark.timeout(400)  # three processes import diffusers
def test_the_parts_run_on_the_tiny_checkpoint_and_add_to_one_file(tmp_path: Path) -> None:
    results = tmp_path / "results.json"

    def run(*parts: str) -> dict[str, Any]:
        subprocess.run(
            [
                sys.executable,
                str(BENCHMARKS / "engine.py"),
                *("--tiny", "--folder", str(tmp_path), "--results", str(results), "--only", ",".join(parts)),
            ],
            check=True,
            stdout=subprocess.DEVNULL,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        found: dict[str, Any] = json.loads(results.read_text())["parts"]
        return found

    assert run("ceiling")["ceiling"][0]["sustained_tflops"] > 0
    parts = run("numerics", "worker")
    assert parts.keys() == {"ceiling", "numerics", "worker"}
    for row in parts["numerics"]:
        assert row["repeats_equal"]
        assert 0 < row["ours"] < 0.1
    worker, script = parts["worker"]
    assert worker["images_stored"] == worker["tasks"]
    assert 0 < worker["device_idle_share"] < 0.5
    assert script["images_per_hour"] > 0


def test_a_missing_library_is_named_before_anything_is_measured(tmp_path: Path) -> None:
    program = f"""
import runpy, sys
sys.modules["obstore"] = None
sys.path.insert(0, {str(BENCHMARKS)!r})
sys.argv = ["engine.py", "--tiny", "--folder", {str(tmp_path / "new")!r}, "--only", "ceiling,worker"]
runpy.run_path({str(BENCHMARKS / "engine.py")!r}, run_name="__main__")
"""
    ended = subprocess.run([sys.executable, "-c", program], check=False, capture_output=True, text=True)
    assert ended.returncode == 2
    assert "--only worker: needs obstore, which is not installed here" in " ".join(ended.stderr.split())
    assert not (tmp_path / "new").exists()
