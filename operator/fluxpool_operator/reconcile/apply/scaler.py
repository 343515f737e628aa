"""From what a turn saw to a number of replicas: the plan with its memory, and the pods that a scale-in may take.

Owns the time between plans and the marks on pods. The numbers are decided by `planning`, the victims by `workload`.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import structlog

from fluxpool_operator.api import FluxWorkerPool, FluxWorkerPoolStatus, scaling_config
from fluxpool_operator.backlog import LaneObservation
from fluxpool_operator.cluster import ClusterError, KindPath
from fluxpool_operator.planning import Constraint, Plan, Snapshot, plan
from fluxpool_operator.pool_scaling import restored_state
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """What a turn saw before it did anything."""

    lanes: tuple[LaneObservation, ...]
    deployment: DeploymentSummary | None
    pods: tuple[PodSummary, ...]

    @property
    def current_replicas(self) -> int:
        """What the Deployment was last told; 0 when there is none."""
        return self.deployment.spec_replicas if self.deployment else 0

    @property
    def busy_pods(self) -> frozenset[str]:
        """Names of the pods that hold a task."""
        return frozenset(task.worker for lane in self.lanes for task in lane.in_flight)


class Scaler:
    """The number of one pool's replicas."""

    def __init__(self, *, written: FluxWorkerPoolStatus, context: OperatorContext) -> None:
        """`written` is the status as an earlier process left it: what it remembers counts on."""
        self._context = context
        self._state = restored_state(written, context.utc_now())
        self._planned_at: float | None = None

    def plan(self, pool: FluxWorkerPool, observation: Observation) -> Plan:
        """Plan anew; raises `InvalidPoolError` when the limits contradict each other."""
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
        """Mark the pods that may go, and return how many may stay: more than wanted when only busy ones are left.

        A person's own number, and a lowered maximum, are obeyed at once: idle pods are marked to go first, and a busy
        one that goes all the same finishes its task within its grace.
        """
        step = plan_scale_in(
            observation.pods, busy=observation.busy_pods, current=observation.current_replicas, wanted=wanted
        )
        await self._mark(pool, step.costs)
        if not pool.spec.scaling.mode.follows_plan or made.constraint is Constraint.MAXIMUM:
            return wanted
        if step.replicas >= observation.current_replicas:
            return step.replicas
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
    """The pods with the marks that were just written, which the watch may not have brought back yet."""
    return [replace(pod, deletion_cost=step.costs.get(pod.name, pod.deletion_cost)) for pod in pods]


def _quota(deployment: DeploymentSummary | None) -> int | None:
    """How many pods a quota admits: as many as there are, once it has refused one more."""
    return deployment.replicas if deployment is not None and deployment.is_over_quota else None
