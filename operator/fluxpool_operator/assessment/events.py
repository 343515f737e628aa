"""Kubernetes events of a pool: one for each transition between two statuses.

Owns the messages. `reconcile.apply.status_writer` posts them.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Literal

from fluxpool_operator.api import ConditionStatus, ConditionType, FluxWorkerPoolStatus, Reason
from fluxpool_operator.api.conditions import Condition

EventType = Literal["Normal", "Warning"]

_PASSING: Final = frozenset(
    {
        Reason.PAUSED,
        Reason.ROLLING_OUT,
        Reason.WAITING_FOR_GPU,
        Reason.WORKERS_LOADING,
        Reason.WORKERS_NOT_READY,
    }
)
"""Reasons of a pool that becomes ready by itself: every scale-up passes through them and has an event of its own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolEvent:
    """One event about a pool."""

    type: EventType
    reason: Reason
    message: str


def events_of(before: FluxWorkerPoolStatus, after: FluxWorkerPoolStatus) -> tuple[PoolEvent, ...]:
    """The events of the transition; none when no condition, number of workers or template changed."""
    return (
        *_readiness(before, after),
        *_pausing(before, after),
        *_scaling(before, after),
        *_limits(before, after),
        *_lag(before, after),
        *_expiry(before, after),
        *_warnings(before, after),
        *_rollout(before, after),
    )


def _readiness(before: FluxWorkerPoolStatus, after: FluxWorkerPoolStatus) -> Iterator[PoolEvent]:
    was, now = _condition(before, ConditionType.READY), _changed(before, after, ConditionType.READY)
    if now is None:
        return
    if now.reason is Reason.FOREIGN_FIELDS:
        yield _warning(now.reason, now.message)
    elif now.status is ConditionStatus.TRUE:
        # Scaling from and to zero has events of its own; Ready is reported only after a fault.
        if was is None or was.status is not ConditionStatus.TRUE:
            yield _normal(Reason.READY, now.message)
    elif now.reason not in _PASSING:
        yield _warning(now.reason, now.message)


def _pausing(before: FluxWorkerPoolStatus, after: FluxWorkerPoolStatus) -> Iterator[PoolEvent]:
    was, now = _condition(before, ConditionType.SCALING_ACTIVE), _condition(after, ConditionType.SCALING_ACTIVE)
    was_paused = was is not None and was.reason is Reason.PAUSED
    if now is None or now.reason is Reason.INVALID_SPEC:
        return
    if now.reason is Reason.PAUSED:
        if not was_paused:
            yield _normal(Reason.PAUSED, now.message)
    elif was_paused:
        yield _normal(Reason.RESUMED, "Reconciliation is resumed.")


def _scaling(before: FluxWorkerPoolStatus, after: FluxWorkerPoolStatus) -> Iterator[PoolEvent]:
    was, now = before.desired_replicas or 0, after.desired_replicas
    if now is None or now == was:
        return
    by_plan = _is(after, ConditionType.SCALING_ACTIVE, ConditionStatus.TRUE)
    why = f" {after.plan.reason}" if after.plan and by_plan else ""
    if now == 0:
        yield _normal(Reason.SCALED_TO_ZERO, f"Scaled from {_workers(was)} to zero.{why}")
    elif was == 0:
        yield _normal(Reason.ACTIVATED, f"Scaled from zero to {_workers(now)}.{why}")
    else:
        reason = Reason.SCALED_UP if now > was else Reason.SCALED_DOWN
        yield _normal(reason, f"Scaled from {was} to {_workers(now)}.{why}")


def _limits(before: FluxWorkerPoolStatus, after: FluxWorkerPoolStatus) -> Iterator[PoolEvent]:
    now = _changed(before, after, ConditionType.SCALING_LIMITED)
    if now is None or now.status is not ConditionStatus.TRUE:
        return
    # Limits of the pool's own spec, or of the distribution of tasks, are no fault.
    own = now.reason in (Reason.AT_MAX_REPLICAS, Reason.PARTITION_LIMIT, Reason.RATE_LIMITED, Reason.PAUSED)
    yield (_normal if own else _warning)(now.reason, now.message)


def _lag(before: FluxWorkerPoolStatus, after: FluxWorkerPoolStatus) -> Iterator[PoolEvent]:
    now = _changed(before, after, ConditionType.LAG_AVAILABLE)
    if now is None:
        return
    ready = _condition(after, ConditionType.READY)
    if now.status is ConditionStatus.FALSE:
        # Already reported when `Ready` has the same reason.
        if ready is None or ready.reason is not now.reason:
            yield _warning(now.reason, now.message)
    elif _is(before, ConditionType.LAG_AVAILABLE, ConditionStatus.FALSE):
        yield _normal(Reason.LAG_RESTORED, now.message)


def _expiry(before: FluxWorkerPoolStatus, after: FluxWorkerPoolStatus) -> Iterator[PoolEvent]:
    known = {lane.name: lane.expired or 0 for lane in before.lanes}
    for lane in after.lanes:
        more = (lane.expired or 0) - known.get(lane.name, 0)
        if more > 0:
            yield _warning(
                Reason.RETENTION_PASSED,
                f"Topic retention deleted {more} {'task' if more == 1 else 'tasks'} of lane {lane.name} before a worker"
                " consumed them; raise the topic's retention.ms or scaling.maxReplicas.",
            )


def _warnings(before: FluxWorkerPoolStatus, after: FluxWorkerPoolStatus) -> Iterator[PoolEvent]:
    for type_ in (ConditionType.TOPICS_READY, ConditionType.OFFSETS_RETAINED, ConditionType.LOG_APPEND_TIME):
        now = _changed(before, after, type_)
        # `Ready` reports topics that could not be managed.
        if now is not None and now.status is ConditionStatus.FALSE and now.reason is not Reason.TOPICS_FAILED:
            yield _warning(now.reason, now.message)


def _rollout(before: FluxWorkerPoolStatus, after: FluxWorkerPoolStatus) -> Iterator[PoolEvent]:
    if before.replicas and before.template_hash not in (None, after.template_hash):
        yield _normal(Reason.ROLLOUT_STARTED, "The pod template changed; workers are replaced one by one.")
    elif _is_outdated(before) and not _is_outdated(after):
        yield _normal(Reason.ROLLOUT_COMPLETE, "All workers have the current template.")


def _is_outdated(status: FluxWorkerPoolStatus) -> bool:
    return (status.updated_replicas or 0) < (status.replicas or 0)


def _changed(before: FluxWorkerPoolStatus, after: FluxWorkerPoolStatus, type_: ConditionType) -> Condition | None:
    """The condition, if its status or reason changed."""
    was, now = _condition(before, type_), _condition(after, type_)
    if now is None or (was is not None and (was.status, was.reason) == (now.status, now.reason)):
        return None
    return now


def _condition(status: FluxWorkerPoolStatus, type_: ConditionType) -> Condition | None:
    return next((condition for condition in status.conditions if condition.type is type_), None)


def _is(status: FluxWorkerPoolStatus, type_: ConditionType, wanted: ConditionStatus) -> bool:
    condition = _condition(status, type_)
    return condition is not None and condition.status is wanted


def _workers(count: int) -> str:
    return f"{count} worker{'' if count == 1 else 's'}"


def _normal(reason: Reason, message: str) -> PoolEvent:
    return PoolEvent(type="Normal", reason=reason, message=message)


def _warning(reason: Reason, message: str) -> PoolEvent:
    return PoolEvent(type="Warning", reason=reason, message=message)
