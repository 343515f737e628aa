"""The results topic read from its beginning, by a consumer of no group: whoever looks changes nothing.

Owns the reading and the count of ends; knows nothing of who shows them.
"""

from collections import Counter
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

from aiokafka import AIOKafkaConsumer
from aiokafka.errors import UnknownTopicOrPartitionError
from pydantic import ValidationError

from fluxpool_contract.kafka_connection import KafkaConnection
from fluxpool_contract.result import GenerationResult
from fluxpool_transport.consumer_stop import stop_consumer
from fluxpool_transport.kafka_clients import aiokafka_options

_POLL_MS = 200
_RECENT_RESULTS = 8


class ResultsTopic:
    """Follows one results topic: `async with ResultsTopic(connection, topic) as results`, then `poll`."""

    def __init__(self, connection: KafkaConnection, topic: str) -> None:
        self._connection = connection
        self._topic = topic
        self._consumer: Any = None
        self.records: list[GenerationResult] = []
        """Every record read so far."""
        self.values: list[bytes] = []
        """The same, as they lie in the topic."""
        self.unreadable = 0
        """Records that are no results."""

    async def __aenter__(self) -> Self:
        """Connect; raises aiokafka's `KafkaError` when nobody answers."""
        options = aiokafka_options(self._connection, client_id="fluxpool-cli")
        # Without a group every partition is assigned at the start, and nothing is ever committed.
        self._consumer = AIOKafkaConsumer(
            self._topic, **options, group_id=None, enable_auto_commit=False, auto_offset_reset="earliest"
        )
        try:
            await self._consumer.start()
            if not self._consumer.assignment():
                raise UnknownTopicOrPartitionError(f"there is no topic {self._topic}")
        except BaseException:
            await stop_consumer(self._consumer)
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Disconnect."""
        await stop_consumer(self._consumer)

    async def poll(self) -> Sequence[GenerationResult]:
        """The results that arrived since the last call; waits a moment when there are none."""
        batches = await self._consumer.getmany(timeout_ms=_POLL_MS)
        arrived = []
        for records in batches.values():
            for record in records:
                self.values.append(record.value or b"")
                try:
                    arrived.append(GenerationResult.model_validate_json(record.value or b""))
                except ValidationError:
                    self.unreadable += 1
        self.records += arrived
        return arrived

    async def read_to_end(self) -> None:
        """Read all that is in the topic now."""
        partitions = sorted(self._consumer.assignment())
        ends = await self._consumer.end_offsets(partitions)
        while any([await self._consumer.position(partition) < ends[partition] for partition in partitions]):
            await self.poll()

    def counts(self) -> Counter[str]:
        """Tasks by how they ended; a task whose result came twice counts once."""
        last = {result.request_id: result.status.value for result in self.records if result.request_id is not None}
        return Counter(last.values())

    def recent(self) -> list[GenerationResult]:
        """The results that were read last, newest first."""
        return self.records[: -_RECENT_RESULTS - 1 : -1]
