"""The command line of `fluxpool trace`, and timelines of events."""

import uuid
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from fluxpool_cli.trace.events import EventKind, TraceEvent
from fluxpool_cli.trace.reading import CLOCKS_APART, Consumption, RecordState, Trace, reading_start
from fluxpool_cli.trace.view import TaskState, state_of, trace_rows
from fluxpool_contract.messages.derived import new_request_id
from fluxpool_contract.messages.result import ResultStatus
from kit.commands.command import fluxpool

NOON = datetime(2026, 4, 5, 12, tzinfo=UTC)
NOWHERE = {"FLUXPOOL_KAFKA_BOOTSTRAP_SERVERS": "127.0.0.1:1"}


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["a/b"], 2, "REQUEST_ID: must be 1 to 128 characters"),
        (["r-1", "--since", "soon"], 2, "--since: 'soon' must be how long ago"),
        (["r-1"], 3, "Kafka at 127.0.0.1:1 does not answer"),
    ],
)
async def test_a_wrong_command_line_or_a_dead_broker_is_reported(
    arguments: list[str], code: int, words: str, tmp_path: Path
) -> None:
    ended = await fluxpool("trace", *arguments, folder=tmp_path, environment=NOWHERE)
    assert (ended.code, ended.output) == (code, "")
    assert words in " ".join(ended.complaints.replace("│", " ").split())


def test_only_an_id_that_contains_its_time_limits_the_reading() -> None:
    made = uuid.UUID(int=int(NOON.timestamp() * 1000 + 250) << 80 | 7 << 76 | 2 << 62)
    assert reading_start(str(made)) == NOON + timedelta(milliseconds=250) - CLOCKS_APART
    now = reading_start(new_request_id())
    assert now is not None
    assert abs(datetime.now(UTC) - CLOCKS_APART - now) < timedelta(minutes=1)
    for other in (
        "req_20250405_flux_001",
        "6ba7b811-9dad-11d1-80b4-00c04fd430c8",
        "ffffffff-ffff-7fff-8fff-ffffffffffff",
    ):
        assert reading_start(other) is None


def event(kind: EventKind, second: int, **fields: object) -> TraceEvent:
    known = {"topic": "topic", "partition": 0, "offset": second, "at": NOON + timedelta(seconds=second), **fields}
    return TraceEvent(kind=kind, **known)  # type: ignore[arg-type]  # tests name the fields


def test_steps_share_a_row_until_another_attempt_or_event() -> None:
    def step(second: int, number: int, attempt: int = 1) -> TraceEvent:
        detail = f"{number} of 9"
        return event(EventKind.STEP, second, attempt=attempt, step=number, total_steps=9, detail=detail)

    rows = trace_rows([step(0, 1), step(1, 4), step(2, 9), event(EventKind.RETRYING, 3), step(4, 2, attempt=2)])

    assert [row[-1] for row in rows] == ["1-9 of 9", "", "2 of 9"]
    assert [row[1] for row in rows] == ["+0.000 s", "+3.000 s", "+4.000 s"]


def where(state: RecordState, topic: str = "tasks") -> Consumption:
    return Consumption(topic=topic, partition=0, offset=0, group="group", state=state)


SENT = event(EventKind.SENT, 0, topic="tasks")
FAILED = event(EventKind.RESULT, 2, status=ResultStatus.FAILED)
LETTER = event(EventKind.DEAD_LETTER, 1)
REPLAYED = event(EventKind.REPLAYED, 3, topic="tasks", epoch=1)
RETRY = event(EventKind.RETRY, 1, topic="retry")


@pytest.mark.parametrize(
    ("events", "consumption", "state"),
    [
        ([SENT], [where(RecordState.PENDING)], TaskState.QUEUED),
        ([SENT], [where(RecordState.IN_FLIGHT)], TaskState.RUNNING),
        ([SENT], [where(RecordState.UNKNOWN)], TaskState.UNKNOWN),
        ([SENT], [where(RecordState.DONE)], TaskState.UNKNOWN),
        (
            [SENT, RETRY],
            [where(RecordState.DONE), where(RecordState.PENDING, "retry")],
            TaskState.WAITING_FOR_RETRY,
        ),
        ([SENT, LETTER], [where(RecordState.DONE)], TaskState.DEAD_LETTERED),
        ([SENT, LETTER, FAILED], [where(RecordState.DONE)], ResultStatus.FAILED),
        ([SENT, LETTER, FAILED, REPLAYED], [where(RecordState.PENDING)], TaskState.QUEUED),
        ([SENT, LETTER, FAILED, REPLAYED], [where(RecordState.DONE)], TaskState.UNKNOWN),
    ],
)
def test_the_latest_replay_decides_the_status_of_a_task(
    events: list[TraceEvent], consumption: list[Consumption], state: ResultStatus | TaskState
) -> None:
    traced = Trace(request_id="r-1", events=tuple(events), consumption=tuple(consumption), missing_topics=())
    assert state_of(traced) is state
