"""No record ends a listing: any record of a topic becomes an entry, a row or an event."""

import io
import json
from typing import Any

import pytest
from aiokafka.structs import ConsumerRecord
from hypothesis import given
from hypothesis import strategies as st

from fluxpool_cli.dlq import view
from fluxpool_cli.output import OutputFormat, OutputOptions, Result, write_result
from fluxpool_cli.terminal import table_lines
from fluxpool_cli.trace.events import EventKind, TaskEvents, TopicRole
from fluxpool_cli.trace.reading import Trace
from fluxpool_cli.trace.view import COLUMNS, closing_lines, trace_document, trace_rows
from fluxpool_contract.header_names import ATTEMPT, EPOCH, FIRST_SEEN
from fluxpool_contract.messages.dead_letter import DEAD_LETTER_PREFIX
from fluxpool_transport.dlq.reading import DeadLetterFilter, entry_of

ID = "a-1"
FIELDS = [
    *("origin-topic", "origin-partition", "origin-offset", "origin-timestamp-ms", "disposition", "error-class"),
    *("error-code", "message", "attempts", "crashes", "failed-at", "request-id", "pool", "worker", "stack"),
]
LETTER = {
    "origin-topic": "tasks",
    "origin-partition": "0",
    "origin-offset": "1",
    "origin-timestamp-ms": "1",
    "disposition": "invalid",
    "error-class": "invalid",
    "error-code": "invalid-field",
    "message": "copied",
    "attempts": "1",
    "failed-at": "2026-04-05T10:00:00",
    "request-id": ID,
}
ODD = st.sampled_from(
    [
        "",
        "-1",
        "9" * 30,
        "1e400",
        "NaN",
        "0001-01-01T00:00:00+14:00",
        "9999-12-31T23:59:59-14:00",
        "\x1b[2J\n",
        "x" * 3000,
    ]
)
NAMES = st.sampled_from(
    [DEAD_LETTER_PREFIX + name for name in FIELDS] + [ATTEMPT, EPOCH, FIRST_SEEN, "ce_id"]
) | st.text(max_size=9)
HEADERS = st.lists(
    st.tuples(NAMES, st.none() | st.binary(max_size=20) | ODD.map(str.encode) | st.just(ID.encode())), max_size=8
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | ODD | st.just(ID),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
KNOWN = [
    "type",
    "status",
    "step",
    "total_steps",
    "at",
    "attempt",
    "error",
    "worker",
    "timings",
    "completed_at",
    "images",
]
VALUES = (
    st.none()
    | st.binary(max_size=30)
    | st.dictionaries(st.sampled_from(KNOWN), JSON, max_size=8).map(
        lambda fields: json.dumps({"request_id": ID, **fields}).encode()
    )
)
TIMES = st.integers(-(2**63), 2**63 - 1) | st.sampled_from([-1, 1, 1_770_000_000_000, 1_770_000_000_000_000])


def record(*, headers: Any, value: bytes | None, timestamp: int, offset: int = 0) -> Any:
    return ConsumerRecord(
        topic="topic",
        partition=0,
        offset=offset,
        timestamp=timestamp,
        timestamp_type=0,
        key=ID.encode(),
        value=value,
        checksum=None,
        serialized_key_size=3,
        serialized_value_size=0,
        headers=tuple(headers),
    )


class Stream(io.StringIO):
    encoding = "utf-8"


def shown(document: Any) -> str:
    output = Stream()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.stdout", output)
        write_result(Result(document=document), OutputOptions(output=OutputFormat.JSON))
    return output.getvalue()


@given(found=st.lists(st.tuples(HEADERS, VALUES, TIMES), min_size=1, max_size=4), whole=st.booleans())
def test_any_records_of_the_dead_letter_topic_are_listed_summed_up_and_shown(
    found: list[tuple[Any, bytes | None, int]], whole: bool
) -> None:
    whole_letter = [(DEAD_LETTER_PREFIX + name, text.encode()) for name, text in LETTER.items()] if whole else []
    records = [
        record(headers=[*whole_letter, *headers], value=value, timestamp=timestamp, offset=offset)
        for offset, (headers, value, timestamp) in enumerate(found)
    ]
    entries = DeadLetterFilter(include_resolved=True).select(map(entry_of, records))
    assert len(entries) == len(records)
    listed, summed_up = map(view.list_row, entries), [cause.row() for cause in view.summarize(entries)]
    for columns, rows in ((view.LIST_COLUMNS, list(listed)), (view.SUMMARY_COLUMNS, summed_up)):
        assert len(table_lines(columns, rows, width=None)[0]) == len(rows) + 1
    assert json.loads(shown([view.entry_document(entry) for entry in entries]))
    assert json.loads(shown([summary.document() for summary in view.summarize(entries)]))
    for entry in entries:
        document = view.record_document(entry, records[entry.ref.offset], command="replay")
        assert list(view.record_parts(document))


@given(role=st.sampled_from(TopicRole), found=st.lists(st.tuples(HEADERS, VALUES, TIMES), min_size=1, max_size=4))
def test_any_records_about_a_task_make_a_timeline(role: TopicRole, found: list[tuple[Any, bytes | None, int]]) -> None:
    events = TaskEvents(ID)
    for offset, (headers, value, timestamp) in enumerate(found):
        events.add(record(headers=headers, value=value, timestamp=timestamp, offset=offset), role)
    trace = Trace(request_id=ID, events=events.in_order(), consumption=(), missing_topics=())
    if trace.events:
        assert len(table_lines(COLUMNS, trace_rows(trace.events), width=None)[0]) > 1
        assert list(closing_lines(trace))
    assert json.loads(shown(trace_document(trace)))["request_id"] == ID


def test_a_record_time_in_microseconds_is_shown_as_the_nearest_date() -> None:
    events = TaskEvents(ID)
    events.add(record(headers=[], value=b"{}", timestamp=1_770_000_000_000_000), TopicRole.TASKS)
    assert [(event.kind, event.at.year) for event in events.found] == [(EventKind.SENT, 9999)]


def test_a_dead_letter_whose_time_has_no_zone_is_listed() -> None:
    with_zone = {**LETTER, "failed-at": "2026-04-05T11:00:00Z", "origin-offset": "2"}
    records = [
        record(
            headers=[(DEAD_LETTER_PREFIX + name, text.encode()) for name, text in dead_letter.items()],
            value=b"{}",
            timestamp=1,
        )
        for dead_letter in (with_zone, LETTER)
    ]
    entries = DeadLetterFilter().select(map(entry_of, records))
    assert [entry.failed_at.hour for entry in entries] == [10, 11]
