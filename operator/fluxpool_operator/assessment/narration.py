"""What happened between two statuses, as events for people. Transitions only: what lasts is told once.

Owns the words of events. Must not know how they are posted.
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
"""Reasons of a pool that is not ready and on its way: every scale-up passes there, and its own event tells it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolEvent:
    """One event about a pool."""

    type: EventType
    reason: Reason
    message: str


def narrate(before: FluxWorkerPoolStatus, after: FluxWorkerPoolStatus) -> tuple[PoolEvent, ...]:
    """The events that lead from one status to the other; none when nothing turned."""
    return (
        *_readiness(before, after),
        *_pausing(before, after),
        *_scaling(before, after),
        *_limits(before, after),
        *_lag(before, after),
        *_expiry(before, after),
        *_topics(before, after),
        *_offsets(before, after),
        *_times(before, after),
        *_rollout(before, after),
    )


def _readiness(before: FluxWorkerPoolStatus, after: FluxWorkerPoolStatus) -> Iterator[PoolEvent]:
    was, now = _condition(before, ConditionType.READY), _condition(after, ConditionType.READY)
    if now is None or (was is not None and (was.status, was.reason) == (now.status, now.reason)):
        return
    if now.reason is Reason.FOREIGN_FIELDS:
        yield _warning(now.reason, now.message)
    elif now.status is ConditionStatus.TRUE:
        # A pool that wakes and sleeps tells so by its scalings; ready is news after something was wrong.
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
        yield _normal(Reason.RESUMED, "The pool is not paused any more.")


def _scaling(before: FluxWorkerPoolStatus, after: FluxWorkerPoolStatus) -> Iterator[PoolEvent]:
    was, now = before.desired_replicas or 0, after.desired_replicas
    if now is None or now == was:
        return
    by_plan = _is(after, ConditionType.SCALING_ACTIVE, ConditionStatus.TRUE)
    why = f" {after.plan.reason}" if after.plan and by_plan else ""
    if now == 0:
        yield _normal(Reason.SCALED_TO_ZERO, f"From {_workers(was)} to none.{why}")
    elif was == 0:
        yield _normal(Reason.ACTIVATED, f"From no worker to {now}.{why}")
    else:
        reason = Reason.SCALED_UP if now > was else Reason.SCALED_DOWN
        yield _normal(reason, f"From {_workers(was)} to {now}.{why}")


def _limits(before: FluxWorkerPoolStatus, after: FluxWorkerPoolStatus) -> Iterator[PoolEvent]:
    now = _turned(before, after, ConditionType.SCALING_LIMITED)
    if now is None or now.status is not ConditionStatus.TRUE:
        return
    # Limits of the pool's own choice, or of how the tasks lie, are no fault.
    own = now.reason in (Reason.AT_MAX_REPLICAS, Reason.PARTITION_LIMIT, Reason.RATE_LIMITED, Reason.PAUSED)
    yield (_normal if own else _warning)(now.reason, now.message)


def _lag(before: FluxWorkerPoolStatus, after: FluxWorkerPoolStatus) -> Iterator[PoolEvent]:
    now = _turned(before, after, ConditionType.LAG_AVAILABLE)
    if now is None:
        return
    ready = _condition(after, ConditionType.READY)
    if now.status is ConditionStatus.FALSE:
        # What `Ready` gives as its reason too was told already.
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
                f"The topic's retention deleted {more} {'task' if more == 1 else 'tasks'} of lane {lane.name}"
                " before a worker took them.",
            )


def _topics(before: FluxWorkerPoolStatus, after: FluxWorkerPoolStatus) -> Iterator[PoolEvent]:
    now = _turned(before, after, ConditionType.TOPICS_READY)
    if now is not None and now.status is ConditionStatus.FALSE and now.reason is not Reason.TOPICS_FAILED:
        yield _warning(now.reason, now.message)


def _offsets(before: FluxWorkerPoolStatus, after: FluxWorkerPoolStatus) -> Iterator[PoolEvent]:
    now = _turned(before, after, ConditionType.OFFSETS_RETAINED)
    if now is not None and now.status is ConditionStatus.FALSE:
        yield _warning(now.reason, now.message)


def _times(before: FluxWorkerPoolStatus, after: FluxWorkerPoolStatus) -> Iterator[PoolEvent]:
    now = _turned(before, after, ConditionType.LOG_APPEND_TIME)
    if now is not None and now.status is ConditionStatus.FALSE:
        yield _warning(now.reason, now.message)


def _rollout(before: FluxWorkerPoolStatus, after: FluxWorkerPoolStatus) -> Iterator[PoolEvent]:
    if before.replicas and before.template_hash not in (None, after.template_hash):
        yield _normal(Reason.ROLLOUT_STARTED, "The pod template changed; workers are replaced one after the other.")
    elif _is_outdated(before) and not _is_outdated(after):
        yield _normal(Reason.ROLLOUT_COMPLETE, "Every worker has the newest template.")


def _is_outdated(status: FluxWorkerPoolStatus) -> bool:
    return (status.updated_replicas or 0) < (status.replicas or 0)


def _turned(before: FluxWorkerPoolStatus, after: FluxWorkerPoolStatus, type_: ConditionType) -> Condition | None:
    """The condition as it is now, if its status or reason is another one than before."""
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
