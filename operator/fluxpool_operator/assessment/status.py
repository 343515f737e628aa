"""The status of a pool from one reconciliation, and when it is worth a write.

Numbers are rounded, so that an idle pool's status does not change. What is unknown is absent.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from statistics import median
from typing import Any, Final

from fluxpool_contract.families import FAMILIES, published_family
from fluxpool_operator.api import ConditionType, FluxWorkerPoolStatus, LaneStatus, PlanStatus, with_condition
from fluxpool_operator.api.conditions import Condition
from fluxpool_operator.assessment.conditions import verdict
from fluxpool_operator.assessment.view import PoolView, coarse_count, coarse_seconds
from fluxpool_operator.backlog.observation import LaneObservation
from fluxpool_operator.children import selector_text

MAX_REASON_CHARACTERS: Final = 1024
WRITE_INTERVAL_SECONDS: Final = 10.0
"""Minimum time between two writes when only numbers differ: the writes of all pools add up in etcd."""

_COUNTS: Final = (
    "observed_generation",
    "replicas",
    "ready_replicas",
    "updated_replicas",
    "terminating_replicas",
    "desired_replicas",
    "selector",
    "template_hash",
)


def assess(view: PoolView) -> FluxWorkerPoolStatus:
    """The status to be written, with every condition about the pool's present generation."""
    pool, deployment = view.pool, view.deployment
    lanes = tuple(_lane_status(lane) for lane in view.lanes)
    family = _model_family(view)
    eta = view.plan.eta_seconds if view.lag_is_known else None
    return FluxWorkerPoolStatus(
        observed_generation=pool.metadata.generation,
        conditions=_conditions(view),
        replicas=deployment.replicas if deployment else 0,
        ready_replicas=deployment.ready if deployment else 0,
        updated_replicas=deployment.updated if deployment else 0,
        terminating_replicas=view.counts.terminating,
        desired_replicas=view.desired_replicas,
        selector=selector_text(pool),
        pending=_pending(view.lanes),
        in_flight=_in_flight(view.lanes),
        oldest_age_seconds=_oldest(view.lanes),
        lag_observed_time=_observed_time(view),
        lanes=lanes,
        plan=PlanStatus(
            required_replicas=view.plan.required_replicas,
            replicas=view.plan.replicas,
            constraint=view.plan.constraint,
            reason=view.plan.reason[:MAX_REASON_CHARACTERS],
            eta_seconds=None if eta is None else coarse_seconds(eta),
        ),
        start_seconds=_start_seconds(view),
        model_family=family,
        license=None if family is None or family not in FAMILIES else FAMILIES[family].licence.name,
        last_scale_time=_last_scale_time(view),
        last_active_time=_last_active_time(view),
        template_hash=view.template_hash or pool.status.template_hash,
    )


def worth_writing(written: FluxWorkerPoolStatus, new: FluxWorkerPoolStatus, *, seconds_since_write: float) -> bool:
    """Whether to write now: at once for a changed condition or count of pods, later for other numbers."""
    if written == new:
        return False
    if _urgent(written) != _urgent(new):
        return True
    # A later reading of the same lag is not written: thousands of idle pools must not load etcd.
    times = {"lag_observed_time": new.lag_observed_time, "last_active_time": new.last_active_time}
    is_later_reading = written.model_copy(update=times) == new
    return not is_later_reading and seconds_since_write >= WRITE_INTERVAL_SECONDS


def status_patch(written: FluxWorkerPoolStatus, new: FluxWorkerPoolStatus) -> dict[str, Any]:
    """A merge patch that turns one status into the other; null removes a field."""
    return _merge(written.to_manifest(), new.to_manifest())


def _conditions(view: PoolView) -> tuple[Condition, ...]:
    conditions = view.pool.status.conditions
    for type_ in ConditionType:
        conditions = with_condition(
            conditions,
            type_,
            verdict(view, type_),
            observed_generation=view.pool.metadata.generation,
            now=view.now,
        )
    return conditions


def _lane_status(lane: LaneObservation) -> LaneStatus:
    is_known = bool(lane.partitions)
    return LaneStatus(
        name=lane.target.name,
        consumer_group=lane.target.consumer_group,
        partitions=len(lane.partitions) if is_known else None,
        pending=_pending((lane,)),
        in_flight=_in_flight((lane,)),
        oldest_age_seconds=_oldest((lane,)),
        # Losses that an earlier process told stay told while Kafka cannot be read.
        expired=lane.expired_records_total if is_known or lane.expired_records_total else None,
    )


def _known(lanes: Sequence[LaneObservation]) -> list[LaneObservation]:
    return [lane for lane in lanes if lane.partitions]


def _pending(lanes: Sequence[LaneObservation]) -> int | None:
    known = _known(lanes)
    return coarse_count(sum(lane.pending_records for lane in known)) if known else None


def _in_flight(lanes: Sequence[LaneObservation]) -> int | None:
    known = _known(lanes)
    return sum(lane.in_flight_records for lane in known) if known else None


def _oldest(lanes: Sequence[LaneObservation]) -> int | None:
    ages = [lane.oldest_age_seconds for lane in lanes if lane.oldest_age_seconds is not None]
    return coarse_seconds(max(ages)) if ages else None


def _observed_time(view: PoolView) -> datetime | None:
    """When the lane that was not read for longest was read; what was written while one was never read."""
    age_seconds = max((lane.age_seconds for lane in view.lanes), default=math.inf)
    if not math.isfinite(age_seconds):
        return view.pool.status.lag_observed_time
    return (view.now - timedelta(seconds=age_seconds)).replace(microsecond=0)


def _model_family(view: PoolView) -> str | None:
    """By the model ID; of another checkpoint by the workers, which tell it beside the offsets that they commit."""
    published = published_family(view.pool.spec.model.id)
    if published is not None:
        return published.name
    # While a rollout changes the model there are two.
    told = Counter(item.model_family for lane in view.lanes for item in lane.partitions if item.model_family)
    return max(sorted(told), key=lambda family: told[family], default=None)


def _start_seconds(view: PoolView) -> int | None:
    """Of the pods that are ready and were not restarted, which may have been long after their creation."""
    took = [
        (pod.ready_since - pod.created_at).total_seconds() for pod in view.pods if pod.ready_since and not pod.restarts
    ]
    # While the pool sleeps, it is what it was before.
    return coarse_seconds(median(took)) if took else view.pool.status.start_seconds


def _last_scale_time(view: PoolView) -> datetime | None:
    before = view.pool.status
    if view.desired_replicas == (before.desired_replicas or 0):
        return before.last_scale_time
    return view.now.replace(microsecond=0)


def _last_active_time(view: PoolView) -> datetime | None:
    before = view.pool.status
    was_active = bool(before.pending or before.in_flight)
    is_active = bool(_pending(view.lanes) or _in_flight(view.lanes))
    # Without work now, but there was some: the last of it went since then.
    if is_active or (was_active and view.lag_is_known):
        return view.now.replace(microsecond=0)
    return before.last_active_time


def _urgent(status: FluxWorkerPoolStatus) -> tuple[object, ...]:
    conditions = tuple((item.type, item.status, item.reason, item.observed_generation) for item in status.conditions)
    return (conditions, *(getattr(status, name) for name in _COUNTS))


def _merge(written: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    patch: dict[str, Any] = dict.fromkeys(written.keys() - new.keys())
    for name, value in new.items():
        before = written.get(name)
        patch[name] = _merge(before, value) if isinstance(value, Mapping) and isinstance(before, Mapping) else value
    return patch
