"""Reads the records that topics hold now: from a time on, up to the ends as they are at the start, without a group.

Owns the offset ranges and the reading. Knows nothing of what the records mean. All partitions are fetched side by side,
and no more than a few batches of each are held in memory.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.structs import ConsumerRecord
from confluent_kafka import KafkaException
from confluent_kafka.admin import OffsetSpec

from fluxpool_contract.kafka import KafkaConnection
from fluxpool_transport.kafka.admin import KafkaUnavailableError, explain
from fluxpool_transport.kafka.client_stop import stop_consumer
from fluxpool_transport.kafka.clients import aiokafka_options
from fluxpool_transport.kafka.metadata import KafkaMetadata, PartitionKey, TopicError

CLIENT_ID: Final = "fluxpool-reader"
STALL_SECONDS: Final = 30.0
"""Longest time without any record or progress; the broker is unreachable then."""
_POLL_MS: Final = 500
_PARTITION_BYTES: Final = 256 * 1024
"""Fetched at once from each partition; a single larger record still comes whole."""
_BATCH_RECORDS: Final = 2000

Progress = Callable[[int], None]
"""Called after each batch with the number of offsets that were passed since the last call."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScanRange:
    """Part of one partition; `end` is the offset after the last."""

    topic: str
    partition: int
    start: int
    end: int

    @property
    def offsets(self) -> int:
        """How many records it holds at most; markers and compaction leave gaps."""
        return max(0, self.end - self.start)


async def find_ranges(
    connection: KafkaConnection, topics: Sequence[str], *, since: datetime | None = None
) -> dict[str, tuple[ScanRange, ...] | None]:
    """What each topic holds now, for each partition; None for a topic that does not exist.

    With `since`, from the first record that is as young. Raises `TopicError`, `KafkaUnavailableError`.
    """
    metadata = KafkaMetadata(connection, client_id=CLIENT_ID)
    found = await metadata.existing(topics)
    keys = [(name, number) for name, topic in found.items() if topic for number in topic.partitions]
    first = OffsetSpec.earliest() if since is None else OffsetSpec.for_timestamp(round(since.timestamp() * 1000))
    starts, ends = await asyncio.gather(metadata.offsets(keys, first), metadata.offsets(keys, OffsetSpec.latest()))
    ranges = {key: _range(key, starts[key], ends[key]) for key in keys}
    return {
        name: None if topic is None else tuple(ranges[name, number] for number in topic.partitions)
        for name, topic in found.items()
    }


def _range(key: PartitionKey, start: Any, end: Any) -> ScanRange:
    topic, partition = key
    for answer in (start, end):
        if isinstance(answer, KafkaException):
            raise TopicError(f"topic {topic}, partition {partition}: {explain(answer)}; check that its leader runs")
    if end is None:
        raise TopicError(f"topic {topic}, partition {partition}: its leader did not answer in time; try again")
    # Without a record that is as young as asked for there is no start.
    first = end if start is None else min(start, end)
    return ScanRange(topic=topic, partition=partition, start=first, end=end)


@asynccontextmanager
async def _reader(connection: KafkaConnection) -> AsyncIterator[AIOKafkaConsumer]:
    consumer = AIOKafkaConsumer(
        **aiokafka_options(connection, client_id=CLIENT_ID),
        group_id=None,
        enable_auto_commit=False,
        # Retention may overtake the reading; what it removed is not there to be read.
        auto_offset_reset="earliest",
        isolation_level="read_committed",
        max_partition_fetch_bytes=_PARTITION_BYTES,
        fetch_max_wait_ms=100,
    )
    try:
        await consumer.start()
        yield consumer
    finally:
        await stop_consumer(consumer)


async def scan(
    connection: KafkaConnection,
    ranges: Sequence[ScanRange],
    *,
    on_progress: Progress | None = None,
    stall_seconds: float = STALL_SECONDS,
) -> AsyncGenerator[Sequence[ConsumerRecord], None]:
    """The records of these ranges in batches, in order within a partition; several ranges of one partition are refused.

    Raises aiokafka's `KafkaError`, and `KafkaUnavailableError` when nothing moves for `stall_seconds`.
    """
    open_ranges = {TopicPartition(item.topic, item.partition): item for item in ranges if item.offsets}
    if len(open_ranges) != sum(1 for item in ranges if item.offsets):
        raise ValueError("ranges: one range for each partition at most")
    if not open_ranges:
        return
    async with _reader(connection) as consumer:
        consumer.assign(list(open_ranges))
        for partition, item in open_ranges.items():
            consumer.seek(partition, item.start)
        batches = _batches(consumer, open_ranges, on_progress=on_progress, stall_seconds=stall_seconds)
        async with aclosing(batches):
            async for records in batches:
                yield records


async def _batches(
    consumer: AIOKafkaConsumer,
    ranges: Mapping[TopicPartition, ScanRange],
    *,
    on_progress: Progress | None,
    stall_seconds: float,
) -> AsyncGenerator[Sequence[ConsumerRecord], None]:
    loop = asyncio.get_running_loop()
    positions = {partition: item.start for partition, item in ranges.items()}
    moved_at = loop.time()
    while positions:
        fetched = await consumer.getmany(*positions, timeout_ms=_POLL_MS, max_records=_BATCH_RECORDS)
        moved = 0
        for partition in list(positions):
            end = ranges[partition].end
            # Beyond the last record there may be markers only; the position passes them, the records do not.
            position = min(await consumer.position(partition), end)
            moved += position - positions[partition]
            positions[partition] = position
            if position >= end:
                del positions[partition]
                consumer.pause(partition)
        if moved:
            moved_at = loop.time()
            if on_progress is not None:
                on_progress(moved)
        elif loop.time() - moved_at > stall_seconds:
            behind = ", ".join(f"{item.topic}-{item.partition}" for item in positions)
            raise KafkaUnavailableError(
                f"Kafka sent nothing of {behind} for {stall_seconds:g} s; check that the brokers holding it run"
            )
        for partition, records in fetched.items():
            end = ranges[partition].end
            inside = records if records[-1].offset < end else [item for item in records if item.offset < end]
            if inside:
                yield inside
                # However long the caller took over them, Kafka was not slow.
                moved_at = loop.time()
