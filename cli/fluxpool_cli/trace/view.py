"""How a trace is shown: the task's state, a table for people, a document for machines. Pure."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from enum import StrEnum
from typing import Any

from fluxpool_cli.terminal import utc_text
from fluxpool_cli.trace.events import EventKind, TraceEvent
from fluxpool_cli.trace.reading import Consumption, RecordState, Trace
from fluxpool_contract.messages import ResultStatus

COLUMNS = ("TIME (UTC)", "AFTER", "EVENT", "RECORD", "ATTEMPT", "WORKER", "DETAIL")
OPTIONAL_COLUMNS = ("WORKER", "ATTEMPT", "AFTER")
"""Columns that a narrow terminal omits, the first one first."""


class TaskState(StrEnum):
    """The state of a task without a result."""

    RUNNING = "running"
    QUEUED = "queued"
    WAITING_FOR_RETRY = "waiting-for-retry"
    DEAD_LETTERED = "dead-lettered"
    UNKNOWN = "unknown"


def state_of(trace: Trace) -> ResultStatus | TaskState:
    """The state of the task: the result of its latest replay, else what consumer groups have done with its records."""
    epoch = max((event.epoch for event in trace.events), default=0)
    ends = [event.status for event in trace.events if event.status is not None and event.epoch == epoch]
    if ends:
        return ends[-1]
    states = {(item.state, item.topic) for item in trace.consumption}
    if any(state is RecordState.IN_FLIGHT for state, _ in states):
        return TaskState.RUNNING
    retry_topics = {event.topic for event in trace.events if event.kind is EventKind.RETRY}
    waiting = {topic for state, topic in states if state is RecordState.PENDING}
    if waiting - retry_topics:
        return TaskState.QUEUED
    if waiting:
        return TaskState.WAITING_FOR_RETRY
    if any(event.kind is EventKind.DEAD_LETTER and event.epoch == epoch for event in trace.events):
        return TaskState.DEAD_LETTERED
    return TaskState.UNKNOWN


def trace_document(trace: Trace) -> dict[str, Any]:
    """The life of a task for machines."""
    return {
        "request_id": trace.request_id,
        "state": str(state_of(trace)),
        "events": [event.document() for event in trace.events],
        "records": [item.document() for item in trace.consumption],
        "missing_topics": list(trace.missing_topics),
    }


def trace_rows(events: Sequence[TraceEvent]) -> list[tuple[str, ...]]:
    """One row for each event (by time); steps of one attempt that follow each other share a row."""
    return [_row(event, events[0]) for event in _merge_steps(events)]


def closing_lines(trace: Trace) -> Iterable[str]:
    """The state of the task, in sentences."""
    state = state_of(trace)
    seconds = (trace.events[-1].at - trace.events[0].at).total_seconds()
    workers = sorted({event.worker for event in trace.events if event.worker is not None})
    by = f", by {', '.join(workers)}" if workers else ""
    yield f"{trace.request_id}: {state}; {_count(len(trace.events), 'record')} over {seconds:.3f} s{by}"
    if state is TaskState.UNKNOWN:
        yield "there is no result: it may have expired with the topic's retention, or another group serves the topic"
    yield from (_where(item) for item in trace.consumption if item.state is not RecordState.DONE)


def _merge_steps(events: Sequence[TraceEvent]) -> list[TraceEvent]:
    merged: list[TraceEvent] = []
    for event in events:
        last = merged[-1] if merged else None
        if last is not None and _is_next_step(last, event):
            first = last.detail.partition(" ")[0].partition("-")[0]
            merged[-1] = replace(last, offset=event.offset, detail=f"{first}-{event.step} of {event.total_steps}")
        else:
            merged.append(event)
    return merged


def _is_next_step(last: TraceEvent, event: TraceEvent) -> bool:
    def doer(item: TraceEvent) -> tuple[object, ...]:
        return (item.kind, item.partition, item.epoch, item.attempt, item.worker)

    return event.kind is EventKind.STEP and doer(last) == doer(event)


def _row(event: TraceEvent, first: TraceEvent) -> tuple[str, ...]:
    replay = f"replay {event.epoch}" if event.epoch else ""
    return (
        utc_text(event.at),
        f"{(event.at - first.at).total_seconds():+.3f} s",
        str(event.kind),
        f"{event.topic} {event.partition}/{event.offset}",
        str(event.attempt) if event.attempt is not None else "-",
        event.worker or "-",
        ", ".join(filter(None, [replay, event.detail])),
    )


def _where(item: Consumption) -> str:
    record = f"{item.topic} {item.partition}/{item.offset}"
    match item.state:
        case RecordState.IN_FLIGHT:
            since = f" since {utc_text(item.started_at)}" if item.started_at is not None else ""
            crashes = f", after {_count(item.crashes, 'crash', 'crashes')}" if item.crashes else ""
            return f"{record} is in flight on {item.worker}{since}{crashes}"
        case RecordState.PENDING:
            return f"{record} waits for {item.group} behind {_count(item.ahead_records or 0, 'record')}"
        case _:
            return f"{record}: what {item.group} did with it is {item.state} ({item.problem})"


def _count(number: int, one: str, many: str = "") -> str:
    return f"{number} {one if number == 1 else many or one + 's'}"
