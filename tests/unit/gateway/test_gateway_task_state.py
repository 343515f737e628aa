"""How records in any order determine the state of a task."""

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fluxpool_contract.header_names import ATTEMPT, CE_SOURCE, EPOCH, FIRST_SEEN, TENANT
from fluxpool_contract.kafka.topics import TopicNames
from fluxpool_contract.messages.progress import ProgressEvent, ProgressType
from fluxpool_contract.messages.result import GenerationResult, ResultStatus, TaskError
from fluxpool_contract.messages.task import REQUEST_ID, GenerationTask
from fluxpool_contract.problems import ErrorClass, ErrorCode
from fluxpool_contract.tenants import TenantTrust
from fluxpool_gateway.feedback.records import FeedbackSeen
from fluxpool_gateway.projection.projected_records import (
    MAX_EVENT_BYTES,
    UnreadableRecordError,
    projected_topics,
    read_change,
)
from fluxpool_gateway.store.task_state import (
    Change,
    ProgressSeen,
    ResultSeen,
    TaskSeen,
    TaskState,
    TaskStatus,
    fold,
    version_of,
)
from fluxpool_gateway.tasks.view import TaskView

TOPICS = TopicNames()
ENDS = [status for status in TaskStatus if status.terminal]


def fold_all(changes: Sequence[Change]) -> TaskState:
    state: TaskState | None = None
    for change in changes:
        state = fold(state, change)
    assert state is not None
    return state


def seen(*, created_at_ms: int = 1000, epoch: int = 0) -> TaskSeen:
    return TaskSeen(
        request_id="r",
        body='{"prompt":"a"}',
        priority="vip",
        tenant="default",
        created_at_ms=created_at_ms,
        epoch=epoch,
    )


def progress(*, attempt: int = 1, step: int | None = None, at_ms: int = 2000, epoch: int = 0) -> ProgressSeen:
    return ProgressSeen(
        request_id="r",
        tenant="default",
        status=TaskStatus.RUNNING,
        at_ms=at_ms,
        started=step is None,
        attempt=attempt,
        step=step,
        total_steps=None if step is None else 28,
        epoch=epoch,
    )


def result(status: TaskStatus = TaskStatus.SUCCEEDED, *, attempt: int = 1, epoch: int = 0) -> ResultSeen:
    return ResultSeen(
        request_id="r",
        tenant="default",
        status=status,
        body=f'"{status}{attempt}"',
        completed_at_ms=9000,
        attempt=attempt,
        epoch=epoch,
    )


def test_a_task_is_queued_then_running_then_ended() -> None:
    changes: list[Change] = [seen(), progress(), progress(step=5), result()]
    states = [fold_all(changes[:count]) for count in range(1, 5)]
    assert [state.status for state in states] == ["queued", "running", "running", "succeeded"]
    assert [state.step for state in states] == [None, None, 5, None]
    assert states[-1].started_at_ms == 2000
    assert states[-1].completed_at_ms == 9000


def test_a_result_that_arrives_first_is_filled_in_by_its_task() -> None:
    stub = fold(None, result())
    assert (stub.status, stub.body, stub.priority) == (TaskStatus.SUCCEEDED, None, None)
    filled = fold(stub, seen())
    assert (filled.status, filled.body, filled.priority) == (TaskStatus.SUCCEEDED, '{"prompt":"a"}', "vip")


@pytest.mark.parametrize("status", ENDS)
def test_progress_of_any_attempt_does_not_change_an_ended_task(status: TaskStatus) -> None:
    ended = fold_all([seen(), result(status)])
    assert fold(ended, progress(attempt=3, step=7)).status is status


def test_the_first_result_of_an_epoch_is_kept() -> None:
    assert fold_all([seen(), result(TaskStatus.FAILED), result(TaskStatus.SUCCEEDED)]).status is TaskStatus.FAILED


def test_a_replay_resets_the_state_of_a_task() -> None:
    state = fold_all([seen(), result(TaskStatus.FAILED), seen(epoch=1)])
    assert (state.status, state.result, state.completed_at_ms) == (TaskStatus.QUEUED, None, None)
    assert fold(state, result(epoch=1)).status is TaskStatus.SUCCEEDED


def test_a_record_without_new_information_does_not_change_the_state() -> None:
    state = fold_all([seen(), progress(step=5)])
    assert fold(state, seen()) is state
    assert fold(state, progress(step=5)) is state
    assert fold(state, progress(step=4)) is state


@given(
    st.lists(
        st.one_of(
            st.builds(seen, created_at_ms=st.integers(0, 5), epoch=st.integers(0, 1)),
            st.builds(
                progress, attempt=st.integers(1, 3), step=st.none() | st.integers(0, 28), at_ms=st.integers(0, 9)
            ),
            st.builds(result, st.just(TaskStatus.FAILED), attempt=st.integers(1, 3), epoch=st.integers(0, 1)),
        ),
        min_size=1,
        max_size=8,
    ),
    st.randoms(use_true_random=False),
)
def test_the_order_of_records_never_matters(changes: list[Change], shuffler: Random) -> None:
    shuffled = list(changes)
    shuffler.shuffle(shuffled)
    assert fold_all(shuffled) == fold_all(changes)


@given(st.lists(st.sampled_from([seen(), progress(), progress(step=3), result()]), min_size=1, max_size=6))
def test_repeated_records_change_nothing(changes: list[Change]) -> None:
    state = fold_all(changes)
    for change in changes:
        assert fold(state, change) is state


def read(topic: str, value: bytes | None) -> Change | None:
    change = read_change(TOPICS, topic=topic, value=value, headers=[], timestamp_ms=5000, trust=TenantTrust())
    assert not isinstance(change, FeedbackSeen)
    return change


def a_result(request_id: str | None, *, code: ErrorCode | None = None) -> bytes:
    error = None if code is None else TaskError(code=code, error_class=ErrorClass.INVALID, message="no")
    status = ResultStatus.SUCCESS if error is None else ResultStatus.FAILED
    return GenerationResult(request_id=request_id, image_url=None, status=status, error=error).to_json()


@pytest.mark.parametrize(
    ("topic", "value"),
    [
        (TOPICS.tasks, None),
        (TOPICS.tasks, b"not json"),
        (TOPICS.tasks, b'{"request_id":"r","prompt":"a","width":7}'),
        (TOPICS.tasks, b"\xff"),
        (TOPICS.results, None),
        (TOPICS.results, a_result(None)),
        (TOPICS.results, a_result("r", code=ErrorCode.ID_CONFLICT)),
    ],
)
def test_records_about_no_task_change_nothing(topic: str, value: bytes | None) -> None:
    assert read(topic, value) is None


def an_event(**fields: object) -> bytes:
    return json.dumps({"request_id": "r", "type": "step", "at": "2026-04-05T10:00:00Z", **fields}).encode()


@pytest.mark.parametrize(
    ("topic", "value", "reason"),
    [
        (TOPICS.results, b"{}", "request_id: is required"),
        (TOPICS.results, b"\xff", "not valid JSON"),
        (TOPICS.results, b'{"request_id":"%s","image_url":null,"status":"failed"}' % (b"r" * 129), "request_id: "),
        (TOPICS.results, b'{"request_id":"a b","image_url":null,"status":"failed"}', "request_id: "),
        (TOPICS.results, a_result("r") + b" " * MAX_EVENT_BYTES, "at most 1048576 are projected"),
        (TOPICS.progress, b"[]", "must be a JSON object"),
        (TOPICS.progress, an_event(request_id="r" * 300_000), "request_id: "),
        (TOPICS.progress, an_event(total_steps=10**20), "total_steps"),
        (TOPICS.progress, an_event(total_steps=2**31), "total_steps"),
        (TOPICS.progress, an_event(step=10**30), "step"),
        (TOPICS.progress, an_event(attempt=2**63), "attempt"),
        (TOPICS.progress, an_event(at="yesterday"), "at: "),
    ],
)
def test_a_result_or_progress_event_that_cannot_be_read_is_refused_with_the_reason(
    topic: str, value: bytes, reason: str
) -> None:
    with pytest.raises(UnreadableRecordError) as refused:
        read(topic, value)
    assert reason in str(refused.value)
    assert len(str(refused.value)) < 5000


@pytest.mark.parametrize("at", ["0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00", "0001-01-01T00:00:00"])
def test_times_at_the_edge_of_the_calendar_are_dates_in_utc(at: str) -> None:
    change = read(TOPICS.progress, an_event(at=at))
    assert isinstance(change, ProgressSeen)
    assert datetime.fromtimestamp(change.at_ms / 1000, UTC).year in {1970, 9999}


@pytest.mark.parametrize("timestamp_ms", [-(2**63), -1, 2**63 - 1])
def test_a_result_without_a_time_takes_the_nearest_date_to_its_records_time(timestamp_ms: int) -> None:
    change = read_change(
        TOPICS, topic=TOPICS.results, value=a_result("r"), headers=[], timestamp_ms=timestamp_ms, trust=TenantTrust()
    )
    assert isinstance(change, ResultSeen)
    assert 1 <= datetime.fromtimestamp(change.completed_at_ms / 1000, UTC).year <= 9999


_TEXTS = st.text(max_size=8) | st.sampled_from(["r", "\x00", "a/b", "step", "success", "2026-04-05T10:00:00Z"])
_SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | _TEXTS
_ODD_JSON = st.recursive(
    _SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_TEXTS, inner, max_size=3)
)
_FIELD_NAMES = st.sampled_from(
    [*ProgressEvent.model_fields, *GenerationResult.model_fields, *GenerationTask.model_fields, "unknown"]
)
_VALUES = (
    st.none()
    | st.binary(max_size=40)
    | st.dictionaries(_FIELD_NAMES, _ODD_JSON, max_size=6).map(lambda body: json.dumps(body).encode())
    | st.builds(
        lambda body: json.dumps({"request_id": "r", "type": "step", "at": 0, "image_url": None, **body}).encode(),
        st.dictionaries(_FIELD_NAMES, _ODD_JSON, max_size=3),
    )
)
_HEADERS = st.lists(
    st.tuples(
        st.sampled_from([EPOCH, ATTEMPT, FIRST_SEEN, TENANT, CE_SOURCE]) | st.text(max_size=4),
        st.none() | st.binary(max_size=6) | st.integers().map(lambda number: str(number).encode()),
    ),
    max_size=4,
)


@given(
    st.lists(
        st.tuples(st.sampled_from(projected_topics(TOPICS)), _VALUES, _HEADERS, st.integers(-(2**63), 2**63 - 1)),
        max_size=8,
    )
)
def test_no_record_makes_the_projection_raise_anything_but_its_own_refusal(
    records: list[tuple[str, bytes | None, list[tuple[str, bytes | None]], int]],
) -> None:
    states: dict[str, TaskState] = {}
    for topic, value, headers, timestamp_ms in records:
        try:
            change = read_change(
                TOPICS, topic=topic, value=value, headers=headers, timestamp_ms=timestamp_ms, trust=TenantTrust()
            )
        except UnreadableRecordError:
            continue
        if change is not None and not isinstance(change, FeedbackSeen):
            states[change.request_id] = fold(states.get(change.request_id), change)
    for state in states.values():
        assert REQUEST_ID.fullmatch(state.request_id)
        numbers = (state.version, state.attempts, state.step, state.total_steps, state.created_at_ms)
        assert all(number is None or -(2**63) <= number < 2**63 for number in numbers)
        for text in (state.body, state.result):
            assert text is None or text.encode()
        TaskView.of_state(state, status_url="http://gateway/").model_dump_json()


def test_a_bare_task_takes_its_time_from_the_record_and_its_priority_from_the_topic() -> None:
    change = read(TOPICS.tasks_vip, b'{"request_id":"r","prompt":"a"}')
    assert isinstance(change, TaskSeen)
    assert (change.created_at_ms, change.priority, change.tenant) == (5000, "vip", "default")


def test_an_unknown_progress_type_means_running() -> None:
    event = ProgressEvent(request_id="r", type="warming", at=datetime.now(UTC))
    change = read(TOPICS.progress, event.to_json())
    assert isinstance(change, ProgressSeen)
    assert change.status is TaskStatus.RUNNING
    event = ProgressEvent(request_id="r", type=ProgressType.RETRYING, attempt=2, at=datetime.now(UTC))
    retrying = read(TOPICS.progress, event.to_json())
    assert isinstance(retrying, ProgressSeen)
    assert (retrying.status, retrying.attempt) == (TaskStatus.QUEUED, 2)


def test_a_result_keeps_fields_that_this_release_does_not_know() -> None:
    body = {"request_id": "r", "image_url": None, "status": "failed", "novelty": 1}
    change = read(TOPICS.results, json.dumps(body).encode())
    assert isinstance(change, ResultSeen)
    assert json.loads(change.body) == body


_INT64 = st.integers(-(2**63), 2**63 - 1)


@given(st.sampled_from(TaskStatus), _INT64, _INT64, st.none() | _INT64)
def test_a_version_fits_into_the_stores_column(status: TaskStatus, epoch: int, attempt: int, step: int | None) -> None:
    assert 0 <= version_of(status=status, epoch=epoch, attempt=attempt, step=step) < 2**63
