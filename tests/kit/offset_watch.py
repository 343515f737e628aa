"""Looks at commits and answers from outside while everything is being broken: whether an offset ever goes wrong.

No commit escapes it, because it reads their log. A look reads only what is new since the one before, so that it costs
the same with a hundred thousand tasks. Changes nothing and joins no group; what became of the tasks is counted by
others, afterwards.
"""

import asyncio
import contextlib
import json
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Final, Self

from confluent_kafka import KafkaException

from kit.commit_log import Commit, CommitLog, TopicTail
from kit.kafka import ScriptClientError
from kit.worker import WorkerBench

LOOK_INTERVAL_SECONDS: Final = 0.5
"""The workers need the cores."""

AWAY: Final = (ScriptClientError, KafkaException, TimeoutError, LookupError)
"""What a look ends with while brokers are away; it is made again."""


class OffsetWatch:
    """Use with `async with`; it sees the standard lane. A look that fails, because brokers are away, is left out."""

    def __init__(self, bench: WorkerBench, *, interval_seconds: float = LOOK_INTERVAL_SECONDS) -> None:
        """`interval_seconds` lies between two looks."""
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
        """How many looks succeeded."""
        self.moved_at = time.monotonic()
        """Monotonic time of the last look that saw a new answer or commit; of the begin before any did."""
        self.broken: list[str] = []
        """In words: offsets that went back, or passed a task without an answer."""

    def expect(self, places: Mapping[str, tuple[int, int]]) -> None:
        """From now on also watch these tasks: request id -> partition and offset."""
        self._places |= places
        self._ahead |= places

    @property
    def answered(self) -> int:
        """How many tasks have an answer."""
        return len(self._answered)

    @property
    def is_done(self) -> bool:
        """Whether every task has an answer and is committed."""
        return not self._ahead and self._answered >= self._places.keys()

    async def look(self) -> None:
        """Look once more, now; raises one of `AWAY` when brokers are away."""
        async with self._looking:
            # Commits first: whatever had ended when they were made is among the answers read after them.
            await asyncio.to_thread(self._read_commits)
            known = self.answered
            await asyncio.to_thread(self._read_answers)
            if self.answered > known or self._unchecked:
                self.moved_at = time.monotonic()
            self._check()
            self.looks += 1

    def check_watching(self) -> None:
        """Raise what ended the watch, if anything did."""
        if self._watching is not None and self._watching.done():
            self._watching.result()

    async def __aenter__(self) -> Self:
        """Begin to look."""
        self._watching = asyncio.create_task(self._watch(), name="offset-watch")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """End, once the look under way is over: its clients live in a thread that nobody can cancel."""
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
        """Those of the lane since the last check; a look that fails later leaves them to the next one."""
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
                    "which has no answer"
                )
