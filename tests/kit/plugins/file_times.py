"""A pytest plugin that measures test files, with all processes they start, and shows where the time of a run remains.

`--cpu-durations=N` ranks the files by CPU time: wall-clock durations say little on a machine that others use, and
nothing of brokers and workers beside a test. `--timeline` lists what each process of the run did when, and how much of
the machine was idle meanwhile. A file is charged for what happened since the file before, so also for the shared
fixtures that it is the first to use.
"""

import ctypes
import sys
import time
from collections import Counter
from collections.abc import Generator, Sequence
from contextlib import suppress
from dataclasses import astuple, dataclass
from typing import Any, Final

import psutil
import pytest

CPU_OPTION: Final = "--cpu-durations"
TIMELINE_OPTION: Final = "--timeline"
COLLECTION: Final = "(collection)"
WAITING: Final = "(waiting for the other processes)"
_PR_SET_CHILD_SUBREAPER: Final = 36
"""`prctl(2)`; in <linux/prctl.h>."""
_OUTPUT: Final = "file_times"
_LISTED_SECONDS: Final = 2.0
"""Shorter files are hundreds; the timeline has their number and sum."""


def cpu_seconds(process: psutil.Process) -> float:
    """User and system time of a process and its descendants, those that have ended included.

    A parent has the time of children that it has waited for.
    """
    total = 0.0
    for one in [process, *process.children(recursive=True)]:
        with suppress(psutil.NoSuchProcess):
            total += sum(one.cpu_times()[:4])
    return total


@dataclass(frozen=True, slots=True)
class Reading:
    """Clocks at one moment, in seconds."""

    time: float
    cpu: float
    """CPU time of this process and its descendants so far."""
    idle: float
    """Idle time of the machine so far, summed over its cores."""

    @classmethod
    def take(cls, process: psutil.Process) -> "Reading":
        """Read them."""
        return cls(time=time.time(), cpu=cpu_seconds(process), idle=psutil.cpu_times().idle)


@dataclass(frozen=True, slots=True)
class Span:
    """What one process did between two readings."""

    file: str
    began: float
    ended: float
    cpu_seconds: float
    idle_seconds: float

    @classmethod
    def between(cls, first: Reading, last: Reading, *, file: str) -> "Span":
        """The span of a file."""
        return cls(file, first.time, last.time, last.cpu - first.cpu, last.idle - first.idle)

    @property
    def seconds(self) -> float:
        """Wall time."""
        return self.ended - self.began

    @property
    def idle_share(self) -> float:
        """Share of the machine that was idle, 0 to 1."""
        return self.idle_seconds / max(self.seconds * (psutil.cpu_count() or 1), 1e-9)


class FileTimes:
    """Measures this process file by file, and shows the times of all processes of the run."""

    def __init__(self, *, ranked: int, timeline: bool) -> None:
        """Show that many files by CPU time, and the timeline or not."""
        if sys.platform == "linux":
            # Orphans, such as detached stacks, become children of this process, which never waits for them.
            ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        self._ranked = ranked
        self._timeline = timeline
        self._process = psutil.Process()
        self._spans: list[Span] = []
        self._processes: dict[str, list[Span]] = {}
        self._file = COLLECTION
        # The interpreter and the plugins were loaded before.
        begin = Reading(time=self._process.create_time(), cpu=0.0, idle=psutil.cpu_times().idle)
        self._first = self._read = begin

    @pytest.hookimpl(trylast=True)
    def pytest_collection_finish(self) -> None:
        """Charge the collection; one process of several then waits until all have collected."""
        self._charge(next_file=WAITING)

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, object, object]:
        """Charge the file before when a test is of another one."""
        file = item.nodeid.partition("::")[0]
        if file != self._file:
            self._charge(next_file=file)
        return (yield)

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Charge the last file; a process of several hands its times over."""
        if session.config.getoption("dist", "no") != "no":
            return
        self._charge(next_file="")
        if hasattr(session.config, "workeroutput"):
            session.config.workeroutput[_OUTPUT] = [astuple(span) for span in self._spans]
        else:
            self._processes["the only process"] = self._spans

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        """Add what a process of several measured; one that crashed has no output."""
        measured = getattr(node, "workeroutput", {}).get(_OUTPUT, [])
        self._processes[node.gateway.id] = [Span(*values) for values in measured]

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Show the tables."""
        if self._ranked:
            files, total = ranking([span for spans in self._processes.values() for span in spans])
            terminalreporter.section(f"{self._ranked} largest of {total:.0f} s of CPU time")
            for line in files[: self._ranked]:
                terminalreporter.write_line(line)
        if self._timeline:
            run = Span.between(self._first, Reading.take(self._process), file="")
            terminalreporter.section(f"{run.seconds:.0f} s, {run.idle_share:.0%} of the machine idle")
            for name, spans in sorted(self._processes.items()):
                for line in timeline(name, spans, run=run):
                    terminalreporter.write_line(line)

    def _charge(self, *, next_file: str) -> None:
        read = Reading.take(self._process)
        self._spans.append(Span.between(self._read, read, file=self._file))
        self._file, self._read = next_file, read


def ranking(spans: Sequence[Span]) -> tuple[list[str], float]:
    """Lines with the CPU time of each file, the largest first, and the sum in seconds."""
    taken: Counter[str] = Counter()
    for span in spans:
        # The counter's type says integers.
        taken[span.file] += span.cpu_seconds  # type: ignore[assignment]
    return [f"{seconds:8.1f} s  {file}" for file, seconds in taken.most_common()], float(taken.total())


def timeline(name: str, spans: Sequence[Span], *, run: Span) -> list[str]:
    """Lines of one process: its sums, then its files in order, with the idle share of the machine meanwhile."""
    if not spans:
        return [f"{name}: no times, because it crashed"]
    wall, cpu = spans[-1].ended - spans[0].began, sum(span.cpu_seconds for span in spans)
    head = (
        f"{name}: from {spans[0].began - run.began:.0f} s to {spans[-1].ended - run.began:.0f} s, "
        f"{run.ended - spans[-1].ended:.0f} s before the end; CPU {cpu:.0f} s, {cpu / max(wall, 1e-9):.0%} of a core"
    )
    lines = [
        f"{span.began - run.began:5.0f} {span.seconds:7.1f} s {span.cpu_seconds:7.1f} s {span.idle_share:5.0%}  "
        + span.file
        for span in spans
        if span.seconds >= _LISTED_SECONDS
    ]
    short = [span for span in spans if span.seconds < _LISTED_SECONDS]
    wall, cpu = sum(span.seconds for span in short), sum(span.cpu_seconds for span in short)
    rest = f"      {wall:7.1f} s {cpu:7.1f} s        {len(short)} files below {_LISTED_SECONDS:.0f} s"
    return [head, "   at      wall       cpu  idle", *lines, rest]
