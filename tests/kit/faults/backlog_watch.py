"""Observers that read one lane repeatedly during faults of its Kafka, and their wrong observations.

The lane does not change, so there is one right answer: an observation is right, or it is stale with a reason. There are
four observers: the reader and the operator's memory, each once with a permanent connection, and once with a new
connection and no memory for every observation.
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
"""Timeout of one observation; short, so that there are many."""
PAUSE_SECONDS: Final = 0.05
"""Between two observations of one observer: the brokers need the cores."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownPartition:
    """The state of one partition, true or observed."""

    pending_records: int
    in_flight: tuple[tuple[int, str], ...]
    """Offset and task, by offset."""


@dataclass(slots=True)
class Observer:
    """Results of one observer so far."""

    name: str
    whole: int = 0
    """Observations that were complete and right."""
    problems: Counter[str] = field(default_factory=Counter)
    """Reasons of the others."""


class BacklogWatch:
    """Use with `async with`; it begins after one right observation of every observer."""

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
        """Descriptions of wrong observations."""

    @property
    def observers(self) -> tuple[Observer, ...]:
        """All of them."""
        return self._reader, self._new_reader, self._pool, self._new_pool

    @property
    def standing_observers(self) -> tuple[Observer, ...]:
        """Observers with a permanent connection: they know a coordinator, and notice when it no longer is."""
        return self._reader, self._pool

    async def wait_seen_whole(self, *, deadline_seconds: float) -> None:
        """Wait until every observer has made one more complete observation that began after this call."""
        known = {observer.name: observer.whole for observer in self.observers}
        # One observation may be in progress.
        await wait_until(
            lambda: all(observer.whole >= known[observer.name] + 2 for observer in self.observers),
            deadline_seconds=deadline_seconds,
            what=f"every observer to see the whole lane again: {self.observers}, {self.broken}",
        )

    async def __aenter__(self) -> Self:
        """Begin to look."""
        await self._tasks.__aenter__()
        for looking in (
            self._read(),
            self._read_with_new_connection(),
            self._observe(),
            self._observe_with_new_connection(),
        ):
            self._tasks.create_task(looking)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """End each observer after its current observation."""
        self._ending.set()
        await self._tasks.__aexit__(kind, error, traceback)

    async def _read(self) -> None:
        async with AsyncExitStack() as stack:
            reader = await stack.enter_async_context(self._new_backlog_reader())
            await self._repeat(self._reader, lambda: self._look(self._reader, reader))

    async def _read_with_new_connection(self) -> None:
        async def look() -> None:
            async with self._new_backlog_reader() as reader:
                await self._look(self._new_reader, reader)

        await self._repeat(self._new_reader, look)

    async def _observe(self) -> None:
        backlog = PoolBacklog([self._target], {})
        async with BacklogHub(deadline_seconds=DEADLINE_SECONDS) as hub:
            await self._repeat(self._pool, lambda: self._look_for_pool(self._pool, hub, backlog))

    async def _observe_with_new_connection(self) -> None:
        async def look() -> None:
            async with BacklogHub(deadline_seconds=DEADLINE_SECONDS) as hub:
                await self._look_for_pool(self._new_pool, hub, PoolBacklog([self._target], {}))

        await self._repeat(self._new_pool, look)

    async def _repeat(self, observer: Observer, look: Callable[[], Awaitable[None]]) -> None:
        while not self._ending.is_set():
            try:
                await look()
            except KafkaUnavailableError as error:
                self._note_stale(observer, str(error))
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._ending.wait(), PAUSE_SECONDS)

    def _new_backlog_reader(self) -> LagReader:
        return LagReader(self._connection, deadline_seconds=DEADLINE_SECONDS)

    async def _look(self, observer: Observer, reader: LagReader) -> None:
        group = self._target.consumer_group
        backlog = (await reader.read({group: self._target.topic}))[group]
        self._check(observer, _observed_by_reader(backlog))
        numbers = {item.partition for item in backlog.partitions}
        if numbers and numbers != self._truth.keys():
            self._note_wrong(observer, f"the topic has the partitions {sorted(numbers)}")
        if backlog.is_stale:
            self._note_stale(observer, backlog.problem or "; ".join(_reasons(backlog)))
        else:
            observer.whole += 1

    async def _look_for_pool(self, observer: Observer, hub: BacklogHub, backlog: PoolBacklog) -> None:
        was_whole = observer is self._pool and observer.whole > 0
        readings = await hub.read(self._connection, [self._target])
        now_seconds = time.monotonic()
        backlog.update(readings, now_seconds)
        (lane,) = backlog.observe(now_seconds, time.time())
        observed = _observed_by_lane(lane)
        self._check(observer, observed)
        if was_whole and observed.keys() != self._truth.keys():
            self._note_wrong(observer, f"forgot partitions, it knows {sorted(observed)}")
        if lane.age_seconds == 0 and lane.problem is None and observed.keys() == self._truth.keys():
            observer.whole += 1
        else:
            if observed.keys() != self._truth.keys() and not math.isinf(lane.age_seconds):
                self._note_wrong(
                    observer, f"knows {sorted(observed)} alone and takes that for {lane.age_seconds} s old"
                )
            self._note_stale(observer, lane.problem or "")

    def _check(self, observer: Observer, observed: Mapping[int, KnownPartition]) -> None:
        for number, partition in observed.items():
            if partition != self._truth.get(number):
                self._note_wrong(observer, f"partition {number}: {partition} instead of {self._truth.get(number)}")

    def _note_stale(self, observer: Observer, problem: str) -> None:
        observer.problems[problem] += 1
        if not problem:
            self._note_wrong(observer, "is incomplete without a reason")

    def _note_wrong(self, observer: Observer, what: str) -> None:
        self.broken.append(f"{observer.name}: {what}")


def _observed_by_reader(backlog: GroupLag) -> dict[int, KnownPartition]:
    return {
        item.partition: KnownPartition(
            pending_records=item.pending_records,
            in_flight=tuple((offset, entry.task) for offset, entry in sorted(item.in_flight.items())),
        )
        for item in backlog.readable_partitions
    }


def _observed_by_lane(lane: LaneObservation) -> dict[int, KnownPartition]:
    return {
        item.partition: KnownPartition(
            pending_records=item.pending_records,
            in_flight=tuple((offset, entry.task) for offset, entry in sorted(item.in_flight.items())),
        )
        for item in lane.partitions
    }


def _reasons(backlog: GroupLag) -> Iterable[str]:
    return (item.reason for item in backlog.partitions if isinstance(item, StalePartition))
