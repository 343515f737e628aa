"""The `Lag` policy: one replica for each `target_lag_per_replica` tasks of lag.

The required size is reached in one step unless a smaller step is configured, because every change of membership costs
the consumer group a rebalance. Limits cap the number of replicas, never the lag, so the result is exact: there is no
tolerance band. `demand` owns the arithmetic of one moment.
"""

import math
from dataclasses import replace

from fluxpool_operator.planning.demand import (
    Choice,
    Demand,
    demand_of,
    replicas_text,
    tasks_text,
    within_limits,
)
from fluxpool_operator.planning.drain import drained
from fluxpool_operator.planning.snapshot import Constraint, Plan, PlanState, ScalingConfig, Snapshot


def plan(snapshot: Snapshot, config: ScalingConfig) -> Plan:
    """The number of replicas for this observation.

    Always between the minimum and the maximum, unless paused. More lag never requires fewer replicas; planning again
    with the returned state and no time passed changes nothing.
    """
    demand = demand_of(snapshot.lanes, current_replicas=snapshot.current_replicas, config=config)
    if config.paused:
        # The history before a pause does not apply to the time after it.
        reason = f"Scaling is paused: the pool stays at {replicas_text(snapshot.current_replicas)}. {demand.reason}"
        choice = Choice(snapshot.current_replicas, Constraint.PAUSED, reason)
        return _plan(choice, demand=demand, state=PlanState())
    snapshot = replace(snapshot, state=_with_elapsed(snapshot, demand, config))
    # Replicas above the maximum are removed at once; windows and grace periods apply to those below.
    excess = snapshot.current_replicas > config.max_replicas
    observed = replace(snapshot, current_replicas=min(snapshot.current_replicas, config.max_replicas))
    wanted = within_limits(demand, demand=demand, snapshot=observed, config=config)
    if _is_stale(snapshot, config):
        # The history is not advanced: time without a reading counts neither as idle nor as busy.
        choice, state = _hold_stale(wanted, snapshot=observed, config=config, demand=demand), snapshot.state
    elif wanted.replicas > observed.current_replicas:
        choice, state = _scale_out(wanted, snapshot=observed, config=config, demand=demand)
    elif wanted.replicas == observed.current_replicas:
        choice, state = wanted, _memory(observed, demand)
    else:
        choice, state = _scale_in(wanted, snapshot=observed, config=config, demand=demand)
    if excess and choice.replicas == config.max_replicas:
        reason = f"The maximum is {replicas_text(config.max_replicas)}. {demand.reason}"
        choice = Choice(choice.replicas, Constraint.MAXIMUM, reason)
    return _plan(choice, demand=demand, state=state)


def _with_elapsed(snapshot: Snapshot, demand: Demand, config: ScalingConfig) -> PlanState:
    """The state after the elapsed time: changes of size, time without a reading, how the lag drains."""
    elapsed = max(0.0, snapshot.elapsed_seconds)
    periods = [
        period
        for step, period in (
            (config.scale_up_step_replicas, config.scale_up_period_seconds),
            (config.scale_down_step_replicas, config.scale_down_period_seconds),
        )
        if step is not None
    ]
    pace = snapshot.state.pace.seen(
        snapshot.current_replicas, elapsed_seconds=elapsed, remember_seconds=max(periods, default=0.0)
    )
    if _is_stale(snapshot, config):
        silent_seconds = snapshot.state.silent_seconds + elapsed
        return replace(snapshot.state, pace=pace, silent_seconds=silent_seconds, drain=None)
    drain = drained(snapshot.state.drain, lag_records=demand.lag_records, elapsed_seconds=elapsed)
    return replace(snapshot.state, pace=pace, silent_seconds=0.0, drain=drain)


def _is_stale(snapshot: Snapshot, config: ScalingConfig) -> bool:
    return not snapshot.lanes or bool(_stale_lanes(snapshot, config))


def _stale_lanes(snapshot: Snapshot, config: ScalingConfig) -> list[str]:
    """Names of the lanes whose reading is too old to remove replicas."""
    return [lane.name for lane in snapshot.lanes if lane.age_seconds > config.stale_after_seconds]


def _is_silent(snapshot: Snapshot, config: ScalingConfig) -> bool:
    """Whether the lag was stale for long enough: after a start a lane may just not be read yet."""
    return snapshot.state.silent_seconds >= config.stale_after_seconds or any(
        config.stale_after_seconds < lane.age_seconds < math.inf for lane in snapshot.lanes
    )


def _hold_stale(wanted: Choice, *, snapshot: Snapshot, config: ScalingConfig, demand: Demand) -> Choice:
    """At least the current number: more if the last reading requires it or a fallback is configured.

    With a stabilization window none is added: whether the demand lasts cannot be observed.
    """
    current = snapshot.current_replicas
    lanes = ", ".join(_stale_lanes(snapshot, config))
    unread = f"The lag{f' of {lanes}' if lanes else ''} was not read within the last {config.stale_after_seconds:g} s"
    fallback = config.fallback_replicas if config.fallback_replicas and _is_silent(snapshot, config) else 0
    if fallback > max(wanted.replicas, current):
        reason = f"{unread}, so the fallback of {replicas_text(fallback)} applies."
        limited = within_limits(
            Choice(fallback, Constraint.FALLBACK, reason), demand=demand, snapshot=snapshot, config=config
        )
        return _paced_out(limited, snapshot=snapshot, config=config)
    held = max(current, config.min_replicas)
    reason = f"{unread}, so no replica is removed. As last read: {wanted.reason}"
    if wanted.replicas <= held or config.scale_up_window_seconds > 0:
        return Choice(held, Constraint.STALE, reason)
    raised = _paced_out(wanted, snapshot=snapshot, config=config)
    return Choice(raised.replicas, Constraint.STALE, reason)


def _memory(snapshot: Snapshot, demand: Demand) -> PlanState:
    """The state without a surplus or a shortage."""
    idle = snapshot.state.idle_seconds + max(0.0, snapshot.elapsed_seconds) if demand.lag_records == 0 else 0.0
    return PlanState(idle_seconds=idle, pace=snapshot.state.pace, drain=snapshot.state.drain)


def _scale_out(
    wanted: Choice, *, snapshot: Snapshot, config: ScalingConfig, demand: Demand
) -> tuple[Choice, PlanState]:
    """More replicas than now, after the stabilization window, and as many as one step may add."""
    after, before = _memory(snapshot, demand), snapshot.state
    window = config.scale_up_window_seconds
    if window == 0:
        return _paced_out(wanted, snapshot=snapshot, config=config), after
    if before.shortage_replicas == 0:
        lasted, need = 0.0, wanted.replicas
    else:
        lasted = before.shortage_seconds + max(0.0, snapshot.elapsed_seconds)
        need = min(before.shortage_replicas, wanted.replicas)
    held = max(snapshot.current_replicas, config.min_replicas)
    if lasted < window:
        reason = (
            f"{wanted.reason} The pool stays at {replicas_text(held)} until this has lasted {window:g} s "
            f"(now {lasted:.0f} s)."
        )
        return Choice(held, Constraint.HOLD, reason), replace(after, shortage_seconds=lasted, shortage_replicas=need)
    choice = _paced_out(replace(wanted, replicas=max(held, need)), snapshot=snapshot, config=config)
    if choice.constraint is Constraint.RATE:
        return choice, replace(after, shortage_seconds=lasted, shortage_replicas=need)
    return choice, after


def _paced_out(wanted: Choice, *, snapshot: Snapshot, config: ScalingConfig) -> Choice:
    """As many of the wanted replicas as may still be added in this period, but at least the minimum."""
    step, period = config.scale_up_step_replicas, config.scale_up_period_seconds
    left = snapshot.state.pace.may_add(step=step, period_seconds=period)
    if left is None:
        return wanted
    allowed = max(snapshot.current_replicas + left, config.min_replicas)
    if wanted.replicas <= allowed:
        return wanted
    reason = f"{wanted.reason} No more than {step} may be added within {period:g} s."
    return Choice(allowed, Constraint.RATE, reason)


def _scale_in(wanted: Choice, *, snapshot: Snapshot, config: ScalingConfig, demand: Demand) -> tuple[Choice, PlanState]:
    """Fewer replicas than now, after the grace period, as many as one step may remove, and never a busy one."""
    current, elapsed = snapshot.current_replicas, max(0.0, snapshot.elapsed_seconds)
    after, before = _memory(snapshot, demand), snapshot.state
    # A number from when there were more replicas than now, because another client removed some, no longer applies.
    surplus_seconds, need = (
        (before.surplus_seconds + elapsed, before.surplus_replicas) if before.surplus_replicas < current else (0.0, 0)
    )
    state = replace(after, surplus_seconds=surplus_seconds, surplus_replicas=max(need, wanted.replicas))
    step, period = config.scale_down_step_replicas, config.scale_down_period_seconds
    left = snapshot.state.pace.may_remove(step=step, period_seconds=period)
    lowest = 0 if left is None else current - left
    is_idle = demand.lag_records == 0 and state.idle_seconds >= config.idle_grace_seconds
    # Even without a cool-down some time must have passed: planning again at the same moment changes nothing.
    cooling = state.surplus_seconds < config.cool_down_seconds or state.surplus_seconds == 0
    busy = demand.in_flight_records
    target = wanted.replicas if is_idle else min(current, max(1, state.surplus_replicas, busy))
    if target == current or (cooling and not is_idle):
        return Choice(current, Constraint.HOLD, _why_held(state, snapshot, config, demand, cooling=cooling)), state
    lasted = (
        f"There has been no lag for {state.idle_seconds:.0f} s; the idle grace is {config.idle_grace_seconds:g} s."
        if is_idle
        else f"{replicas_text(target)} have sufficed for {state.surplus_seconds:.0f} s."
    )
    if target < lowest:
        reason = f"{wanted.reason} {lasted} No more than {step} may be removed within {period:g} s."
        return Choice(lowest, Constraint.RATE, reason), state
    return Choice(target, wanted.constraint, f"{wanted.reason} {lasted}"), after


def _why_held(state: PlanState, snapshot: Snapshot, config: ScalingConfig, demand: Demand, *, cooling: bool) -> str:
    busy, current = demand.in_flight_records, snapshot.current_replicas
    if demand.lag_records == 0:
        grace = f"until there has been no lag for {config.idle_grace_seconds:g} s (now {state.idle_seconds:.0f} s)"
    elif cooling:
        grace = f"until fewer have sufficed for {config.cool_down_seconds:g} s (now {state.surplus_seconds:.0f} s)"
    else:
        grace = f"while {tasks_text(busy)} in flight" if busy >= current else "because as many were required recently"
    return f"{demand.reason} The pool stays at {replicas_text(current)} {grace}."


def _plan(choice: Choice, *, demand: Demand, state: PlanState) -> Plan:
    return Plan(
        replicas=choice.replicas,
        constraint=choice.constraint,
        reason=choice.reason,
        required_replicas=demand.replicas,
        lag_records=demand.lag_records,
        state=state,
        eta_seconds=state.drain.eta_seconds if state.drain else None,
    )
