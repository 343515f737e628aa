"""The conditions of a pool about its Kafka: lag, topics, expired tasks and retained offsets."""

import math
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from fluxpool_operator.api import ConditionStatus, ConditionType, FluxWorkerPoolStatus, Reason
from fluxpool_operator.assessment import PoolProblem, PoolView
from fluxpool_operator.workload import PodStage
from kit.scaling.pool_views import NOON, condition_of, deployment, lane, pod, pool, view

TRUE, FALSE, UNKNOWN = ConditionStatus.TRUE, ConditionStatus.FALSE, ConditionStatus.UNKNOWN
UNREAD = lane(partitions=0, age_seconds=math.inf, problem="partition 0: LEADER_NOT_AVAILABLE")


@pytest.mark.parametrize(
    ("lanes", "status", "words"),
    [
        ((lane(),), TRUE, "The lag of every lane is read."),
        ((lane(age_seconds=30),), TRUE, "every lane"),
        (
            (lane(age_seconds=47, problem="no broker answers"),),
            FALSE,
            "Lane standard was not read for 45 s: no broker answers.",
        ),
        (
            (lane(), lane(name="vip", age_seconds=9000)),
            FALSE,
            "Lane vip was not read for 2 h: the brokers did not respond.",
        ),
        ((lane(partitions=0, age_seconds=math.inf),), FALSE, "Lane standard was never read"),
        ((), FALSE, "No lane was read yet."),
    ],
)
def test_the_lag_is_available_when_every_lane_was_read_recently(
    lanes: tuple[Any, ...], status: ConditionStatus, words: str
) -> None:
    condition = condition_of(view(lanes=lanes), ConditionType.LAG_AVAILABLE)
    assert condition.status is status
    assert words in condition.message


MISSING = "topic tasks-vip: Broker: Unknown topic or partition (UNKNOWN_TOPIC_OR_PART); create it"


@pytest.mark.parametrize(
    ("seen", "status", "reason", "words"),
    [
        (view(), TRUE, Reason.TOPICS_FOUND, "6 partitions for up to 6 workers"),
        (
            view(lanes=(lane(partitions=4), lane(partitions=2, name="vip"))),
            TRUE,
            Reason.TOPICS_FOUND,
            "6 partitions",
        ),
        (view(lanes=(lane(partitions=5),)), FALSE, Reason.PARTITIONS_FEWER_THAN_REPLICAS, "add partitions"),
        (
            view(lanes=(lane(), lane(name="vip", partitions=0, age_seconds=math.inf, problem=MISSING))),
            FALSE,
            Reason.TOPICS_MISSING,
            "kafka.lanes: tasks-vip cannot be found",
        ),
        (
            view(lanes=(lane(partitions=0, age_seconds=math.inf, problem="no broker answers"),)),
            UNKNOWN,
            Reason.LAG_UNAVAILABLE,
            "could not be read yet",
        ),
        (
            view(problems=(PoolProblem(reason=Reason.TOPICS_FAILED, message="no right to create"),)),
            FALSE,
            Reason.TOPICS_FAILED,
            "no right to create",
        ),
    ],
)
def test_the_topics_are_ready_when_there_is_a_partition_for_every_worker(
    seen: PoolView, status: ConditionStatus, reason: Reason, words: str
) -> None:
    condition = condition_of(seen, ConditionType.TOPICS_READY)
    assert (condition.status, condition.reason) == (status, reason)
    assert words in condition.message


def test_expired_tasks_are_reported_exactly() -> None:
    condition = condition_of(
        view(lanes=(lane(expired_records_total=12345), lane(name="vip"))), ConditionType.TASKS_EXPIRED
    )
    assert (condition.status, condition.reason) == (TRUE, Reason.RETENTION_PASSED)
    assert "12345 of lane standard" in condition.message
    assert condition_of(view(), ConditionType.TASKS_EXPIRED).status is FALSE
    never = view(lanes=(lane(partitions=0, age_seconds=math.inf),))
    assert condition_of(never, ConditionType.TASKS_EXPIRED).status is UNKNOWN
    lost = view(lanes=(lane(partitions=0, age_seconds=math.inf, expired_records_total=3),))
    assert condition_of(lost, ConditionType.TASKS_EXPIRED).status is TRUE


MADE_FIVE_DAYS_AGO: dict[str, Any] = {".metadata.creationTimestamp": "2026-04-29T12:00:00Z"}


def asleep(since: timedelta, *, pods: tuple[Any, ...] = (), **lane_fields: Any) -> PoolView:
    """A pool without workers for this long, whose offsets another client committed."""
    status = FluxWorkerPoolStatus(last_scale_time=NOON - since)
    foreign = lane(**({"is_foreign": True, "member_count": 0} | lane_fields))
    return view(0, pool=pool(status), pods=pods, lanes=(foreign, lane(name="vip", member_count=0)))


@pytest.mark.parametrize(
    ("seen", "status", "reason"),
    [
        (asleep(timedelta(days=5)), FALSE, Reason.OFFSETS_MAY_EXPIRE),
        (asleep(timedelta(days=4, hours=23)), TRUE, Reason.OFFSETS_SAFE),
        (asleep(timedelta(days=5), is_foreign=False), TRUE, Reason.OFFSETS_SAFE),
        (asleep(timedelta(days=5), member_count=1), TRUE, Reason.OFFSETS_SAFE),
        (asleep(timedelta(days=5), pods=(pod("a", PodStage.TERMINATING),)), TRUE, Reason.OFFSETS_SAFE),
        (replace(asleep(timedelta(days=5)), deployment=deployment(1, ready=0)), TRUE, Reason.OFFSETS_SAFE),
        (view(0, deployment=None, pods=(), lanes=(lane(is_foreign=True, member_count=0),)), TRUE, Reason.OFFSETS_SAFE),
        (
            view(
                0,
                deployment=None,
                pods=(),
                pool=pool(**MADE_FIVE_DAYS_AGO),
                lanes=(lane(is_foreign=True, member_count=0),),
            ),
            FALSE,
            Reason.OFFSETS_MAY_EXPIRE,
        ),
        (asleep(timedelta(days=5), partitions=0, age_seconds=math.inf), TRUE, Reason.OFFSETS_SAFE),
        (view(0, lanes=(lane(partitions=0, age_seconds=math.inf),)), UNKNOWN, Reason.LAG_UNAVAILABLE),
    ],
)
def test_offsets_of_another_client_are_reported_before_they_expire(
    seen: PoolView, status: ConditionStatus, reason: Reason
) -> None:
    condition = condition_of(seen, ConditionType.OFFSETS_RETAINED)
    assert (condition.status, condition.reason) == (status, reason)
    if status is FALSE:
        assert "group-standard (lane standard) were" in condition.message
        assert "scaling.minReplicas" in condition.message


def test_a_problem_that_stops_reading_is_the_reason_of_lag_available() -> None:
    problem = PoolProblem(
        reason=Reason.SECRET_NOT_FOUND, message="missing: hub/token", stops_scaling=False, stops_reading=True
    )
    seen = view(0, problems=(problem,), lanes=(replace(UNREAD, problem=None),))
    told = condition_of(seen, ConditionType.LAG_AVAILABLE)
    assert (told.status, told.reason) == (FALSE, Reason.SECRET_NOT_FOUND)
    assert "missing: hub/token" in told.message


@pytest.mark.parametrize(
    ("age_seconds", "fields", "status"),
    [
        (5, {}, UNKNOWN),
        (60, {}, FALSE),
        (60, {"topics_are_settling": True}, UNKNOWN),
        (5, {"lanes": (replace(UNREAD, problem="no answer came"),)}, FALSE),
    ],
    ids=["a new pool", "an old pool", "topics just created", "a Kafka that is away"],
)
def test_new_topics_without_leaders_are_not_yet_unreadable(
    age_seconds: float, fields: dict[str, Any], status: ConditionStatus
) -> None:
    created = (NOON - timedelta(seconds=age_seconds)).isoformat()
    edits: dict[str, Any] = {".metadata__creationTimestamp": created}
    young = pool(**edits)
    seen = view(0, **{"pool": young, "lanes": (UNREAD,), **fields})
    assert condition_of(seen, ConditionType.LAG_AVAILABLE).status is status


def test_topics_that_the_operator_has_just_created_are_not_missing() -> None:
    missing = replace(UNREAD, problem="tasks: UNKNOWN_TOPIC_OR_PART")
    assert condition_of(view(0, lanes=(missing,)), ConditionType.TOPICS_READY).reason is Reason.TOPICS_MISSING
    settling = view(0, lanes=(missing,), topics_are_settling=True)
    assert condition_of(settling, ConditionType.TOPICS_READY).status is UNKNOWN


@pytest.mark.parametrize(
    ("topics", "status"), [(None, UNKNOWN), ((), TRUE), (("tasks",), FALSE)], ids=["not told", "none", "one"]
)
def test_the_condition_of_record_times_follows_the_topics(
    topics: tuple[str, ...] | None, status: ConditionStatus
) -> None:
    assert condition_of(view(1, create_time_topics=topics), ConditionType.LOG_APPEND_TIME).status is status
