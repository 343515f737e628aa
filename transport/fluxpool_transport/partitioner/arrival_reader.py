"""Reads what arrives in task topics within milliseconds, so that a sender knows what the others have sent.

Owns what is followed, and the consumer, which joins no group. Knows nothing of loads: `load_aware` takes the arrivals.
"""

import asyncio
import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Self

import structlog
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError
from aiokafka.structs import ConsumerRecord

from fluxpool_contract.kafka import KafkaConnection
from fluxpool_transport.kafka.client_stop import stop_consumer
from fluxpool_transport.kafka.clients import KafkaCredentialsError, aiokafka_options

WorkOf = Callable[[bytes], float]
"""How much work the task in a record's value is."""
Ends = Mapping[tuple[str, int], int]
"""The end offset of each partition, by topic and number."""
MOST_FOLLOWED_PER_SECOND: Final = 500.0
"""Reading as many takes a hundredth of a core of each sender. With more there are a thousand workers, or they all have
enough to do and it matters little who gets one task more."""
BEHIND_SECONDS: Final = 5.0
"""A consumer that has not read for so long what a reading found begins again at the ends."""
_CLIENT_ID: Final = "fluxpool-arrivals"
_WAIT_SECONDS: Final = 0.1
"""Longest a broker holds a fetch. aiokafka asks for a partition that it has just returned only in the fetch after that,
so that a second task for one worker may be known so much later."""
_BATCH_RECORDS: Final = 200
_RECONNECT_SECONDS: Final = 1.0

logger = structlog.stdlib.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Arrival:
    """One record."""

    topic: str
    partition: int
    offset: int
    work: float


class Following:
    """Which partitions are followed, and how far. Pure: time is an argument."""

    def __init__(self) -> None:
        self.positions: dict[tuple[str, int], int] = {}
        """The next offset of each partition that is followed."""
        self._ends: Ends = {}
        self._read_at: float | None = None
        self._complete_at = 0.0

    def use(self, ends: Ends, *, now: float) -> bool:
        """A reading has found these ends; whether all before those of the reading before has arrived.

        Only then it is known what others sent; the consumer had the time between two readings for it. Follows the
        partitions of these ends, new ones from there on: none of them while more arrives than is worth it, and again
        when too little has arrived for long.
        """
        before, elapsed_seconds = self._ends, 0.0 if self._read_at is None else now - self._read_at
        self._ends, self._read_at = ends, now
        complete = bool(self.positions) and all(
            end <= self.positions[place] for place, end in before.items() if place in self.positions
        )
        if complete or not self.positions:
            self._complete_at = now
        written = sum(max(0, end - before.get(place, end)) for place, end in ends.items())
        if written > MOST_FOLLOWED_PER_SECOND * elapsed_seconds > 0 or now - self._complete_at > BEHIND_SECONDS:
            self.positions = {}
            return False
        if self.positions.keys() != ends.keys():
            self.positions = {place: self.positions.get(place, end) for place, end in ends.items()}
        return complete

    def advance(self, positions: Ends) -> None:
        """So far was read; also of what is no longer followed there may be some left."""
        self.positions.update({place: offset for place, offset in positions.items() if place in self.positions})


class ArrivalReader:
    """`async with ArrivalReader(...)` runs it; it reads nothing until `follow`."""

    def __init__(
        self, connection: KafkaConnection, *, work_of: WorkOf, observe: Callable[[Sequence[Arrival]], None]
    ) -> None:
        """`observe` gets the arrivals."""
        self._connection = connection
        self._work_of = work_of
        self._observe = observe
        self._following = Following()
        self._running: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        """Start."""
        self._following = Following()
        self._running = asyncio.create_task(self._run(), name="task-arrivals")
        return self

    async def __aexit__(self, *_: object) -> None:
        """Stop, and disconnect."""
        if self._running is not None:
            self._running.cancel()
            # It raises nothing: the reading that this belongs to may end with an error of its own.
            await asyncio.wait({self._running})

    def follow(self, ends: Ends, *, now: float) -> bool:
        """As `Following.use`."""
        return self._following.use(ends, now=now)

    async def _run(self) -> None:
        while True:
            try:
                await self._read_on()
            except Exception as error:  # the loop must live; meanwhile what others send is estimated
                is_outage = isinstance(error, KafkaError | KafkaCredentialsError)
                reason = str(error) or repr(error)
                logger.warning("arrivals_unreadable", reason=reason, exc_info=not is_outage)
                await asyncio.sleep(_RECONNECT_SECONDS)

    async def _read_on(self) -> None:
        consumer = AIOKafkaConsumer(
            **aiokafka_options(self._connection, client_id=_CLIENT_ID),
            group_id=None,
            enable_auto_commit=False,
            # For offsets outside the log, of a topic that was recreated.
            auto_offset_reset="latest",
            # As workers read.
            isolation_level="read_committed",
            fetch_max_wait_ms=round(_WAIT_SECONDS * 1000),
        )
        try:
            await consumer.start()
            assigned: set[tuple[str, int]] = set()
            while True:
                positions = self._following.positions
                if positions.keys() != assigned:
                    assigned = set(positions)
                    _assign(consumer, positions)
                if assigned:
                    await self._fetch(consumer)
                else:
                    await asyncio.sleep(_WAIT_SECONDS)
        finally:
            await stop_consumer(consumer)

    async def _fetch(self, consumer: AIOKafkaConsumer) -> None:
        batches = await consumer.getmany(timeout_ms=round(_WAIT_SECONDS * 1000), max_records=_BATCH_RECORDS)
        positions = {tuple(partition): records[-1].offset + 1 for partition, records in batches.items()}
        for partition in consumer.assignment():
            end = consumer.last_stable_offset(partition)
            known = self._following.positions.get(tuple(partition))
            if partition not in batches and end is not None and end != known:
                # Markers of transactions are no records; or the topic was recreated.
                with contextlib.suppress(TimeoutError):
                    # It waits for a leader that is away; the other partitions do not.
                    async with asyncio.timeout(_WAIT_SECONDS):
                        positions[tuple(partition)] = await consumer.position(partition)
        self._following.advance(positions)
        if batches:
            self._observe([self._arrival(record) for records in batches.values() for record in records])

    def _arrival(self, record: ConsumerRecord) -> Arrival:
        return Arrival(record.topic, record.partition, record.offset, self._work_of(record.value or b""))


def _assign(consumer: AIOKafkaConsumer, positions: Ends) -> None:
    if not positions:
        consumer.unsubscribe()
        return
    consumer.assign([TopicPartition(*place) for place in positions])
    for place, offset in positions.items():
        consumer.seek(TopicPartition(*place), offset)
