"""Publishes records that must arrive: results, dead letters, retries. `progress` sends those that may get lost.

Owns the idempotent producer and its replacement after a fatal error; knows nothing of what the records mean.
"""

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

import structlog
from aiokafka import AIOKafkaProducer
from aiokafka.errors import (
    CorruptRecordException,
    InvalidTimestampError,
    InvalidTopicError,
    KafkaConnectionError,
    KafkaError,
    MessageSizeTooLargeError,
    PolicyViolationError,
    RecordListTooLargeError,
    TopicAuthorizationFailedError,
    UnknownError,
    UnknownTopicOrPartitionError,
    UnsupportedForMessageFormatError,
)
from aiokafka.structs import RecordMetadata

from fluxpool_transport.kafka import stop_producer
from fluxpool_transport.process import Backoff, fault_point
from fluxpool_worker.agent.task.holds import Hold, HoldCause, Holds

STOP_DEADLINE_SECONDS: Final = 5.0
"""With the brokers away `stop()` waits for a pending record without limit."""
START_DEADLINE_SECONDS: Final = 60.0
REBUILD_SECONDS: Final = 1.0
MAX_REBUILD_SECONDS: Final = 10.0
UNKNOWN_AFTER_SECONDS: Final = 5.0
"""An ack takes milliseconds; past this the brokers, or the way to them, are away."""

_TOPIC_REFUSALS: Final = (InvalidTopicError, TopicAuthorizationFailedError, UnknownTopicOrPartitionError)
"""Any record would be refused."""
_RECORD_REFUSALS: Final = (
    InvalidTimestampError,
    MessageSizeTooLargeError,
    PolicyViolationError,
    RecordListTooLargeError,
    UnsupportedForMessageFormatError,
)
"""This record is refused, and others are not."""
_DOUBTFUL_REFUSALS: Final = (CorruptRecordException, UnknownError)
"""Of the record too, when they repeat: aiokafka does not know INVALID_RECORD, which a compacted topic answers to a
record without a key (KIP-467)."""
MAX_DOUBTFUL_REFUSALS: Final = 3

_before_publish = fault_point("agent-before-publish")
_after_publish = fault_point("agent-after-publish")

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class OutgoingRecord:
    """One record to be sent."""

    topic: str
    key: bytes | None
    value: bytes | None
    headers: list[tuple[str, bytes]]


def by_key(_partitions: int) -> None:
    """Leave the partition to the record's key: equal keys lie on one partition, in their order."""


async def close_producer(producer: AIOKafkaProducer) -> None:
    """Stop a producer, under a deadline."""
    if error := await stop_producer(producer, deadline_seconds=STOP_DEADLINE_SECONDS):
        log.warning("producer_stop_failed", error=repr(error))


@dataclass(slots=True, eq=False)
class _Connection:
    """A producer, and how many records wait for its answer."""

    producer: AIOKafkaProducer
    unanswered: int = 0


class RecordRefusedError(Exception):
    """The brokers refuse this record, however often it is sent; the message says why."""


class ReliablePublisher:
    """Sends records and returns when the brokers have them, also after an outage."""

    def __init__(self, build_producer: Callable[[], AIOKafkaProducer], *, holds: Holds) -> None:
        self._build_producer = build_producer
        self._holds = holds
        self._current: _Connection | None = None
        self._connections: set[_Connection] = set()
        """The current one, and those that were replaced and are waited for by other records."""
        self._lock = asyncio.Lock()
        self.unknown = 0
        """Records sent some time ago and neither acknowledged nor refused: they may be in the log or not."""

    async def publish(
        self,
        record: OutgoingRecord,
        *,
        refusable: bool = False,
        choose_partition: Callable[[int], int | None] = by_key,
    ) -> RecordMetadata:
        """Send and await the ack of all in-sync replicas; returns where the record lies.

        Its offset is negative when the brokers had the record already and do not say where.

        `choose_partition` gets the number of the topic's partitions, each time the record is sent.

        Waits while the outcome is unknown: to send the record again could duplicate it, to stop waiting could lose it.
        After an error that retrying cannot mend, the producer's sequence is broken and the brokers would refuse every
        later record of the partition: the producer is replaced and the record sent again.

        Raises `HoldExpiredError` past the limit of holds, and `RecordRefusedError` when the brokers or the client
        refuse this record; with `refusable` also when they refuse any record for the topic, which otherwise counts as
        an outage.
        """
        _before_publish()
        hold: Hold | None = None
        doubtful = 0
        backoff = Backoff(initial_seconds=REBUILD_SECONDS, maximum_seconds=MAX_REBUILD_SECONDS)
        try:
            while True:
                try:
                    place = await self._send(record, choose_partition)
                except KafkaError as error:
                    doubtful += isinstance(error, _DOUBTFUL_REFUSALS)
                    if (
                        isinstance(error, _RECORD_REFUSALS)
                        or doubtful >= MAX_DOUBTFUL_REFUSALS
                        or (refusable and isinstance(error, _TOPIC_REFUSALS))
                    ):
                        raise RecordRefusedError(f"topic {record.topic}: {error!r}") from error
                    log.warning("publish_failed", topic=record.topic, error=repr(error))
                    hold = hold or self._holds.begin(HoldCause.KAFKA)
                    self._holds.check(hold, repr(error))
                    await backoff.sleep()
                else:
                    _after_publish()
                    return place
        finally:
            self._holds.end(hold)

    async def _send(self, record: OutgoingRecord, choose_partition: Callable[[int], int | None]) -> RecordMetadata:
        connection = await self._connected()
        # No await between the two: another record's failure could close the connection before this one is counted.
        connection.unanswered += 1
        try:
            acked = await self._hand_over(record, connection.producer, choose_partition)
            return await self._acknowledged(acked, record)
        except KafkaError:
            # Also when the client did not take the record: a producer whose sender failed takes no record any more.
            # Another record may have replaced the connection meanwhile; the new one must stay.
            if self._current is connection:
                self._current = None
            raise
        finally:
            # Counted down first: of two last records each would see the other and leave the connection open.
            connection.unanswered -= 1
            await self._close_when_replaced(connection)

    @staticmethod
    async def _hand_over(
        record: OutgoingRecord, producer: AIOKafkaProducer, choose_partition: Callable[[int], int | None]
    ) -> "asyncio.Future[RecordMetadata]":
        """Give the record to the client.

        Raises `KafkaError`, and `RecordRefusedError` for what cannot be put into a record at all.
        """
        # By the producer's own metadata, because it takes no partition that is not in them.
        partitions = await producer.partitions_for(record.topic)
        partition = choose_partition(len(partitions))
        try:
            acked: asyncio.Future[RecordMetadata] = await producer.send(
                record.topic,
                record.value,
                key=record.key,
                partition=partition,
                headers=[(name, value) for name, value in record.headers],
            )
        except (ValueError, TypeError, OverflowError, AssertionError) as error:
            raise RecordRefusedError(f"topic {record.topic}: the client cannot encode the record: {error!r}") from error
        return acked

    async def _acknowledged(self, acked: "asyncio.Future[RecordMetadata]", record: OutgoingRecord) -> RecordMetadata:
        """Wait for the answer of the brokers."""
        hold: Hold | None = None
        try:
            # Not `wait_for`: cancelling the client's future would not take the record back, only hide its answer.
            while not (await asyncio.wait({acked}, timeout=UNKNOWN_AFTER_SECONDS))[0]:
                if hold is None:
                    hold = self._holds.begin(HoldCause.KAFKA)
                    self.unknown += 1
                    log.warning("publish_outcome_unknown", topic=record.topic)
                self._holds.check(hold, "a record was sent and not acknowledged")
            return acked.result()
        finally:
            if hold is not None:
                self.unknown -= 1
                self._holds.end(hold)
                log.info("publish_outcome_known", topic=record.topic, acknowledged=_is_acknowledged(acked))

    async def partitions(self, topic: str) -> set[int]:
        """The numbers of a topic's partitions; raises `KafkaError` when there is no such topic or no broker answers."""
        producer = (await self._connected()).producer
        return set(await producer.partitions_for(topic))

    async def missing(self, topics: Iterable[str]) -> list[str]:
        """Those of the topics that the brokers do not show; they may create one that is asked for.

        Raises `KafkaError` when no broker answers.
        """
        producer = (await self._connected()).producer

        async def is_missing(topic: str) -> bool:
            try:
                await producer.partitions_for(topic)
            except (UnknownTopicOrPartitionError, TopicAuthorizationFailedError):
                return True
            return False

        names = list(dict.fromkeys(topics))
        absent = await asyncio.gather(*map(is_missing, names))
        if any(absent) and not await producer.client.force_metadata_update():
            # Brokers that are away show no topic either.
            raise KafkaConnectionError("no broker answers")
        return [name for name, is_absent in zip(names, absent, strict=True) if is_absent]

    async def stop(self) -> None:
        """Close all connections, under a deadline."""
        async with self._lock:
            self._current = None
            connections, self._connections = self._connections, set()
        await asyncio.gather(*(close_producer(connection.producer) for connection in connections))

    async def _connected(self) -> _Connection:
        async with self._lock:
            if self._current is None:
                producer = self._build_producer()
                try:
                    # It asks for a producer id again and again, whatever the brokers answer.
                    async with asyncio.timeout(START_DEADLINE_SECONDS):
                        await producer.start()
                except TimeoutError as error:
                    await close_producer(producer)
                    raise KafkaConnectionError(f"no producer id within {START_DEADLINE_SECONDS:.0f} s") from error
                except BaseException:
                    await close_producer(producer)
                    raise
                self._current = _Connection(producer)
                self._connections.add(self._current)
            return self._current

    async def _close_when_replaced(self, connection: _Connection) -> None:
        """Close a replaced producer once no record waits for it: sooner, their outcome would stay unknown."""
        if connection is self._current or connection.unanswered or connection not in self._connections:
            return
        self._connections.discard(connection)
        await close_producer(connection.producer)


def _is_acknowledged(acked: "asyncio.Future[RecordMetadata]") -> bool:
    return acked.done() and not acked.cancelled() and acked.exception() is None
