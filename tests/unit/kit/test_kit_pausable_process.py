"""A pausable process at the moments when it ends by itself."""

import time
from pathlib import Path

import pytest

from fluxpool_cli.local.child_process import ChildProcess
from kit.programs.pausable_process import PausableProcess

pytestmark = pytest.mark.on_change


async def test_a_process_that_ends_while_it_is_asked_to_end_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    process = PausableProcess("quick", ["sleep", "60"], log_path=tmp_path / "log")
    process.spawn()
    pid = process.pid
    assert pid is not None

    def pid_after_a_while(_: ChildProcess) -> int:
        time.sleep(0.1)
        return pid

    # As `terminate` saw it last: the signal it sends first ends the process before it sends the second.
    monkeypatch.setattr(ChildProcess, "pid", property(pid_after_a_while))
    process.terminate()
    monkeypatch.undo()
    assert await process.wait() is not None


async def test_a_paused_process_ends_when_it_is_asked_to(tmp_path: Path) -> None:
    process = PausableProcess("paused", ["sleep", "60"], log_path=tmp_path / "log")
    process.spawn()
    process.pause()
    process.terminate()
    assert await process.wait() is not None
