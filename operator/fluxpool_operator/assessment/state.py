"""The state of a pool that gateways read from Kafka, and when it is worth a record. Pure.

A gateway has no rights in the cluster: what starts, what is desired and why, it knows from here.
"""

from datetime import datetime, timedelta
from typing import Final

from fluxpool_contract.messages import HEARTBEAT_SECONDS, VALID_SECONDS, PoolLane, PoolState
from fluxpool_operator.api import FluxWorkerPoolStatus
from fluxpool_operator.assessment.view import PoolView
from fluxpool_operator.workload import PodStage

NUMBERS_SECONDS: Final = 10.0
"""Minimum time between two records when only sentences and estimates differ."""
_MISSED_POLLS: Final = 4
_ESTIMATES: Final = ("reason", "eta_seconds", "start_seconds", "next_ready_at")


def pool_state(view: PoolView, status: FluxWorkerPoolStatus) -> PoolState:
    """The state; `status` is the pool's at the same moment."""
    pool, scaling, counts = view.pool, view.pool.spec.scaling, view.counts
    return PoolState(
        namespace=pool.namespace,
        pool=pool.name,
        lanes=tuple(
            PoolLane(name=lane.target.name, topic=lane.target.topic, consumer_group=lane.target.consumer_group)
            for lane in view.lanes
        ),
        desired_replicas=view.desired_replicas,
        ready_replicas=counts.ready,
        starting_replicas=counts.loading,
        draining_replicas=counts.terminating,
        min_replicas=scaling.min_replicas,
        max_replicas=scaling.max_replicas,
        paused=pool.spec.paused,
        constraint=view.plan.constraint,
        reason=view.plan.reason,
        eta_seconds=None if status.plan is None else status.plan.eta_seconds,
        start_seconds=status.start_seconds,
        next_ready_at=_next_ready_at(view, status),
        model=pool.spec.model.id,
        model_family=status.model_family,
        license=status.license,
        decided_at=view.now,
        # A pool whose lag is read rarely is reconciled rarely, and written then alone.
        valid_seconds=max(VALID_SECONDS, _MISSED_POLLS * scaling.poll_interval_seconds),
    )


def worth_publishing(published: PoolState | None, new: PoolState, *, seconds_since_write: float) -> bool:
    """Whether to write now: at once for counts and what determined them, later for estimates, always as a heartbeat."""
    if published is None or seconds_since_write >= HEARTBEAT_SECONDS:
        return True
    later = published.model_copy(update={"decided_at": new.decided_at})
    if later == new:
        return False
    same_estimates = {name: getattr(new, name) for name in _ESTIMATES}
    return later.model_copy(update=same_estimates) != new or seconds_since_write >= NUMBERS_SECONDS


def _next_ready_at(view: PoolView, status: FluxWorkerPoolStatus) -> datetime | None:
    """When the oldest starting pod is ready, if it takes as long as those before it; a late one may be ready any time.

    Pods without a node are not counted: when they get one is unknown.
    """
    if status.start_seconds is None:
        return None
    starting = [pod.created_at for pod in view.pods if pod.stage is PodStage.STARTING]
    if starting:
        return max(view.now, min(starting) + timedelta(seconds=status.start_seconds))
    if view.desired_replicas > view.counts.active:
        return view.now + timedelta(seconds=status.start_seconds)
    return None
