"""A partitioner that reads the lag of consumer groups in the background and chooses by the latest reading.

Owns when to read and what to do without an answer. `choose` never waits: while no load is known, because Kafka is
unreachable or the group is empty or rebalances, partitions are chosen round robin.
"""

import asyncio
import contextlib
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import structlog

from fluxpool_contract.kafka import KafkaConnection
from fluxpool_transport.kafka.admin import KafkaUnavailableError
from fluxpool_transport.lag.lag_reader import GroupLag, KnownFor, LagReader
from fluxpool_transport.partitioner.arrival_reader import Arrival, ArrivalReader, WorkOf
from fluxpool_transport.partitioner.member_load import WorkEstimate
from fluxpool_transport.partitioner.shared_sends import SharedSends
from fluxpool_transport.partitioner.topic_partitioner import LoadSnapshot, TopicPartitioner

QUICK_INTERVAL_SECONDS: Final = 0.1
"""Between readings while tasks are sent: a fortieth of a usual generation, too short for many senders to meet on one
idle worker."""
IDLE_INTERVAL_SECONDS: Final = 1.0
"""While nothing is sent; the next task still finds a snapshot that is young enough."""
MOST_TIME_READING: Final = 0.25
"""Share of the time that readings may take: mostly they wait for brokers, but a busy event loop has other work."""
READ_DEADLINE_SECONDS: Final = 3.0
AHEAD_SECONDS: Final = 3.0
"""How long before it sends a sender should call `expect`: time to connect and for a few readings."""
LINGER_SECONDS: Final = 10.0
"""How long reading continues after the last `expect`: the next sender needs no new connection."""
STABLE: Final = "Stable"
_NO_GROUP: Final = "no consumer group is known for this topic"
# Members are asked for less often than offsets: a partition that moved is known soon enough, and nothing is lost by it.
_KNOWN_FOR: Final = KnownFor(layout_seconds=1.0, log_start_seconds=60.0, members_seconds=0.5)

Observe = Callable[[Mapping[str, GroupLag], float], None]
"""Takes the lag of each group, and when it was asked for, monotonic seconds."""

logger = structlog.stdlib.get_logger(__name__)


@dataclass(slots=True)
class _Topic:
    choice: TopicPartitioner
    estimate: WorkEstimate = field(default_factory=WorkEstimate)
    problem: str | None = "not read yet"


class LoadAwarePartitioner:
    """Chooses partitions for all topics of one process: give `run()` a task, then call `choose` for each record.

    Not thread-safe: all of it belongs to one event loop. Each process has its own. With `work_of` it reads the tasks of
    all others as they arrive, by whatever client and process they are sent; else it sees them with its next reading.
    """

    def __init__(
        self,
        connection: KafkaConnection,
        groups: Mapping[str, str],
        *,
        source: random.Random | None = None,
        clock: Callable[[], float] = time.monotonic,
        quick_interval_seconds: float = QUICK_INTERVAL_SECONDS,
        observe: Observe | None = None,
        work_of: WorkOf | None = None,
        shared: SharedSends | None = None,
    ) -> None:
        """`groups` maps each consumer group to the topic it takes its tasks from; other topics are round robin.

        `work_of` tells the size of a task in a record; `shared` has the choices of the other processes of this program,
        which are known before their records are written. `observe` gets every reading, for what else is to be known of
        the queue: Kafka is asked once for both.
        """
        self._connection = connection
        self._groups = dict(groups)
        self._source = source or random.Random()  # noqa: S311 - no secret
        self._clock = clock
        self._quick_interval_seconds = quick_interval_seconds
        self._observe = observe
        self._shared = shared
        if shared is not None:
            for topic in groups.values():
                shared.know(topic)
        self._topics = {topic: _Topic(TopicPartitioner(self._source)) for topic in groups.values()}
        self._sent = asyncio.Event()
        """By this sender, or by others as far as is known."""
        self._arrivals: ArrivalReader | None = None
        if work_of is not None and groups:
            self._arrivals = ArrivalReader(connection, work_of=work_of, observe=self._on_arrivals)
        self.has_read = asyncio.Event()
        """Set while `run` runs and has read at least once, successfully or not."""

    def choose(self, topic: str, *, partitions: int, work: float = 1.0) -> int:
        """The partition, 0 to `partitions` - 1, for a task of this size (`GenerationParameters.relative_work`)."""
        known = self._topics.get(topic)
        if known is None:
            known = self._topics[topic] = _Topic(TopicPartitioner(self._source), problem=_NO_GROUP)
        self._sent.set()
        now = self._clock()
        self._take_announced(now)
        chosen = known.choice.choose(partitions=partitions, work=work, now=now)
        if self._shared is not None:
            self._shared.tell(topic, partition=chosen, work=work, now=now)
        return chosen

    def acknowledged(self, topic: str, *, partition: int, offset: int, work: float) -> None:
        """A chosen record was written there: it counts by its size, and not as another sender's."""
        known = self._topics.get(topic)
        if known is not None:
            is_new = known.estimate.acknowledged(partition=partition, offset=offset, work=work)
            if not is_new:
                # It arrived before its acknowledgement, and was taken for another sender's.
                known.choice.is_own(partition=partition, offset=offset)

    def _take_announced(self, now: float) -> None:
        if self._shared is None:
            return
        for sent in self._shared.news(now=now):
            known = self._topics[sent.topic]
            known.estimate.announced()
            known.choice.announced(partition=sent.partition, work=sent.work, now=sent.at)

    def _on_arrivals(self, arrivals: Sequence[Arrival]) -> None:
        now = self._clock()
        # First: an arrival is taken for the task that was announced for its partition.
        self._take_announced(now)
        for arrival in arrivals:
            known = self._topics[arrival.topic]
            place = {"partition": arrival.partition, "offset": arrival.offset}
            if known.estimate.arrived(**place, work=arrival.work):
                known.choice.arrived(**place, work=arrival.work, now=now)
                self._sent.set()

    def round_robin_reason(self, topic: str, *, partitions: int) -> str | None:
        """Why the partitions of a topic are chosen round robin; None while they are chosen by load."""
        known = self._topics.get(topic)
        if known is None:
            return _NO_GROUP
        if known.choice.is_by_load(partitions=partitions, now=self._clock()):
            return None
        return known.problem or "the snapshot is too old, or of another number of partitions"

    async def run(self) -> None:
        """Read until cancelled; errors are logged and do not end it."""
        try:
            while True:
                try:
                    await self._read_on()
                except KafkaUnavailableError as error:
                    self._note_failure(str(error))
                except Exception:  # the loop must live: without it every choice is round robin
                    logger.exception("partition_loads_failed")
                    self._note_failure("reading failed; see the log")
                self.has_read.set()
                await asyncio.sleep(IDLE_INTERVAL_SECONDS)
        finally:
            self.has_read.clear()

    async def _read_on(self) -> None:
        async with self.reader() as reader, self._arrivals or contextlib.nullcontext():
            while True:
                began_at = self._clock()
                # Cleared before reading: a record that is sent meanwhile makes the next reading a quick one.
                self._sent.clear()
                await self.refresh(reader)
                self.has_read.set()
                await self._pause(self._clock() - began_at)

    def reader(self, *, deadline_seconds: float = READ_DEADLINE_SECONDS) -> LagReader:
        """The reader for `refresh`, which waits for an answer that long; open it with `async with`."""
        return LagReader(self._connection, deadline_seconds=deadline_seconds, known_for=_KNOWN_FOR)

    async def refresh(self, reader: LagReader) -> None:
        """Read once; without an answer the loads stay as they are. For `run`, and for senders of a few records."""
        began_at = self._clock()
        if self._shared is not None:
            self._shared.find_others()
        self._take_announced(began_at)
        for group_topic in self._groups.values():
            # Before the request: what is sent during it may or may not be in the answer, and is counted apart.
            self._topics[group_topic].choice.begin_reading(now=began_at)
        try:
            lags = await reader.read(self._groups)
        except KafkaUnavailableError as error:
            self._note_failure(str(error))
            return
        ends = {
            (lag.topic, item.partition): item.log_end_offset
            for lag in lags.values()
            for item in lag.readable_partitions
        }
        others_known = self._arrivals is not None and self._arrivals.follow(ends, now=began_at)
        for lag in lags.values():
            self._use(lag, began_at, others_known=others_known)
        if self._observe is not None:
            self._observe(lags, began_at)

    def _use(self, lag: GroupLag, now: float, *, others_known: bool) -> None:
        topic = self._topics[lag.topic]
        problem = lag.problem
        if problem is None:
            # During a rebalance the old assignment says nothing about the next one.
            owners = topic.estimate.owners(lag, now=now) if lag.state == STABLE else ()
            others_per_second = 0.0 if others_known else topic.estimate.others_per_second
            topic.choice.use(
                LoadSnapshot(
                    taken_at=now,
                    partition_count=len(lag.partitions),
                    owners=owners,
                    end_offsets={item.partition: item.log_end_offset for item in lag.readable_partitions},
                    others_per_second=others_per_second,
                    others_work=topic.estimate.mean_work,
                )
            )
            if self._arrivals is not None and others_per_second * IDLE_INTERVAL_SECONDS >= 1:
                # Their arrivals are to be known, but are not: readings alone tell of them.
                self._sent.set()
            if not owners:
                problem = f"consumer group {lag.group} ({lag.state}) has no member on a readable partition"
        self._note(lag.topic, topic, problem)

    def _note_failure(self, problem: str) -> None:
        for group_topic in self._groups.values():
            self._note(group_topic, self._topics[group_topic], problem)

    @staticmethod
    def _note(name: str, topic: _Topic, problem: str | None) -> None:
        if (problem is None) != (topic.problem is None):
            logger.info("partitioner_mode_changed", topic=name, by_load=problem is None, problem=problem)
        topic.problem = problem

    async def _pause(self, reading_seconds: float) -> None:
        quick_seconds = min(
            max(self._quick_interval_seconds, reading_seconds / MOST_TIME_READING), IDLE_INTERVAL_SECONDS
        )
        await asyncio.sleep(quick_seconds)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(IDLE_INTERVAL_SECONDS - quick_seconds):
                await self._sent.wait()


class IdleAwarePartitioner:
    """Reads loads only while a record is about to be sent, for senders that are idle most of the time.

    One that always reads asks the group's coordinator at least once a second: cheap for a gateway, too much for a
    thousand agents of which a few have a retry to send. Give `run()` a task, call `expect` ahead of time, `ready`
    before choosing. Not thread-safe: all of it belongs to one event loop.
    """

    def __init__(self, partitioner: LoadAwarePartitioner, *, linger_seconds: float = LINGER_SECONDS) -> None:
        """`linger_seconds` is above `AHEAD_SECONDS`."""
        self.partitioner = partitioner
        self._linger_seconds = linger_seconds
        self._needed = asyncio.Event()

    def expect(self) -> None:
        """Announce that a record will be sent soon; may be repeated."""
        self._needed.set()

    async def ready(self) -> None:
        """Wait for the first reading since the last pause, at most 3 s; without it the choice is round robin."""
        self.expect()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(READ_DEADLINE_SECONDS):
                await self.partitioner.has_read.wait()

    async def run(self) -> None:
        """Read whenever it is needed, until cancelled."""
        while True:
            await self._needed.wait()
            reading = asyncio.create_task(self.partitioner.run(), name="partition-loads")
            try:
                await self._until_idle()
            finally:
                reading.cancel()
                await asyncio.wait({reading})

    async def _until_idle(self) -> None:
        while self._needed.is_set():
            # Cleared before the wait: any `expect` from now on starts the time again.
            self._needed.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._linger_seconds):
                    await self._needed.wait()
