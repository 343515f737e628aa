"""How dead letters are shown: tables for people, documents for machines. Pure: values in, rows and documents out."""

import json
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from aiokafka.structs import ConsumerRecord

from fluxpool_cli.output import Block
from fluxpool_cli.terminal import utc_text
from fluxpool_client import StoredDeadLetter
from fluxpool_contract.json_body import json_line
from fluxpool_contract.messages import format_time
from fluxpool_contract.problems import FieldProblem
from fluxpool_transport.dlq import (
    DeadLetterEntry,
    PreparedReplay,
    RefusedReplay,
    SentReplay,
    contents_of,
    csv_lines,
    csv_original,
    csv_row,
)

_MESSAGE_CHARACTERS = 100
LIST_COLUMNS = ("RECORD", "FAILED (UTC)", "REQUEST ID", "CLASS", "CODE", "POOL", "STATE", "MESSAGE")
SUMMARY_COLUMNS = ("CLASS", "CODE", "POOL", "OPEN", "RESOLVED", "FIRST (UTC)", "LAST (UTC)", "EXAMPLE")
LIST_OPTIONAL = ("POOL", "CLASS", "STATE", "FAILED (UTC)")
"""Columns that a narrow terminal omits, the first one first."""
SUMMARY_OPTIONAL = ("FIRST (UTC)", "POOL", "RESOLVED", "CLASS")


@dataclass(frozen=True, slots=True, kw_only=True)
class CauseSummary:
    """Dead letters of one class, code and pool."""

    error_class: str
    error_code: str
    pool: str | None
    entries: tuple[DeadLetterEntry, ...]
    """Oldest first, never empty."""

    @property
    def open_count(self) -> int:
        """How many were neither replayed nor discarded."""
        return sum(entry.is_open for entry in self.entries)

    def document(self, *, time_text: Callable[[datetime], str] = format_time) -> dict[str, Any]:
        """For machines."""
        return {
            "error_class": self.error_class,
            "error_code": self.error_code,
            "pool": self.pool,
            "open": self.open_count,
            "resolved": len(self.entries) - self.open_count,
            "first_failed_at": time_text(self.entries[0].failed_at),
            "last_failed_at": time_text(self.entries[-1].failed_at),
            "example": str(self.entries[-1].ref),
        }

    def row(self) -> tuple[str, ...]:
        """For people: the same, in the order of `SUMMARY_COLUMNS`."""
        return tuple("-" if value is None else str(value) for value in self.document(time_text=utc_text).values())


def summarize(entries: Iterable[DeadLetterEntry]) -> tuple[CauseSummary, ...]:
    """Entries (oldest first) by class, code and pool; the most open ones first."""
    causes: dict[tuple[str, str, str | None], list[DeadLetterEntry]] = {}
    for entry in entries:
        dead_letter = entry.dead_letter
        cause = (
            (entry.error_class, "-", None)
            if dead_letter is None
            else (entry.error_class, str(dead_letter.error_code), dead_letter.pool)
        )
        causes.setdefault(cause, []).append(entry)
    summaries = [
        CauseSummary(error_class=kind, error_code=code, pool=pool, entries=tuple(found))
        for (kind, code, pool), found in causes.items()
    ]
    return tuple(sorted(summaries, key=lambda item: (-item.open_count, item.error_class, item.error_code)))


def list_row(entry: DeadLetterEntry) -> tuple[str, ...]:
    """An entry for people."""
    dead_letter = entry.dead_letter
    message = _one_line(dead_letter.message if dead_letter is not None else f"not written by a worker: {entry.problem}")
    return (
        str(entry.ref),
        utc_text(entry.failed_at),
        entry.request_id or "-",
        entry.error_class,
        str(dead_letter.error_code) if dead_letter is not None else "-",
        (dead_letter.pool if dead_letter is not None else None) or "-",
        state_of(entry),
        message,
    )


def state_of(entry: DeadLetterEntry) -> str:
    """`open`, or what was done."""
    return "open" if entry.resolution is None else str(entry.resolution.action)


def entry_document(entry: DeadLetterEntry) -> dict[str, Any]:
    """An entry for machines."""
    dead_letter = entry.dead_letter
    return {
        "record": str(entry.ref),
        "state": state_of(entry),
        "request_id": entry.request_id,
        "failed_at": format_time(entry.failed_at),
        "epoch": entry.epoch,
        "value_bytes": entry.value_bytes,
        "copies": [str(place) for place in entry.copies],
        "dead_letter": None if dead_letter is None else dead_letter.model_dump(mode="json", exclude_none=True),
        "problem": entry.problem or None,
        "resolution": None if entry.resolution is None else entry.resolution.model_dump(mode="json", exclude_none=True),
    }


def export_line(
    entry: DeadLetterEntry, form: str, *, with_record: bool = False, original: Mapping[str, Any] | None = None
) -> bytes:
    """A line of an export, as a gateway writes it; whose a dead letter is, is known to gateways alone.

    With its record, `original` is what that has, or None when Kafka has deleted it.
    """
    if form == "csv":
        row = csv_row(entry, state=state_of(entry), tenant=None)
        return csv_lines([[*row, *csv_original(original)] if with_record else row])
    document = StoredDeadLetter(
        id=str(entry.ref),
        state=state_of(entry),
        tenant=None,
        request_id=entry.request_id,
        failed_at=entry.failed_at,
        stored_at=entry.stored_at,
        epoch=entry.epoch,
        value_bytes=entry.value_bytes,
        copies=tuple(map(str, entry.copies)),
        dead_letter=entry.dead_letter,
        problem=entry.problem or None,
        resolution=entry.resolution,
    ).model_dump(mode="json")
    if with_record:
        document["record"] = original
    return json_line(json.dumps(document, ensure_ascii=False, separators=(",", ":")))


def record_document(entry: DeadLetterEntry, record: ConsumerRecord, *, command: str) -> dict[str, Any]:
    """One entry with everything that lies in Kafka about it."""
    contents = contents_of(entry, record)
    dead_letter = contents.dead_letter
    return {
        **entry_document(entry),
        "dead_letter": None if dead_letter is None else dead_letter.model_dump(mode="json", exclude_none=True),
        "key": contents.key,
        "headers": [[name, text] for name, text in contents.headers],
        "value": contents.value,
        "value_hex": contents.value_hex,
        "replay_command": command,
    }


def record_parts(document: dict[str, Any]) -> Iterable[str | Block]:
    """The same for people: lines, and what has lines of its own."""
    fields: dict[str, Any] = dict(document["dead_letter"] or {})
    stack = fields.pop("stack", None)
    for name in ("record", "state", "epoch", "copies", "problem"):
        if document[name]:
            value = document[name]
            yield f"{name:<22}{', '.join(value) if isinstance(value, list) else value}"
    yield from (f"{name:<22}{value}" for name, value in fields.items())
    yield f"{'key':<22}{document['key'] if document['key'] is not None else '(none)'}"
    yield from (f"header {name}: {value}" for name, value in document["headers"])
    if document["resolution"] is not None:
        yield f"{'resolution':<22}{json.dumps(document['resolution'], ensure_ascii=False)}"
    yield ""
    yield f"value, {document['value_bytes']} bytes" + (" (hex)" if document["value"] is None else "")
    yield Block(document["value"] if document["value"] is not None else document["value_hex"])
    if stack:
        yield ""
        yield "stack"
        yield Block(stack)
    yield ""
    yield f"replay it with: {document['replay_command']}"


def replay_command(entry: DeadLetterEntry, options: Sequence[str]) -> str:
    """The command that sends this dead letter's task again."""
    return shlex.join(["fluxpool", "dlq", "replay", str(entry.ref), *options, "--yes"])


def outcome_document(outcome: PreparedReplay | RefusedReplay | SentReplay) -> dict[str, Any]:
    """What a replay did or would do with one dead letter, for machines."""
    match outcome:
        case RefusedReplay():
            return {
                "record": str(outcome.entry.ref),
                "request_id": outcome.entry.request_id,
                "problems": [{"field": item.field, "message": item.message} for item in outcome.problems],
            }
        case PreparedReplay():
            return {
                "record": str(outcome.entry.ref),
                "request_id": outcome.request_id,
                "epoch": outcome.epoch,
                "topic": outcome.topic,
            }
        case SentReplay():
            note = outcome.resolution
            sent_to = {"partition": note.replayed_partition, "offset": note.replayed_offset}
            return outcome_document(outcome.prepared) | sent_to


def refusal_line(refused: RefusedReplay) -> str:
    """Why a task is not sent again, for people."""
    return refusal_text(outcome_document(refused))


def refusal_text(document: dict[str, Any]) -> str:
    """The same of the document of a refusal."""
    reasons = "; ".join(str(FieldProblem(item["field"], item["message"])) for item in document["problems"])
    return f"not sent: {document['record']} {document['request_id'] or '-'}: {reasons}"


def _one_line(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _MESSAGE_CHARACTERS else line[: _MESSAGE_CHARACTERS - 1] + "…"
