"""The `Lag` policy: one replica per so many unfinished tasks.

The wanted size is taken in one step, because every membership change costs the consumer group a rebalance. Limits cap
the number of replicas, never the measured lag, so the result is exact: no tolerance band in which a pool stays small.
"""

from dataclasses import dataclass, replace

from fluxpool_operator.planning.snapshot import Constraint, LaneBacklog, Plan, PlanState, ScalingConfig, Snapshot


@dataclass(frozen=True, slots=True)
class _Demand:
    """What the backlog asks for, before limits and history."""

    replicas: int
    constraint: Constraint
    reason: str
    work_records: int
    in_flight_records: int


@dataclass(frozen=True, slots=True)
class _Choice:
    replicas: int
    constraint: Constraint
    reason: str


def plan(snapshot: Snapshot, config: ScalingConfig) -> Plan:
    """The number of replicas for this observation.

    Always between the minimum and the maximum, unless paused. More work never asks for fewer replicas; planning again
    with the returned state and no time passed changes nothing.
    """
    demand = _demand(snapshot.lanes, current_replicas=snapshot.current_replicas, config=config)
    if config.paused:
        reason = f"Scaling is paused: the pool stays at {_replicas(snapshot.current_replicas)}. {demand.reason}"
        choice = _Choice(snapshot.current_replicas, Constraint.PAUSED, reason)
        return _plan(choice, demand=demand, state=snapshot.state)
    # Replicas above the maximum go at once, whatever the backlog; every grace is about those that are allowed.
    excess = snapshot.current_replicas > config.max_replicas
    observed = replace(snapshot, current_replicas=min(snapshot.current_replicas, config.max_replicas))
    wanted = _within_limits(demand, snapshot=observed, config=config)
    if _stale_lanes(snapshot, config) is not None:
        # The memory stands still: time that nobody watched counts neither as idle nor as busy.
        choice, state = _hold_stale(wanted, snapshot=observed, config=config), snapshot.state
    elif wanted.replicas >= observed.current_replicas:
        choice, state = wanted, PlanState(idle_seconds=_idle_seconds(snapshot, demand))
    else:
        choice, state = _scale_in(wanted, snapshot=observed, config=config, demand=demand)
    if excess and choice.replicas == config.max_replicas:
        reason = f"The maximum is {_replicas(config.max_replicas)}. {demand.reason}"
        choice = _Choice(choice.replicas, Constraint.MAXIMUM, reason)
    return _plan(choice, demand=demand, state=state)


def _demand(lanes: tuple[LaneBacklog, ...], *, current_replicas: int, config: ScalingConfig) -> _Demand:
    target = config.target_lag_per_replica
    work = sum(lane.work_records for lane in lanes)
    in_flight = sum(partition.in_flight_records for lane in lanes for partition in lane.partitions)
    if work == 0:
        return _Demand(0, Constraint.IDLE, "No task is waiting or in flight.", 0, 0)
    if current_replicas == 0 and work <= config.activation_lag_records:
        reason = f"{_tasks(work)} unfinished, not more than the {config.activation_lag_records} that wake the pool."
        return _Demand(0, Constraint.IDLE, reason, work, in_flight)
    # Capped in records, so that the sum over lanes is rounded up once: two lanes with one task each need one replica.
    useful = sum(min(lane.work_records, lane.partitions_with_work * target) for lane in lanes)
    asked, useful_replicas = -(-work // target), -(-useful // target)
    reason = f"{_tasks(work)} unfinished; at {target} per replica that asks for {_replicas(asked)}."
    if useful_replicas < asked:
        partitions = sum(lane.partitions_with_work for lane in lanes)
        reason += (
            f" They lie on {partitions} partition{_plural(partitions)}, "
            f"so more than {_replicas(useful_replicas)} would idle."
        )
        return _Demand(useful_replicas, Constraint.PARTITIONS, reason, work, in_flight)
    return _Demand(asked, Constraint.LAG, reason, work, in_flight)


def _within_limits(demand: _Demand, *, snapshot: Snapshot, config: ScalingConfig) -> _Choice:
    """The demand under every cap; quota and capacity forbid new replicas but do not end running ones."""
    choice = _Choice(demand.replicas, demand.constraint, demand.reason)
    current = snapshot.current_replicas
    for constraint, limit, what in (
        (Constraint.QUOTA, snapshot.quota_replicas, "the quota admits"),
        (Constraint.CAPACITY, snapshot.capacity_replicas, "there is room for"),
    ):
        if limit is not None and choice.replicas > max(limit, current):
            reason = f"{choice.reason} Only {_replicas(limit)} can run, because {what} no more."
            choice = _Choice(max(limit, current), constraint, reason)
    if choice.replicas > config.max_replicas:
        reason = f"{demand.reason} The maximum is {_replicas(config.max_replicas)}."
        return _Choice(config.max_replicas, Constraint.MAXIMUM, reason)
    if choice.replicas < config.min_replicas:
        reason = f"{choice.reason} The minimum is {_replicas(config.min_replicas)}."
        return _Choice(config.min_replicas, Constraint.MINIMUM, reason)
    return choice


def _stale_lanes(snapshot: Snapshot, config: ScalingConfig) -> str | None:
    """Names of the lanes whose backlog is too old to take replicas away; null when all are fresh."""
    unread = [lane.name for lane in snapshot.lanes if lane.age_seconds > config.stale_after_seconds]
    if unread or not snapshot.lanes:
        return ", ".join(unread)
    return None


def _hold_stale(wanted: _Choice, *, snapshot: Snapshot, config: ScalingConfig) -> _Choice:
    lanes = _stale_lanes(snapshot, config)
    reason = (
        f"The backlog{f' of {lanes}' if lanes else ''} was not read within the last {config.stale_after_seconds:g} s, "
        f"so no replica is taken away. As last read: {wanted.reason}"
    )
    return _Choice(max(wanted.replicas, snapshot.current_replicas), Constraint.STALE, reason)


def _idle_seconds(snapshot: Snapshot, demand: _Demand) -> float:
    return snapshot.state.idle_seconds + max(0.0, snapshot.elapsed_seconds) if demand.work_records == 0 else 0.0


def _scale_in(
    wanted: _Choice, *, snapshot: Snapshot, config: ScalingConfig, demand: _Demand
) -> tuple[_Choice, PlanState]:
    """Fewer replicas than now, once a grace has passed and as far as none of them is busy."""
    current = snapshot.current_replicas
    state = PlanState(
        idle_seconds=_idle_seconds(snapshot, demand),
        surplus_seconds=snapshot.state.surplus_seconds + max(0.0, snapshot.elapsed_seconds),
        surplus_need=max(snapshot.state.surplus_need, wanted.replicas),
    )
    after = PlanState(idle_seconds=state.idle_seconds)
    if demand.work_records == 0 and state.idle_seconds >= config.idle_grace_seconds:
        reason = (
            f"{wanted.reason} It has been so for {state.idle_seconds:.0f} s, "
            f"and the grace is {config.idle_grace_seconds:g} s."
        )
        return _Choice(wanted.replicas, wanted.constraint, reason), after
    # Even without a cool-down some time must have been watched: a second look at the same moment changes nothing.
    cooling = state.surplus_seconds < config.cool_down_seconds or state.surplus_seconds == 0
    busy = demand.in_flight_records
    replicas = min(current, max(1, state.surplus_need, busy))
    if replicas < current and not cooling:
        reason = (
            f"{wanted.reason} {_replicas(replicas).capitalize()} would have done for {state.surplus_seconds:.0f} s."
        )
        return _Choice(replicas, wanted.constraint, reason), after
    if cooling:
        grace = (
            f"until that has lasted {config.idle_grace_seconds:g} s (now {state.idle_seconds:.0f} s)"
            if demand.work_records == 0
            else f"until fewer would have done for {config.cool_down_seconds:g} s (now {state.surplus_seconds:.0f} s)"
        )
    elif demand.work_records == 0:
        grace = f"until there was no work for {config.idle_grace_seconds:g} s (now {state.idle_seconds:.0f} s)"
    else:
        grace = f"while {_tasks(busy)} in flight" if busy >= current else "because so many were needed a moment ago"
    reason = f"{demand.reason} The pool stays at {_replicas(current)} {grace}."
    return _Choice(current, Constraint.HOLD, reason), state


def _plan(choice: _Choice, *, demand: _Demand, state: PlanState) -> Plan:
    return Plan(
        replicas=choice.replicas,
        constraint=choice.constraint,
        reason=choice.reason,
        need_replicas=demand.replicas,
        work_records=demand.work_records,
        state=state,
    )


def _replicas(count: int) -> str:
    return f"{count} replica{_plural(count)}"


def _tasks(count: int) -> str:
    return f"{count} task{_plural(count)} {'is' if count == 1 else 'are'}"


def _plural(count: int) -> str:
    return "" if count == 1 else "s"
