"""The dead-letter topic as the routes and the replays use it; on Kafka, or in tests on something smaller."""

from collections.abc import AsyncGenerator, Sequence
from contextlib import AbstractAsyncContextManager, aclosing
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from aiokafka.structs import ConsumerRecord

from fluxpool_contract.kafka import KafkaConnection
from fluxpool_contract.messages import Resolution
from fluxpool_contract.tenants import TenantTrust
from fluxpool_transport.dlq import (
    DeadLetterEntry,
    DeadLetterReplayer,
    IsDeleted,
    PreparedReplay,
    RefusedReplay,
    ReplayChoices,
    SentReplay,
    read_dead_letters,
    read_each,
)


class Replayer(Protocol):
    """Resolves dead letters, as `DeadLetterReplayer` does."""

    def plan(
        self, entries: Sequence[DeadLetterEntry], choices: ReplayChoices
    ) -> AsyncGenerator[PreparedReplay | RefusedReplay, None]:
        """What a replay would send and refuse; writes nothing."""

    def replay(
        self,
        entries: Sequence[DeadLetterEntry],
        choices: ReplayChoices,
        *,
        per_second: float,
        is_deleted: IsDeleted,
    ) -> AsyncGenerator[SentReplay | RefusedReplay, None]:
        """Send the tasks again; each is yielded once its resolution is on the topic."""

    async def mark_deleted(self, entries: Sequence[DeadLetterEntry]) -> None:
        """Say of each that its task was deleted."""

    def discard(
        self, entries: Sequence[DeadLetterEntry], *, reason: str
    ) -> AsyncGenerator[tuple[DeadLetterEntry, Resolution], None]:
        """Resolve each without sending its task."""


class DeadLetterTopic(Protocol):
    """One topic. Raises `KafkaUnavailableError`, `KafkaError`, `TopicError`."""

    @property
    def name(self) -> str:
        """The topic's."""

    async def entries(self, *, since: datetime | None) -> Sequence[DeadLetterEntry]:
        """All that lie there now, with their resolutions; with `since`, those written from then on."""

    async def record(self, entry: DeadLetterEntry) -> ConsumerRecord | None:
        """The record of an entry; None when Kafka has deleted it."""

    def with_records(
        self, entries: Sequence[DeadLetterEntry]
    ) -> AsyncGenerator[tuple[DeadLetterEntry, ConsumerRecord | None], None]:
        """Each entry with its record, or None when Kafka has deleted it; in the order of the topic."""

    def replayer(self, *, by: str | None, job_id: str | None = None) -> AbstractAsyncContextManager[Replayer]:
        """What resolves them, in the name of `by`."""


@dataclass(frozen=True, slots=True)
class KafkaDeadLetterTopic:
    """The topic on Kafka."""

    connection: KafkaConnection
    name: str
    trust: TenantTrust

    async def entries(self, *, since: datetime | None) -> Sequence[DeadLetterEntry]:
        """All that lie there now."""
        return await read_dead_letters(self.connection, self.name, since=since)

    async def record(self, entry: DeadLetterEntry) -> ConsumerRecord | None:
        """The record of an entry."""
        async with aclosing(self.with_records([entry])) as found:
            async for _, record in found:
                return record
        return None

    def with_records(
        self, entries: Sequence[DeadLetterEntry]
    ) -> AsyncGenerator[tuple[DeadLetterEntry, ConsumerRecord | None], None]:
        """Each entry with its record."""
        return read_each(self.connection, self.name, entries)

    def replayer(self, *, by: str | None, job_id: str | None = None) -> DeadLetterReplayer:
        """What resolves them."""
        return DeadLetterReplayer(self.connection, self.name, by=by, job_id=job_id, trust=self.trust)
