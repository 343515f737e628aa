"""Looks at offsets and answers from outside while everything is being broken: whether an offset ever goes wrong.

A look reads only what is new since the one before, so that it costs the same with a hundred thousand tasks. Changes
nothing and joins no group; what became of the tasks is counted by others, afterwards.
"""

import asyncio
import contextlib
import json
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Final, Self

from confluent_kafka import Consumer, KafkaException, TopicPartition

from kit.kafka import ScriptClientError
from kit.worker import WorkerBench

LOOK_INTERVAL_SECONDS: Final = 0.5
"""Each look at the offsets opens connections of its own, and the workers need the cores."""
REQUEST_SECONDS: Final = 5.0
READ_SECONDS: Final = 30.0
RECONNECT_MS: Final = 1000
"""The library's own ten seconds would show in every time that is measured by this."""

AWAY: Final = (ScriptClientError, KafkaException, TimeoutError, LookupError)
"""What a look ends with while brokers are away; it is made again."""


class OffsetWatch:
    """Use with `async with`; it sees the standard lane. A look that fails, because brokers are away, is left out."""

    def __init__(self, bench: WorkerBench, *, interval_seconds: float = LOOK_INTERVAL_SECONDS) -> None:
        """`interval_seconds` lies between two looks."""
        self._bench = bench
        self._interval_seconds = interval_seconds
        self._reader = _AnswerReader(bench.bootstrap_servers, bench.topics.results)
        self._places: dict[str, tuple[int, int]] = {}
        self._ahead: dict[str, tuple[int, int]] = {}
        self._committed: dict[int, int] = {}
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
        return len(self._reader.answered)

    @property
    def is_done(self) -> bool:
        """Whether every task has an answer and is committed."""
        return not self._ahead and self._reader.answered >= self._places.keys()

    async def look(self) -> None:
        """Look once more, now; raises one of `AWAY` when brokers are away."""
        async with self._looking:
            # Offsets first: whatever had ended when they were committed is among the answers read after them.
            committed = await self._bench.committed()
            known = self.answered
            await asyncio.to_thread(self._reader.read_to_end)
            self._check(committed)
            if self.answered > known or committed != self._committed:
                self.moved_at = time.monotonic()
            self._committed |= committed
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
        await asyncio.to_thread(self._reader.close)
        if error is None:
            self.check_watching()

    async def _watch(self) -> None:
        while not self._ending.is_set():
            with contextlib.suppress(*AWAY):
                await self.look()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._ending.wait(), self._interval_seconds)

    def _check(self, committed: Mapping[int, int]) -> None:
        for partition, offset in committed.items():
            known = self._committed.get(partition, 0)
            if offset < known:
                self.broken.append(f"the offset of partition {partition} went back from {known} to {offset}")
        passed = [name for name, (partition, offset) in self._ahead.items() if offset < committed.get(partition, 0)]
        for name in passed:
            partition, offset = self._ahead.pop(name)
            if name not in self._reader.answered:
                self.broken.append(
                    f"offset {committed[partition]} of partition {partition} passed {name} at {offset}, "
                    "which has no answer"
                )


class _AnswerReader:
    """Reads the results topic on from where it was; joins no group."""

    def __init__(self, bootstrap_servers: str, topic: str) -> None:
        self._topic = topic
        self._next: dict[int, int] = {}
        self._consumer: Any = Consumer(
            {
                "bootstrap.servers": bootstrap_servers,
                # librdkafka wants one; only a subscription or a commit would make use of it.
                "group.id": "unused",
                "enable.auto.commit": False,
                "auto.offset.reset": "earliest",
                "fetch.wait.max.ms": 100,
                "reconnect.backoff.max.ms": RECONNECT_MS,
                # That brokers go away is what is being watched.
                "log_level": 0,
            }
        )
        self.answered: set[str] = set()

    def read_to_end(self) -> None:
        """Up to the end at the time of the call; raises `KafkaException`, `LookupError` or `TimeoutError`."""
        if not self._next:
            partitions = self._consumer.list_topics(self._topic, timeout=REQUEST_SECONDS).topics[self._topic].partitions
            self._next = dict.fromkeys(partitions, 0)
            self._consumer.assign([TopicPartition(self._topic, number, 0) for number in partitions])
        ends = {number: self._end_of(number) for number in self._next}
        deadline = time.monotonic() + READ_SECONDS
        while any(self._next[number] < end for number, end in ends.items()):
            if time.monotonic() >= deadline:
                raise TimeoutError(f"the end of {self._topic} was not reached")
            for message in self._consumer.consume(num_messages=1000, timeout=0.2):
                if message.error() is None:
                    self.answered.add(json.loads(message.value())["request_id"])
                    self._next[message.partition()] = message.offset() + 1

    def close(self) -> None:
        """Close the connections."""
        self._consumer.close()

    def _end_of(self, number: int) -> int:
        bounds = self._consumer.get_watermark_offsets(TopicPartition(self._topic, number), timeout=REQUEST_SECONDS)
        if bounds is None:
            raise TimeoutError(f"the end of {self._topic} was not told")
        return int(bounds[1])
