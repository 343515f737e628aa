"""Reads the retry topics of one Kafka cluster, each record once, for all pools that share them.

Owns a groupless read-committed consumer and a `RetryLog` for each partition. It fetches only while a topic has records
that it has not read; without retries it costs no request. `due_retries` counts. Must not know of groups or pools.
"""

import asyncio
import time
from collections.abc import Mapping
from typing import Any, Final

from aiokafka import TopicPartition

from fluxpool_contract.kafka import KafkaConnection, not_before_seconds, origin_topic
from fluxpool_operator.backlog.groupless import GrouplessReader
from fluxpool_operator.backlog.retries.retry_log import RetryEntry, RetryLog
from fluxpool_transport.kafka import PartitionKey
from fluxpool_transport.lag import LogBounds

_WAIT_SECONDS: Final = 0.5
"""A reading waits this long for records; those read later serve the next reading."""
_PASS_SECONDS: Final = 10.0
_CONSUMER_OPTIONS: Final = {
    "fetch_max_wait_ms": 100,
    "max_partition_fetch_bytes": 256 * 1024,
    "fetch_max_bytes": 8 * 1024 * 1024,
}


class RetryScan(GrouplessReader):
    """Keeps up with the retry topics; connects when there is something to read."""

    def __init__(self, connection: KafkaConnection, tasks: asyncio.TaskGroup) -> None:
        super().__init__(connection, tasks, client_id="fluxpool-retries", options=_CONSUMER_OPTIONS)
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
            self._start(self._pass)
            await self._wait(_WAIT_SECONDS)

    def log_of(self, key: PartitionKey) -> RetryLog | None:
        """The records of the partition; None until it is read up to the last known end."""
        known = self._logs.get(key)
        return known if known is not None and known.position >= self._ends[key] else None

    def read_again(self, key: PartitionKey, *, start: int) -> None:
        """Read again from the log start: a dropped origin is needed."""
        self._logs[key] = self._logs[key].restarted(position=start)

    def _behind(self) -> dict[TopicPartition, RetryLog]:
        return {
            TopicPartition(*key): known for key, known in self._logs.items() if known.position < self._ends.get(key, 0)
        }

    async def _pass(self) -> None:
        # The logs as they are now: one that `keep_up` replaces meanwhile is read by the next pass.
        behind = self._behind()

        def take(partition: TopicPartition, records: list[Any], position: int) -> bool:
            known, now = behind[partition], time.time()
            for record in records:
                if record.offset >= known.position:
                    arrived_seconds = min(record.timestamp / 1000, now)
                    entry = RetryEntry(record.offset, arrived_seconds, not_before_seconds(record.headers))
                    known.add(origin_topic(record.headers), entry)
            known.pass_over(position)
            return known.position >= self._ends[partition]

        starts = {partition: known.position for partition, known in behind.items()}
        await self._read_from(starts, seconds=_PASS_SECONDS, take=take)
