"""Observes commits and results from outside during faults: whether an offset is ever wrong.

It sees every commit, because it reads their log. An observation reads only new records, so that its cost does not grow
with the number of tasks. Changes nothing and joins no group. The outcome of the tasks is counted elsewhere.
"""

import asyncio
import contextlib
import json
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Final, Self

from confluent_kafka import KafkaException

from kit.brokers.commit_log import Commit, CommitLog, TopicTail
from kit.brokers.kafka import ScriptClientError
from kit.workers.worker import WorkerBench

LOOK_INTERVAL_SECONDS: Final = 0.5
"""The workers need the cores."""

AWAY: Final = (ScriptClientError, KafkaException, TimeoutError, LookupError)
"""Errors of an observation while brokers are down; it is repeated."""


class OffsetWatch:
    """Use with `async with`; observes the standard lane. Observations that fail while brokers are down are skipped."""

    def __init__(self, bench: WorkerBench, *, interval_seconds: float = LOOK_INTERVAL_SECONDS) -> None:
        """`interval_seconds` is the pause between two observations."""
        self._bench = bench
        self._interval_seconds = interval_seconds
        self._commit_log = CommitLog(bench.bootstrap_servers, bench.group)
        self._answer_tail = TopicTail(bench.bootstrap_servers, bench.topics.results)
        self._answered: set[str] = set()
        self._places: dict[str, tuple[int, int]] = {}
        self._ahead: dict[str, tuple[int, int]] = {}
        self._unchecked: list[Commit] = []
        self._committed: dict[int, int] = {}
        self._reached: dict[int, int] = {}
        self._looking = asyncio.Lock()
        self._ending = asyncio.Event()
        self._watching: asyncio.Task[None] | None = None
        self.looks = 0
        """Number of successful observations."""
        self.moved_at = time.monotonic()
        """Monotonic time of the last observation with a new result or commit; initially of the begin."""
        self.broken: list[str] = []
        """Descriptions of offsets that were lowered, or passed a task without a result."""

    def expect(self, places: Mapping[str, tuple[int, int]]) -> None:
        """Also watch these tasks: request id -> partition and offset."""
        self._places |= places
        self._ahead |= places

    @property
    def answered(self) -> int:
        """How many tasks have a result."""
        return len(self._answered)

    @property
    def is_done(self) -> bool:
        """Whether every task has a result and is committed."""
        return not self._ahead and self._answered >= self._places.keys()

    async def look(self) -> None:
        """Observe once, now; raises one of `AWAY` when brokers are down."""
        async with self._looking:
            # Commits first: the results of tasks that had ended before a commit are among those read after it.
            await asyncio.to_thread(self._read_commits)
            known = self.answered
            await asyncio.to_thread(self._read_answers)
            if self.answered > known or self._unchecked:
                self.moved_at = time.monotonic()
            self._check()
            self.looks += 1

    def check_watching(self) -> None:
        """Raise the error that ended the watch, if any."""
        if self._watching is not None and self._watching.done():
            self._watching.result()

    async def __aenter__(self) -> Self:
        """Begin to look."""
        self._watching = asyncio.create_task(self._watch(), name="offset-watch")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """End after the current observation: its clients run in a thread that cannot be cancelled."""
        self._ending.set()
        if self._watching is not None:
            await asyncio.wait({self._watching})
        await asyncio.to_thread(self._commit_log.close)
        await asyncio.to_thread(self._answer_tail.close)
        if error is None:
            self.check_watching()

    async def _watch(self) -> None:
        while not self._ending.is_set():
            with contextlib.suppress(*AWAY):
                await self.look()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._ending.wait(), self._interval_seconds)

    def _read_commits(self) -> None:
        """Commits of the lane since the last check; if the observation fails later, the next one uses them."""
        for commit in self._commit_log.read_to_end():
            if commit.topic == self._bench.topics.tasks:
                self._unchecked.append(commit)

    def _read_answers(self) -> None:
        for answer in self._answer_tail.read_to_end():
            self._answered.add(json.loads(answer.value())["request_id"])

    def _check(self) -> None:
        for commit in self._unchecked:
            known = self._committed.get(commit.partition, 0)
            if commit.offset < known:
                self.broken.append(
                    f"the offset of partition {commit.partition} went back from {known} to {commit.offset}"
                )
            self._committed[commit.partition] = commit.offset
            self._reached[commit.partition] = max(self._reached.get(commit.partition, 0), commit.offset)
        self._unchecked.clear()
        passed = [name for name, (partition, offset) in self._ahead.items() if offset < self._reached.get(partition, 0)]
        for name in passed:
            partition, offset = self._ahead.pop(name)
            if name not in self._answered:
                self.broken.append(
                    f"offset {self._reached[partition]} of partition {partition} passed {name} at {offset}, "
                    "which has no result"
                )
