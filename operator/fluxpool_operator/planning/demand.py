"""What a backlog asks for, and what of it the limits allow; both with a sentence why.

Owns the caps that hold at every moment. Must not know what was decided before.
"""

from dataclasses import dataclass

from fluxpool_operator.planning.snapshot import Constraint, LaneLag, ScalingConfig, Snapshot


@dataclass(frozen=True, slots=True)
class Demand:
    """What the backlog asks for, before limits and history."""

    replicas: int
    constraint: Constraint
    reason: str
    lag_records: int
    in_flight_records: int


@dataclass(frozen=True, slots=True)
class Choice:
    """A number of replicas and what decided it."""

    replicas: int
    constraint: Constraint
    reason: str


def demand_of(lanes: tuple[LaneLag, ...], *, current_replicas: int, config: ScalingConfig) -> Demand:
    """The replicas that the unfinished tasks can keep busy."""
    target = config.target_lag_per_replica
    work = sum(lane.lag_records for lane in lanes)
    in_flight = sum(lane.in_flight_records for lane in lanes)
    if work == 0:
        return Demand(0, Constraint.IDLE, "No task is waiting or in flight.", 0, 0)
    if current_replicas == 0 and work <= config.activation_lag_records:
        reason = f"{tasks_text(work)} unfinished, not more than the {config.activation_lag_records} that wake the pool."
        return Demand(0, Constraint.IDLE, reason, work, in_flight)
    # Capped in records, so that the sum over lanes is rounded up once: two lanes with one task each need one replica.
    useful = sum(min(lane.lag_records, lane.partitions_with_lag * target) for lane in lanes)
    asked, useful_replicas = -(-work // target), -(-useful // target)
    reason = f"{tasks_text(work)} unfinished; at {target} per replica that asks for {replicas_text(asked)}."
    if useful_replicas < asked:
        partitions = sum(lane.partitions_with_lag for lane in lanes)
        reason += (
            f" They lie on {partitions} partition{_plural(partitions)}, "
            f"so more than {replicas_text(useful_replicas)} would idle."
        )
        return Demand(useful_replicas, Constraint.PARTITIONS, reason, work, in_flight)
    return Demand(asked, Constraint.LAG, reason, work, in_flight)


def unlimited(demand: Demand) -> Choice:
    """What the backlog asks for."""
    return Choice(demand.replicas, demand.constraint, demand.reason)


def within_limits(choice: Choice, *, demand: Demand, snapshot: Snapshot, config: ScalingConfig) -> Choice:
    """The choice under every cap; quota and capacity forbid new replicas but do not end running ones."""
    current = snapshot.current_replicas
    for constraint, limit, why in _limits(snapshot):
        if limit is not None and choice.replicas > max(limit, current):
            choice = Choice(max(limit, current), constraint, f"{choice.reason} {why}")
    if choice.replicas > config.max_replicas:
        reason = f"{demand.reason} The maximum is {replicas_text(config.max_replicas)}."
        return Choice(config.max_replicas, Constraint.MAXIMUM, reason)
    if choice.replicas < config.min_replicas:
        reason = f"{choice.reason} The minimum is {replicas_text(config.min_replicas)}."
        return Choice(config.min_replicas, Constraint.MINIMUM, reason)
    return choice


def _limits(snapshot: Snapshot) -> tuple[tuple[Constraint, int | None, str], ...]:
    """What keeps replicas from being added: the constraint, the limit in replicas and a sentence.

    A replica that cannot be scheduled is not helped by another one, so while there is one no replica is added.
    """
    quota = snapshot.quota_replicas
    gated, unschedulable = snapshot.gated_replicas, snapshot.unschedulable_replicas
    waiting, stopping = snapshot.waiting_for_gpu_replicas, snapshot.terminating_replicas
    current = snapshot.current_replicas
    return (
        (
            Constraint.QUOTA,
            quota,
            f"Only {replicas_text(quota or 0)} can run, because the quota admits no more.",
        ),
        (
            Constraint.QUOTA,
            current if gated else None,
            f"{replicas_text(gated)} of {current} {_be(gated)} held back before scheduling, so none is added.",
        ),
        (
            Constraint.CAPACITY,
            current if unschedulable else None,
            f"No node has room for {replicas_text(unschedulable)} of {current}, so none is added.",
        ),
        (
            Constraint.CAPACITY,
            current if waiting else None,
            (
                f"{replicas_text(waiting)} of {current} {'waits' if waiting == 1 else 'wait'} for the GPUs of "
                f"{stopping} that {_be(stopping)} being stopped, so none is added."
            ),
        ),
    )


def replicas_text(count: int) -> str:
    """`1 replica`, `2 replicas`."""
    return f"{count} replica{_plural(count)}"


def tasks_text(count: int) -> str:
    """`1 task is`, `2 tasks are`."""
    return f"{count} task{_plural(count)} {_be(count)}"


def _be(count: int) -> str:
    return "is" if count == 1 else "are"


def _plural(count: int) -> str:
    return "" if count == 1 else "s"
