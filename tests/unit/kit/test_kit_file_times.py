"""Times of test files, with the processes that they start."""

import os
import re
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from kit.plugins.file_times import cpu_seconds
from kit.waiting import PATIENCE

pytestmark = pytest.mark.on_change

CONFTEST = """
from kit.plugins.file_times import FileTimes

def pytest_configure(config):
    config.pluginmanager.register(FileTimes(ranked=1, timeline=True))
"""
BUSY = "import time\nwhile time.process_time() < 0.5: pass"


def test_the_time_of_descendants_counts_while_they_run_and_afterwards() -> None:
    before = cpu_seconds(psutil.Process())
    subprocess.run([sys.executable, "-c", BUSY], check=True)
    after_one = cpu_seconds(psutil.Process())
    assert after_one - before >= 0.4  # the kernel counts in ticks
    waits = f"import sys\n{BUSY}\nprint(flush=True)\nsys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", waits], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=dict(os.environ)
    ) as running:
        assert running.stdout is not None
        running.stdout.readline()
        assert cpu_seconds(psutil.Process()) - after_one >= 0.4


@pytest.mark.parametrize("processes", [(), ("-n", "2", "--dist", "loadfile")])
def test_a_run_shows_when_each_process_ran_which_file(tmp_path: Path, processes: tuple[str, ...]) -> None:
    (tmp_path / "conftest.py").write_text(CONFTEST)
    (tmp_path / "test_quick.py").write_text("def test_it(): pass\n")
    (tmp_path / "test_slow.py").write_text("import time\ndef test_it(): time.sleep(2.5)\n")
    (tmp_path / "pytest.ini").write_text("[pytest]\nasyncio_default_fixture_loop_scope = function\n")
    finished = subprocess.run(
        [sys.executable, "-m", "pytest", *processes, "-p", "no:cacheprovider"],
        cwd=tmp_path,
        env={"PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        check=False,
        timeout=120 * PATIENCE,
    )
    assert finished.returncode == 0, finished.stdout + finished.stderr
    assert len(re.findall(r": from \d+ s to \d+ s", finished.stdout)) == (2 if processes else 1)
    (slow,) = [line for line in finished.stdout.splitlines() if line.endswith("  test_slow.py")]
    _, wall, _, cpu, *_ = slow.split()
    assert float(wall) >= 2.4 > float(cpu)
