"""The replicas that a lag requires, and the limits on them, each with a reason.

Owns the limits that apply at every moment. `lag_policy` owns windows, rates and history.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from fluxpool_operator.planning.snapshot import Constraint, LaneLag, ScalingConfig, Snapshot


@dataclass(frozen=True, slots=True)
class Choice:
    """A number of replicas and the constraint that determined it."""

    replicas: int
    constraint: Constraint
    reason: str


@dataclass(frozen=True, slots=True)
class Demand(Choice):
    """What the lag requires, before limits and history."""

    lag_records: int
    in_flight_records: int


def demand_of(lanes: tuple[LaneLag, ...], *, current_replicas: int, config: ScalingConfig) -> Demand:
    """The replicas that the lag can keep busy."""
    target = config.target_lag_per_replica
    lag = sum(lane.lag_records for lane in lanes)
    in_flight = sum(lane.in_flight_records for lane in lanes)
    if lag == 0:
        return Demand(0, Constraint.IDLE, "The lag is 0.", 0, 0)
    if current_replicas == 0 and lag <= config.activation_lag_records:
        reason = f"The lag is {lag}, not above the activation lag of {config.activation_lag_records}."
        return Demand(0, Constraint.IDLE, reason, lag, in_flight)
    # Capped in records, so that the sum over lanes is rounded up once: two lanes with one task each need one replica.
    useful = sum(min(lane.lag_records, lane.partitions_with_lag * target) for lane in lanes)
    required, useful_replicas = -(-lag // target), -(-useful // target)
    reason = f"The lag is {lag}; at {target} per replica it requires {replicas_text(required)}."
    if useful_replicas < required:
        partitions = sum(lane.partitions_with_lag for lane in lanes)
        reason += (
            f" The tasks are on {partitions} partition{_plural(partitions)}, "
            f"so more than {replicas_text(useful_replicas)} would be idle."
        )
        return Demand(useful_replicas, Constraint.PARTITIONS, reason, lag, in_flight)
    return Demand(required, Constraint.LAG, reason, lag, in_flight)


def within_limits(choice: Choice, *, demand: Demand, snapshot: Snapshot, config: ScalingConfig) -> Choice:
    """The choice under every limit; quota and capacity prevent new replicas but do not end running ones."""
    current = snapshot.current_replicas
    for constraint, limit, why in _limits(snapshot):
        if choice.replicas > max(limit, current):
            choice = Choice(max(limit, current), constraint, f"{choice.reason} {why}")
    if choice.replicas > config.max_replicas:
        reason = f"{demand.reason} The maximum is {replicas_text(config.max_replicas)}."
        return Choice(config.max_replicas, Constraint.MAXIMUM, reason)
    if choice.replicas < config.min_replicas:
        reason = f"{choice.reason} The minimum is {replicas_text(config.min_replicas)}."
        return Choice(config.min_replicas, Constraint.MINIMUM, reason)
    return choice


def _limits(snapshot: Snapshot) -> Iterator[tuple[Constraint, int, str]]:
    """What prevents new replicas: the constraint, the limit in replicas and a sentence.

    A replica that cannot be scheduled is not helped by another one, so while there is one no replica is added.
    """
    current = snapshot.current_replicas
    if snapshot.quota_replicas is not None:
        quota = snapshot.quota_replicas
        yield Constraint.QUOTA, quota, f"The quota admits only {replicas_text(quota)}."
    for constraint, count, state in (
        (Constraint.QUOTA, snapshot.gated_replicas, "gated"),
        (Constraint.CAPACITY, snapshot.unschedulable_replicas, "unschedulable"),
    ):
        if count:
            yield constraint, current, f"{replicas_text(count)} of {current} {_be(count)} {state}, so none is added."
    if waiting := snapshot.waiting_for_gpu_replicas:
        stopping = snapshot.terminating_replicas
        sentence = (
            f"{replicas_text(waiting)} of {current} {'waits' if waiting == 1 else 'wait'} for the GPUs of "
            f"{replicas_text(stopping)} that {_be(stopping)} terminating, so none is added."
        )
        yield Constraint.CAPACITY, current, sentence


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
