"""One child process from its start to its end."""

import asyncio
import os
import signal
import sys
from pathlib import Path

import psutil
import pytest

from fluxpool_cli.local.child_process import ChildProcess
from kit.programs.processes import is_alive
from kit.waiting import wait_until

DEADLINE_SECONDS = 20


class PartError(Exception):
    """Raised by the caller of a child process."""


def child(tmp_path: Path, program: str, **settings: object) -> ChildProcess:
    """A child that runs a Python program."""
    command = [sys.executable, "-c", program]
    return ChildProcess("part", command, log_path=tmp_path / "logs" / "part.log", error=PartError, **settings)  # type: ignore[arg-type]


async def logged(process: ChildProcess, text: str) -> None:
    """Wait until the log ends with `text`."""

    async def done() -> bool:
        process.check_alive()
        return process.log_tail().endswith(text)

    await wait_until(done, deadline_seconds=DEADLINE_SECONDS, what=f"{text!r} in the log")


async def test_the_error_of_an_ended_child_has_its_status_and_its_last_lines(tmp_path: Path) -> None:
    process = child(tmp_path, "print('one'); print('two'); raise SystemExit(3)")
    assert (process.pid, process.exit_status) == (None, None)
    process.spawn()
    assert process.record().pid == process.pid or process.exit_status == 3
    assert await process.wait() == 3
    assert process.pid is None
    assert process.log_tail(lines=1) == "two"
    with pytest.raises(PartError, match=r"part ended with status 3; the last lines of .*part\.log:\none\ntwo"):
        process.check_alive()


async def test_the_log_of_an_earlier_run_is_kept_and_not_reported_again(tmp_path: Path) -> None:
    process = child(tmp_path, "import os; print(os.environ['WORD'])", environment={"WORD": "first"})
    process.spawn()
    await process.wait()
    again = child(tmp_path, "import os; print(os.getcwd())", folder=tmp_path)
    again.spawn()
    await again.wait()
    assert again.log_tail() == str(tmp_path)
    assert again.log_path.read_text() == f"first\n{tmp_path}\n"


async def test_a_child_that_ignores_sigterm_is_killed_after_the_grace_period(tmp_path: Path) -> None:
    ignores = (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(600)"
    )
    process = child(tmp_path, ignores)
    process.spawn()
    await logged(process, "up")
    await process.stop(grace_seconds=0.1)
    assert process.exit_status == -signal.SIGKILL


async def test_a_child_that_handles_sigterm_is_not_killed(tmp_path: Path) -> None:
    obeys = "import signal; signal.signal(signal.SIGTERM, lambda *_: exit(0)); print('up', flush=True); signal.pause()"
    process = child(tmp_path, obeys)
    process.spawn()
    await logged(process, "up")
    await process.stop(grace_seconds=DEADLINE_SECONDS)
    assert process.exit_status == 0


async def test_a_kill_ends_the_processes_that_the_child_started(tmp_path: Path) -> None:
    starts = "import subprocess, sys, time; print(subprocess.Popen(['sleep', '600']).pid, flush=True); time.sleep(600)"
    process = child(tmp_path, starts)
    process.spawn()

    async def started() -> bool:
        return process.log_tail().isdecimal()

    await wait_until(started, deadline_seconds=DEADLINE_SECONDS, what="the grandchild")
    grandchild = psutil.Process(int(process.log_tail()))
    await process.kill()

    await wait_until(
        lambda: not is_alive(grandchild), deadline_seconds=DEADLINE_SECONDS, what="the end of the grandchild"
    )


def test_a_child_may_be_started_in_one_event_loop_and_stopped_in_another(tmp_path: Path) -> None:
    process = child(tmp_path, "import time; time.sleep(600)")

    async def start() -> int | None:
        process.spawn()
        return process.pid

    pid = asyncio.run(start())
    assert pid is not None
    asyncio.run(process.stop(grace_seconds=DEADLINE_SECONDS))
    assert process.exit_status == -signal.SIGTERM
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
