"""A Kafka consumer without a consumer group, and the one background task that uses it.

Owns opening, reconnecting and closing, and what an error in the task does. Must not know what is read: `probe`,
`wakeup` and `retries.retry_scan` do, which derive from it.
"""

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, Final

import structlog
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError

from fluxpool_contract.kafka import KafkaConnection
from fluxpool_transport.kafka import KafkaCredentialsError, aiokafka_options, stop_consumer

log = structlog.get_logger(__name__)

KAFKA_ERRORS: Final = (KafkaError, KafkaCredentialsError, OSError)
"""What `_opened` and the consumer raise."""
_POLL_MS: Final = 50
_OPTIONS: Final = {
    "enable_auto_commit": False,
    "auto_offset_reset": "earliest",
    "isolation_level": "read_committed",
}


class GrouplessReader:
    """Opens the consumer when it is first needed; runs at most one task."""

    def __init__(
        self, connection: KafkaConnection, tasks: asyncio.TaskGroup, *, client_id: str, options: Mapping[str, Any]
    ) -> None:
        self._connection = connection
        self._tasks = tasks
        self._client_id = client_id
        self._options = options
        self._running: asyncio.Task[bool] | None = None
        self._consumer: Any = None
        self._is_suspect = False

    def reconnect(self) -> None:
        """Open a new consumer when one is needed next: this one may only know brokers that are gone.

        aiokafka asks the bootstrap servers once, and after that only the brokers that it knows.
        """
        self._is_suspect = True

    async def close(self) -> None:
        """Cancel the task and close the consumer."""
        if self._running is not None:
            self._running.cancel()
            await asyncio.wait({self._running})
            self._running = None
        await self._drop()

    def _start(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Run `work` in the background, unless it still runs."""
        if self._running is None or self._running.done():
            self._running = self._tasks.create_task(self._guarded(work()), name=self._client_id)

    async def _wait(self, seconds: float) -> None:
        """Wait for the background task, but not longer than this."""
        if self._running is not None:
            # Never cancelled at the timeout: a cancelled poll leaves the consumer in an undefined state.
            await asyncio.wait({self._running}, timeout=seconds)

    async def _guarded(self, work: Coroutine[Any, Any, None]) -> bool:
        """Whether the work ended without an error; after one the consumer is closed."""
        try:
            await work
        except KAFKA_ERRORS as error:
            log.warning("backlog_consumer_failed", client_id=self._client_id, error=str(error) or type(error).__name__)
        except Exception:
            # A defect. The task group is shared: its error would cancel the readings of all clusters.
            log.exception("backlog_consumer_failed", client_id=self._client_id)
        else:
            return True
        await self._drop()
        return False

    async def _opened(self) -> Any:
        """The started consumer; a new one after `reconnect` and `_drop`. Raises `KAFKA_ERRORS`."""
        if self._is_suspect:
            await self._drop()
        if self._consumer is None:
            options = aiokafka_options(self._connection, client_id=self._client_id)
            consumer = AIOKafkaConsumer(**_OPTIONS, **self._options, **options)
            try:
                await consumer.start()
            except BaseException:
                await stop_consumer(consumer)
                raise
            self._consumer = consumer
        return self._consumer

    async def _drop(self) -> None:
        # Taken out first: a task that is cancelled while the consumer stops must not leave a closed one behind.
        consumer, self._consumer, self._is_suspect = self._consumer, None, False
        if consumer is not None:
            await stop_consumer(consumer)

    async def _read_from(
        self,
        starts: Mapping[TopicPartition, int],
        *,
        seconds: float,
        take: Callable[[TopicPartition, list[Any], int], bool],
    ) -> None:
        """Read each partition from its start until `take` returns true for it, or the time is over.

        `take` gets a partition, its next records and the position behind them. Raises `KAFKA_ERRORS`; that of one
        partition only after the others were read.
        """
        consumer, loop = await self._opened(), asyncio.get_running_loop()
        consumer.assign(list(starts))
        for partition, offset in starts.items():
            consumer.seek(partition, offset)
        positions, problem = dict(starts), None
        ends_at_seconds = loop.time() + seconds
        while positions and loop.time() < ends_at_seconds:
            fetched: Mapping[TopicPartition, list[Any]] = {}
            try:
                fetched = await consumer.getmany(timeout_ms=_POLL_MS)
            except KafkaError as error:
                problem = error
            for partition in list(positions):
                records = fetched.get(partition, [])
                try:
                    # Answered from memory, or left to the next poll: the position passes markers, which are no records.
                    async with asyncio.timeout(0):
                        positions[partition] = await consumer.position(partition)
                except (KafkaError, TimeoutError):
                    pass
                if take(partition, records, positions[partition]):
                    del positions[partition]
                    consumer.pause(partition)
        # An assigned consumer would prefetch these partitions in the background until the next reading.
        consumer.unsubscribe()
        if positions and problem is not None:
            raise problem
