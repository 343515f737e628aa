"""Dead letters, and what became of those of a job, as lines of JSON or CSV. Pure."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from fluxpool_contract.json_body import json_line
from fluxpool_gateway.dead_letters.rows import StoredDeadLetter
from fluxpool_gateway.dead_letters.views import DeadLetterView, ExportedDeadLetterView, ReplayItemView
from fluxpool_transport.dlq import csv_columns, csv_lines, csv_original, csv_row

OUTCOME_COLUMNS: Final = ("number", "id", "outcome", "request_id", "topic", "partition", "offset", "reason")


def json_lines(page: Iterable[StoredDeadLetter]) -> bytes:
    """One object a line, as in a list."""
    return b"".join(json_line(DeadLetterView.of(stored).model_dump_json()) for stored in page)


def json_with_original(stored: StoredDeadLetter, original: Mapping[str, Any] | None) -> bytes:
    """The same with what the record of one has."""
    return json_line(ExportedDeadLetterView.of(stored, record=original).model_dump_json())


def csv_header(*, with_records: bool = False) -> bytes:
    """The names of the columns."""
    return csv_lines([csv_columns(with_records=with_records)])


def csv_rows(page: Iterable[StoredDeadLetter]) -> bytes:
    """One row each."""
    return csv_lines(map(_cells, page))


def csv_with_original(stored: StoredDeadLetter, original: Mapping[str, Any] | None) -> bytes:
    """The row of one, with what its record has."""
    return csv_lines([[*_cells(stored), *csv_original(original)]])


def outcome_json_lines(items: Iterable[ReplayItemView]) -> bytes:
    """What became of dead letters, one object a line."""
    return b"".join(json_line(item.model_dump_json()) for item in items)


def outcome_csv_header() -> bytes:
    """The names of the columns."""
    return csv_lines([OUTCOME_COLUMNS])


def outcome_csv_lines(items: Iterable[ReplayItemView]) -> bytes:
    """The same as rows."""
    return csv_lines(map(_outcome_cells, items))


def outcome_reason(item: ReplayItemView) -> str:
    """Why a task was not sent again; empty for one that was."""
    detail = item.detail or {}
    problems = [f"{problem['field']}: {problem['message']}" for problem in detail.get("problems", ())]
    return "; ".join(problems) or str(detail.get("reason", ""))


def _outcome_cells(item: ReplayItemView) -> Sequence[object]:
    detail = item.detail or {}
    sent = (detail.get(name) for name in ("request_id", "topic", "partition", "offset"))
    return (item.number, item.id, item.outcome, *sent, outcome_reason(item))


def _cells(stored: StoredDeadLetter) -> Sequence[object]:
    return csv_row(stored.entry, state=stored.state, tenant=stored.tenant)
