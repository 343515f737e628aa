"""Between a pool and its plan: whose number counts, and what a plan remembers by the status alone.

Pure. Must not know how a plan is made nor how it is carried out.
"""

from datetime import datetime
from typing import Final

from fluxpool_operator.api import FluxWorkerPool, FluxWorkerPoolStatus
from fluxpool_operator.planning import Pace, Plan, PlanState, ReplicaChange

_ANY_STEP: Final = 1000
"""More replicas than a pool may have: of the last change only the time is known, so a whole step counts as used."""


def desired_replicas(pool: FluxWorkerPool, plan: Plan) -> int:
    """The number of workers that there should be: the plan's in mode Active, a person's in Manual and Shadow."""
    return plan.replicas if pool.spec.scaling.mode.follows_plan else pool.spec.replicas


def restored_state(status: FluxWorkerPoolStatus, now: datetime) -> PlanState:
    """The memory of an earlier process, as far as the status tells; what it does not tell begins anew.

    Only time that somebody watched counts as idle: until the last reading of a backlog without work.
    """
    idle_seconds = 0.0
    if status.lag == 0 and status.in_flight == 0 and status.last_active_time and status.lag_observed_time:
        watched_until = min(now, status.lag_observed_time)
        idle_seconds = max(0.0, (watched_until - status.last_active_time).total_seconds())
    changes: tuple[ReplicaChange, ...] = ()
    if status.last_scale_time:
        seconds_ago = max(0.0, (now - status.last_scale_time).total_seconds())
        changes = tuple(
            ReplicaChange(seconds_ago=seconds_ago, replicas=replicas) for replicas in (_ANY_STEP, -_ANY_STEP)
        )
    return PlanState(idle_seconds=idle_seconds, pace=Pace(changes=changes))
