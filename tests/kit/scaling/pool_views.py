"""Pools after a reconciliation, for tests of their assessment."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from fluxpool_contract.kafka import LedgerEntry
from fluxpool_operator.api import ConditionType, FluxWorkerPool, FluxWorkerPoolStatus
from fluxpool_operator.api.conditions import Condition
from fluxpool_operator.assessment import PoolView, assess
from fluxpool_operator.backlog import LaneObservation, LaneTarget
from fluxpool_operator.backlog.observation import PartitionObservation
from fluxpool_operator.planning import Constraint, Plan, PlanState
from fluxpool_operator.workload import DeploymentSummary, PodStage, PodSummary
from fluxpool_operator.workload.pods import PodPhase
from kit.scaling.pools import edited, pool_body

NOON: Final = datetime(2026, 5, 4, 12, tzinfo=UTC)
TEMPLATE: Final = "0f1e2d3c"
GENERATION: Final = 3


def pool(status: FluxWorkerPoolStatus | None = None, **edits: Any) -> FluxWorkerPool:
    """A pool of at most six workers, with fields of the spec set by their paths (`__` for a dot)."""
    paths = {path.replace("__", "."): value for path, value in edits.items()}
    made = FluxWorkerPool.parse(edited(pool_body(), {".metadata.generation": GENERATION, **paths}))
    return made.model_copy(update={"status": status or FluxWorkerPoolStatus()})


def pod(name: str, stage: PodStage = PodStage.READY, **fields: Any) -> PodSummary:
    """A pod of the current template."""
    placed = stage not in (PodStage.GATED, PodStage.UNSCHEDULABLE)
    usual: dict[str, Any] = {"template_hash": "a", "created_at": NOON - timedelta(hours=1)}
    return PodSummary(
        name=name,
        uid=f"uid-{name}",
        stage=stage,
        phase=PodPhase.RUNNING if placed else PodPhase.PENDING,
        node="gpu-1" if placed else None,
        **(usual | fields),
    )


def pods(ready: int, *others: PodSummary) -> tuple[PodSummary, ...]:
    """This many ready pods, and others."""
    return (*(pod(f"ready-{number}") for number in range(ready)), *others)


def deployment(replicas: int, *, ready: int | None = None, **fields: Any) -> DeploymentSummary:
    """The Deployment of a pool whose template is applied and observed."""
    numbers: dict[str, Any] = {
        "spec_replicas": replicas,
        "replicas": replicas,
        "ready": replicas if ready is None else ready,
        "updated": replicas,
        "template_hash": TEMPLATE,
        "generation": 7,
        "observed_generation": 7,
    }
    return DeploymentSummary(uid="d-1", **(numbers | fields))


def lane(
    waiting: int = 0,
    *,
    in_flight: int = 0,
    partitions: int = 6,
    name: str = "standard",
    age_seconds: float = 1.0,
    is_foreign: bool = False,
    **fields: Any,
) -> LaneObservation:
    """A lane with all pending records in its first partition; `is_foreign`: another client committed there."""
    tasks = {
        number: LedgerEntry(task=f"t{number}", worker=f"ready-{number}", started_at=0, crashes=0)
        for number in range(in_flight)
    }
    read = tuple(
        PartitionObservation(
            partition=number,
            pending_records=waiting if number == 0 else 0,
            in_flight=tasks if number == 0 else {},
            is_foreign_commit=is_foreign and number == 0,
        )
        for number in range(partitions)
    )
    return LaneObservation(
        target=LaneTarget(name=name, topic=f"tasks-{name}", consumer_group=f"group-{name}"),
        partitions=read,
        age_seconds=age_seconds,
        **fields,
    )


def decision(
    replicas: int, *, constraint: Constraint = Constraint.LAG, required: int | None = None, **fields: Any
) -> Plan:
    """A plan with this outcome."""
    usual: dict[str, Any] = {"reason": f"{replicas} for the lag.", "lag_records": 0, "state": PlanState()}
    return Plan(
        replicas=replicas,
        constraint=constraint,
        required_replicas=replicas if required is None else required,
        **(usual | fields),
    )


def view(replicas: int = 2, **fields: Any) -> PoolView:
    """A healthy pool with this many ready workers, changed by the given fields."""
    lanes = fields.get("lanes", (lane(),))
    usual: dict[str, Any] = {
        "pool": pool(),
        "now": NOON,
        "lanes": lanes,
        "plan": decision(replicas),
        "desired_replicas": replicas,
        "deployment": deployment(replicas),
        "pods": pods(replicas),
        "template_hash": TEMPLATE,
    }
    return PoolView(**(usual | fields))


def later(before: PoolView, status: FluxWorkerPoolStatus, seconds: float = 0, **fields: Any) -> PoolView:
    """The same pool some time after this status was written."""
    changes: dict[str, Any] = {
        "pool": before.pool.model_copy(update={"status": status}),
        "now": before.now + timedelta(seconds=seconds),
    }
    return replace(before, **(changes | fields))


def condition_of(seen: PoolView, kind: ConditionType) -> Condition:
    """What the assessment says of one thing."""
    return next(condition for condition in assess(seen).conditions if condition.type is kind)
