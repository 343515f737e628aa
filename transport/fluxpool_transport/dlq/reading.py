"""What lies on the dead-letter topic: the letters, which of them were dealt with, and which of them a filter means.

Owns reading and selecting. Knows nothing of what is then done with them, nor of who shows them. A letter that a crash
made a worker write twice is one entry; records of anybody else are entries with a problem in place of a letter.
"""

import re
from collections.abc import AsyncGenerator, Collection, Iterable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Final, Self

from aiokafka.structs import ConsumerRecord
from pydantic import ValidationError

from fluxpool_contract.bounds import moment_at
from fluxpool_contract.header_names import EPOCH
from fluxpool_contract.kafka import KafkaConnection
from fluxpool_contract.messages import MAX_NUMBER_DIGITS, DeadLetter, HandlingNote, RawHeaders, is_note
from fluxpool_contract.problems import explain
from fluxpool_transport.kafka.topic_scan import Progress, ScanRange, TopicScanError, find_ranges, scan
from fluxpool_transport.kafka.undecodable_records import UndecodableRecord

FOREIGN: Final = "foreign"
"""Class of a record that no worker wrote."""

_PLACE: Final = re.compile(r"(\d{1,9})/(\d{1,18})")


@dataclass(frozen=True, slots=True, order=True)
class Place:
    """Where a record lies on the dead-letter topic; written `partition/offset`."""

    partition: int
    offset: int

    def __str__(self) -> str:
        return f"{self.partition}/{self.offset}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """The place in a text such as `2/17`; raises `ValueError` with the form."""
        found = _PLACE.fullmatch(text)
        if found is None:
            raise ValueError(f"{text!r} must be partition/offset on the dead-letter topic, such as 2/17")
        return cls(int(found[1]), int(found[2]))


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadLetterEntry:
    """One dead letter without its value, which is read when it is needed."""

    place: Place
    stored_at: datetime
    """The record's own timestamp."""
    value_bytes: int
    letter: DeadLetter | None
    """Without its stack; None for a record that is no dead letter of a worker's."""
    problem: str = ""
    """Why there is no letter."""
    epoch: int = 0
    """How often its task had been replayed when it failed."""
    copies: tuple[Place, ...] = ()
    """Further records about the same failure of the same record."""
    note: HandlingNote | None = None
    """What was done about it; None while it is open."""

    @property
    def is_open(self) -> bool:
        """Whether nothing was done about it yet."""
        return self.note is None

    @property
    def failed_at(self) -> datetime:
        """When the task was given up."""
        return self.letter.failed_at if self.letter is not None else self.stored_at

    @property
    def error_class(self) -> str:
        """The letter's, or `foreign` where there is none."""
        return str(self.letter.error_class) if self.letter is not None else FOREIGN

    @property
    def request_id(self) -> str | None:
        """The task's id as far as it could be read."""
        return self.letter.request_id if self.letter is not None else None


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadLetterFilter:
    """Which letters are meant; an empty field means all, several fields must all fit."""

    places: Collection[Place] = ()
    request_ids: Collection[str] = ()
    error_classes: Collection[str] = ()
    error_codes: Collection[str] = ()
    pools: Collection[str] = ()
    since: datetime | None = None
    until: datetime | None = None
    with_handled: bool = False

    def matches(self, entry: DeadLetterEntry) -> bool:
        """Whether an entry is meant; what a record of anybody else does not have fits no filter."""
        letter = entry.letter
        return (
            (self.with_handled or entry.is_open)
            and (not self.places or not {entry.place, *entry.copies}.isdisjoint(self.places))
            and (not self.request_ids or entry.request_id in self.request_ids)
            and (not self.error_classes or entry.error_class in self.error_classes)
            and (not self.error_codes or (letter is not None and letter.error_code in self.error_codes))
            and (not self.pools or (letter is not None and letter.pool in self.pools))
            and (self.since is None or entry.failed_at >= self.since)
            and (self.until is None or entry.failed_at < self.until)
        )

    def select(self, entries: Iterable[DeadLetterEntry]) -> tuple[DeadLetterEntry, ...]:
        """The entries that are meant, oldest failure first."""
        return tuple(sorted(filter(self.matches, entries), key=lambda entry: (entry.failed_at, entry.place)))


@dataclass(slots=True)
class _Index:
    """Entries by what they are about, in the order of reading."""

    entries: dict[tuple[object, ...], DeadLetterEntry] = field(default_factory=dict)
    notes: dict[Place, HandlingNote] = field(default_factory=dict)

    def add(self, record: ConsumerRecord) -> None:
        if is_note(record.headers):
            note = _parse_note(record)
            if note is not None:
                self.notes[Place(note.partition, note.offset)] = note
            return
        entry = entry_of(record)
        about = _about(entry)
        first = self.entries.get(about)
        if first is None:
            self.entries[about] = entry
        else:
            self.entries[about] = replace(first, copies=(*first.copies, entry.place))

    def settled(self) -> tuple[DeadLetterEntry, ...]:
        """Every entry with its note, by place."""
        entries = [
            replace(entry, note=next((self.notes[at] for at in (entry.place, *entry.copies) if at in self.notes), None))
            for entry in self.entries.values()
        ]
        return tuple(sorted(entries, key=lambda entry: entry.place))


def entry_of(record: ConsumerRecord) -> DeadLetterEntry:
    """What a record of the dead-letter topic says; any record is an entry."""
    letter, problem = None, ""
    try:
        letter = DeadLetter.from_headers(record.headers).model_copy(update={"stack": None})
    except ValidationError as error:
        problem = "; ".join(f"fluxpool-dlq-{item.field.replace('_', '-')}: {item.message}" for item in explain(error))
    except (ValueError, TypeError, ArithmeticError, LookupError) as error:
        # Anybody may write here, and one odd record must not end the listing of all others.
        problem = f"cannot be read ({type(error).__name__}: {error})"
    if isinstance(record, UndecodableRecord) and not record.has_contents:
        problem = f"the record cannot be decoded: {record.problem}"
    return DeadLetterEntry(
        place=Place(record.partition, record.offset),
        stored_at=moment_at(record.timestamp),
        value_bytes=len(record.value or b""),
        letter=letter,
        problem=problem,
        epoch=_epoch(record.headers),
    )


async def read_dead_letters(
    connection: KafkaConnection, topic: str, *, since: datetime | None = None, on_progress: Progress | None = None
) -> tuple[DeadLetterEntry, ...]:
    """Every entry that lies on the topic now, by place; with `since`, those written from then on.

    Raises `TopicScanError` when there is no such topic or it cannot be read, `KafkaUnavailableError`, `KafkaError`.
    """
    index = _Index()
    ranges = await ranges_of(connection, topic, since=since)
    async with aclosing(scan(connection, ranges, on_progress=on_progress)) as batches:
        async for records in batches:
            for record in records:
                index.add(record)
    return index.settled()


async def ranges_of(connection: KafkaConnection, topic: str, *, since: datetime | None = None) -> tuple[ScanRange, ...]:
    """What the topic holds now. Raises `TopicScanError` when there is no such topic."""
    ranges = (await find_ranges(connection, [topic], since=since))[topic]
    if ranges is None:
        raise TopicScanError(f"topic {topic} does not exist; create it, or name the dead-letter topic of this cluster")
    return ranges


async def read_records(
    connection: KafkaConnection, topic: str, entries: Sequence[DeadLetterEntry]
) -> AsyncGenerator[tuple[DeadLetterEntry, ConsumerRecord], None]:
    """Each entry with its record, partition by partition in order of offset; expired ones are left out.

    Only the span between the first and the last of a partition is read, and nothing is held. Raises as
    `read_dead_letters` does.
    """
    wanted: Mapping[Place, DeadLetterEntry] = {entry.place: entry for entry in entries}
    spans: dict[int, tuple[int, int]] = {}
    for place in wanted:
        low, high = spans.get(place.partition, (place.offset, place.offset))
        spans[place.partition] = min(low, place.offset), max(high, place.offset)
    ranges = [
        replace(item, start=max(item.start, low), end=min(item.end, high + 1))
        for item in await ranges_of(connection, topic)
        if item.partition in spans
        for low, high in [spans[item.partition]]
    ]
    async with aclosing(scan(connection, ranges)) as batches:
        async for records in batches:
            for record in records:
                entry = wanted.get(Place(record.partition, record.offset))
                if entry is not None:
                    yield entry, record


def _about(entry: DeadLetterEntry) -> tuple[object, ...]:
    """Equal for records about the same failure; the timestamp tells a topic that was made anew from the old one."""
    letter = entry.letter
    if letter is None:
        return (entry.place,)
    return (
        letter.origin_topic,
        letter.origin_partition,
        letter.origin_offset,
        letter.origin_timestamp_ms,
        letter.error_code,
        entry.value_bytes,
    )


def _parse_note(record: ConsumerRecord) -> HandlingNote | None:
    try:
        return HandlingNote.model_validate_json(record.value or b"")
    except ValidationError:
        return None  # of a later release, or of somebody else: it settles nothing


def _epoch(headers: RawHeaders) -> int:
    texts = [raw.decode(errors="replace") for name, raw in headers if name == EPOCH and raw is not None]
    last = texts[-1] if texts else "0"
    return int(last) if last.isascii() and last.isdigit() and len(last) <= MAX_NUMBER_DIGITS else 0
