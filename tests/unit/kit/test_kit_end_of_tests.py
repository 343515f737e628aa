"""A test that does not end after its time limit ends its process and is named; the run continues."""

import subprocess
import sys
from pathlib import Path

import pytest

from kit.waiting import PATIENCE

pytestmark = pytest.mark.on_change

CONFTEST = """
import pytest
from kit.plugins.end_of_tests import EndOfTests
from kit.plugins.schedule import FileScheduling

def pytest_configure(config):
    config.pluginmanager.register(EndOfTests(grace_seconds=0.5))

@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    return FileScheduling(config, log)
"""
HANGING = """
import threading
import pytest

@pytest.fixture
def endless():
    yield
    threading.Event().wait()

@pytest.mark.timeout(0.5)
def test_late(endless):
    threading.Event().wait()

def test_after():
    pass
"""


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    (folder / "conftest.py").write_text(CONFTEST)
    (folder / "test_hanging.py").write_text(HANGING)
    (folder / "pytest.ini").write_text("[pytest]\nasyncio_default_fixture_loop_scope = function\n")
    return subprocess.run(
        [sys.executable, "-m", "pytest", *arguments, "-p", "no:cacheprovider", "-rA"],
        cwd=folder,
        env={"PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        check=False,
        timeout=120 * PATIENCE,
    )


def test_a_hanging_teardown_ends_the_process_with_its_stack(tmp_path: Path) -> None:
    finished = run(tmp_path)
    assert finished.returncode == 1
    assert "in endless" in finished.stderr


def test_with_several_processes_the_test_is_named_and_the_others_run(tmp_path: Path) -> None:
    finished = run(tmp_path, "-n", "1")
    assert finished.returncode == 1, finished.stdout + finished.stderr
    assert "crashed while running 'test_hanging.py::test_late'" in finished.stdout
    # The time limit of the test, and the end of its process.
    assert "2 failed, 1 passed" in finished.stdout
    assert "in endless" in finished.stderr
