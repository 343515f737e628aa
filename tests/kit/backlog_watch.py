"""Observers of one lane that look again and again while its Kafka is in trouble, and what they said that was wrong.

For a lane in which nothing moves, so that there is one right answer all the time: an observation is right, or it is
stale and says why. Four observers look: the reader and the operator's memory, each as one that has looked for long and
as a newcomer that connects for every look and knows nothing from before.
"""

import asyncio
import contextlib
import math
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from types import TracebackType
from typing import Final, Self

from fluxpool_contract.kafka.connection import KafkaConnection
from fluxpool_operator.backlog import BacklogHub, LaneObservation, LaneTarget, PoolBacklog
from fluxpool_transport.kafka.admin import KafkaUnavailableError
from fluxpool_transport.lag.lag_reader import GroupLag, LagReader, StalePartition
from kit.waiting import wait_until

DEADLINE_SECONDS: Final = 5.0
"""For the answers of one look; short, so that there are many."""
PAUSE_SECONDS: Final = 0.05
"""Between two looks of one observer: the brokers need the cores."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownPartition:
    """What is so in one partition, or what an observer says of it."""

    pending_records: int
    in_flight: tuple[tuple[int, str], ...]
    """Offset and task, by offset."""


@dataclass(slots=True)
class Observer:
    """What one observer said so far."""

    name: str
    whole: int = 0
    """Looks that told everything, all of it right."""
    problems: Counter[str] = field(default_factory=Counter)
    """Why the others did not."""


class BacklogWatch:
    """Use with `async with`; every observer has seen the truth once when it begins."""

    def __init__(self, bootstrap_servers: str, target: LaneTarget, truth: Mapping[int, KnownPartition]) -> None:
        """`truth` is by number of the partition."""
        self._connection = KafkaConnection(bootstrap_servers=tuple(bootstrap_servers.split(",")))
        self._target = target
        self._truth = dict(truth)
        self._reader = Observer("the reader")
        self._new_reader = Observer("a new reader")
        self._pool = Observer("the pool")
        self._new_pool = Observer("a new pool")
        self._ending = asyncio.Event()
        self._tasks = asyncio.TaskGroup()
        self.broken: list[str] = []
        """In words: what was said and is not so."""

    @property
    def observers(self) -> tuple[Observer, ...]:
        """All of them."""
        return self._reader, self._new_reader, self._pool, self._new_pool

    @property
    def standing_observers(self) -> tuple[Observer, ...]:
        """Those that have looked for long: they know a coordinator, and notice whenever it is one no more."""
        return self._reader, self._pool

    async def wait_seen_whole(self, *, deadline_seconds: float) -> None:
        """Wait until every observer has told the whole truth once more than now, in looks that began after now."""
        known = {observer.name: observer.whole for observer in self.observers}
        # One look may be under way, begun before.
        await wait_until(
            lambda: all(observer.whole >= known[observer.name] + 2 for observer in self.observers),
            deadline_seconds=deadline_seconds,
            what=f"every observer to see the whole lane again: {self.observers}, {self.broken}",
        )

    async def __aenter__(self) -> Self:
        """Begin to look."""
        await self._tasks.__aenter__()
        for looking in (self._read(), self._read_anew(), self._observe(), self._observe_anew()):
            self._tasks.create_task(looking)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """End, each observer after the look under way."""
        self._ending.set()
        await self._tasks.__aexit__(kind, error, traceback)

    async def _read(self) -> None:
        async with AsyncExitStack() as stack:
            reader = await stack.enter_async_context(self._new_backlog_reader())
            await self._again_and_again(self._reader, lambda: self._look(self._reader, reader))

    async def _read_anew(self) -> None:
        async def look() -> None:
            async with self._new_backlog_reader() as reader:
                await self._look(self._new_reader, reader)

        await self._again_and_again(self._new_reader, look)

    async def _observe(self) -> None:
        backlog = PoolBacklog([self._target], {})
        async with BacklogHub(deadline_seconds=DEADLINE_SECONDS) as hub:
            await self._again_and_again(self._pool, lambda: self._look_for_pool(self._pool, hub, backlog))

    async def _observe_anew(self) -> None:
        async def look() -> None:
            async with BacklogHub(deadline_seconds=DEADLINE_SECONDS) as hub:
                await self._look_for_pool(self._new_pool, hub, PoolBacklog([self._target], {}))

        await self._again_and_again(self._new_pool, look)

    async def _again_and_again(self, observer: Observer, look: Callable[[], Awaitable[None]]) -> None:
        while not self._ending.is_set():
            try:
                await look()
            except KafkaUnavailableError as error:
                self._told_stale(observer, str(error))
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._ending.wait(), PAUSE_SECONDS)

    def _new_backlog_reader(self) -> LagReader:
        return LagReader(self._connection, deadline_seconds=DEADLINE_SECONDS)

    async def _look(self, observer: Observer, reader: LagReader) -> None:
        group = self._target.consumer_group
        backlog = (await reader.read({group: self._target.topic}))[group]
        self._check(observer, _said_by_reader(backlog))
        numbers = {item.partition for item in backlog.partitions}
        if numbers and numbers != self._truth.keys():
            self._told_wrong(observer, f"the topic has the partitions {sorted(numbers)}")
        if backlog.is_stale:
            self._told_stale(observer, backlog.problem or "; ".join(_reasons(backlog)))
        else:
            observer.whole += 1

    async def _look_for_pool(self, observer: Observer, hub: BacklogHub, backlog: PoolBacklog) -> None:
        was_whole = observer is self._pool and observer.whole > 0
        readings = await hub.read(self._connection, [self._target])
        now_seconds = time.monotonic()
        backlog.update(readings, now_seconds)
        (lane,) = backlog.observe(now_seconds, time.time())
        said = _said_by_lane(lane)
        self._check(observer, said)
        if was_whole and said.keys() != self._truth.keys():
            self._told_wrong(observer, f"forgot partitions, it knows {sorted(said)}")
        if lane.age_seconds == 0 and lane.problem is None and said.keys() == self._truth.keys():
            observer.whole += 1
        else:
            if said.keys() != self._truth.keys() and not math.isinf(lane.age_seconds):
                self._told_wrong(observer, f"knows {sorted(said)} alone and takes that for {lane.age_seconds} s old")
            self._told_stale(observer, lane.problem or "")

    def _check(self, observer: Observer, said: Mapping[int, KnownPartition]) -> None:
        for number, partition in said.items():
            if partition != self._truth.get(number):
                self._told_wrong(observer, f"partition {number}: {partition} instead of {self._truth.get(number)}")

    def _told_stale(self, observer: Observer, problem: str) -> None:
        observer.problems[problem] += 1
        if not problem:
            self._told_wrong(observer, "lacks something and does not say why")

    def _told_wrong(self, observer: Observer, what: str) -> None:
        self.broken.append(f"{observer.name}: {what}")


def _said_by_reader(backlog: GroupLag) -> dict[int, KnownPartition]:
    return {
        item.partition: KnownPartition(
            pending_records=item.pending_records,
            in_flight=tuple((offset, entry.task) for offset, entry in sorted(item.in_flight.items())),
        )
        for item in backlog.readable_partitions
    }


def _said_by_lane(lane: LaneObservation) -> dict[int, KnownPartition]:
    return {
        item.partition: KnownPartition(
            pending_records=item.pending_records,
            in_flight=tuple((offset, entry.task) for offset, entry in sorted(item.in_flight.items())),
        )
        for item in lane.partitions
    }


def _reasons(backlog: GroupLag) -> Iterable[str]:
    return (item.reason for item in backlog.partitions if isinstance(item, StalePartition))
