"""A pytest plugin for `--cpu-durations=N`: the N test files that take most CPU time, with all processes they start.

Wall-clock durations say little on a machine that others use, and nothing of brokers and workers beside a test. A file
is charged for what the process of the tests and its descendants took since the file before, so also for the shared
fixtures that it is the first to use.
"""

import ctypes
import sys
from collections.abc import Generator
from contextlib import suppress
from typing import Any, Final

import psutil
import pytest

OPTION: Final = "--cpu-durations"
_PR_SET_CHILD_SUBREAPER: Final = 36
"""`prctl(2)`; in <linux/prctl.h>."""
_OUTPUT: Final = "cpu_seconds"
_COLLECTION: Final = "(collection)"


def cpu_seconds(process: psutil.Process) -> float:
    """User and system time of a process and its descendants, those that have ended included.

    A parent has the time of children that it has waited for.
    """
    total = 0.0
    for one in [process, *process.children(recursive=True)]:
        with suppress(psutil.NoSuchProcess):
            total += sum(one.cpu_times()[:4])
    return total


class CpuDurations:
    """Measures this process file by file, and shows the sums over all processes of the run."""

    def __init__(self, *, shown: int) -> None:
        """Show that many files."""
        if sys.platform == "linux":
            # Orphans, such as detached stacks, become children of this process, which never waits for them.
            ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        self._shown = shown
        self._process = psutil.Process()
        self._taken: dict[str, float] = {}
        self._file = _COLLECTION
        self._read = 0.0

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, object, object]:
        """Charge the file before when a test is of another one."""
        file = item.nodeid.partition("::")[0]
        if file != self._file:
            self._charge(next_file=file)
        return (yield)

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Charge the last file; a process of several hands its sums over."""
        if session.config.getoption("dist", "no") == "no":
            self._charge(next_file="")
        if hasattr(session.config, "workeroutput"):
            session.config.workeroutput[_OUTPUT] = self._taken

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        """Add what a process of several measured; one that crashed has no output."""
        for file, seconds in getattr(node, "workeroutput", {}).get(_OUTPUT, {}).items():
            self._taken[file] = self._taken.get(file, 0.0) + seconds

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Show the table."""
        ranking = sorted(self._taken.items(), key=lambda entry: entry[1], reverse=True)
        terminalreporter.section(f"{self._shown} largest of {sum(self._taken.values()):.0f} s of CPU time")
        for file, seconds in ranking[: self._shown]:
            terminalreporter.write_line(f"{seconds:8.1f} s  {file}")

    def _charge(self, *, next_file: str) -> None:
        read = cpu_seconds(self._process)
        self._taken[self._file] = self._taken.get(self._file, 0.0) + read - self._read
        self._file, self._read = next_file, read
