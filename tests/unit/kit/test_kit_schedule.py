"""Several processes share the tests, and one of them may end in the middle."""

import subprocess
import sys
from pathlib import Path

import pytest

from kit.waiting import PATIENCE

pytestmark = pytest.mark.on_change

CONFTEST = """
import pytest
from kit.plugins.schedule import FileScheduling

@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    return FileScheduling(config, log)
"""
DEADLY = """
import os
def test_before(): pass
def test_deadly(): os._exit(3)
def test_after(): pass
"""


@pytest.mark.parametrize("processes", ["1", "2"])
def test_a_run_goes_on_after_the_end_of_a_process_and_names_the_test(tmp_path: Path, processes: str) -> None:
    (tmp_path / "conftest.py").write_text(CONFTEST)
    (tmp_path / "test_deadly.py").write_text(DEADLY)
    for name in ("test_one.py", "test_other.py"):
        (tmp_path / name).write_text("def test_good(): pass\ndef test_fine(): pass\n")
    (tmp_path / "pytest.ini").write_text("[pytest]\nasyncio_default_fixture_loop_scope = function\n")
    finished = subprocess.run(
        [sys.executable, "-m", "pytest", "-n", processes, "-p", "no:cacheprovider", "-rA"],
        cwd=tmp_path,
        env={"PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        check=False,
        timeout=120 * PATIENCE,
    )
    assert finished.returncode == 1, finished.stdout + finished.stderr
    assert "crashed while running 'test_deadly.py::test_deadly'" in finished.stdout
    assert "1 failed, 6 passed" in finished.stdout
