"""Reads the retry topics of one Kafka cluster, each record once, for all pools that share them.

Owns a groupless read-committed consumer and the memory of what the topics hold (`RetryLog`). It fetches only while a
topic has records that were not looked at; at rest it costs no request. Must not know of groups or pools.
"""

import asyncio
import contextlib
import time
from collections.abc import Mapping
from typing import Any, Final

import structlog
from aiokafka import TopicPartition
from aiokafka.errors import KafkaError

from fluxpool_contract.kafka import KafkaConnection, not_before_seconds, origin_topic
from fluxpool_operator.backlog.groupless import open_consumer
from fluxpool_operator.backlog.retries.retry_log import RetryEntry, RetryLog
from fluxpool_transport.kafka import KafkaCredentialsError, stop_consumer
from fluxpool_transport.lag import LogBounds, PartitionKey

log = structlog.get_logger(__name__)

_WAIT_SECONDS: Final = 0.5
"""A reading waits so long for records; those that come later serve the next one."""
_PASS_SECONDS: Final = 10.0
_POLL_MS: Final = 100
_CONSUMER_OPTIONS: Final = {
    "fetch_max_wait_ms": 100,
    "max_partition_fetch_bytes": 256 * 1024,
    "fetch_max_bytes": 8 * 1024 * 1024,
}


class RetryScan:
    """Keeps up with the retry topics; connects when there is something to read."""

    def __init__(self, connection: KafkaConnection, tasks: asyncio.TaskGroup) -> None:
        self._connection = connection
        self._tasks = tasks
        self._logs: dict[PartitionKey, RetryLog] = {}
        self._ends: dict[PartitionKey, int] = {}
        self._running: asyncio.Task[None] | None = None
        self._consumer: Any = None
        self._is_suspect = False

    async def keep_up(self, bounds: Mapping[PartitionKey, LogBounds]) -> None:
        """Look at all records up to these ends, or go on doing so after a moment. Never raises for Kafka."""
        for key, bound in bounds.items():
            known = self._logs.get(key)
            if known is None:
                self._logs[key] = RetryLog(position=bound.start)
            elif known.position > bound.end:
                # The topic was deleted and made again.
                self._logs[key] = known.restarted(position=bound.start)
            else:
                known.pass_over(bound.start)
            self._ends[key] = bound.end
        if not self._behind():
            return
        if self._running is None or self._running.done():
            self._running = self._tasks.create_task(self._run(), name="retry-scan")
        # Waited for, not cancelled: a cancelled poll would leave the consumer in an undefined state.
        await asyncio.wait({self._running}, timeout=_WAIT_SECONDS)

    def log_of(self, key: PartitionKey) -> RetryLog | None:
        """What the partition holds; None while that is not known up to the end that was asked for last."""
        known = self._logs.get(key)
        return known if known is not None and known.position >= self._ends[key] else None

    def read_again(self, key: PartitionKey, *, start: int) -> None:
        """Begin anew at the log's start: something that was forgotten is asked for."""
        self._logs[key] = self._logs[key].restarted(position=start)

    def reconnect(self) -> None:
        """Read by a new connection from the next time on."""
        self._is_suspect = True

    async def close(self) -> None:
        """End the reading and the connection."""
        if self._running is not None:
            self._running.cancel()
            await asyncio.wait({self._running})
        await self._drop_consumer()

    def _behind(self) -> dict[TopicPartition, RetryLog]:
        return {
            TopicPartition(*key): known for key, known in self._logs.items() if known.position < self._ends.get(key, 0)
        }

    async def _run(self) -> None:
        try:
            await self._pass()
        except (KafkaError, KafkaCredentialsError, OSError) as error:
            log.warning("retry_topics_unreadable", error=str(error) or type(error).__name__)
            await self._drop_consumer()
        except Exception:
            log.exception("retry_scan_failed")
            await self._drop_consumer()

    async def _pass(self) -> None:
        consumer = await self._opened()
        behind = self._behind()
        consumer.assign(list(behind))
        for partition, known in behind.items():
            consumer.seek(partition, known.position)
        ends_at = time.monotonic() + _PASS_SECONDS
        while behind and time.monotonic() < ends_at:
            for partition, records in (await consumer.getmany(timeout_ms=_POLL_MS)).items():
                if partition in behind:
                    self._learn(behind[partition], records)
            for partition, known in list(behind.items()):
                with contextlib.suppress(KafkaError, TimeoutError):
                    # Known at once, or left to the next look: it passes markers, which are no records.
                    async with asyncio.timeout(0):
                        known.pass_over(await consumer.position(partition))
                if known.position >= self._ends[partition]:
                    del behind[partition]
                    consumer.pause(partition)
        consumer.unsubscribe()

    @staticmethod
    def _learn(known: RetryLog, records: list[Any]) -> None:
        now = time.time()
        for record in records:
            if record.offset >= known.position:
                known.add(
                    origin_topic(record.headers),
                    RetryEntry(record.offset, min(record.timestamp / 1000, now), not_before_seconds(record.headers)),
                )

    async def _opened(self) -> Any:
        if self._is_suspect:
            self._is_suspect = False
            await self._drop_consumer()
        if self._consumer is None:
            self._consumer = await open_consumer(
                self._connection, client_id="fluxpool-retries", options=_CONSUMER_OPTIONS
            )
        return self._consumer

    async def _drop_consumer(self) -> None:
        consumer, self._consumer = self._consumer, None
        if consumer is not None:
            await stop_consumer(consumer)
