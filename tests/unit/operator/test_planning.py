"""The scaling plan, decision by decision."""

import math
from typing import Any

import pytest

from fluxpool_operator.backlog import LaneObservation
from fluxpool_operator.planning import (
    Constraint,
    Plan,
    PlanState,
    ScalingConfig,
    Snapshot,
    plan,
)
from kit.scaling.lanes import lane_of

CONFIG = ScalingConfig(
    min_replicas=0,
    max_replicas=6,
    target_lag_per_replica=5,
    idle_grace_seconds=60,
    cool_down_seconds=30,
    stale_after_seconds=20,
)


def lane(*pending: int, in_flight: int = 0, name: str = "standard", age_seconds: float = 0) -> LaneObservation:
    """A lane with this many pending tasks by partition; those in flight are on the first."""
    return lane_of(*pending, in_flight=[in_flight], name=name, age_seconds=age_seconds)


def decide(
    *lanes: LaneObservation,
    current: int = 0,
    elapsed_seconds: float = 1,
    state: PlanState | None = None,
    config: ScalingConfig = CONFIG,
    quota: int | None = None,
) -> Plan:
    snapshot = Snapshot(
        lanes=lanes,
        current_replicas=current,
        elapsed_seconds=elapsed_seconds,
        state=state or PlanState(),
        quota_replicas=quota,
    )
    return plan(snapshot, config)


@pytest.mark.parametrize(
    ("lanes", "replicas", "constraint"),
    [
        ([lane(0, 0, 0, 0, 0, 0)], 0, Constraint.IDLE),
        ([lane(1, 0, 0, 0, 0, 0)], 1, Constraint.LAG),
        ([lane(1, 1, 1, 1, 1, 0)], 1, Constraint.LAG),
        ([lane(1, 1, 1, 1, 1, 1)], 2, Constraint.LAG),
        ([lane(4, 4, 4, 4, 4, 4)], 5, Constraint.LAG),
        ([lane(5, 5, 5, 5, 5, 5)], 6, Constraint.LAG),
        ([lane(40, 40, 0, 0, 0, 0)], 2, Constraint.PARTITIONS),
        ([lane(9, 9, 9, 9, 9, 9)], 6, Constraint.PARTITIONS),
        ([lane(9, 9, 9, 9, 9, 9, 9)], 6, Constraint.MAXIMUM),
        ([lane(1, 0), lane(1, 0, name="vip")], 1, Constraint.LAG),
        ([lane(90, 0), lane(90, 0, name="vip")], 2, Constraint.PARTITIONS),
        ([lane(90, 0), lane(6, 6, name="vip")], 3, Constraint.PARTITIONS),
    ],
)
def test_a_pool_at_zero_jumps_to_the_size_of_its_backlog(
    lanes: list[LaneObservation], replicas: int, constraint: Constraint
) -> None:
    decision = decide(*lanes)
    assert (decision.replicas, decision.constraint) == (replicas, constraint)


def test_tasks_in_flight_count_as_lag() -> None:
    decision = decide(lane(0, in_flight=1), current=1, elapsed_seconds=1000)
    assert decision.replicas == 1
    assert decision.lag_records == 1
    assert decision.state.idle_seconds == 0


def test_a_pool_at_zero_is_activated_above_the_activation_lag() -> None:
    config = ScalingConfig(max_replicas=6, activation_lag_records=3)
    assert decide(lane(3), config=config).replicas == 0
    assert decide(lane(4), config=config).replicas == 1
    assert decide(lane(3), current=1, elapsed_seconds=1000, config=config).replicas == 1


def test_the_minimum_is_kept_without_lag() -> None:
    config = ScalingConfig(min_replicas=2, max_replicas=6)
    decision = decide(lane(0), config=config)
    assert (decision.replicas, decision.constraint) == (2, Constraint.MINIMUM)


def test_a_quota_forbids_new_replicas_and_ends_none() -> None:
    backlog = lane(9, 9, 9, 9, 9, 9)
    decision = decide(backlog, quota=3)
    assert (decision.replicas, decision.constraint) == (3, Constraint.QUOTA)
    assert decide(backlog, current=5, quota=3).replicas == 5


def test_a_pool_without_lag_is_scaled_to_zero_only_after_its_idle_grace() -> None:
    config = ScalingConfig(max_replicas=6, idle_grace_seconds=60, cool_down_seconds=600)
    early = decide(lane(0), current=3, elapsed_seconds=59, config=config)
    assert (early.replicas, early.constraint) == (3, Constraint.HOLD)
    late = decide(lane(0), current=3, elapsed_seconds=1, state=early.state, config=config)
    assert (late.replicas, late.constraint) == (0, Constraint.IDLE)


def test_a_task_in_between_restarts_the_idle_grace() -> None:
    idle = decide(lane(0), current=1, elapsed_seconds=59)
    busy = decide(lane(0, in_flight=1), current=1, elapsed_seconds=1, state=idle.state)
    again = decide(lane(0), current=1, elapsed_seconds=59, state=busy.state)
    assert again.replicas == 1


def test_the_last_replica_is_kept_after_the_cool_down_until_the_idle_grace_has_passed() -> None:
    decision = decide(lane(0), current=4, elapsed_seconds=45)
    assert (decision.replicas, decision.constraint) == (1, Constraint.IDLE)


def test_a_smaller_lag_removes_replicas_after_the_cool_down_in_one_step() -> None:
    early = decide(lane(2, 2), current=6, elapsed_seconds=29)
    assert (early.replicas, early.constraint) == (6, Constraint.HOLD)
    late = decide(lane(2, 2), current=6, elapsed_seconds=1, state=early.state)
    assert (late.replicas, late.constraint) == (1, Constraint.LAG)


def test_a_scale_in_keeps_the_most_replicas_required_during_the_cool_down() -> None:
    first = decide(lane(10, 10), current=6, elapsed_seconds=15)
    second = decide(lane(1, 0), current=6, elapsed_seconds=15, state=first.state)
    assert second.replicas == 2


def test_no_replica_with_a_task_in_flight_is_removed() -> None:
    in_flight = lane_of(0, 0, 0, in_flight=[1, 1, 1])
    decision = decide(in_flight, current=5, elapsed_seconds=1000)
    assert decision.replicas == 3
    held = decide(in_flight, current=3, elapsed_seconds=1000, state=decision.state)
    assert (held.replicas, held.constraint) == (3, Constraint.HOLD)


def test_replicas_above_the_maximum_are_removed_at_once() -> None:
    decision = decide(lane(0), current=9, elapsed_seconds=0)
    assert (decision.replicas, decision.constraint) == (6, Constraint.MAXIMUM)


@pytest.mark.parametrize("age_seconds", [21, math.inf])
def test_a_stale_lag_never_removes_replicas(age_seconds: float) -> None:
    decision = decide(lane(0, age_seconds=age_seconds), current=4, elapsed_seconds=1000)
    assert (decision.replicas, decision.constraint) == (4, Constraint.STALE)
    assert (decision.state.idle_seconds, decision.state.surplus_seconds) == (0, 0)
    assert "standard" in decision.reason


def test_a_stale_lane_does_not_stop_a_fresh_one_from_adding_replicas() -> None:
    decision = decide(lane(0, age_seconds=99), lane(5, 5, 5, name="vip"), current=1)
    assert (decision.replicas, decision.constraint) == (3, Constraint.STALE)


def test_a_pool_whose_lag_was_never_read_keeps_its_replicas() -> None:
    decision = decide(current=2, elapsed_seconds=1000)
    assert (decision.replicas, decision.constraint) == (2, Constraint.STALE)


def test_time_without_a_reading_counts_as_neither_idle_nor_busy() -> None:
    idle = decide(lane(0), current=1, elapsed_seconds=40)
    unread = decide(lane(0, age_seconds=99), current=1, elapsed_seconds=500, state=idle.state)
    assert unread.state.idle_seconds == 40
    assert decide(lane(0), current=1, elapsed_seconds=20, state=unread.state).replicas == 0


def test_a_paused_pool_is_not_scaled() -> None:
    decision = decide(lane(9, 9, 9), current=1, config=ScalingConfig(max_replicas=6, paused=True))
    assert (decision.replicas, decision.constraint) == (1, Constraint.PAUSED)


@pytest.mark.parametrize(
    ("lanes", "current", "words"),
    [
        ([lane(4, 4, 4, 4, 4, 4)], 0, "The lag is 24; at 5 per replica it requires 5 replicas."),
        ([lane(1)], 0, "The lag is 1; at 5 per replica it requires 1 replica."),
        ([lane(40)], 0, "The tasks are on 1 partition, so more than 1 replica would be idle."),
        ([lane(*[9] * 9)], 0, "The maximum is 6 replicas."),
        ([lane(0)], 3, "The pool stays at 3 replicas until there has been no lag for 60 s (now 1 s)."),
    ],
)
def test_the_reason_is_a_sentence_with_the_numbers(lanes: list[LaneObservation], current: int, words: str) -> None:
    assert words in decide(*lanes, current=current).reason


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"min_replicas": -1}, "min_replicas"),
        ({"max_replicas": 0}, "max_replicas"),
        ({"target_lag_per_replica": 0}, "target_lag_per_replica"),
        ({"idle_grace_seconds": -1}, "idle_grace_seconds"),
        ({"cool_down_seconds": float("nan")}, "cool_down_seconds"),
        ({"stale_after_seconds": float("inf")}, "stale_after_seconds"),
        ({"min_replicas": 3, "max_replicas": 2}, "min_replicas: 3 is above max_replicas"),
    ],
)
def test_contradicting_limits_are_refused_by_name(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ScalingConfig(**fields)
