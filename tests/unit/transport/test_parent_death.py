"""Processes that end with their parent, however it ended."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from fluxpool_transport.process.parent_death import ParentGoneError, bound_command, die_with_parent
from kit.programs.processes import is_alive
from kit.waiting import wait_until_blocking

START_A_BOUND_SLEEPER = """
import subprocess, sys, time
from fluxpool_transport.process.parent_death import bound_command
sleeper = subprocess.Popen(bound_command(["/bin/sleep", "600"]))
print(sleeper.pid, flush=True)
time.sleep(600)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs the Linux kernel")
def test_a_bound_program_ends_when_its_parent_is_killed() -> None:
    with subprocess.Popen([sys.executable, "-c", START_A_BOUND_SLEEPER], stdout=subprocess.PIPE, text=True) as starter:
        assert starter.stdout is not None
        sleeper = psutil.Process(int(starter.stdout.readline()))
        wait_until_blocking(lambda: sleeper.name() == "sleep", deadline_seconds=10, what="the sleeper to run")
        os.kill(starter.pid, signal.SIGKILL)
        wait_until_blocking(
            lambda: not is_alive(sleeper),
            deadline_seconds=10,
            what="the sleeper to end",
        )


def test_a_bound_program_gets_its_arguments_and_gives_its_exit_code(tmp_path: Path) -> None:
    script = tmp_path / "script"
    script.write_text("#!/bin/sh\nprintf '%s|' \"$@\"\nexit 7\n")
    script.chmod(0o755)
    ended = subprocess.run(bound_command([str(script), "a b", "-x"]), stdout=subprocess.PIPE, check=False)
    assert (ended.returncode, ended.stdout) == (7, b"a b|-x|")


def test_a_process_whose_parent_has_ended_gets_an_error() -> None:
    with pytest.raises(ParentGoneError, match="is gone"):
        die_with_parent(2**22 + 1, with_signal=signal.SIGCONT)
