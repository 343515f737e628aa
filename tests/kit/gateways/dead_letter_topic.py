"""A dead-letter topic in memory, which is projected at once; replays are prepared by the product's own code."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

from aiokafka.structs import ConsumerRecord

from fluxpool_contract.kafka.topics import TopicNames
from fluxpool_contract.messages.dead_letter import DeadLetter
from fluxpool_contract.messages.headers import RawHeaders
from fluxpool_contract.messages.resolution import Resolution, ResolutionAction
from fluxpool_contract.tenants import TenantTrust
from fluxpool_gateway.dead_letters.records import read_dead_letter
from fluxpool_gateway.store.task_store import TaskStoreWriter
from fluxpool_transport.dlq.prepare import (
    PreparedReplay,
    RefusedReplay,
    ReplayChoices,
    prepare_replay,
    refuse_deleted_task,
)
from fluxpool_transport.dlq.reading import DeadLetterEntry, RecordRef, entry_of
from fluxpool_transport.dlq.replay import SOURCE, IsDeleted, SentReplay, never_deleted

FAILED_MS = 1_775_383_200_000
"""2026-04-05T10:00:00Z."""


def dead_letter(offset: int = 0, **fields: Any) -> DeadLetter:
    """One of a task that a worker refused, a second later for each offset."""
    values = {
        "origin_topic": TopicNames().tasks,
        "origin_partition": 0,
        "origin_offset": offset,
        "origin_timestamp_ms": FAILED_MS,
        "disposition": "invalid",
        "error_class": "invalid",
        "error_code": "invalid-field",
        "message": "width: 100 is not a multiple of 16; the nearest legal sizes are 96 or 112",
        "attempts": 1,
        "worker": "worker-1",
        "pool": "default",
        "model": "FLUX.1-dev",
        "failed_at": datetime.fromtimestamp(FAILED_MS / 1000 + offset, UTC),
        "request_id": f"wide-{offset}",
    }
    return DeadLetter.model_validate({**values, **fields})


def record_at(
    offset: int, value: bytes | None, headers: RawHeaders, *, partition: int = 0, key: bytes | None = None
) -> ConsumerRecord:
    return ConsumerRecord(
        topic=TopicNames().dead_letters, partition=partition, offset=offset, timestamp=FAILED_MS + 1000 * offset,
        timestamp_type=1, key=key, value=value, checksum=None, serialized_key_size=0, serialized_value_size=0,
        headers=tuple(headers),
    )  # fmt: skip


def letter_at(
    offset: int, value: bytes | None = None, *, partition: int = 0, original: RawHeaders = (), **fields: Any
) -> ConsumerRecord:
    """A dead letter of a task of 100 pixels' width, unless a value is given."""
    letter = dead_letter(offset, **fields)
    if value is None:
        value = f'{{"request_id": "{letter.request_id}", "prompt": "a fox", "width": 100}}'.encode()
    return record_at(offset, value, letter.to_headers(original), partition=partition)


@dataclass
class MemoryTopic:
    """The topic; give it the store to be projected into."""

    writer: TaskStoreWriter
    trust: TenantTrust
    name: str = TopicNames().dead_letters
    records: list[ConsumerRecord] = field(default_factory=list)
    sent: list[PreparedReplay] = field(default_factory=list)
    """Tasks that were sent again."""
    waiting: list[ConsumerRecord] | None = None
    """Records that are not projected yet, where they are collected."""
    before_resolution: Callable[[PreparedReplay], None] = lambda _prepared: None
    """Between the two records of a replay."""
    before_task: Callable[[], Awaitable[None]] = lambda: asyncio.sleep(0)
    """Before each task that is sent again."""

    def __post_init__(self) -> None:
        self._by_ref: dict[RecordRef, ConsumerRecord] = {}
        self._ends: dict[int, int] = {}

    def add(self, *records: ConsumerRecord) -> None:
        self.records += records
        for record in records:
            self._by_ref[RecordRef(record.partition, record.offset)] = record
            self._ends[record.partition] = max(self._ends.get(record.partition, 0), record.offset + 1)
        if self.waiting is None:
            self._project(records)
        else:
            self.waiting += records

    def expire(self, ref: str) -> None:
        """Kafka has deleted the record; the store does not know it yet."""
        record = self._by_ref.pop(RecordRef.parse(ref))
        self.records.remove(record)

    def project_waiting(self) -> None:
        records, self.waiting = self.waiting or [], None
        self._project(records)

    def _project(self, records: Sequence[ConsumerRecord]) -> None:
        topics = TopicNames()
        changes = [
            ((record.topic, record.partition, record.offset), change)
            for record in records
            if (change := read_dead_letter(record, trust=self.trust, task_topics=(topics.tasks, topics.tasks_vip)))
        ]
        assert self.writer.apply(changes, {}, now_ms=1) == []

    async def entries(self, *, since: datetime | None) -> Sequence[DeadLetterEntry]:
        return self._entries(since)

    def _entries(self, since: datetime | None = None) -> Sequence[DeadLetterEntry]:
        resolutions: Mapping[RecordRef, Resolution] = {
            RecordRef(found.partition, found.offset): found for found in self.resolutions()
        }
        entries = [entry_of(record) for record in self.records if not is_resolution_record(record)]
        return [
            replace(entry, resolution=resolutions.get(entry.ref))
            for entry in entries
            if since is None or entry.stored_at >= since
        ]

    def resolutions(self) -> list[Resolution]:
        return [Resolution.model_validate_json(record.value) for record in self.records if is_resolution_record(record)]

    async def record(self, entry: DeadLetterEntry) -> ConsumerRecord | None:
        return self._by_ref.get(entry.ref)

    async def with_records(
        self, entries: Sequence[DeadLetterEntry]
    ) -> AsyncGenerator[tuple[DeadLetterEntry, ConsumerRecord | None], None]:
        for entry in sorted(entries, key=lambda entry: entry.ref):
            yield entry, self._by_ref.get(entry.ref)

    @asynccontextmanager
    async def replayer(self, *, by: str | None, job_id: str | None = None) -> AsyncIterator["MemoryReplayer"]:
        yield MemoryReplayer(self, by, job_id)

    def resolve(self, entry: DeadLetterEntry, action: ResolutionAction, **fields: Any) -> Resolution:
        resolution = Resolution(
            partition=entry.ref.partition, offset=entry.ref.offset, action=action, at=datetime.now(UTC), **fields
        )
        end = self._ends[entry.ref.partition]
        headers = resolution.to_headers(source=SOURCE)
        self.add(record_at(end, resolution.to_json(), headers, partition=entry.ref.partition))
        return resolution


@dataclass(frozen=True, slots=True)
class MemoryReplayer:
    """Writes into the topic what `DeadLetterReplayer` writes to Kafka."""

    topic: MemoryTopic
    by: str | None
    job_id: str | None

    async def plan(
        self, entries: Sequence[DeadLetterEntry], choices: ReplayChoices
    ) -> AsyncGenerator[PreparedReplay | RefusedReplay, None]:
        for entry in entries:
            record = await self.topic.record(entry)
            if record is not None:
                yield prepare_replay(
                    entry, record, choices, topic=self.topic.name, now=datetime.now(UTC), trust=self.topic.trust
                )

    async def replay(
        self,
        entries: Sequence[DeadLetterEntry],
        choices: ReplayChoices,
        *,
        per_second: float,
        is_deleted: IsDeleted = never_deleted,
    ) -> AsyncGenerator[SentReplay | RefusedReplay, None]:
        assert per_second > 0
        async for prepared in self.plan(entries, choices):
            await self.topic.before_task()
            if isinstance(prepared, RefusedReplay):
                yield prepared
                continue
            if await is_deleted(prepared.entry):
                yield refuse_deleted_task(prepared.entry)
                continue
            self.topic.sent.append(prepared)
            self.topic.before_resolution(prepared)
            resolution = self.topic.resolve(
                prepared.entry, ResolutionAction.REPLAYED, by=self.by, job_id=self.job_id,
                request_id=prepared.request_id, epoch=prepared.epoch, replayed_topic=prepared.topic,
                replayed_partition=0, replayed_offset=len(self.topic.sent), patch=choices.patch,
            )  # fmt: skip
            yield SentReplay(prepared=prepared, resolution=resolution)

    async def mark_deleted(self, entries: Sequence[DeadLetterEntry]) -> None:
        for entry in entries:
            self.topic.resolve(entry, ResolutionAction.DELETED, by=self.by, request_id=entry.request_id)

    async def discard(
        self, entries: Sequence[DeadLetterEntry], *, reason: str
    ) -> AsyncGenerator[tuple[DeadLetterEntry, Resolution], None]:
        for entry in entries:
            yield entry, self.topic.resolve(entry, ResolutionAction.DISCARDED, by=self.by, reason=reason)


def is_resolution_record(record: ConsumerRecord) -> bool:
    return any(name == "fluxpool-dlq-resolution" for name, _ in record.headers)
