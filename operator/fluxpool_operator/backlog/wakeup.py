"""Tells pools of the first new record in topics that were idle, within milliseconds and at next to no cost.

Owns a groupless read-committed consumer that is used for nothing else. Watching begins at the end that a pool has
observed, not at the end of that moment: what came in between wakes too. A pool that was woken is not watched until it
asks again. Must not know what a pool does when it wakes; its own readings go on, whatever happens here.
"""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import structlog
from aiokafka import TopicPartition
from aiokafka.errors import KafkaError

from fluxpool_contract.kafka import KafkaConnection
from fluxpool_operator.backlog.groupless import open_consumer
from fluxpool_transport.kafka import KafkaCredentialsError, stop_consumer
from fluxpool_transport.process import retry_forever

log = structlog.get_logger(__name__)

Ends = Mapping[tuple[str, int], int]
"""By (topic, partition), where the next record will appear."""

_POLL_SECONDS: Final = 0.2
"""New watches begin after this at the latest; a record that arrives ends the wait."""
_AGAIN_SECONDS: Final = 2.0
"""After an error; pools read their backlog every few seconds all the same."""
_LONGEST_WAIT_SECONDS: Final = 5.0
"""Between attempts to connect; about what pools wait between readings."""
_KAFKA_ERRORS: Final = (KafkaError, KafkaCredentialsError, OSError)
_CONSUMER_OPTIONS: Final = {
    # How long a broker holds an idle fetch back, and so how long a partition that is watched again may have to wait.
    "fetch_max_wait_ms": 500,
    # That there is a record is all that matters; a larger one comes whole (KIP-74), first in its answer.
    "max_partition_fetch_bytes": 4 * 1024,
}


@dataclass(frozen=True, slots=True)
class _Watch:
    ends: Ends
    wake: Callable[[], None]


class WakeUp:
    """Watches the idle topics of one Kafka cluster; connects at the first watch."""

    def __init__(self, connection: KafkaConnection, tasks: asyncio.TaskGroup) -> None:
        self._connection = connection
        self._tasks = tasks
        self._watches: dict[str, _Watch] = {}
        self._woken_at: dict[str, Ends] = {}
        self._watchers: dict[TopicPartition, set[str]] = {}
        self._sought: dict[TopicPartition, int] = {}
        self._changed = asyncio.Event()
        self._running: asyncio.Task[None] | None = None
        self._consumer: Any = None
        self._is_suspect = False

    @property
    def is_idle(self) -> bool:
        """Whether nobody wants to be woken."""
        return not self._watches

    def watch(self, key: str, ends: Ends, wake: Callable[[], None]) -> None:
        """Call `wake` once, when a partition has a record at its end or beyond; replaces what `key` asked for before.

        A pool that was woken and still observes the same ends has not seen the record yet; it is not woken for it anew.
        """
        known = self._watches.get(key)
        if known is not None and known.ends == ends:
            self._watches[key] = _Watch(ends, wake)
            return
        if self._woken_at.get(key) == ends:
            return
        self._woken_at.pop(key, None)
        self._watches[key] = _Watch(dict(ends), wake)
        self._changed.set()
        if self._running is None:
            self._running = self._tasks.create_task(self._run(), name="backlog-wakeup")

    def forget(self, key: str) -> None:
        """Wake this one no more."""
        self._woken_at.pop(key, None)
        if self._watches.pop(key, None) is not None:
            self._changed.set()

    def reconnect(self) -> None:
        """Watch by a new connection: the present one may know only brokers that are gone."""
        if self._consumer is not None:
            self._is_suspect = True
            self._changed.set()

    async def close(self) -> None:
        """Wake nobody any more and let go of the connection."""
        self._watches.clear()
        if self._running is not None:
            self._running.cancel()
            await asyncio.wait({self._running})
            self._running = None
        await self._drop_consumer()

    async def _run(self) -> None:
        while True:
            try:
                await self._watch_once()
            except _KAFKA_ERRORS as error:
                log.warning("backlog_wakeup_interrupted", error=str(error) or type(error).__name__)
                await self._start_over()
            except Exception:
                log.exception("backlog_wakeup_failed")
                await self._start_over()

    async def _start_over(self) -> None:
        await self._drop_consumer()
        await asyncio.sleep(_AGAIN_SECONDS)

    async def _watch_once(self) -> None:
        if self._is_suspect:
            await self._drop_consumer()
        consumer = await retry_forever(
            self._opened, retry_on=_KAFKA_ERRORS, name="backlog_wakeup", maximum_seconds=_LONGEST_WAIT_SECONDS
        )
        if self._changed.is_set():
            self._changed.clear()
            self._aim(consumer)
        if not self._watches:
            await self._changed.wait()
            return
        records = await consumer.getmany(timeout_ms=int(_POLL_SECONDS * 1000))
        for partition, batch in records.items():
            self._arrived(partition, batch[-1].offset)

    def _aim(self, consumer: Any) -> None:
        """Make the consumer look where the watches want it to, disturbing the others as little as can be."""
        self._watchers = {}
        wanted: dict[TopicPartition, int] = {}
        for key, watch in self._watches.items():
            for (topic, number), end in watch.ends.items():
                partition = TopicPartition(topic, number)
                self._watchers.setdefault(partition, set()).add(key)
                wanted[partition] = min(end, wanted.get(partition, end))
        if wanted.keys() - consumer.assignment():
            # A new assignment forgets all positions and drops the fetch under way: only for partitions never watched.
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
        # An offset out of range begins anew at the first record: whatever is in a topic that was made again is new.
        is_recreated = last_offset < self._sought.get(partition, 0)
        for key in list(self._watchers.get(partition, ())):
            watch = self._watches.get(key)
            if watch is None:
                continue
            end = watch.ends.get((partition.topic, partition.partition))
            if end is not None and (is_recreated or last_offset >= end):
                del self._watches[key]
                self._woken_at[key] = watch.ends
                self._changed.set()
                watch.wake()

    async def _opened(self) -> Any:
        if self._consumer is None:
            self._consumer = await open_consumer(
                self._connection, client_id="fluxpool-wakeup", options=_CONSUMER_OPTIONS
            )
        return self._consumer

    async def _drop_consumer(self) -> None:
        consumer, self._consumer = self._consumer, None
        self._sought = {}
        self._is_suspect = False
        # A new consumer has to be told everything.
        self._changed.set()
        if consumer is not None:
            await stop_consumer(consumer)
