"""The projector: applies the records of Kafka's topics to the task store, each once.

It joins no consumer group: it assigns itself all partitions, and its offsets are committed in the transaction of the
rows that they produced. So a crash applies nothing twice, and a deleted file is built again. Owns the consume loop;
knows nothing of HTTP.
"""

import asyncio
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final, TypeVar

import structlog
from aiokafka.errors import KafkaError
from aiokafka.structs import ConsumerRecord
from confluent_kafka import KafkaException

from fluxpool_contract.kafka import KafkaConnection, TopicNames
from fluxpool_contract.tenants import TenantTrust
from fluxpool_gateway.dead_letters.records import read_dead_letter
from fluxpool_gateway.projection.projected_records import (
    UnreadableRecordError,
    projected_topics,
    read_change,
    task_topics,
    topics_of_tasks,
)
from fluxpool_gateway.projection.retention import RetentionSweep
from fluxpool_gateway.projection.source import BATCH_RECORDS, CLIENT_ID, Fetched, ProjectionSource
from fluxpool_gateway.store.task_state import Position, RecordRef
from fluxpool_gateway.store.task_store import Heartbeat, LogPosition, QuarantinedRecord, StoreChange, TaskStoreWriter
from fluxpool_transport.kafka import (
    KafkaMetadata,
    KafkaUnavailableError,
    TopicMetadata,
    UndecodableRecord,
    explain,
)

LAYOUT_REFRESH_SECONDS: Final = 1.0
HEARTBEAT_SECONDS: Final = 1.0
RECONNECT_SECONDS: Final = 1.0
_METADATA_SECONDS: Final = 2.0
_LOG_INTERVAL_SECONDS: Final = 10.0

T = TypeVar("T")

logger = structlog.stdlib.get_logger(__name__)


class Projector:
    """One run of the projector."""

    def __init__(
        self,
        connection: KafkaConnection,
        *,
        topics: TopicNames,
        store: TaskStoreWriter,
        trust: TenantTrust,
        rebuilt_because: str | None = None,
    ) -> None:
        """`rebuilt_because` is the reason for a rebuild from Kafka; None otherwise."""
        self._connection = connection
        self._topics = topics
        self._trust = trust
        self._store = store
        self._source = ProjectionSource(connection)
        self._retention = RetentionSweep(store, read_starts=self._source.starts, in_thread=self._in_thread)
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="task-store")
        self._positions: dict[Position, LogPosition] = store.positions()
        before = store.heartbeat()
        self._rebuilt_because = rebuilt_because or (None if before is None else before.rebuilt_because)
        self._layouts: dict[str, TopicMetadata] = {}
        self._assigned: dict[str, TopicMetadata] = {}
        self._caught_up_at_ms: int | None = None
        self._beat_at = 0.0
        self._logged_at: dict[str, float] = {}

    async def run(self, stopping: Callable[[], bool]) -> None:
        """Project until `stopping()`; looked at between batches, so at least every 100 ms while the store answers.

        Raises SQLAlchemy's `DatabaseError` or `DamagedStoreError` when the store fails: start again, nothing is lost.
        """
        watching = asyncio.create_task(self._watch_layouts(), name="projected-topics")
        try:
            while not stopping():
                if watching.done():
                    watching.result()
                try:
                    await self._assign()
                    await self._project(await self._source.fetch())
                except KafkaError as error:
                    self._warn("fetch_failed", reason=repr(error))
                    await asyncio.sleep(RECONNECT_SECONDS)
                await self._beat()
                if self._has_all():
                    await self._retention.step()
        finally:
            watching.cancel()
            # `wait` raises nothing: consumer and thread are closed below in any case.
            await asyncio.wait({watching})
            await self._source.close()
            self._executor.shutdown()

    async def _project(self, fetched: Fetched) -> None:
        if not fetched.next_offsets:
            return
        now_ms = _now_ms()
        changes: list[tuple[RecordRef, StoreChange]] = []
        unreadable: list[QuarantinedRecord] = []
        for record in fetched.records:
            place = (record.topic, record.partition, record.offset)
            try:
                change = self._read(record)
            except Exception as error:  # noqa: BLE001 - one record must not stop those behind it
                reason = str(error) if isinstance(error, UnreadableRecordError) else f"{type(error).__name__}: {error}"
                unreadable.append(QuarantinedRecord.at(place, reason, now_ms))
            else:
                if change is not None:
                    changes.append((place, change))
        positions = {
            position: LogPosition(offset, self._assigned[position[0]].topic_id)
            for position, offset in fetched.next_offsets.items()
        }
        for position, now in positions.items():
            known = self._positions.get(position)
            if known is not None and now.offset < known.offset:
                self._warn(
                    "log_truncated",
                    topic=position[0],
                    partition=position[1],
                    next_offset=known.offset,
                    reset_to=now.offset,
                )
        refused = await self._in_thread(
            lambda: self._store.apply(changes, positions, passed_over=unreadable, now_ms=now_ms)
        )
        # Only after the transaction: a failed one is read again from the former positions.
        self._positions |= positions
        if quarantined := [*unreadable, *refused]:
            latest = quarantined[-1]
            self._warn(
                "records_quarantined",
                records=len(quarantined),
                topic=latest.topic,
                partition=latest.partition,
                offset=latest.offset,
                reason=latest.reason,
            )

    def _read(self, record: ConsumerRecord) -> StoreChange | None:
        if record.topic == self._topics.dead_letters:
            return read_dead_letter(record, trust=self._trust, task_topics=task_topics(self._topics))
        if isinstance(record, UndecodableRecord) and not record.has_contents:
            others = f" (with all from offset {record.first_offset})" if record.first_offset < record.offset else ""
            raise UnreadableRecordError(f"cannot be decoded{others}: {record.problem}")
        return read_change(
            self._topics,
            topic=record.topic,
            key=record.key,
            value=record.value,
            headers=record.headers,
            timestamp_ms=record.timestamp,
            trust=self._trust,
        )

    async def _assign(self) -> None:
        """Assign the partitions that exist now: new ones, and those of recreated topics from their beginning."""
        layouts = self._layouts
        if layouts == self._assigned:
            return
        for topic, layout in layouts.items():
            known = {position.topic_id for (name, _), position in self._positions.items() if name == topic}
            if known and layout.topic_id is not None and known != {layout.topic_id}:
                logger.warning("topic_recreated", topic=topic, topic_id=layout.topic_id)
                await self._in_thread(lambda topic=topic: self._store.forget_positions(topic))  # type: ignore[misc]
                self._positions = {place: read for place, read in self._positions.items() if place[0] != topic}
        offsets: dict[Position, int | None] = {}
        for topic, layout in layouts.items():
            for partition in layout.partitions:
                position = self._positions.get((topic, partition))
                offsets[topic, partition] = None if position is None else position.offset
        # Before `_assigned` is set: an assignment that fails is tried again in the next round.
        starts = await self._source.assign(offsets)
        self._assigned = layouts
        for (topic, partition), start in starts.items():
            read_to = self._positions[topic, partition].offset
            logger.warning(
                "records_deleted_unread",
                topic=topic,
                partition=partition,
                first_offset=read_to,
                last_offset=start - 1,
            )
        logger.info("partitions_assigned", partitions=len(offsets))

    async def _watch_layouts(self) -> None:
        """Poll ids and partitions of the projected topics every second."""
        metadata = KafkaMetadata(self._connection, client_id=CLIENT_ID, timeout_seconds=_METADATA_SECONDS)
        while True:
            try:
                answers = await metadata.topics(projected_topics(self._topics))
            except KafkaUnavailableError as error:
                self._warn("brokers_unreachable", reason=str(error))
            else:
                for topic, answer in answers.items():
                    if isinstance(answer, KafkaException):
                        self._warn("topic_unreadable", topic=topic, reason=explain(answer))
                # A topic that cannot be described keeps its last layout: it comes back unchanged, or with another id.
                found = {topic: answer for topic, answer in answers.items() if isinstance(answer, TopicMetadata)}
                self._layouts = self._layouts | found
            await asyncio.sleep(LAYOUT_REFRESH_SECONDS)

    async def _beat(self) -> None:
        now = time.monotonic()
        if now < self._beat_at:
            return
        self._beat_at = now + HEARTBEAT_SECONDS
        lag_records = self._lag_records()
        now_ms = _now_ms()
        # A consumer of topics that are written all the time is never nearer to their end than one batch.
        if lag_records is not None and lag_records <= BATCH_RECORDS:
            self._caught_up_at_ms = now_ms
            self._rebuilt_because = None
        heartbeat = Heartbeat(
            pid=os.getpid(),
            beat_at_ms=now_ms,
            caught_up_at_ms=self._caught_up_at_ms,
            lag_records=lag_records,
            rebuilt_because=self._rebuilt_because,
        )
        await self._in_thread(lambda: self._store.beat(heartbeat))

    def _has_all(self) -> bool:
        """Whether every topic of tasks was read to its end since the start; a log may have grown since."""
        return self._caught_up_at_ms is not None and self._assigned.keys() >= set(topics_of_tasks(self._topics))

    def _lag_records(self) -> int | None:
        """How many records are still to be read; None until every topic is there and its end known."""
        return self._source.lag_records() if self._assigned else None

    async def _in_thread(self, work: Callable[[], T]) -> T:
        """Run a transaction in the store's thread; the event loop keeps serving the consumer's fetches."""
        return await asyncio.get_running_loop().run_in_executor(self._executor, work)

    def _warn(self, event: str, **values: object) -> None:
        """Log, at most every 10 s for each event: a broker that is down causes thousands."""
        now = time.monotonic()
        if now - self._logged_at.get(event, -_LOG_INTERVAL_SECONDS) >= _LOG_INTERVAL_SECONDS:
            self._logged_at[event] = now
            logger.warning(event, **values)


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
