"""Wakes pools within milliseconds of the first new record in an idle topic.

Owns a groupless read-committed consumer that long-polls all watched partitions. A watch starts at the end offset that
the pool observed, not at the present one: records in between wake too. A woken pool is not watched until it asks again.
Must not know what a woken pool does; its periodic readings (`reconcile.kafka.lag_watch`) do not depend on this module.
"""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from aiokafka import TopicPartition

from fluxpool_contract.kafka import KafkaConnection
from fluxpool_operator.backlog.groupless import KAFKA_ERRORS, GrouplessReader
from fluxpool_transport.process import retry_forever

Ends = Mapping[tuple[str, int], int]
"""End offsets by (topic, partition): where the next record appears."""

_POLL_SECONDS: Final = 0.2
"""Longest poll, and so the longest delay of a new watch; an arriving record ends it."""
_AGAIN_SECONDS: Final = 2.0
"""Delay after an error; pools read their lag every few seconds anyway."""
_LONGEST_WAIT_SECONDS: Final = 5.0
"""Longest delay between attempts to connect; about the interval of readings."""
_CONSUMER_OPTIONS: Final = {
    # How long a broker delays an empty fetch, and so the longest delay of a partition that is watched again.
    "fetch_max_wait_ms": 500,
    # Only the existence of a record matters; a larger batch is returned whole (KIP-74).
    "max_partition_fetch_bytes": 4 * 1024,
}


@dataclass(frozen=True, slots=True)
class _Watch:
    ends: Ends
    wake: Callable[[], None]


class WakeUp(GrouplessReader):
    """Watches the idle topics of one Kafka cluster; connects at the first watch."""

    def __init__(self, connection: KafkaConnection, tasks: asyncio.TaskGroup) -> None:
        super().__init__(connection, tasks, client_id="fluxpool-wakeup", options=_CONSUMER_OPTIONS)
        self._watches: dict[str, _Watch] = {}
        self._woken_at: dict[str, Ends] = {}
        self._watchers: dict[TopicPartition, set[str]] = {}
        self._sought: dict[TopicPartition, int] = {}
        self._changed = asyncio.Event()
        self._assigned_consumer: Any = None

    @property
    def is_idle(self) -> bool:
        """Whether there is no watch."""
        return not self._watches

    def watch(self, key: str, ends: Ends, wake: Callable[[], None]) -> None:
        """Call `wake` once when a partition has a record at its end offset or beyond; replaces the watch of `key`."""
        known = self._watches.get(key)
        if known is not None and known.ends == ends:
            self._watches[key] = _Watch(ends, wake)
            return
        # A woken pool that still observes the same ends has not read the record yet; do not wake it again for that.
        if self._woken_at.get(key) == ends:
            return
        self._woken_at.pop(key, None)
        self._watches[key] = _Watch(dict(ends), wake)
        self._changed.set()
        self._start(self._run)

    def unwatch(self, key: str) -> None:
        """Remove the watch of `key`."""
        self._woken_at.pop(key, None)
        if self._watches.pop(key, None) is not None:
            self._changed.set()

    def reconnect(self) -> None:
        """Use a new connection: the present one may only know brokers that are gone."""
        if self._consumer is not None:
            super().reconnect()
            # Ends the wait of a task without watches, so that it drops the old connection.
            self._changed.set()

    async def close(self) -> None:
        """Remove all watches and close the connection."""
        self._watches.clear()
        await super().close()

    async def _run(self) -> None:
        while True:
            if not await self._guarded(self._watch_once()):
                await asyncio.sleep(_AGAIN_SECONDS)

    async def _watch_once(self) -> None:
        consumer = await retry_forever(
            self._opened, retry_on=KAFKA_ERRORS, name="backlog_wakeup", maximum_seconds=_LONGEST_WAIT_SECONDS
        )
        if self._changed.is_set() or consumer is not self._assigned_consumer:
            # Cleared before the watches are read: a watch that is added meanwhile sets it again.
            self._changed.clear()
            self._assign(consumer)
        if not self._watches:
            await self._changed.wait()
            return
        records = await consumer.getmany(timeout_ms=int(_POLL_SECONDS * 1000))
        for partition, batch in records.items():
            self._arrived(partition, batch[-1].offset)

    def _assign(self, consumer: Any) -> None:
        """Assign and seek the watched partitions, with the least disturbance of those already watched."""
        if consumer is not self._assigned_consumer:
            self._assigned_consumer, self._sought = consumer, {}
        self._watchers = {}
        wanted: dict[TopicPartition, int] = {}
        for key, watch in self._watches.items():
            for (topic, number), end in watch.ends.items():
                partition = TopicPartition(topic, number)
                self._watchers.setdefault(partition, set()).add(key)
                wanted[partition] = min(end, wanted.get(partition, end))
        if wanted.keys() - consumer.assignment():
            # A new assignment resets all positions and drops the running fetch: only for partitions never watched.
            consumer.assign(list(wanted))
            self._sought = {}
        for partition in self._sought.keys() - wanted.keys():
            consumer.pause(partition)
        for partition, offset in wanted.items():
            if self._sought.get(partition) != offset:
                consumer.seek(partition, offset)
                consumer.resume(partition)
        self._sought = wanted

    def _arrived(self, partition: TopicPartition, last_offset: int) -> None:
        # An offset out of range is reset to the first record: every record of a recreated topic is new.
        is_recreated = last_offset < self._sought.get(partition, 0)
        for key in list(self._watchers.get(partition, ())):
            watch = self._watches.get(key)
            if watch is None:
                continue
            end = watch.ends.get((partition.topic, partition.partition))
            if end is not None and (is_recreated or last_offset >= end):
                # Before the call: the woken pool may watch again at once.
                del self._watches[key]
                self._woken_at[key] = watch.ends
                self._changed.set()
                watch.wake()
