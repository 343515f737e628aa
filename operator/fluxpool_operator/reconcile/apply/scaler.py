"""From an observation to a number of replicas: the plan with its memory, and the pods that a scale-in takes.

Owns the time between plans and the deletion costs of pods. The number is decided by `planning`, the victims by
`workload`; `child_applier` carries both out.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Final

import structlog

from fluxpool_operator.api import FluxWorkerPool, FluxWorkerPoolStatus, scaling_config
from fluxpool_operator.backlog import LaneObservation
from fluxpool_operator.cluster import ClusterError, KindPath
from fluxpool_operator.planning import Constraint, Pace, Plan, PlanState, ReplicaChange, Snapshot, plan
from fluxpool_operator.reconcile.context import OperatorContext
from fluxpool_operator.workload import (
    DELETION_COST_ANNOTATION,
    DeploymentSummary,
    PodSummary,
    ScaleIn,
    count_pods,
    plan_scale_in,
)

log = structlog.get_logger(__name__)

_ANY_STEP: Final = 1000
"""More replicas than a pool may have. A status tells only when the last change was, so a whole step counts as used."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """What a reconcile observed before it changed anything."""

    lanes: tuple[LaneObservation, ...]
    deployment: DeploymentSummary | None
    pods: tuple[PodSummary, ...]

    @property
    def current_replicas(self) -> int:
        """`spec.replicas` of the Deployment; 0 without one."""
        return self.deployment.spec_replicas if self.deployment else 0

    @property
    def busy_pods(self) -> frozenset[str]:
        """Names of the pods that hold a task."""
        return frozenset(task.worker for lane in self.lanes for task in lane.in_flight)


class Scaler:
    """The number of one pool's replicas."""

    def __init__(self, *, written: FluxWorkerPoolStatus, context: OperatorContext) -> None:
        """`written` is the status that an earlier process left; its memory continues."""
        self._context = context
        self._state = restored_state(written, context.utc_now())
        self._planned_at: float | None = None

    def plan(self, pool: FluxWorkerPool, observation: Observation) -> Plan:
        """Make a plan; raises `InvalidPoolError` when the limits contradict each other."""
        now = self._context.clock()
        elapsed = 0.0 if self._planned_at is None else now - self._planned_at
        counts = count_pods(observation.pods)
        snapshot = Snapshot(
            lanes=observation.lanes,
            current_replicas=observation.current_replicas,
            elapsed_seconds=elapsed,
            state=self._state,
            quota_replicas=_quota(observation.deployment),
            gated_replicas=counts.gated,
            unschedulable_replicas=counts.unschedulable,
            waiting_for_gpu_replicas=counts.waiting_for_gpu,
            terminating_replicas=counts.terminating,
        )
        made = plan(snapshot, scaling_config(pool.spec))
        self._planned_at, self._state = now, made.state
        return made

    async def choose_victims(
        self,
        pool: FluxWorkerPool,
        made: Plan,
        observation: Observation,
        *,
        wanted: int,
        observe_again: Callable[[], Awaitable[Observation]],
    ) -> int:
        """Mark the victims of a scale-in, and return the replicas: more than wanted when only busy pods are left.

        A number that a person set, and a lowered maximum, are applied at once: idle pods are taken first, and a busy
        one that is taken all the same finishes its task within its grace period.
        """
        step = plan_scale_in(
            observation.pods, busy=observation.busy_pods, current=observation.current_replicas, wanted=wanted
        )
        await self._mark(pool, step.costs)
        if not pool.spec.scaling.mode.follows_plan or made.constraint is Constraint.MAXIMUM:
            return wanted
        if step.replicas >= observation.current_replicas:
            return step.replicas
        # A worker may have taken a task since the lag was read. Only a fresh reading after the marks were written shows
        # whether a victim became busy; the rest of that race is covered by the worker's grace period.
        again = await observe_again()
        if again.busy_pods <= observation.busy_pods:
            return step.replicas
        marked = _with_costs(again.pods, step)
        step = plan_scale_in(marked, busy=again.busy_pods, current=again.current_replicas, wanted=wanted)
        await self._mark(pool, step.costs)
        return step.replicas

    async def _mark(self, pool: FluxWorkerPool, costs: Mapping[str, int]) -> None:
        for name, cost in costs.items():
            patch = {"metadata": {"annotations": {DELETION_COST_ANNOTATION: str(cost) if cost else None}}}
            try:
                await self._context.cluster.merge_patch(KindPath.POD.object(pool.namespace, name), patch)
            except ClusterError as error:
                if error.status != 404:
                    raise
            log.debug("pod_marked", pod=name, deletion_cost=cost)


def _with_costs(pods: Sequence[PodSummary], step: ScaleIn) -> list[PodSummary]:
    """The pods with the costs just written, which the watch may not have returned yet."""
    return [replace(pod, deletion_cost=step.costs.get(pod.name, pod.deletion_cost)) for pod in pods]


def _quota(deployment: DeploymentSummary | None) -> int | None:
    """How many pods a quota admits: those that exist, once it has refused one more."""
    return deployment.replicas if deployment is not None and deployment.is_over_quota else None


def desired_replicas(pool: FluxWorkerPool, plan: Plan) -> int:
    """The plan's number in mode Active, a person's (`spec.replicas`) in Manual and Shadow."""
    return plan.replicas if pool.spec.scaling.mode.follows_plan else pool.spec.replicas


def restored_state(status: FluxWorkerPoolStatus, now: datetime) -> PlanState:
    """The memory of a plan as far as an earlier process left it in the status.

    Only observed time counts as idle: until the last reading of a backlog without work.
    """
    idle_seconds = 0.0
    if status.pending == 0 and status.in_flight == 0 and status.last_active_time and status.lag_observed_time:
        watched_until = min(now, status.lag_observed_time)
        idle_seconds = max(0.0, (watched_until - status.last_active_time).total_seconds())
    changes: tuple[ReplicaChange, ...] = ()
    if status.last_scale_time:
        seconds_ago = max(0.0, (now - status.last_scale_time).total_seconds())
        changes = tuple(
            ReplicaChange(seconds_ago=seconds_ago, replicas=replicas) for replicas in (_ANY_STEP, -_ANY_STEP)
        )
    return PlanState(idle_seconds=idle_seconds, pace=Pace(changes=changes))
