"""Invariants of every scaling plan, for any backlog, limits and history."""

from dataclasses import replace
from random import Random

from hypothesis import given
from hypothesis import strategies as st

from fluxpool_operator.backlog import LaneObservation
from fluxpool_operator.planning import (
    Constraint,
    Pace,
    PlanState,
    ReplicaChange,
    ScalingConfig,
    Snapshot,
    plan,
)
from kit.scaling.lanes import entry_of, lane_of

_counts = st.integers(0, 40) | st.sampled_from([0, 1, 10_000])
_seconds = st.sampled_from([0.0, 0.5, 1.0, 5.0, 10.0, 29.9, 30.0, 100.0])
_periods = st.sampled_from([1.0, 5.0, 10.0, 30.0, 100.0])

_paces = st.builds(
    Pace,
    observed_replicas=st.none() | st.integers(0, 14),
    changes=st.lists(st.builds(ReplicaChange, seconds_ago=_seconds, replicas=st.integers(-3, 3)), max_size=3).map(
        tuple
    ),
)
_steps = st.none() | st.integers(1, 4)


@st.composite
def _configs(draw: st.DrawFn, *, at_once: bool = False) -> ScalingConfig:
    """Limits; `at_once` excludes those that delay or step the change of the size."""
    minimum = draw(st.integers(0, 5))
    maximum = draw(st.integers(max(1, minimum), 12))
    return ScalingConfig(
        min_replicas=minimum,
        max_replicas=maximum,
        scale_up_window_seconds=0.0 if at_once else draw(_seconds),
        scale_up_step_replicas=None if at_once else draw(_steps),
        scale_up_period_seconds=draw(_periods),
        scale_down_step_replicas=None if at_once else draw(_steps),
        scale_down_period_seconds=draw(_periods),
        fallback_replicas=draw(st.none() | st.integers(1, maximum)),
        target_lag_per_replica=draw(st.integers(1, 10)),
        activation_lag_records=draw(st.integers(0, 5)),
        idle_grace_seconds=draw(_seconds),
        cool_down_seconds=draw(_seconds),
        stale_after_seconds=10.0,
    )


@st.composite
def _snapshots(draw: st.DrawFn, *, stale: bool | None = None) -> Snapshot:
    ages = {None: _seconds, True: st.sampled_from([10.1, float("inf")]), False: st.sampled_from([0.0, 10.0])}[stale]
    lanes = tuple(
        lane_of(
            *draw(st.lists(_counts, min_size=1, max_size=6)),
            in_flight=draw(st.lists(st.integers(0, 2), max_size=1)),
            name=f"lane-{number}",
            age_seconds=draw(ages),
            due_retries=draw(st.integers(0, 8)),
        )
        for number in range(draw(st.integers(1, 3)))
    )
    return Snapshot(
        lanes=lanes,
        current_replicas=draw(st.integers(0, 14)),
        elapsed_seconds=draw(_seconds),
        state=PlanState(
            idle_seconds=draw(_seconds),
            surplus_seconds=draw(_seconds),
            surplus_replicas=draw(st.integers(0, 12)),
            shortage_seconds=draw(_seconds),
            shortage_replicas=draw(st.integers(0, 12)),
            silent_seconds=draw(_seconds),
            pace=draw(_paces),
        ),
        quota_replicas=draw(st.none() | st.integers(0, 12)),
        gated_replicas=draw(st.sampled_from([0, 0, 1])),
        unschedulable_replicas=draw(st.sampled_from([0, 0, 2])),
        waiting_for_gpu_replicas=draw(st.sampled_from([0, 0, 1])),
        terminating_replicas=draw(st.integers(0, 2)),
    )


def _observed(snapshot: Snapshot) -> list[LaneObservation]:
    return [lane for lane in snapshot.lanes if isinstance(lane, LaneObservation)]


def _all_scheduled(snapshot: Snapshot) -> Snapshot:
    """The same snapshot with every replica scheduled."""
    return replace(
        snapshot,
        quota_replicas=None,
        gated_replicas=0,
        unschedulable_replicas=0,
        waiting_for_gpu_replicas=0,
    )


@given(_snapshots(), _configs())
def test_the_number_of_replicas_lies_between_minimum_and_maximum(snapshot: Snapshot, config: ScalingConfig) -> None:
    decision = plan(snapshot, config)
    assert config.min_replicas <= decision.replicas <= config.max_replicas
    assert decision.reason.endswith(".")


@given(_snapshots(), _configs(), st.data())
def test_more_lag_never_means_fewer_replicas(snapshot: Snapshot, config: ScalingConfig, data: st.DataObject) -> None:
    where = data.draw(st.integers(0, len(snapshot.lanes) - 1))
    lane = _observed(snapshot)[where]
    index = data.draw(st.integers(0, len(lane.partitions) - 1))
    partition = lane.partitions[index]
    fuller = replace(
        partition,
        pending_records=partition.pending_records + data.draw(st.integers(0, 20)),
        in_flight={**partition.in_flight, **{100 + n: entry_of(0) for n in range(data.draw(st.integers(0, 2)))}},
    )
    partitions = (*lane.partitions[:index], fuller, *lane.partitions[index + 1 :])
    lanes = (*snapshot.lanes[:where], replace(lane, partitions=partitions), *snapshot.lanes[where + 1 :])
    assert plan(replace(snapshot, lanes=lanes), config).replicas >= plan(snapshot, config).replicas


@given(_snapshots(), _configs(), st.randoms(use_true_random=False))
def test_the_order_of_partitions_and_lanes_does_not_matter(
    snapshot: Snapshot, config: ScalingConfig, random: Random
) -> None:
    lanes = [
        replace(lane, partitions=tuple(random.sample(lane.partitions, len(lane.partitions))))
        for lane in _observed(snapshot)
    ]
    random.shuffle(lanes)
    shuffled, ordered = plan(replace(snapshot, lanes=tuple(lanes)), config), plan(snapshot, config)
    assert (shuffled.replicas, shuffled.constraint, shuffled.state) == (
        ordered.replicas,
        ordered.constraint,
        ordered.state,
    )


@given(_snapshots(stale=True), _configs())
def test_a_stale_backlog_never_lowers_and_never_sends_to_zero(snapshot: Snapshot, config: ScalingConfig) -> None:
    decision = plan(snapshot, config)
    assert decision.replicas >= min(snapshot.current_replicas, config.max_replicas)
    before, after = snapshot.state, decision.state
    assert (after.idle_seconds, after.surplus_seconds, after.surplus_replicas) == (
        before.idle_seconds,
        before.surplus_seconds,
        before.surplus_replicas,
    )
    assert (after.shortage_seconds, after.shortage_replicas) == (
        before.shortage_seconds,
        before.shortage_replicas,
    )


@given(_snapshots(), _configs())
def test_planning_again_at_the_same_moment_changes_nothing(snapshot: Snapshot, config: ScalingConfig) -> None:
    first = plan(snapshot, config)
    again = replace(snapshot, current_replicas=first.replicas, state=first.state, elapsed_seconds=0.0)
    assert plan(again, config).replicas == first.replicas


@given(_snapshots(stale=False), _configs(at_once=True))
def test_without_limits_the_lag_gets_exactly_the_required_replicas(snapshot: Snapshot, config: ScalingConfig) -> None:
    free = replace(_all_scheduled(snapshot), current_replicas=0)
    decision = plan(free, config)
    assert decision.replicas == min(max(decision.required_replicas, config.min_replicas), config.max_replicas)
    with_work = sum(lane.partitions_with_lag for lane in free.lanes)
    assert decision.required_replicas <= with_work


@given(_snapshots(stale=False), _configs(at_once=True))
def test_without_lag_a_pool_reaches_its_minimum_and_with_lag_it_stays_active(
    snapshot: Snapshot, config: ScalingConfig
) -> None:
    moment = replace(_all_scheduled(snapshot), elapsed_seconds=config.idle_grace_seconds + 1)
    decision = plan(moment, config)
    if decision.lag_records == 0:
        assert decision.replicas == config.min_replicas
    elif decision.lag_records > config.activation_lag_records:
        assert decision.replicas >= 1


@given(_snapshots(), _configs())
def test_a_paused_pool_keeps_its_replicas_and_drops_its_history(snapshot: Snapshot, config: ScalingConfig) -> None:
    decision = plan(snapshot, replace(config, paused=True))
    assert decision.replicas == snapshot.current_replicas
    assert decision.constraint is Constraint.PAUSED
    assert decision.state == PlanState()


@given(_snapshots(), _configs())
def test_no_replica_is_added_while_any_cannot_be_placed(snapshot: Snapshot, config: ScalingConfig) -> None:
    short = replace(snapshot, unschedulable_replicas=1)
    allowed = max(min(snapshot.current_replicas, config.max_replicas), config.min_replicas)
    assert plan(short, config).replicas <= allowed


@given(_snapshots(), _configs())
def test_no_step_is_larger_than_allowed(snapshot: Snapshot, config: ScalingConfig) -> None:
    current = min(snapshot.current_replicas, config.max_replicas)
    decision = plan(snapshot, config)
    if config.scale_up_step_replicas is not None:
        assert decision.replicas <= max(current + config.scale_up_step_replicas, config.min_replicas)
    if config.scale_down_step_replicas is not None:
        assert decision.replicas >= current - config.scale_down_step_replicas
