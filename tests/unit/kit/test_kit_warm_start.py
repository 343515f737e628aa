"""A program of the fork server sees itself, and ends, as an executed one does."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import psutil
import pytest

from kit.programs.processes import is_alive
from kit.programs.warm_start import Program, start_program
from kit.waiting import wait_until_blocking

pytestmark = pytest.mark.on_change

SECONDS = 60.0
TESTS = """
import sys
from pathlib import Path
from kit.programs.warm_start import start_program
with Path(sys.argv[1]).open("wb") as output:
    print(start_program("kit.programs.warm_probe", environment={"ENDS": "wait"}, output=output).pid, flush=True)
sys.stdin.read()
"""
Start = Callable[..., tuple[Program, Path]]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    with ExitStack() as ends:

        def start_probe(ends_by: str, *, executed: bool = False) -> tuple[Program, Path]:
            environment = {"PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8", "PROBE": "of its own", "ENDS": ends_by}
            output = tmp_path / f"output-{executed}"
            with output.open("wb") as file:
                program = start_program(
                    "kit.programs.warm_probe", environment=environment, output=file, executed=executed
                )
            ends.callback(program.wait, SECONDS)
            ends.callback(program.kill)
            return program, output

        yield start_probe


@pytest.mark.parametrize("ends_by", ["nothing", "code", "message", "raise"])
def test_a_program_sees_itself_and_ends_as_an_executed_one(start: Start, ends_by: str) -> None:
    before = os.umask(0o027)
    try:
        forked, its_output = start(ends_by)
        executed, other_output = start(ends_by, executed=True)
    finally:
        os.umask(before)
    assert forked.wait(SECONDS) == executed.wait(SECONDS) == {"nothing": 0, "code": 7}.get(ends_by, 1)
    said, expected = its_output.read_text(), other_output.read_text()
    (state,) = [json.loads(line) for line in said.splitlines() if line.startswith("{")]
    assert state == next(json.loads(line) for line in expected.splitlines() if line.startswith("{"))
    assert (state["environment"]["PROBE"], state["umask"]) == ("of its own", 0o027)
    assert ("last words" in said, "no such pool" in said) == (True, ends_by in {"message", "raise"})


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL, signal.SIGINT])
def test_a_signal_ends_a_program_and_is_its_exit_code(start: Start, number: signal.Signals) -> None:
    codes = []
    for executed in (False, True):
        program, output = start("wait", executed=executed)
        wait_until_blocking(lambda: output.read_text() != "", deadline_seconds=SECONDS, what="its start")  # noqa: B023
        assert program.poll() is None
        with pytest.raises(subprocess.TimeoutExpired):
            program.wait(0.01)
        program.send_signal(number)
        codes.append(program.wait(SECONDS))
        program.send_signal(number)
        assert program.poll() == program.returncode == codes[-1]
    assert codes[0] == codes[1] < 0


def test_an_ended_program_keeps_its_pid_until_its_exit_code_is_read(start: Start) -> None:
    program, _ = start("code")
    process = psutil.Process(program.pid)
    wait_until_blocking(
        lambda: process.status() == psutil.STATUS_ZOMBIE, deadline_seconds=SECONDS, what="the program's end"
    )
    assert program.wait(SECONDS) == 7
    wait_until_blocking(lambda: not process.is_running(), deadline_seconds=SECONDS, what="its zombie to go")


def test_no_program_outlives_tests_that_are_killed(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", TESTS, str(tmp_path / "output")],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as tests:
        assert tests.stdout is not None
        pid = int(tests.stdout.readline())
        assert is_alive(pid)
        tests.kill()
    wait_until_blocking(lambda: not is_alive(pid), deadline_seconds=SECONDS, what="the program to be gone")
