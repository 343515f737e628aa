"""How records in any order add up to the state of a task."""

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fluxpool_contract.problems import ErrorClass, ErrorCode
from fluxpool_contract.progress import ProgressEvent, ProgressType
from fluxpool_contract.result import GenerationResult, ResultStatus, TaskError
from fluxpool_contract.topics import TopicNames
from fluxpool_gateway.projected_records import read_change
from fluxpool_gateway.store.task_state import Change, ProgressSeen, ResultSeen, TaskSeen, TaskState, TaskStatus, fold

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
        request_id="r", status=status, body=f'"{status}{attempt}"', completed_at_ms=9000, attempt=attempt, epoch=epoch
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
def test_progress_of_any_attempt_never_undoes_an_end(status: TaskStatus) -> None:
    ended = fold_all([seen(), result(status)])
    assert fold(ended, progress(attempt=3, step=7)).status is status


def test_the_first_end_of_an_attempt_stays() -> None:
    assert fold_all([seen(), result(TaskStatus.FAILED), result(TaskStatus.SUCCEEDED)]).status is TaskStatus.FAILED


def test_a_replay_begins_a_new_life_and_forgets_the_old_end() -> None:
    state = fold_all([seen(), result(TaskStatus.FAILED), seen(epoch=1)])
    assert (state.status, state.result, state.completed_at_ms) == (TaskStatus.QUEUED, None, None)
    assert fold(state, result(epoch=1)).status is TaskStatus.SUCCEEDED


def test_a_record_that_says_nothing_new_leaves_the_very_same_state() -> None:
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
    return read_change(TOPICS, topic=topic, value=value, headers=[], timestamp_ms=5000)


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
        (TOPICS.results, b"{}"),
        (TOPICS.results, a_result(None)),
        (TOPICS.results, a_result("r", code=ErrorCode.ID_CONFLICT)),
        (TOPICS.progress, b"[]"),
    ],
)
def test_records_that_speak_of_no_task_change_nothing(topic: str, value: bytes | None) -> None:
    assert read(topic, value) is None


def test_a_bare_task_takes_its_time_from_the_record_and_its_priority_from_the_topic() -> None:
    change = read(TOPICS.tasks_vip, b'{"request_id":"r","prompt":"a"}')
    assert isinstance(change, TaskSeen)
    assert (change.created_at_ms, change.priority, change.tenant) == (5000, "vip", "default")


def test_a_progress_type_of_a_later_release_means_running() -> None:
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
