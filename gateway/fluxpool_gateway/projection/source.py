"""The projector's Kafka consumer: no group, partitions and offsets assigned by `projector`.

Owns the client and the positions. Knows nothing of what the records mean.
"""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError
from aiokafka.structs import ConsumerRecord

from fluxpool_contract.kafka import KafkaConnection
from fluxpool_gateway.store.task_state import Position
from fluxpool_transport.kafka import aiokafka_options, stop_consumer

CLIENT_ID: Final = "fluxpool-projector"
BATCH_RECORDS: Final = 2000
BATCH_SECONDS: Final = 0.05
"""Longest wait for a first record, hence how far the store is behind at least."""
FETCH_MIN_BYTES: Final = 256 * 1024
"""Fetches are collected by the broker: answered one by one they cost it as much as the writing itself."""
FETCH_WAIT_MILLISECONDS: Final = 50
"""Adds to `BATCH_SECONDS`; together they are what a poll at another process waits for a task just accepted."""
FETCH_MAX_BYTES: Final = 16 * 1024 * 1024
"""Held in memory at once from each broker, as fetched."""
_STARTS_SECONDS: Final = 5.0


@dataclass(slots=True)
class Fetched:
    """The result of one fetch."""

    records: list[ConsumerRecord] = field(default_factory=list)
    next_offsets: dict[Position, int] = field(default_factory=dict)
    """The next offset of each partition that advanced; transaction markers may follow its last record."""


class ProjectionSource:
    """One reader; assign it partitions, then fetch. All methods raise aiokafka's `KafkaError`."""

    def __init__(self, connection: KafkaConnection) -> None:
        self._connection = connection
        self._consumer: AIOKafkaConsumer | None = None
        self._offsets: dict[TopicPartition, int] = {}

    async def assign(self, offsets: Mapping[Position, int | None]) -> Mapping[Position, int]:
        """Read these partitions from these offsets, None for the beginning, and no others.

        Returns where the log begins, of each partition whose offset lies before that: it is read from there.
        """
        partitions = {TopicPartition(*position): offset for position, offset in offsets.items()}
        consumer = await self._connected()
        self._offsets = {partition: offset or 0 for partition, offset in partitions.items()}
        if not partitions:
            consumer.unsubscribe()
            return {}
        consumer.assign(list(partitions))
        for partition, offset in partitions.items():
            if offset is not None:
                consumer.seek(partition, offset)
        return await _starts_ahead(consumer, {key: offset for key, offset in partitions.items() if offset is not None})

    async def fetch(self) -> Fetched:
        """What came within 50 ms."""
        fetched = Fetched()
        consumer = self._consumer
        if consumer is None or not self._offsets:
            await asyncio.sleep(BATCH_SECONDS)
            return fetched
        batches = await consumer.getmany(timeout_ms=round(BATCH_SECONDS * 1000), max_records=BATCH_RECORDS)
        for partition, records in batches.items():
            fetched.records += records
            self._move(partition, records[-1].offset + 1, fetched)
        for partition, offset in self._offsets.items():
            end = consumer.last_stable_offset(partition)
            if partition not in batches and end is not None and end != offset:
                self._move(partition, await _position(consumer, partition, known=offset), fetched)
        return fetched

    async def starts(self) -> Mapping[Position, int]:
        """Where the log of each assigned partition begins; empty when a leader does not answer now."""
        if self._consumer is None:
            return {}
        return await _starts(self._consumer, list(self._offsets))

    def lag_records(self) -> int | None:
        """How many records are still to be read; None until the end of every partition is known."""
        if self._consumer is None or not self._offsets:
            return None
        lag = 0
        for partition, offset in self._offsets.items():
            end = self._consumer.last_stable_offset(partition)
            if end is None:
                return None
            lag += max(0, end - offset)
        return lag

    async def close(self) -> None:
        """Disconnect."""
        consumer, self._consumer = self._consumer, None
        if consumer is not None:
            await stop_consumer(consumer)

    def _move(self, partition: TopicPartition, offset: int, fetched: Fetched) -> None:
        if self._offsets[partition] != offset:
            self._offsets[partition] = fetched.next_offsets[partition.topic, partition.partition] = offset

    async def _connected(self) -> AIOKafkaConsumer:
        if self._consumer is None:
            consumer = AIOKafkaConsumer(
                **aiokafka_options(self._connection, client_id=CLIENT_ID),
                group_id=None,
                enable_auto_commit=False,
                # For offsets outside the log, which was truncated or expired: what it has is read.
                auto_offset_reset="earliest",
                isolation_level="read_committed",
                fetch_min_bytes=FETCH_MIN_BYTES,
                fetch_max_wait_ms=FETCH_WAIT_MILLISECONDS,
                fetch_max_bytes=FETCH_MAX_BYTES,
            )
            try:
                await consumer.start()
            except BaseException:
                await stop_consumer(consumer)
                raise
            self._consumer = consumer
        return self._consumer


async def _position(consumer: AIOKafkaConsumer, partition: TopicPartition, *, known: int) -> int:
    """The consumer's position; `known` while a broker is still asked for it."""
    try:
        async with asyncio.timeout(BATCH_SECONDS):
            return int(await consumer.position(partition))
    except TimeoutError:
        return known


async def _starts_ahead(consumer: AIOKafkaConsumer, offsets: Mapping[TopicPartition, int]) -> Mapping[Position, int]:
    """The starts of logs that lie behind these offsets; none of those whose leader does not answer now."""
    starts = await _starts(consumer, list(offsets))
    return {position: start for position, start in starts.items() if start > offsets[TopicPartition(*position)]}


async def _starts(consumer: AIOKafkaConsumer, partitions: Sequence[TopicPartition]) -> Mapping[Position, int]:
    """Where these logs begin; empty when a leader does not answer now."""
    try:
        async with asyncio.timeout(_STARTS_SECONDS):
            starts = await consumer.beginning_offsets(list(partitions)) if partitions else {}
    except (TimeoutError, KafkaError):
        return {}
    return {(partition.topic, partition.partition): start for partition, start in starts.items()}
