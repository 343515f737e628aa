"""A Kafka consumer without a consumer group, and the one background task that uses it.

Owns opening, reconnecting and closing. Must not know what is read: `probe`, `wakeup` and `retries.retry_scan` do.
"""

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, Final

from aiokafka import AIOKafkaConsumer
from aiokafka.errors import KafkaError

from fluxpool_contract.kafka import KafkaConnection
from fluxpool_transport.kafka import KafkaCredentialsError, aiokafka_options, stop_consumer

KAFKA_ERRORS: Final = (KafkaError, KafkaCredentialsError, OSError)
"""What `opened` and the consumer raise."""
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
        self._running: asyncio.Task[None] | None = None
        self._consumer: Any = None
        self._is_suspect = False

    @property
    def is_open(self) -> bool:
        """Whether there is a consumer."""
        return self._consumer is not None

    def start(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Run `work` in the background, unless it still runs."""
        if self._running is None or self._running.done():
            self._running = self._tasks.create_task(work(), name=self._client_id)

    async def wait(self, seconds: float) -> None:
        """Wait for the background task, but not longer than this."""
        if self._running is not None:
            # Never cancelled at the timeout: a cancelled poll leaves the consumer in an undefined state.
            await asyncio.wait({self._running}, timeout=seconds)

    async def opened(self) -> Any:
        """The started consumer; a new one after `reconnect` and `drop`. Raises `KAFKA_ERRORS`."""
        if self._is_suspect:
            await self.drop()
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

    def reconnect(self) -> None:
        """Open a new consumer at the next `opened`: this one may only know brokers that are gone.

        aiokafka asks the bootstrap servers once, and after that only the brokers that it knows.
        """
        self._is_suspect = True

    async def drop(self) -> None:
        """Close the consumer; the task that uses it calls this after an error."""
        # Taken out first: a task that is cancelled while the consumer stops must not leave a closed one behind.
        consumer, self._consumer, self._is_suspect = self._consumer, None, False
        if consumer is not None:
            await stop_consumer(consumer)

    async def close(self) -> None:
        """Cancel the task and close the consumer."""
        if self._running is not None:
            self._running.cancel()
            await asyncio.wait({self._running})
            self._running = None
        await self.drop()
