"""Turns records into the events of one task. Pure.

Owns which records are about a task and what each of them means. Other records, and unreadable ones that name no task,
are skipped; a malformed record of the task itself is an event, too.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, Final, assert_never

from aiokafka.structs import ConsumerRecord
from pydantic import ValidationError

from fluxpool_contract import header_names
from fluxpool_contract.bounds import moment_at
from fluxpool_contract.messages import (
    DEAD_LETTER_PREFIX,
    MAX_NUMBER_DIGITS,
    CancelCommand,
    GenerationResult,
    ProgressEvent,
    ProgressType,
    Resolution,
    ResultStatus,
    format_time,
    is_resolution,
    peek_request_id,
)
from fluxpool_transport.dlq import RecordRef, entry_of

_DEAD_LETTER_ID: Final = DEAD_LETTER_PREFIX + "request-id"


class TopicRole(StrEnum):
    """What a topic is for."""

    TASKS = "tasks"
    RETRY = "retry"
    CONTROL = "control"
    PROGRESS = "progress"
    DEAD_LETTERS = "dead-letters"
    RESULTS = "results"


class EventKind(StrEnum):
    """What happened."""

    SENT = "sent"
    """The task came to a task topic."""
    RETRY = "retry"
    """It waits on a retry topic for its next attempt."""
    BACK = "back"
    """It came back from a retry topic."""
    REPLAYED = "replayed"
    """It came back from the dead-letter topic."""
    CANCEL = "cancel"
    STARTED = "started"
    STEP = "step"
    RETRYING = "retrying"
    PROGRESS = "progress"
    """Of a kind that this release does not know."""
    DEAD_LETTER = "dead-letter"
    RESOLVED = "resolved"
    """The dead letter was replayed or discarded."""
    RESULT = "result"
    UNREADABLE = "unreadable"
    """A record of the task that cannot be parsed."""


_UNREADABLE: Final = (ValueError, TypeError, ArithmeticError, LookupError)
"""What parsing a foreign record can raise; one record must not end the whole timeline."""
_ORDER: Final = {kind: place for place, kind in enumerate(EventKind)}
"""Of events of one millisecond: the order in which they cause each other."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceEvent:
    """One event of a task, and the record it was read from."""

    at: datetime
    """The progress event's own time, else the record's timestamp; UTC."""
    kind: EventKind
    topic: str
    partition: int
    offset: int
    epoch: int = 0
    attempt: int | None = None
    worker: str | None = None
    pool: str | None = None
    detail: str = ""
    status: ResultStatus | None = None
    """Of a result."""
    step: int | None = None
    total_steps: int | None = None

    def document(self) -> dict[str, Any]:
        """For machines; what is not known is left out."""
        known = {name: value for name, value in asdict(self).items() if value not in (None, "")}
        return {"at": format_time(known.pop("at")), "event": str(known.pop("kind")), **known}


@dataclass(slots=True)
class TaskEvents:
    """Collects the events of one task; records of a partition must come in their order."""

    request_id: str
    found: list[TraceEvent] = field(default_factory=list)
    _dead_letters: set[tuple[str, RecordRef]] = field(default_factory=set)

    def add(self, record: ConsumerRecord, role: TopicRole) -> None:
        """Add a record, if it is about the task; one that cannot be read is an event that says so."""
        try:
            event = self._event(record, role)
        except _UNREADABLE as error:
            event = _event_of(record, EventKind.UNREADABLE, detail=f"{type(error).__name__}: {error}")
        if event is not None:
            self.found.append(event)

    def in_order(self) -> tuple[TraceEvent, ...]:
        """By time, and where that is equal by cause."""
        return tuple(
            sorted(self.found, key=lambda item: (item.at, _ORDER[item.kind], item.topic, item.partition, item.offset))
        )

    def _event(self, record: ConsumerRecord, role: TopicRole) -> TraceEvent | None:
        if role is TopicRole.DEAD_LETTERS and is_resolution(record.headers):
            # A resolution follows its dead letter in the same partition, and may name the new id that a patch gave.
            return self._resolution(record)
        if not is_about(record, self.request_id):
            return None
        match role:
            case TopicRole.TASKS:
                return _task(record)
            case TopicRole.RETRY:
                return _retry(record)
            case TopicRole.CONTROL:
                return _cancel(record)
            case TopicRole.PROGRESS:
                return _progress(record)
            case TopicRole.RESULTS:
                return _result(record)
            case TopicRole.DEAD_LETTERS:
                self._dead_letters.add((record.topic, RecordRef(record.partition, record.offset)))
                return _dead_letter(record)
            case _:
                assert_never(role)

    def _resolution(self, record: ConsumerRecord) -> TraceEvent | None:
        try:
            resolution = Resolution.model_validate_json(record.value or b"")
        except ValidationError:
            return None
        dead_letter = (record.topic, RecordRef(resolution.partition, resolution.offset))
        if resolution.request_id != self.request_id and dead_letter not in self._dead_letters:
            return None
        words = [str(resolution.action), f"{record.topic} {dead_letter[1]}"]
        if resolution.replayed_topic is not None:
            words.append(f"to {resolution.replayed_topic} {resolution.replayed_partition}/{resolution.replayed_offset}")
        if resolution.request_id != self.request_id:
            words.append(f"as {resolution.request_id}")
        words += [f"by {resolution.by}"] if resolution.by else []
        words += [f"({resolution.reason})"] if resolution.reason else []
        return _event_of(record, EventKind.RESOLVED, epoch=resolution.epoch or 0, detail=" ".join(words))


def is_about(record: ConsumerRecord, request_id: str) -> bool:
    """Whether the record's key, value or dead-letter header is this id.

    A search in the bytes sorts out most records; only those that contain the id are parsed.
    """
    wanted = request_id.encode()
    if record.key == wanted or _header(record, _DEAD_LETTER_ID) == request_id:
        return True
    return wanted in (record.value or b"") and peek_request_id(record.value) == request_id


def _task(record: ConsumerRecord) -> TraceEvent:
    replay_of = _header(record, header_names.REPLAY_OF)
    failed_before = _header(record, header_names.ERROR_CODE)
    if failed_before is not None:
        return _event_of(
            record,
            EventKind.BACK,
            attempt=_number(record, header_names.ATTEMPT, 1),
            detail=f"after {failed_before} in {_origin(record)}",
        )
    kind, detail = (EventKind.REPLAYED, f"of {replay_of}") if replay_of is not None else (EventKind.SENT, "")
    priority, deadline = _header(record, header_names.PRIORITY), _header(record, header_names.DEADLINE)
    details = [
        detail,
        f"priority {priority}" if priority else "",
        f"deadline {deadline}" if deadline else "",
    ]
    return _event_of(
        record, kind, attempt=_number(record, header_names.ATTEMPT, 1), detail=", ".join(filter(None, details))
    )


def _retry(record: ConsumerRecord) -> TraceEvent:
    error = _header(record, header_names.ERROR_CODE) or "an error"
    not_before = _header(record, header_names.NOT_BEFORE)
    detail = f"after {error} in {_origin(record)}" + (f", not before {not_before}" if not_before else "")
    return _event_of(record, EventKind.RETRY, attempt=_number(record, header_names.ATTEMPT, 1), detail=detail)


def _cancel(record: ConsumerRecord) -> TraceEvent | None:
    if record.value is None:
        return _event_of(record, EventKind.CANCEL, detail="withdrawn")
    try:
        command = CancelCommand.model_validate_json(record.value)
    except ValidationError:
        return None
    words = ["requested", f"by {command.requested_by}" if command.requested_by else "", command.reason or ""]
    return _event_of(record, EventKind.CANCEL, detail=" ".join(filter(None, words)))


def _progress(record: ConsumerRecord) -> TraceEvent | None:
    try:
        event = ProgressEvent.model_validate_json(record.value or b"")
    except ValidationError:
        return None
    if event.type == ProgressType.PREVIEW:
        return None
    known = event.type in set(ProgressType)
    kind = EventKind(str(event.type)) if known else EventKind.PROGRESS
    steps = f"{event.step} of {event.total_steps}" if event.step is not None else ""
    return _event_of(
        record,
        kind,
        at=event.at.astimezone(UTC),
        attempt=event.attempt,
        worker=event.worker,
        pool=event.pool,
        step=event.step,
        total_steps=event.total_steps,
        detail=steps if known else str(event.type),
    )


def _dead_letter(record: ConsumerRecord) -> TraceEvent:
    dead_letter = entry_of(record).dead_letter
    if dead_letter is None:
        return _event_of(record, EventKind.DEAD_LETTER, detail="written by no worker")
    origin = f"{dead_letter.origin_topic} {dead_letter.origin_partition}/{dead_letter.origin_offset}"
    crashes = f", {dead_letter.crashes} crashes" if dead_letter.crashes else ""
    return _event_of(
        record,
        EventKind.DEAD_LETTER,
        attempt=dead_letter.attempts,
        worker=dead_letter.worker,
        pool=dead_letter.pool,
        detail=f"{dead_letter.disposition}: {dead_letter.error_code}: {dead_letter.message} (of {origin}{crashes})",
    )


def _result(record: ConsumerRecord) -> TraceEvent | None:
    try:
        result = GenerationResult.model_validate_json(record.value or b"")
    except ValidationError:
        return None
    words: Sequence[str]
    if result.error is not None:
        words = [f"{result.error.code}: {result.error.message}"]
    else:
        marks = dict.fromkeys(mark for image in result.images for mark in image.marks)
        words = [
            result.image_url or "",
            f"marks {'+'.join(marks)}," if marks else "",
            ", ".join(f"{name} {value:g}" for name, value in result.timings.items()),
        ]
    detail = " ".join(filter(None, [str(result.status), *words]))
    return _event_of(
        record,
        EventKind.RESULT,
        attempt=result.attempt,
        worker=result.worker,
        pool=result.pool,
        status=result.status,
        detail=detail,
    )


def _event_of(record: ConsumerRecord, kind: EventKind, **known: Any) -> TraceEvent:
    fields = {
        "at": moment_at(record.timestamp),
        "epoch": _number(record, header_names.EPOCH, 0),
        **known,
    }
    return TraceEvent(kind=kind, topic=record.topic, partition=record.partition, offset=record.offset, **fields)


def _origin(record: ConsumerRecord) -> str:
    parts = [_header(record, name) or "?" for name in (header_names.ORIGIN_PARTITION, header_names.ORIGIN_OFFSET)]
    return f"{_header(record, header_names.ORIGIN_TOPIC) or '?'} {'/'.join(parts)}"


def _header(record: ConsumerRecord, wanted: str) -> str | None:
    """The last one counts, as for workers."""
    texts = [raw.decode(errors="replace") for name, raw in record.headers if name == wanted and raw is not None]
    return texts[-1] if texts else None


def _number(record: ConsumerRecord, wanted: str, default: int) -> int:
    text = _header(record, wanted) or ""
    return int(text) if text.isascii() and text.isdigit() and len(text) <= MAX_NUMBER_DIGITS else default
