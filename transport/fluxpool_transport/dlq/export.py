"""Dead letters as lines of CSV, and what both forms of an export have of an original record. Pure."""

import base64
import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from aiokafka.structs import ConsumerRecord

from fluxpool_contract.messages import DEAD_LETTER_PREFIX, format_time
from fluxpool_transport.dlq.reading import DeadLetterEntry

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
RECORD_COLUMNS: Final = ("key", "key_base64", "headers", "value", "value_base64")
"""Of the original record, where they are asked for; the headers are JSON."""
_OF_FAILURE: Final = (
    "error_code", "disposition", "message", "origin_topic", "pool", "model", "worker", "attempts", "crashes",
)  # fmt: skip
_FORMULA: Final = frozenset("=+-@\t\r\n\uff1d\uff0b\uff0d\uff20")
"""What spreadsheets take for the begin of a formula (OWASP, CSV injection): the last four are fullwidth `=+-@`."""


def original_of(record: ConsumerRecord) -> dict[str, Any]:
    """Key, headers and value of the original: text where bytes are UTF-8, else base64; null where there are none."""
    return {
        **_field("key", record.key),
        "headers": [
            {"name": name, **_field("value", raw)}
            for name, raw in record.headers
            if not name.startswith(DEAD_LETTER_PREFIX)
        ],
        **_field("value", record.value),
    }


def csv_lines(rows: Iterable[Sequence[object]]) -> bytes:
    """Rows with no cell that a spreadsheet would execute or a terminal obey."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\r\n").writerows([[safe_cell(value) for value in row] for row in rows])
    return text.getvalue().encode(errors="replace")


def csv_columns(*, with_records: bool) -> Sequence[str]:
    """The names of the columns."""
    return (*CSV_COLUMNS, *RECORD_COLUMNS) if with_records else CSV_COLUMNS


def csv_row(entry: DeadLetterEntry, *, state: str, tenant: str | None) -> Sequence[object]:
    """What `CSV_COLUMNS` have of a dead letter."""
    dead_letter, resolution = entry.dead_letter, entry.resolution
    return (
        entry.ref,
        state,
        tenant,
        entry.request_id,
        format_time(entry.failed_at),
        entry.error_class,
        *(None if dead_letter is None else getattr(dead_letter, name) for name in _OF_FAILURE),
        entry.epoch,
        entry.value_bytes,
        entry.problem,
        None if resolution is None else format_time(resolution.at),
        None if resolution is None else resolution.by,
        None if resolution is None else resolution.reason,
    )


def csv_original(original: Mapping[str, Any] | None) -> Sequence[object]:
    """What `RECORD_COLUMNS` have; nothing of a record that Kafka has deleted meanwhile."""
    if original is None:
        return (None,) * len(RECORD_COLUMNS)
    cells = {**original, "headers": json.dumps(original["headers"], ensure_ascii=False)}
    return [cells[name] for name in RECORD_COLUMNS]


def safe_cell(value: object) -> str:
    """The text of a cell; control characters are escaped, and what looks like a formula follows an apostrophe."""
    text = "" if value is None else str(value)
    shown = "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode("ascii")
        for character in text
    )
    # Some programs leave out the blanks before it.
    begin = text.lstrip(" ")[:1]
    return f"'{shown}" if begin in _FORMULA else shown


def _field(name: str, raw: bytes | None) -> dict[str, str | None]:
    """Bytes as text, or as base64 when they are none; no character of the text is changed."""
    try:
        return {name: None if raw is None else raw.decode(), f"{name}_base64": None}
    except UnicodeDecodeError:
        return {name: None, f"{name}_base64": base64.b64encode(raw or b"").decode()}
