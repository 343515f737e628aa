"""The status of a pool from what a turn saw and decided.

Numbers are coarse, so that a status stands still while nothing happens that matters. What is not known is absent.
"""

import math
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Final

from fluxpool_operator.api import ConditionType, FluxWorkerPoolStatus, LaneStatus, PlanStatus, with_condition
from fluxpool_operator.api.conditions import Condition
from fluxpool_operator.assessment.coarse import coarse_count, coarse_seconds
from fluxpool_operator.assessment.conditions import verdict
from fluxpool_operator.assessment.view import PoolView
from fluxpool_operator.backlog.observation import LaneObservation
from fluxpool_operator.children import selector_text

MAX_REASON_CHARACTERS: Final = 1024


def assess(view: PoolView) -> FluxWorkerPoolStatus:
    """The status to be written, with every condition about the pool's present generation."""
    pool, deployment = view.pool, view.deployment
    lanes = tuple(_lane_status(lane) for lane in view.lanes)
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
        lag=_lag(view.lanes),
        in_flight=_in_flight(view.lanes),
        oldest_age_seconds=_oldest(view.lanes),
        lag_observed_time=_observed_time(view),
        lanes=lanes,
        plan=PlanStatus(
            need=view.plan.required_replicas,
            replicas=view.plan.replicas,
            constraint=view.plan.constraint,
            reason=view.plan.reason[:MAX_REASON_CHARACTERS],
            eta_seconds=None if eta is None else coarse_seconds(eta),
        ),
        last_scale_time=_last_scale_time(view),
        last_active_time=_last_active_time(view),
        template_hash=view.template_hash or pool.status.template_hash,
    )


def _conditions(view: PoolView) -> tuple[Condition, ...]:
    conditions = view.pool.status.conditions
    for type_ in ConditionType:
        said = verdict(view, type_)
        conditions = with_condition(
            conditions,
            type=type_,
            status=said.status,
            reason=said.reason,
            message=said.message,
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
        lag=_lag((lane,)),
        in_flight=_in_flight((lane,)),
        oldest_age_seconds=_oldest((lane,)),
        # Losses that an earlier process told stay told while Kafka cannot be read.
        expired=lane.expired_records_total if is_known or lane.expired_records_total else None,
    )


def _known(lanes: Sequence[LaneObservation]) -> list[LaneObservation]:
    return [lane for lane in lanes if lane.partitions]


def _lag(lanes: Sequence[LaneObservation]) -> int | None:
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


def _last_scale_time(view: PoolView) -> datetime | None:
    before = view.pool.status
    if view.desired_replicas == (before.desired_replicas or 0):
        return before.last_scale_time
    return view.now.replace(microsecond=0)


def _last_active_time(view: PoolView) -> datetime | None:
    before = view.pool.status
    was_active = bool(before.lag or before.in_flight)
    is_active = bool(_lag(view.lanes) or _in_flight(view.lanes))
    # Without work now, but there was some: the last of it went since then.
    if is_active or (was_active and view.lag_is_known):
        return view.now.replace(microsecond=0)
    return before.last_active_time
