"""Reads the dead-letter topic: dead letters, their resolutions, and which of them a filter selects.

Owns reading and selecting. Knows nothing of what is then done with them, nor of how they are shown. A dead letter that
a worker wrote twice because of a crash is one entry; a foreign record is an entry with a problem and no dead letter.
"""

import re
from collections.abc import AsyncGenerator, Collection, Iterable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Final, Self

from aiokafka.structs import ConsumerRecord
from pydantic import ValidationError

from fluxpool_contract.bounds import moment_at
from fluxpool_contract.header_names import EPOCH
from fluxpool_contract.kafka import KafkaConnection
from fluxpool_contract.messages import (
    MAX_NUMBER_DIGITS,
    DeadLetter,
    RawHeaders,
    Resolution,
    ResolutionAction,
    is_resolution,
)
from fluxpool_contract.problems import explain
from fluxpool_transport.kafka.metadata import TopicError
from fluxpool_transport.kafka.topic_scan import Progress, ScanRange, find_ranges, scan
from fluxpool_transport.kafka.undecodable_records import UndecodableRecord

FOREIGN: Final = "foreign"
"""Class of a record that no worker wrote."""

_REF: Final = re.compile(r"(\d{1,9})/(\d{1,18})")


@dataclass(frozen=True, slots=True, order=True)
class RecordRef:
    """Partition and offset of a record on the dead-letter topic; written `partition/offset`."""

    partition: int
    offset: int

    def __str__(self) -> str:
        return f"{self.partition}/{self.offset}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """The reference in a text such as `2/17`; raises `ValueError` with the form."""
        found = _REF.fullmatch(text)
        if found is None:
            raise ValueError(f"{text!r} must be partition/offset on the dead-letter topic, such as 2/17")
        return cls(int(found[1]), int(found[2]))


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadLetterEntry:
    """One dead letter without its value, which is read when it is needed."""

    ref: RecordRef
    stored_at: datetime
    """The record's own timestamp."""
    value_bytes: int
    dead_letter: DeadLetter | None
    """Without its stack; None for a foreign record."""
    problem: str = ""
    """Why there is no dead letter."""
    epoch: int = 0
    """How often its task had been replayed when it failed."""
    copies: tuple[RecordRef, ...] = ()
    """Further records about the same failure of the same record."""
    resolution: Resolution | None = None
    """What was done about it; None while it is open."""

    @property
    def failure(self) -> tuple[object, ...]:
        """Equal for records about the same failure; the timestamp tells a topic that was recreated from the old one."""
        dead_letter = self.dead_letter
        if dead_letter is None:
            return (self.ref,)
        return (
            dead_letter.origin_topic,
            dead_letter.origin_partition,
            dead_letter.origin_offset,
            dead_letter.origin_timestamp_ms,
            str(dead_letter.error_code),
            self.value_bytes,
        )

    @property
    def is_open(self) -> bool:
        """Whether it has no resolution yet."""
        return self.resolution is None

    @property
    def is_deleted(self) -> bool:
        """Whether its task was deleted."""
        return self.resolution is not None and self.resolution.action == ResolutionAction.DELETED

    @property
    def failed_at(self) -> datetime:
        """When the task failed and was dead-lettered."""
        return self.dead_letter.failed_at if self.dead_letter is not None else self.stored_at

    @property
    def error_class(self) -> str:
        """That of the dead letter, or `foreign` without one."""
        return str(self.dead_letter.error_class) if self.dead_letter is not None else FOREIGN

    @property
    def request_id(self) -> str | None:
        """The task's id as far as it could be read."""
        return self.dead_letter.request_id if self.dead_letter is not None else None


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadLetterFilter:
    """Selects dead letters; an empty field selects all, several fields must all match."""

    refs: Collection[RecordRef] = ()
    request_ids: Collection[str] = ()
    error_classes: Collection[str] = ()
    error_codes: Collection[str] = ()
    pools: Collection[str] = ()
    since: datetime | None = None
    until: datetime | None = None
    include_resolved: bool = False

    def matches(self, entry: DeadLetterEntry) -> bool:
        """Whether the filter selects an entry; a filter by a field that a foreign record lacks does not.

        No filter selects one whose task was deleted.
        """
        dead_letter = entry.dead_letter
        return (
            not entry.is_deleted
            and (self.include_resolved or entry.is_open)
            and (not self.refs or not {entry.ref, *entry.copies}.isdisjoint(self.refs))
            and (not self.request_ids or entry.request_id in self.request_ids)
            and (not self.error_classes or entry.error_class in self.error_classes)
            and (not self.error_codes or (dead_letter is not None and dead_letter.error_code in self.error_codes))
            and (not self.pools or (dead_letter is not None and dead_letter.pool in self.pools))
            and (self.since is None or entry.failed_at >= self.since)
            and (self.until is None or entry.failed_at < self.until)
        )

    def select(self, entries: Iterable[DeadLetterEntry]) -> tuple[DeadLetterEntry, ...]:
        """The selected entries, oldest failure first."""
        return tuple(sorted(filter(self.matches, entries), key=lambda entry: (entry.failed_at, entry.ref)))


def entry_of(record: ConsumerRecord) -> DeadLetterEntry:
    """What a record of the dead-letter topic says; any record is an entry."""
    dead_letter, problem = None, ""
    try:
        dead_letter = DeadLetter.from_headers(record.headers).model_copy(update={"stack": None})
    except ValidationError as error:
        problem = "; ".join(f"fluxpool-dlq-{item.field.replace('_', '-')}: {item.message}" for item in explain(error))
    except (ValueError, TypeError, ArithmeticError, LookupError) as error:
        # Any producer may write here, and one odd record must not end the listing of all others.
        problem = f"cannot be read ({type(error).__name__}: {error})"
    if isinstance(record, UndecodableRecord) and not record.has_contents:
        problem = f"the record cannot be decoded: {record.problem}"
    return DeadLetterEntry(
        ref=RecordRef(record.partition, record.offset),
        stored_at=moment_at(record.timestamp),
        value_bytes=len(record.value or b""),
        dead_letter=dead_letter,
        problem=problem,
        epoch=_epoch(record.headers),
    )


async def read_dead_letters(
    connection: KafkaConnection, topic: str, *, since: datetime | None = None, on_progress: Progress | None = None
) -> tuple[DeadLetterEntry, ...]:
    """Every entry that lies on the topic now, by reference; with `since`, those written from then on.

    Raises `TopicError` when there is no such topic or it cannot be read, `KafkaUnavailableError`, `KafkaError`.
    """
    entries: dict[tuple[object, ...], DeadLetterEntry] = {}
    resolutions: dict[RecordRef, Resolution] = {}
    ranges = await ranges_of(connection, topic, since=since)
    async with aclosing(scan(connection, ranges, on_progress=on_progress)) as batches:
        async for records in batches:
            for record in records:
                if is_resolution(record.headers):
                    if (resolution := parse_resolution(record)) is not None:
                        _note(resolutions, resolution)
                    continue
                entry = entry_of(record)
                first = entries.setdefault(entry.failure, entry)
                if first is not entry:
                    entries[entry.failure] = replace(first, copies=(*first.copies, entry.ref))
    found = [
        replace(entry, resolution=resolution_among(map(resolutions.get, (entry.ref, *entry.copies))))
        for entry in entries.values()
    ]
    return tuple(sorted(found, key=lambda entry: entry.ref))


def _note(resolutions: dict[RecordRef, Resolution], resolution: Resolution) -> None:
    """The last one of a dead letter counts, but a deletion is final."""
    ref = RecordRef(resolution.partition, resolution.offset)
    known = resolutions.get(ref)
    if known is None or known.action != ResolutionAction.DELETED:
        resolutions[ref] = resolution


def resolution_among(found: Iterable[Resolution | None]) -> Resolution | None:
    """What counts of the resolutions of records about one failure: a deletion, else the first."""
    given = [resolution for resolution in found if resolution is not None]
    deletions = (resolution for resolution in given if resolution.action == ResolutionAction.DELETED)
    return next(deletions, given[0] if given else None)


async def ranges_of(connection: KafkaConnection, topic: str, *, since: datetime | None = None) -> tuple[ScanRange, ...]:
    """What the topic holds now. Raises `TopicError` when there is no such topic."""
    ranges = (await find_ranges(connection, [topic], since=since))[topic]
    if ranges is None:
        raise TopicError(f"topic {topic} does not exist; create it, or name the dead-letter topic of this cluster")
    return ranges


async def read_records(
    connection: KafkaConnection, topic: str, entries: Sequence[DeadLetterEntry]
) -> AsyncGenerator[tuple[DeadLetterEntry, ConsumerRecord], None]:
    """Each entry with its record, partition by partition in order of offset; expired ones are left out.

    Only the span between the first and the last of a partition is read, and nothing is held. Raises as
    `read_dead_letters` does.
    """
    wanted: Mapping[RecordRef, DeadLetterEntry] = {entry.ref: entry for entry in entries}
    spans: dict[int, tuple[int, int]] = {}
    for ref in wanted:
        low, high = spans.get(ref.partition, (ref.offset, ref.offset))
        spans[ref.partition] = min(low, ref.offset), max(high, ref.offset)
    ranges = [
        replace(item, start=max(item.start, low), end=min(item.end, high + 1))
        for item in await ranges_of(connection, topic)
        if item.partition in spans
        for low, high in [spans[item.partition]]
    ]
    async with aclosing(scan(connection, ranges)) as batches:
        async for records in batches:
            for record in records:
                entry = wanted.get(RecordRef(record.partition, record.offset))
                if entry is not None:
                    yield entry, record


async def read_each(
    connection: KafkaConnection, topic: str, entries: Sequence[DeadLetterEntry]
) -> AsyncGenerator[tuple[DeadLetterEntry, ConsumerRecord | None], None]:
    """The same with every entry: those that are expired come last, without a record."""
    missing = {entry.ref: entry for entry in entries}
    async with aclosing(read_records(connection, topic, entries)) as found:
        async for entry, record in found:
            del missing[entry.ref]
            yield entry, record
    for entry in missing.values():
        yield entry, None


def parse_resolution(record: ConsumerRecord) -> Resolution | None:
    """The resolution that a record is; None for one that cannot be read."""
    try:
        return Resolution.model_validate_json(record.value or b"")
    except ValidationError:
        return None  # foreign, or of a later release: the dead letter stays open


def _epoch(headers: RawHeaders) -> int:
    texts = [raw.decode(errors="replace") for name, raw in headers if name == EPOCH and raw is not None]
    last = texts[-1] if texts else "0"
    return int(last) if last.isascii() and last.isdigit() and len(last) <= MAX_NUMBER_DIGITS else 0
