"""Dead letters as lines of JSON or CSV. Pure."""

import csv
import io
from collections.abc import Iterable, Sequence
from typing import Final

from fluxpool_contract.messages import format_time
from fluxpool_gateway.dead_letters.rows import StoredDeadLetter
from fluxpool_gateway.dead_letters.views import DeadLetterView, ReplayItemView

CSV_COLUMNS: Final = (
    "id",
    "state",
    "tenant",
    "request_id",
    "failed_at",
    "error_class",
    "error_code",
    "disposition",
    "message",
    "topic",
    "pool",
    "model",
    "worker",
    "attempts",
    "crashes",
    "epoch",
    "value_bytes",
    "problem",
    "resolved_at",
    "resolved_by",
    "reason",
)
OUTCOME_COLUMNS: Final = ("number", "id", "outcome", "request_id", "topic", "partition", "offset", "reason")
_FORMULA: Final = frozenset("=+-@\t\r")
"""What spreadsheets take for the begin of a formula (OWASP, CSV injection)."""


def json_lines(page: Iterable[StoredDeadLetter]) -> bytes:
    """One object a line, as in a list."""
    return b"".join(DeadLetterView.of(stored).model_dump_json().encode() + b"\n" for stored in page)


def csv_header() -> bytes:
    """The names of the columns."""
    return _csv([CSV_COLUMNS])


def csv_lines(page: Iterable[StoredDeadLetter]) -> bytes:
    """One row each, with no cell that a spreadsheet would execute or a terminal obey."""
    return _csv([[safe_cell(value) for value in _cells(stored)] for stored in page])


def outcome_json_lines(items: Iterable[ReplayItemView]) -> bytes:
    """What became of dead letters, one object a line."""
    return b"".join(item.model_dump_json().encode() + b"\n" for item in items)


def outcome_csv_header() -> bytes:
    """The names of the columns."""
    return _csv([OUTCOME_COLUMNS])


def outcome_csv_lines(items: Iterable[ReplayItemView]) -> bytes:
    """The same as rows."""
    return _csv([[safe_cell(value) for value in _outcome_cells(item)] for item in items])


def outcome_reason(item: ReplayItemView) -> str:
    """Why a task was not sent again; empty for one that was."""
    detail = item.detail or {}
    problems = [f"{problem['field']}: {problem['message']}" for problem in detail.get("problems", ())]
    return "; ".join(problems) or str(detail.get("reason", ""))


def _outcome_cells(item: ReplayItemView) -> Sequence[object]:
    detail = item.detail or {}
    sent = (detail.get(name) for name in ("request_id", "topic", "partition", "offset"))
    return (item.number, item.id, item.outcome, *sent, outcome_reason(item))


def safe_cell(value: object) -> str:
    """The text of a cell; control characters are escaped, and what looks like a formula follows an apostrophe."""
    text = "" if value is None else str(value)
    shown = "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode("ascii")
        for character in text
    )
    return f"'{shown}" if text[:1] in _FORMULA else shown


def _cells(stored: StoredDeadLetter) -> Sequence[object]:
    entry = stored.entry
    dead_letter, resolution = entry.dead_letter, entry.resolution
    of_failure: Sequence[object] = (None,) * 9
    if dead_letter is not None:
        of_failure = (
            dead_letter.error_code,
            dead_letter.disposition,
            dead_letter.message,
            dead_letter.origin_topic,
            dead_letter.pool,
            dead_letter.model,
            dead_letter.worker,
            dead_letter.attempts,
            dead_letter.crashes,
        )
    return (
        entry.ref,
        stored.state,
        stored.tenant,
        entry.request_id,
        format_time(entry.failed_at),
        entry.error_class,
        *of_failure,
        entry.epoch,
        entry.value_bytes,
        entry.problem,
        None if resolution is None else format_time(resolution.at),
        None if resolution is None else resolution.by,
        None if resolution is None else resolution.reason,
    )


def _csv(rows: Iterable[Sequence[str]]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\r\n").writerows(rows)
    return text.getvalue().encode(errors="replace")
