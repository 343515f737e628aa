"""Processes and their output, as a test sees them at any moment."""

import subprocess
from pathlib import Path

import psutil
import pytest

from kit.programs.processes import command_line, is_alive, whole_lines
from kit.waiting import wait_until_blocking

pytestmark = pytest.mark.on_change


def test_a_process_that_has_ended_is_not_alive_before_and_after_it_is_reaped() -> None:
    with subprocess.Popen(["sleep", "600"]) as process:
        seen = psutil.Process(process.pid)
        assert (is_alive(process.pid), is_alive(seen)) == (True, True)
        wait_until_blocking(lambda: command_line(seen) == "sleep 600", deadline_seconds=10, what="the program to run")
        process.kill()
        wait_until_blocking(lambda: not is_alive(seen), deadline_seconds=10, what="the end of the process")
        assert (is_alive(process.pid), command_line(seen)) == (False, "")
    assert (is_alive(process.pid), is_alive(seen), command_line(seen)) == (False, False, "")


@pytest.mark.parametrize(
    ("written", "lines"),
    [(b"", []), (b"ha", []), (b"one\ntw", ["one"]), (b"one\ntwo\n", ["one", "two"]), ("é\n".encode() + b"\xc3", ["é"])],
)
def test_a_line_counts_once_it_is_written_to_its_end(tmp_path: Path, written: bytes, lines: list[str]) -> None:
    (tmp_path / "log").write_bytes(written)
    assert whole_lines(tmp_path / "log") == lines
