"""Looks at offsets and answers while a soak runs: when it is over, and whether an offset ever went wrong.

A look reads only what is new since the one before, so that it costs the same with a hundred thousand tasks. Changes
nothing; what became of the tasks is counted elsewhere, afterwards.
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

LOOK_INTERVAL_SECONDS: Final = 1.0
"""Each look at the offsets opens connections of its own, and the workers need the cores."""
STUCK_SECONDS: Final = 240.0
"""Without any new answer or commit; several times what a killed broker and a lost session take together."""
REQUEST_SECONDS: Final = 5.0
READ_SECONDS: Final = 30.0

_AWAY: Final = (ScriptClientError, KafkaException, TimeoutError)
"""What a look ends with while brokers are away; it is made again."""


class SoakWatch:
    """Use with `async with`, once the tasks have their places; it sees the standard lane."""

    def __init__(self, bench: WorkerBench, places: Mapping[str, tuple[int, int]]) -> None:
        """`places` maps each request id to the partition and offset of its task."""
        self._bench = bench
        self._names = {place: name for name, place in places.items()}
        self._answers = _AnswerReader(bench.bootstrap_servers, bench.topics.results)
        self._committed: dict[int, int] = {}
        self._ends = {number: offset + 1 for number, offset in sorted(self._names)}
        self._began_at = self._moved_at = time.monotonic()
        self._ending = asyncio.Event()
        self._watching: asyncio.Task[None] | None = None
        self.looks = 0
        """How many looks succeeded."""
        self.offsets_broken: list[str] = []
        """In words: offsets that went back, or passed a task without an answer."""

    @property
    def answered(self) -> int:
        """How many tasks have an answer."""
        return len(self._answers.answered)

    @property
    def is_done(self) -> bool:
        """Whether every task has an answer and is committed."""
        return self.answered >= len(self._names) and all(
            self._committed.get(number, 0) >= end for number, end in self._ends.items()
        )

    @property
    def is_over(self) -> bool:
        """Whether all is done, or nothing has moved for so long that nothing will."""
        return self.is_done or time.monotonic() - self._moved_at > STUCK_SECONDS

    @property
    def working_seconds(self) -> float:
        """From the begin until the last new answer or commit."""
        return self._moved_at - self._began_at

    async def wait_over(self, *, deadline_seconds: float | None = None) -> None:
        """Return when it is over or the deadline passes."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(deadline_seconds):
                while not self.is_over:
                    self._check_watching()
                    await asyncio.sleep(0.1)

    async def __aenter__(self) -> Self:
        """Begin to look."""
        self._watching = asyncio.create_task(self._watch(), name="soak-watch")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """End, once the look under way is over: its clients live in a thread that nobody can cancel."""
        self._ending.set()
        if self._watching is not None:
            await asyncio.wait({self._watching})
        await asyncio.to_thread(self._answers.close)
        if error is None:
            self._check_watching()

    def _check_watching(self) -> None:
        if self._watching is not None and self._watching.done():
            self._watching.result()

    async def _watch(self) -> None:
        while not self._ending.is_set():
            with contextlib.suppress(*_AWAY):
                await self._look()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._ending.wait(), LOOK_INTERVAL_SECONDS)

    async def _look(self) -> None:
        # Offsets first: whatever had ended when they were committed is among the answers read after them.
        committed = await self._bench.committed()
        known = self.answered
        await asyncio.to_thread(self._answers.read_to_end)
        for number, offset in committed.items():
            self._check_offset(number, offset)
        if self.answered > known or committed != self._committed:
            self._moved_at = time.monotonic()
        self._committed |= committed
        self.looks += 1

    def _check_offset(self, number: int, offset: int) -> None:
        before = self._committed.get(number, 0)
        if offset < before:
            self.offsets_broken.append(f"the offset of partition {number} went back from {before} to {offset}")
        self.offsets_broken += [
            f"offset {offset} of partition {number} passed {name} at {passed}, which has no answer"
            for passed in range(before, offset)
            if (name := self._names.get((number, passed))) is not None and name not in self._answers.answered
        ]


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
                # That brokers go away is what the soak is about.
                "log_level": 0,
            }
        )
        self.answered: set[str] = set()

    def read_to_end(self) -> None:
        """Up to the end at the time of the call; raises `KafkaException` or `TimeoutError`."""
        if not self._next:
            partitions = self._consumer.list_topics(self._topic, timeout=REQUEST_SECONDS).topics[self._topic].partitions
            self._next = dict.fromkeys(partitions, 0)
            self._consumer.assign([TopicPartition(self._topic, number, 0) for number in partitions])
        ends = {
            number: self._consumer.get_watermark_offsets(TopicPartition(self._topic, number), timeout=REQUEST_SECONDS)[
                1
            ]
            for number in self._next
        }
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
