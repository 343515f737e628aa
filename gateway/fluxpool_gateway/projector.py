"""The projector: reads Kafka's topics into the task store, each record once.

Groupless: all partitions are its own, and the offsets it starts from are those saved with the rows they produced, so a
crash applies nothing twice and a deleted file is built again. Owns the reading loop; knows nothing of HTTP.
"""

import os
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

import structlog
from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, KafkaException, Message, TopicPartition

from fluxpool_contract.topics import TopicNames
from fluxpool_gateway.projected_records import projected_topics, read_change
from fluxpool_gateway.store.task_state import Change
from fluxpool_gateway.store.task_store import Heartbeat, Position, TaskStoreWriter

BATCH_RECORDS: Final = 2000
BATCH_SECONDS: Final = 0.05
"""Longest wait for a batch to fill, hence how far the store is behind at least."""
FETCH_MIN_BYTES: Final = 256 * 1024
FETCH_WAIT_MILLISECONDS: Final = 50
"""Adds to `BATCH_SECONDS`; together they are what a poll at another process waits for a task just accepted."""
PARTITION_REFRESH_SECONDS: Final = 1.0
HEARTBEAT_SECONDS: Final = 1.0
_METADATA_TIMEOUT_SECONDS: Final = 2.0
_LOG_INTERVAL_SECONDS: Final = 10.0

logger = structlog.stdlib.get_logger(__name__)


class Projector:
    """One run of the projector, in the calling thread."""

    def __init__(self, options: Mapping[str, Any], *, topics: TopicNames, store: TaskStoreWriter) -> None:
        """`options` reach the cluster."""
        self._topics = topics
        self._store = store
        self._next_offsets: dict[Position, int] = store.offsets()
        self._assigned: set[Position] = set()
        self._caught_up_at_ms: int | None = None
        self._refresh_at = self._beat_at = 0.0
        self._logged_at: dict[str, float] = {}
        self._consumer = Consumer(
            {
                **options,
                # The library wants a name; nothing is ever committed or joined under it.
                "group.id": "fluxpool-projector",
                "enable.auto.commit": False,
                "enable.auto.offset.store": False,
                "enable.partition.eof": True,
                "auto.offset.reset": "earliest",
                "isolation.level": "read_committed",
                "queued.max.messages.kbytes": 16 * 1024,
                # Fetches are collected by the broker: answered one by one they cost it as much as the writing itself.
                "fetch.min.bytes": FETCH_MIN_BYTES,
                "fetch.wait.max.ms": FETCH_WAIT_MILLISECONDS,
                "reconnect.backoff.max.ms": 1000,
                "log_level": 0,
                "error_cb": self._on_error,
            }
        )

    def run(self, stopping: Callable[[], bool]) -> None:
        """Project until `stopping()`; looked at between batches, so at least every 50 ms while the store answers.

        Raises SQLAlchemy's `DatabaseError` when the store fails: start again, nothing is lost.
        """
        try:
            while not stopping():
                self._refresh_partitions()
                self._project(self._consumer.consume(BATCH_RECORDS, BATCH_SECONDS))
                self._beat()
        finally:
            self._consumer.close()

    def _project(self, messages: Iterable[Message]) -> None:
        changes: list[Change] = []
        offsets: dict[Position, int] = {}
        for message in messages:
            error = message.error()
            topic, partition, offset = message.topic(), message.partition(), message.offset()
            if error is None:
                change = read_change(
                    self._topics,
                    topic=topic,
                    value=message.value(),
                    headers=message.headers() or [],
                    timestamp_ms=message.timestamp()[1],
                )
                if change is not None:
                    changes.append(change)
                elif topic == self._topics.results:
                    self._warn("result_not_projected", topic=topic, partition=partition, offset=offset)
                offsets[topic, partition] = offset + 1
            elif error.code() == KafkaError._PARTITION_EOF:  # noqa: SLF001 - the public name of a local error code
                # Behind the last record there may be transaction markers and what compaction removed.
                if offset > self._next_offsets.get((topic, partition), 0):
                    offsets[topic, partition] = offset
            else:
                self._warn("partition_not_readable", topic=topic, partition=partition, reason=error.str())
        if offsets:
            self._store.apply(changes, offsets)
            self._next_offsets |= offsets

    def _refresh_partitions(self) -> None:
        """Assign partitions that are new since the last look."""
        now = time.monotonic()
        if now < self._refresh_at:
            return
        self._refresh_at = now + PARTITION_REFRESH_SECONDS
        found: set[Position] = set()
        for topic in projected_topics(self._topics):
            try:
                metadata = self._consumer.list_topics(topic, _METADATA_TIMEOUT_SECONDS).topics[topic]
            except KafkaException as error:
                self._warn("brokers_not_reachable", reason=error.args[0].str())
                return
            if metadata.error is not None:
                self._warn("topic_not_readable", topic=topic, reason=metadata.error.str())
                continue
            found |= {(topic, partition) for partition in metadata.partitions}
        new = sorted(found - self._assigned)
        if new:
            self._consumer.incremental_assign(
                [
                    TopicPartition(topic, partition, self._next_offsets.get((topic, partition), OFFSET_BEGINNING))
                    for topic, partition in new
                ]
            )
            self._assigned |= found
            logger.info("partitions_assigned", partitions=len(new))

    def _beat(self) -> None:
        now = time.monotonic()
        if now < self._beat_at:
            return
        self._beat_at = now + HEARTBEAT_SECONDS
        lag_records = self._lag_records()
        now_ms = time.time_ns() // 1_000_000
        # One batch behind is as near as a reader comes to topics that are written all the time.
        if lag_records is not None and lag_records <= BATCH_RECORDS:
            self._caught_up_at_ms = now_ms
        self._store.beat(
            Heartbeat(
                pid=os.getpid(), beat_at_ms=now_ms, caught_up_at_ms=self._caught_up_at_ms, lag_records=lag_records
            )
        )

    def _lag_records(self) -> int | None:
        """How many records are still to be read; None until the end of every partition is known."""
        if not self._assigned:
            return None
        lag = 0
        for topic, partition in self._assigned:
            _, end = self._consumer.get_watermark_offsets(TopicPartition(topic, partition), cached=True)
            if end < 0:
                return None
            lag += max(0, end - self._next_offsets.get((topic, partition), 0))
        return lag

    def _on_error(self, error: KafkaError) -> None:
        self._warn("kafka_client_error", error_name=error.name(), reason=error.str())

    def _warn(self, event: str, **values: object) -> None:
        """Log, at most every 10 s for each event: these come by the thousand when a broker is down."""
        now = time.monotonic()
        if now - self._logged_at.get(event, -_LOG_INTERVAL_SECONDS) >= _LOG_INTERVAL_SECONDS:
            self._logged_at[event] = now
            logger.warning(event, **values)
