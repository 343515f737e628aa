"""Reads the retry topics of one Kafka cluster, each record once, for all pools that share them.

Owns a groupless read-committed consumer and a `RetryLog` for each partition. It fetches only while a topic has records
that it has not read; without retries it costs no request. `due_retries` counts. Must not know of groups or pools.
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
from fluxpool_operator.backlog.groupless import KAFKA_ERRORS, GrouplessReader
from fluxpool_operator.backlog.retries.retry_log import RetryEntry, RetryLog
from fluxpool_transport.kafka import PartitionKey
from fluxpool_transport.lag import LogBounds

log = structlog.get_logger(__name__)

_WAIT_SECONDS: Final = 0.5
"""A reading waits this long for records; those read later serve the next reading."""
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
        self._reader = GrouplessReader(connection, tasks, client_id="fluxpool-retries", options=_CONSUMER_OPTIONS)
        self._logs: dict[PartitionKey, RetryLog] = {}
        self._ends: dict[PartitionKey, int] = {}

    async def keep_up(self, bounds: Mapping[PartitionKey, LogBounds]) -> None:
        """Read all records up to these ends; continues in the background after a moment. Never raises for Kafka."""
        for key, bound in bounds.items():
            known = self._logs.get(key)
            if known is None:
                self._logs[key] = RetryLog(position=bound.start)
            elif known.position > bound.end:
                # The topic was deleted and recreated.
                self._logs[key] = known.restarted(position=bound.start)
            else:
                known.pass_over(bound.start)
            self._ends[key] = bound.end
        if self._behind():
            self._reader.start(self._run)
            await self._reader.wait(_WAIT_SECONDS)

    def log_of(self, key: PartitionKey) -> RetryLog | None:
        """The records of the partition; None until it is read up to the last known end."""
        known = self._logs.get(key)
        return known if known is not None and known.position >= self._ends[key] else None

    def read_again(self, key: PartitionKey, *, start: int) -> None:
        """Read again from the log start: a dropped origin is needed."""
        self._logs[key] = self._logs[key].restarted(position=start)

    def reconnect(self) -> None:
        """Use a new connection from the next pass on."""
        self._reader.reconnect()

    async def close(self) -> None:
        """End the reading and close the connection."""
        await self._reader.close()

    def _behind(self) -> dict[TopicPartition, RetryLog]:
        return {
            TopicPartition(*key): known for key, known in self._logs.items() if known.position < self._ends.get(key, 0)
        }

    async def _run(self) -> None:
        try:
            await self._pass()
        except KAFKA_ERRORS as error:
            log.warning("retry_topics_unreadable", error=str(error) or type(error).__name__)
            await self._reader.drop()
        except Exception:
            log.exception("retry_scan_failed")
            await self._reader.drop()

    async def _pass(self) -> None:
        consumer = await self._reader.opened()
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
                    # Answered from memory, or left to the next poll: the position passes markers, which are no records.
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
