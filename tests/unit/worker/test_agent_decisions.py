"""Pure decisions of the agent: which lane is next, and the records that it publishes."""

from datetime import UTC, datetime

import pytest
from aiokafka.structs import ConsumerRecord
from hypothesis import given
from hypothesis import strategies as st

from fluxpool_contract.kafka.topics import TopicNames
from fluxpool_contract.messages.dead_letter import DeadLetter, Disposition
from fluxpool_contract.problems import ErrorClass, ErrorCode
from fluxpool_worker.agent.consumer.lane_choice import (
    OVERDUE_EVERY,
    SHARED_EVERY,
    WaitingLane,
    arrived_ms,
    choose_lane,
    waited_ms,
)
from fluxpool_worker.agent.task.outgoing_records import (
    Failure,
    WorkerIdentity,
    dead_letter_record,
    failed_result,
    failure_of,
    is_dead_lettered,
)

NOON = datetime(2026, 4, 5, 12, tzinfo=UTC)
IDENTITY = WorkerIdentity(worker="w", pool="p", model="m")


def test_the_preferred_lane_comes_first_and_every_fifth_task_is_the_oldest() -> None:
    vip = WaitingLane(index=1, preference=10, oldest_head_ms=900)
    standard = WaitingLane(index=0, preference=0, oldest_head_ms=100)
    chosen = [
        choose_lane([standard, vip], number=number, now_ms=1_000, wait_limit_seconds=60)
        for number in range(1, 2 * SHARED_EVERY + 1)
    ]
    assert chosen == [1, 1, 1, 1, 0] * 2


def test_lanes_of_equal_preference_are_served_oldest_first() -> None:
    waiting = [WaitingLane(index=index, preference=0, oldest_head_ms=age) for index, age in enumerate((300, 100, 200))]
    assert choose_lane(waiting, number=1, now_ms=10_000_000, wait_limit_seconds=60) == 1
    assert choose_lane([], number=1, now_ms=0, wait_limit_seconds=60) is None


def test_a_lane_that_waited_past_the_limit_gets_every_second_task_and_no_more() -> None:
    vip = WaitingLane(index=1, preference=10, oldest_head_ms=100_000)
    standard = WaitingLane(index=0, preference=0, oldest_head_ms=40_000)
    at_the_limit = [
        choose_lane([standard, vip], number=number, now_ms=100_000, wait_limit_seconds=60) for number in (1, 2)
    ]
    assert at_the_limit == [1, 1]
    chosen = [
        choose_lane([standard, vip], number=number, now_ms=100_001, wait_limit_seconds=60)
        for number in range(1, 2 * SHARED_EVERY * OVERDUE_EVERY + 1)
    ]
    assert chosen.count(0) == 12, "ten of its own and every fifth"
    assert chosen[:6] == [1, 0, 1, 0, 0, 0]


@given(st.lists(st.tuples(st.integers(0, 100), st.integers(0, 10_000)), min_size=1, max_size=8), st.integers(1, 10_000))
def test_a_lane_is_always_chosen_when_one_waits(lanes: list[tuple[int, int]], number: int) -> None:
    waiting = [
        WaitingLane(index=index, preference=preference, oldest_head_ms=age)
        for index, (preference, age) in enumerate(lanes)
    ]
    assert choose_lane(waiting, number=number, now_ms=20_000, wait_limit_seconds=5) in range(len(lanes))


def test_a_dead_letter_has_the_original_bytes_and_the_reason() -> None:
    record = ConsumerRecord(
        topic="tasks",
        partition=3,
        offset=41,
        timestamp=1_700_000_000_123,
        timestamp_type=0,
        key=b"\xff",
        value=b"\x00garbage",
        checksum=None,
        serialized_key_size=1,
        serialized_value_size=8,
        headers=[("own", b"\x01"), ("fluxpool-dlq-message", b"an earlier one")],
    )
    failure = Failure(
        error_class=ErrorClass.INVALID,
        code=ErrorCode.UNDECODABLE,
        disposition=Disposition.INVALID,
        message="the body is not valid JSON",
    )
    dead_letter = dead_letter_record(
        record, failure, request_id=None, identity=IDENTITY, failed_at=NOON, topics=TopicNames()
    )
    assert (dead_letter.topic, dead_letter.key, dead_letter.value) == ("flux-dlq", b"\xff", b"\x00garbage")
    assert dead_letter.headers[0] == ("own", b"\x01")
    read = DeadLetter.from_headers(dead_letter.headers)
    assert (read.origin_topic, read.origin_partition, read.origin_offset) == ("tasks", 3, 41)
    assert (read.message, read.error_code, read.attempts) == ("the body is not valid JSON", "undecodable", 1)


@pytest.mark.parametrize(
    ("error_class", "retryable"),
    [(ErrorClass.INVALID, False), (ErrorClass.TRANSIENT, True), (ErrorClass.WORKER_FATAL, True)],
)
def test_a_failed_result_says_whether_it_is_retryable(error_class: ErrorClass, *, retryable: bool) -> None:
    failure = Failure(
        error_class=error_class, code=ErrorCode.NOT_FINITE, disposition=Disposition.EXHAUSTED, message="m", attempts=3
    )
    result = failed_result("r", failure, identity=IDENTITY, completed_at=NOON)
    assert (result.status, result.image_url, result.attempt) == ("failed", None, 3)
    assert result.error is not None
    assert result.error.retryable is retryable


@pytest.mark.parametrize(
    ("error_class", "code", "disposition"),
    [
        (ErrorClass.INVALID, ErrorCode.INVALID_FIELD, Disposition.INVALID),
        (ErrorClass.INVALID, ErrorCode.TOO_LARGE, Disposition.OVERSIZE),
        (ErrorClass.WORKER_FATAL, ErrorCode.CRASH_LOOP, Disposition.CRASH_LOOP),
        (ErrorClass.TRANSIENT, ErrorCode.NOT_FINITE, Disposition.EXHAUSTED),
    ],
)
def test_a_stored_failure_is_dead_lettered_again_as_it_was(
    error_class: ErrorClass, code: ErrorCode, disposition: Disposition
) -> None:
    failure = Failure(error_class=error_class, code=code, disposition=disposition, message="m", attempts=2)
    stored = failed_result("r", failure, identity=IDENTITY, completed_at=NOON)
    assert is_dead_lettered(stored)
    assert failure_of(stored) == failure


def test_a_rejected_task_makes_no_dead_letter() -> None:
    failure = Failure(
        error_class=ErrorClass.REJECTED, code=ErrorCode.REJECTED, disposition=Disposition.EXHAUSTED, message="no"
    )
    assert not is_dead_lettered(failed_result("r", failure, identity=IDENTITY, completed_at=NOON))


@pytest.mark.parametrize(
    ("error_class", "status"),
    [
        (ErrorClass.EXPIRED, "expired"),
        (ErrorClass.CANCELED, "canceled"),
        (ErrorClass.TRANSIENT, "failed"),
        ("of a newer release", "failed"),
    ],
)
def test_the_status_distinguishes_expired_and_canceled_from_failed(error_class: ErrorClass | str, status: str) -> None:
    failure = Failure(error_class=error_class, code="x", disposition=Disposition.EXHAUSTED, message="m")
    result = failed_result("r", failure, identity=IDENTITY, completed_at=NOON)
    assert (result.status, result.image_url) == (status, None)
    assert is_dead_lettered(result) is (status == "failed")


NOW_MS = 1_775_383_200_000


@pytest.mark.parametrize("timestamp_ms", [-1, 0, NOW_MS // 1000, NOW_MS - 60_000, NOW_MS * 1000, 2**63 - 1])
def test_a_producers_time_does_not_decide_when_its_record_arrived(timestamp_ms: int) -> None:
    assert arrived_ms(timestamp_ms, 0, seen_ms=NOW_MS) == NOW_MS


@pytest.mark.parametrize(
    ("timestamp_ms", "arrived"), [(NOW_MS - 60_000, NOW_MS - 60_000), (NOW_MS + 60_000, NOW_MS), (-1, 0)]
)
def test_a_brokers_time_is_when_a_record_arrived_and_never_later_than_it_was_seen(
    timestamp_ms: int, arrived: int
) -> None:
    assert arrived_ms(timestamp_ms, 1, seen_ms=NOW_MS) == arrived


@pytest.mark.parametrize(
    ("timestamp_ms", "waited"),
    [(NOW_MS - 60_000, 60_000), (NOW_MS, 0), (NOW_MS + 1, None), (NOW_MS // 1000, None), (-1, None), (2**63 - 1, None)],
)
def test_a_waiting_time_is_reported_only_for_a_plausible_record_time(timestamp_ms: int, waited: int | None) -> None:
    assert waited_ms(timestamp_ms, now_ms=NOW_MS) == waited
