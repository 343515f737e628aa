"""Records that must arrive (results, dead letters) and records that may get lost (progress).

Each kind has a producer of its own, so that lossy progress can never break the sequence of the idempotent one.
"""

import asyncio
import contextlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

import structlog
from aiokafka import AIOKafkaProducer
from aiokafka.errors import (
    InvalidTopicError,
    KafkaConnectionError,
    KafkaError,
    MessageSizeTooLargeError,
    RecordListTooLargeError,
    TopicAuthorizationFailedError,
    UnknownTopicOrPartitionError,
)
from aiokafka.structs import RecordMetadata

from fluxpool_transport.faults import fault_point
from fluxpool_worker.agent.holds import Hold, HoldCause, Holds

STOP_DEADLINE_SECONDS: Final = 5.0
"""With the broker away `stop()` would wait for ever for a pending record."""
REBUILD_SECONDS: Final = 1.0
UNKNOWN_AFTER_SECONDS: Final = 5.0
"""An ack takes milliseconds; past this the brokers, or the way to them, are away."""
MAX_WAITING_PROGRESS: Final = 256

_REFUSALS: Final = (
    InvalidTopicError,
    MessageSizeTooLargeError,
    RecordListTooLargeError,
    TopicAuthorizationFailedError,
    UnknownTopicOrPartitionError,
)

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


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordPlace:
    """Where an acknowledged record lies."""

    partition: int
    offset: int
    """Negative when the brokers had the record already and do not say where."""


def by_key(_partitions: int) -> None:
    """Leave the partition to the record's key: equal keys lie on one partition, in their order."""


async def _stop(producer: AIOKafkaProducer) -> None:
    try:
        async with asyncio.timeout(STOP_DEADLINE_SECONDS):
            await producer.stop()
    except (KafkaError, TimeoutError) as error:
        log.warning("producer_stop_failed", error=repr(error))


class RecordRefusedError(Exception):
    """The brokers will not have this record, however often it is sent; the message says why."""


class ReliablePublisher:
    """Sends records and returns when the brokers have them, however long they are away."""

    def __init__(self, build_producer: Callable[[], AIOKafkaProducer], *, holds: Holds) -> None:
        self._build_producer = build_producer
        self._holds = holds
        self._producer: AIOKafkaProducer | None = None
        self._lock = asyncio.Lock()
        self.unknown = 0
        """Records that were sent and neither acknowledged nor refused for a while: they may be in the log or not."""

    async def publish(
        self,
        record: OutgoingRecord,
        *,
        refusable: bool = False,
        choose_partition: Callable[[int], int | None] = by_key,
    ) -> RecordPlace:
        """Send and await the ack of all in-sync replicas; returns where the record lies.

        `choose_partition` is told how many partitions the topic has, each time the record is sent.

        An outcome that is unknown stays so until the brokers tell: sending the record anew would double it, and giving
        up would lose it. After an error that retrying cannot mend, the producer's sequence is broken and every later
        record of the partition would be refused: it is replaced and the record sent again.

        Raises `HoldExpiredError` past the limit of holds; with `refusable` also `RecordRefusedError`, which otherwise
        counts as an outage that somebody has to mend.
        """
        _before_publish()
        hold: Hold | None = None
        try:
            while True:
                try:
                    place = await self._send(record, choose_partition)
                except KafkaError as error:
                    if refusable and isinstance(error, _REFUSALS):
                        raise RecordRefusedError(f"topic {record.topic}: {error!r}") from error
                    log.warning("publish_failed", topic=record.topic, error=repr(error))
                    hold = hold or self._holds.begin(HoldCause.KAFKA)
                    self._holds.check(hold, repr(error))
                    await asyncio.sleep(REBUILD_SECONDS)
                else:
                    _after_publish()
                    return place
        finally:
            self._holds.end(hold)

    async def _send(self, record: OutgoingRecord, choose_partition: Callable[[int], int | None]) -> RecordPlace:
        producer = await self._current()
        # By the producer's own metadata, because it takes no partition that is not in them.
        partitions = await producer.partitions_for(record.topic)
        # What is refused here never reached a batch: the producer is as good as before.
        acked = await producer.send(
            record.topic,
            record.value,
            key=record.key,
            partition=choose_partition(len(partitions)),
            headers=[(name, value) for name, value in record.headers],
        )
        try:
            return await self._acknowledged(acked, record)
        except KafkaError:
            await self._discard(producer)
            raise

    async def _acknowledged(self, acked: "asyncio.Future[RecordMetadata]", record: OutgoingRecord) -> RecordPlace:
        """Wait for the one answer; `asyncio.wait` leaves the record alone when this is cancelled."""
        hold: Hold | None = None
        try:
            while not (await asyncio.wait({acked}, timeout=UNKNOWN_AFTER_SECONDS))[0]:
                if hold is None:
                    hold = self._holds.begin(HoldCause.KAFKA)
                    self.unknown += 1
                    log.warning("publish_outcome_unknown", topic=record.topic)
                self._holds.check(hold, "a record was sent and not acknowledged")
            metadata = acked.result()
            return RecordPlace(partition=metadata.partition, offset=metadata.offset)
        finally:
            if hold is not None:
                self.unknown -= 1
                self._holds.end(hold)
                log.info("publish_outcome_known", topic=record.topic, acknowledged=_is_acknowledged(acked))

    async def missing(self, topics: Iterable[str]) -> list[str]:
        """Those of the topics that the brokers do not show; they may create one that is asked for.

        Raises `KafkaError` when no broker answers.
        """
        producer = await self._current()

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
        """Close the connection, under a deadline."""
        async with self._lock:
            producer, self._producer = self._producer, None
        if producer is not None:
            await _stop(producer)

    async def _current(self) -> AIOKafkaProducer:
        async with self._lock:
            if self._producer is None:
                producer = self._build_producer()
                try:
                    await producer.start()
                except BaseException:
                    await _stop(producer)
                    raise
                self._producer = producer
            return self._producer

    async def _discard(self, broken: AIOKafkaProducer) -> None:
        async with self._lock:
            if self._producer is not broken:
                return
            self._producer = None
        await _stop(broken)


class ProgressPublisher:
    """Sends what it can and drops the oldest when it cannot keep up; `run()` must be running meanwhile."""

    def __init__(self, build_producer: Callable[[], AIOKafkaProducer]) -> None:
        self._build_producer = build_producer
        self._waiting: asyncio.Queue[OutgoingRecord] = asyncio.Queue(MAX_WAITING_PROGRESS)
        self.dropped = 0

    def offer(self, record: OutgoingRecord) -> None:
        """Send soon, or never."""
        if self._waiting.full():
            self._waiting.get_nowait()
            self.dropped += 1
        self._waiting.put_nowait(record)

    async def run(self) -> None:
        """Send until cancelled."""
        while True:
            producer = self._build_producer()
            try:
                await producer.start()
                while True:
                    record = await self._waiting.get()
                    # Not awaiting the ack: the next event is worth more than knowing the fate of this one.
                    sent = await producer.send(record.topic, record.value, key=record.key, headers=record.headers)
                    sent.add_done_callback(_forget)
            except KafkaError as error:
                log.info("progress_interrupted", error=repr(error))
            finally:
                with contextlib.suppress(asyncio.CancelledError):
                    await _stop(producer)
            await asyncio.sleep(REBUILD_SECONDS)


def _is_acknowledged(acked: "asyncio.Future[RecordMetadata]") -> bool:
    return acked.done() and not acked.cancelled() and acked.exception() is None


def _forget(sent: asyncio.Future[object]) -> None:
    if not sent.cancelled():
        sent.exception()
