"""How fast the size changes: windows, steps, the fallback for an unreadable lag, unschedulable pods."""

from dataclasses import replace
from typing import Any

import pytest

from fluxpool_operator.backlog import LaneObservation
from fluxpool_operator.planning import (
    Constraint,
    Pace,
    Plan,
    PlanState,
    ReplicaChange,
    ScalingConfig,
    Snapshot,
    plan,
)
from kit.scaling.lanes import lane_of

CONFIG = ScalingConfig(
    max_replicas=10, target_lag_per_replica=1, idle_grace_seconds=60, cool_down_seconds=30, stale_after_seconds=20
)


def _lane(records: int, *, in_flight: int = 0, age_seconds: float = 0) -> LaneObservation:
    """Pending tasks over ten partitions, those in flight one on each."""
    pending = [records // 10 + (number < records % 10) for number in range(10)]
    return lane_of(*pending, in_flight=[int(number < in_flight) for number in range(10)], age_seconds=age_seconds)


class _Pool:
    """A pool whose replicas follow the plan at once."""

    def __init__(self, *, replicas: int = 0, **limits: Any) -> None:
        self.config = replace(CONFIG, **limits)
        self.replicas = replicas
        self.state = PlanState()

    def look(self, lane: LaneObservation, *, elapsed_seconds: float = 1, **seen: int) -> Plan:
        snapshot = Snapshot(
            lanes=(lane,),
            current_replicas=self.replicas,
            elapsed_seconds=elapsed_seconds,
            state=self.state,
            **seen,
        )
        made = plan(snapshot, self.config)
        self.replicas, self.state = made.replicas, made.state
        return made


def test_replicas_are_added_only_after_the_demand_has_lasted() -> None:
    pool = _Pool(scale_up_window_seconds=10)
    first = pool.look(_lane(4))
    assert (first.replicas, first.constraint) == (0, Constraint.HOLD)
    assert "stays at 0 replicas until this has lasted 10 s (now 0 s)" in first.reason
    assert pool.look(_lane(6), elapsed_seconds=9).replicas == 0
    assert pool.look(_lane(9), elapsed_seconds=1).replicas == 4  # required during the whole window
    assert pool.look(_lane(9), elapsed_seconds=10).replicas == 4
    assert pool.look(_lane(9), elapsed_seconds=10).replicas == 9


def test_a_demand_that_ended_restarts_its_window() -> None:
    pool = _Pool(scale_up_window_seconds=10)
    for records in (4, 0, 4):
        assert pool.look(_lane(records), elapsed_seconds=9).replicas == 0


def test_no_more_than_a_step_is_added_within_its_period() -> None:
    pool = _Pool(scale_up_step_replicas=4, scale_up_period_seconds=60)
    first = pool.look(_lane(10))
    assert (first.replicas, first.constraint) == (4, Constraint.RATE)
    assert "No more than 4 may be added within 60 s." in first.reason
    assert pool.look(_lane(10), elapsed_seconds=30).replicas == 4
    assert pool.look(_lane(10), elapsed_seconds=59).replicas == 4
    assert pool.look(_lane(10), elapsed_seconds=1).replicas == 8
    last = pool.look(_lane(10), elapsed_seconds=90)
    assert (last.replicas, last.constraint) == (8, Constraint.RATE)
    assert pool.look(_lane(10), elapsed_seconds=1).replicas == 8


def test_a_step_taken_earlier_leaves_the_period_by_its_own_age() -> None:
    pool = _Pool(scale_up_step_replicas=4, scale_up_period_seconds=60)
    pool.look(_lane(4))
    for _ in range(5):
        assert pool.look(_lane(10), elapsed_seconds=10).replicas == 4
    sizes = [pool.look(_lane(10), elapsed_seconds=10).replicas for _ in range(3)]
    assert sizes == [4, 8, 8]


def test_the_minimum_is_reached_at_once_whatever_the_step() -> None:
    assert _Pool(min_replicas=5, scale_up_step_replicas=1).look(_lane(9)).replicas == 5
    assert _Pool(min_replicas=5, scale_up_window_seconds=60).look(_lane(9)).replicas == 5


def test_no_more_than_a_step_is_removed_within_its_period() -> None:
    pool = _Pool(replicas=6, scale_down_step_replicas=2, scale_down_period_seconds=60)
    pool.look(_lane(0))
    sizes = [pool.look(_lane(0), elapsed_seconds=60).replicas for _ in range(7)]
    assert sizes == [4, 4, 2, 2, 0, 0, 0]


def test_a_scale_in_by_steps_stops_when_the_lag_returns() -> None:
    pool = _Pool(replicas=6, scale_down_step_replicas=2, scale_down_period_seconds=60)
    pool.look(_lane(0))
    assert pool.look(_lane(0), elapsed_seconds=60).replicas == 4
    assert pool.look(_lane(6), elapsed_seconds=1).replicas == 6


def test_replicas_above_the_maximum_are_removed_at_once_whatever_the_step() -> None:
    assert _Pool(replicas=20, scale_down_step_replicas=1).look(_lane(10)).replicas == 10


def test_changes_of_other_clients_count_for_the_step_and_plans_that_are_not_applied_do_not() -> None:
    pool = _Pool(replicas=2, scale_up_step_replicas=3)
    pool.look(_lane(2))
    pool.replicas = 4
    assert pool.look(_lane(10)).replicas == 5
    shadow = _Pool(replicas=2, scale_up_step_replicas=3)
    for _ in range(3):
        shadow.replicas = 2
        assert shadow.look(_lane(10)).replicas == 5


def test_replicas_removed_by_another_client_do_not_hold_the_rest() -> None:
    pool = _Pool(replicas=8)
    pool.look(_lane(6))
    pool.replicas = 3
    pool.look(_lane(1))
    assert pool.look(_lane(1), elapsed_seconds=40).replicas == 1


def test_an_unreadable_lag_raises_to_the_fallback_and_never_lowers() -> None:
    silent = _lane(0, age_seconds=21)
    pool = _Pool(fallback_replicas=3)
    raised = pool.look(silent)
    assert (raised.replicas, raised.constraint) == (3, Constraint.FALLBACK)
    assert "was not read within the last 20 s, so the fallback of 3 replicas applies" in raised.reason
    many = _Pool(replicas=5, fallback_replicas=3).look(silent)
    assert (many.replicas, many.constraint) == (5, Constraint.STALE)
    assert _Pool(fallback_replicas=3).look(_lane(0)).replicas == 0


def test_the_fallback_waits_for_a_lag_that_was_never_read() -> None:
    never = _lane(0, age_seconds=float("inf"))
    pool = _Pool(fallback_replicas=3)
    assert pool.look(never, elapsed_seconds=0).constraint is Constraint.STALE
    assert pool.look(never, elapsed_seconds=19).replicas == 0
    assert pool.look(never, elapsed_seconds=1).replicas == 3
    restarted = _Pool(fallback_replicas=3)
    restarted.look(never, elapsed_seconds=0)
    restarted.look(_lane(0), elapsed_seconds=15)
    assert restarted.look(never, elapsed_seconds=15).replicas == 0


def test_the_fallback_respects_quota_and_steps() -> None:
    silent = _lane(0, age_seconds=99)
    assert _Pool(fallback_replicas=3).look(silent, quota_replicas=2).replicas == 2
    assert _Pool(fallback_replicas=3, scale_up_step_replicas=1).look(silent).replicas == 1


def test_after_an_outage_the_fallback_is_removed_like_a_surplus() -> None:
    pool = _Pool(fallback_replicas=3)
    pool.look(_lane(0, age_seconds=99))
    assert pool.look(_lane(0), elapsed_seconds=1).replicas == 3
    assert pool.look(_lane(0), elapsed_seconds=60).replicas == 0


@pytest.mark.parametrize(
    ("seen", "constraint", "words"),
    [
        ({"unschedulable_replicas": 2}, Constraint.CAPACITY, "2 replicas of 5 are unschedulable, so none is added."),
        ({"gated_replicas": 1}, Constraint.QUOTA, "1 replica of 5 is gated, so none is added."),
        (
            {"waiting_for_gpu_replicas": 1, "terminating_replicas": 2},
            Constraint.CAPACITY,
            "1 replica of 5 waits for the GPUs of 2 replicas that are terminating, so none is added.",
        ),
    ],
)
def test_no_replica_is_added_while_one_is_unschedulable(
    seen: dict[str, int], constraint: Constraint, words: str
) -> None:
    pool = _Pool(replicas=5)
    for _ in range(360):  # half an hour
        decision = pool.look(_lane(10), elapsed_seconds=5, **seen)
        assert (decision.replicas, decision.constraint) == (5, constraint)
        assert words in decision.reason
    assert pool.look(_lane(10)).replicas == 10  # it has found one


def test_unschedulable_replicas_are_not_removed_while_they_are_required() -> None:
    pool = _Pool(replicas=8)
    for _ in range(100):
        assert pool.look(_lane(8), elapsed_seconds=5, unschedulable_replicas=3).replicas == 8
    assert pool.look(_lane(2), elapsed_seconds=1, unschedulable_replicas=3).replicas == 8
    assert pool.look(_lane(2), elapsed_seconds=40, unschedulable_replicas=3).replicas < 8


def test_loading_replicas_count_as_current() -> None:
    pool = _Pool()
    assert pool.look(_lane(4)).replicas == 4
    for _ in range(60):  # two minutes of loading: no commit, no replica added, none removed
        assert pool.look(_lane(4), elapsed_seconds=2).replicas == 4


def test_terminating_replicas_do_not_count_as_current() -> None:
    assert _Pool(replicas=1).look(_lane(4), terminating_replicas=3).replicas == 4


def test_a_steady_load_never_changes_the_size() -> None:
    pool = _Pool(replicas=6, target_lag_per_replica=2)
    sizes = {pool.look(_lane(6, in_flight=6 - second % 3), elapsed_seconds=3).replicas for second in range(400)}
    assert sizes == {6}


@pytest.mark.parametrize("records", range(50, 60))
def test_a_lag_just_above_the_partitions_requires_no_replica_too_many(records: int) -> None:
    made = plan(
        Snapshot(lanes=(_lane(records),), current_replicas=0, elapsed_seconds=1),
        ScalingConfig(max_replicas=99, target_lag_per_replica=5),
    )
    assert made.replicas == 10


def test_a_pool_just_below_its_size_is_scaled_out() -> None:
    lane = lane_of(*[99] * 24)
    config = ScalingConfig(max_replicas=24)
    assert plan(Snapshot(lanes=(lane,), current_replicas=22, elapsed_seconds=1), config).replicas == 24


def test_a_hot_partition_gets_one_replica_and_is_named() -> None:
    lane = lane_of(500, *[0] * 23)
    made = plan(Snapshot(lanes=(lane,), current_replicas=0, elapsed_seconds=1), ScalingConfig(max_replicas=24))
    assert (made.replicas, made.constraint) == (1, Constraint.PARTITIONS)
    assert "The tasks are on 1 partition, so more than 1 replica would be idle." in made.reason


def test_twenty_minutes_without_kafka_cause_no_overshoot() -> None:
    pool = _Pool(replicas=4)
    for second in range(0, 1200, 5):
        assert pool.look(_lane(4, age_seconds=21 + second), elapsed_seconds=5).replicas == 4
    assert pool.look(_lane(6), elapsed_seconds=5).replicas == 6


def test_a_pause_resets_the_history() -> None:
    pool = _Pool(replicas=4)
    pool.look(_lane(0), elapsed_seconds=29)
    pool.config = replace(pool.config, paused=True)
    assert pool.look(_lane(9), elapsed_seconds=600).replicas == 4
    pool.config = replace(pool.config, paused=False)
    held = pool.look(_lane(0), elapsed_seconds=1)
    assert (held.replicas, held.constraint) == (4, Constraint.HOLD)


def test_a_burst_far_above_the_quota_stays_within_it_and_has_an_eta() -> None:
    pool = _Pool(max_replicas=6, replicas=6)
    assert pool.look(_lane(120_000)).eta_seconds is None
    pool.look(_lane(119_940), elapsed_seconds=60)
    later = pool.look(_lane(119_880), elapsed_seconds=60)
    assert (later.replicas, later.constraint) == (6, Constraint.MAXIMUM)
    assert later.eta_seconds == pytest.approx(119_880)


def test_a_shrinking_lag_has_an_eta() -> None:
    pool = _Pool(replicas=10)
    assert pool.look(_lane(100)).eta_seconds is None
    assert pool.look(_lane(90), elapsed_seconds=10).eta_seconds == pytest.approx(90)
    assert pool.look(_lane(91), elapsed_seconds=10).eta_seconds == pytest.approx(91 * 20 / 9)
    assert pool.look(_lane(120), elapsed_seconds=10).eta_seconds is None
    assert pool.look(_lane(110, age_seconds=99), elapsed_seconds=10).eta_seconds is None
    assert pool.look(_lane(0), elapsed_seconds=10).eta_seconds is None


def test_the_eta_uses_the_rate_of_the_last_minutes() -> None:
    pool = _Pool(replicas=10)
    for records in range(2000, 1000, -10):  # one a second
        pool.look(_lane(records), elapsed_seconds=10)
    etas = [pool.look(_lane(records), elapsed_seconds=10).eta_seconds for records in range(1000, 0, -40)]  # four
    assert etas[-1] == pytest.approx(40 / 4, rel=0.3)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"scale_up_step_replicas": 0}, "scale_up_step_replicas: 0 is too small"),
        ({"scale_down_step_replicas": 0}, "scale_down_step_replicas: 0 is too small"),
        ({"scale_up_window_seconds": -1}, "scale_up_window_seconds: -1 is too small"),
        ({"fallback_replicas": 11}, r"fallback_replicas: 11 is above max_replicas \(10\)"),
    ],
)
def test_limits_out_of_range_are_refused_by_name(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(CONFIG, **fields)


def test_a_pace_drops_changes_older_than_its_period() -> None:
    pace = Pace(observed_replicas=2, changes=(ReplicaChange(seconds_ago=50, replicas=1),))
    assert pace.seen(3, elapsed_seconds=10, remember_seconds=60) == Pace(
        observed_replicas=3, changes=(ReplicaChange(seconds_ago=0, replicas=1),)
    )
    assert pace.seen(3, elapsed_seconds=10, remember_seconds=0).changes == ()
