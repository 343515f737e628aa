"""Reads a results topic without a consumer group, so that reading changes no offsets.

Owns the reading and the counts by status; knows nothing of how they are shown. Keeps all
results, or reads the newest ones only and keeps their counts and the last few.
"""

import contextlib
from collections import Counter, OrderedDict, deque
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

from aiokafka import AIOKafkaConsumer
from aiokafka.errors import UnknownTopicOrPartitionError
from aiokafka.structs import ConsumerRecord
from pydantic import ValidationError

from fluxpool_contract import header_names
from fluxpool_contract.kafka import KafkaConnection
from fluxpool_contract.messages import GenerationResult
from fluxpool_transport.kafka import aiokafka_options, stop_consumer

_POLL_MS = 200
_RECENT_RESULTS = 8


class ResultsTopic:
    """Follows one results topic: `async with ResultsTopic(connection, topic) as results`, then `poll`."""

    def __init__(self, connection: KafkaConnection, topic: str, *, newest_records: int | None = None) -> None:
        """With `newest_records`, start about that many records before the end and keep at most that many tasks."""
        self._connection = connection
        self._topic = topic
        self._newest_records = newest_records
        self._last_status: OrderedDict[str, str] = OrderedDict()
        self._recent: deque[GenerationResult] = deque(maxlen=_RECENT_RESULTS)
        self.passed_over = 0
        """Older records that were not read."""
        self._consumer: Any = None
        self._seen: set[tuple[bytes | None, bytes | None]] = set()
        self.repeats = 0
        """Records that repeated a result byte for byte under its event id.

        When a partition moves while a task is drawn, both workers send its result.
        """
        self.records: list[GenerationResult] = []
        """Every result read so far, without repeats; empty with `newest_records`."""
        self.values: list[bytes] = []
        """Their values, as in the topic."""

    async def __aenter__(self) -> Self:
        """Connect; raises aiokafka's `KafkaError` when no broker answers."""
        options = aiokafka_options(self._connection, client_id="fluxpool-cli")
        # Without a group every partition is assigned at the start, and nothing is ever committed.
        self._consumer = AIOKafkaConsumer(
            self._topic, **options, group_id=None, enable_auto_commit=False, auto_offset_reset="earliest"
        )
        try:
            await self._consumer.start()
            if not self._consumer.assignment():
                raise UnknownTopicOrPartitionError(f"there is no topic {self._topic}")
            if self._newest_records is not None:
                await self._skip_old(self._newest_records)
        except BaseException:
            await stop_consumer(self._consumer)
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Disconnect."""
        await stop_consumer(self._consumer)

    async def _skip_old(self, newest_records: int) -> None:
        partitions = sorted(self._consumer.assignment())
        begins = await self._consumer.beginning_offsets(partitions)
        ends = await self._consumer.end_offsets(partitions)
        share = max(1, newest_records // len(partitions))
        for partition in partitions:
            start = max(begins[partition], ends[partition] - share)
            self.passed_over += start - begins[partition]
            self._consumer.seek(partition, start)

    async def poll(self) -> Sequence[GenerationResult]:
        """The results that arrived since the last call; waits a moment when there are none."""
        batches = await self._consumer.getmany(timeout_ms=_POLL_MS)
        arrived = []
        for records in batches.values():
            for record in records:
                if self._newest_records is None:
                    if self._is_repeat(record):
                        continue
                    self.values.append(record.value or b"")
                # A record that is not a result is nothing that a reader of results can show.
                with contextlib.suppress(ValidationError):
                    arrived.append(GenerationResult.model_validate_json(record.value or b""))
        self._recent.extend(arrived)
        if self._newest_records is None:
            self.records += arrived
        for result in arrived:
            self._count(result)
        return arrived

    def _is_repeat(self, record: ConsumerRecord) -> bool:
        event = dict(record.headers).get(header_names.CE_ID), record.value
        repeated = event in self._seen
        self.repeats += repeated
        self._seen.add(event)
        return repeated

    def _count(self, result: GenerationResult) -> None:
        if result.request_id is None:
            return
        self._last_status[result.request_id] = result.status.value
        self._last_status.move_to_end(result.request_id)
        if self._newest_records is not None and len(self._last_status) > self._newest_records:
            self._last_status.popitem(last=False)

    async def read_to_end(self) -> None:
        """Read all that is in the topic now."""
        partitions = sorted(self._consumer.assignment())
        ends = await self._consumer.end_offsets(partitions)
        while any([await self._consumer.position(partition) < ends[partition] for partition in partitions]):
            await self.poll()

    def counts(self) -> Counter[str]:
        """Number of tasks by status; a task with two results counts once."""
        return Counter(self._last_status.values())

    def recent(self) -> list[GenerationResult]:
        """The results that were read last, newest first."""
        return list(reversed(self._recent))
