"""The FluxWorkerPool resource: metadata, spec and status, and the error for one that does not validate."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Final, Self

from pydantic import Field, ValidationError

from fluxpool_contract.problems import FieldProblem, explain
from fluxpool_operator.api.image import ImageSpec
from fluxpool_operator.api.kafka import KafkaSpec, TopicField
from fluxpool_operator.api.kubernetes_types import Labels
from fluxpool_operator.api.model import ModelSpec
from fluxpool_operator.api.scaling import LagUnavailablePolicy, Replicas, ScalingSpec
from fluxpool_operator.api.schema import ATOMIC, ApiModel, CountOrPercentage, Rule
from fluxpool_operator.api.secrets import TenantSecretRef
from fluxpool_operator.api.shared_parts import share_parts
from fluxpool_operator.api.status import FluxWorkerPoolStatus
from fluxpool_operator.api.storage import StorageSpec
from fluxpool_operator.api.worker import WorkerSpec
from fluxpool_operator.planning import ScalingConfig

GROUP: Final = "fluxpool.dev"
VERSION: Final = "v1alpha1"
API_VERSION: Final = f"{GROUP}/{VERSION}"
KIND: Final = "FluxWorkerPool"
PLURAL: Final = "fluxworkerpools"

MAX_NAME_CHARACTERS: Final = 39
"""A pod name is the pool's name and 24 more characters, and a host name has at most 63."""


class InvalidPoolError(ValueError):
    """A pool that does not validate; the message names every invalid field."""

    def __init__(self, problems: tuple[FieldProblem, ...]) -> None:
        self.problems = problems
        super().__init__("; ".join(map(str, problems)))


class RetrySpec(ApiModel):
    """Retry policy of failed tasks."""

    max_attempts: Annotated[int, Field(ge=1, le=10)] = 3
    """Maximum number of attempts before a task is sent to the dead-letter topic."""


class DisruptionSpec(ApiModel):
    """PodDisruptionBudget of the workers."""

    max_unavailable: CountOrPercentage = 1
    """Number or percentage of workers that may be unavailable after an eviction. 0 prevents all voluntary evictions."""


class PodMonitorSpec(ApiModel):
    """PodMonitor of the Prometheus Operator for the workers."""

    interval_seconds: Annotated[int, Field(ge=1, le=3600)] = 30
    """Interval at which Prometheus scrapes the metrics."""
    labels: Labels = Field(default_factory=dict)
    """Labels of the PodMonitor, matched by podMonitorSelector of the Prometheus resource."""


class TenantsSpec(ApiModel):
    """Proof of the tenants of tasks. Without any, every task is of the tenant default."""

    secret_ref: TenantSecretRef | None = None
    """Secret with the keys by which the gateway proves tenants, the same as its gateway.tenantSecretRef. Workers read a
    change without a restart."""
    foreign_topics: Annotated[tuple[TopicField, ...], Field(max_length=8, json_schema_extra=ATOMIC)] = ()
    """Topics of lanes in which every producer may name the tenant of a task."""


class FluxWorkerPoolSpec(ApiModel):
    """Desired state of the pool."""

    replicas: Replicas = 1
    """Number of workers in mode Manual and Shadow, set by kubectl scale. Has no effect in mode Active."""
    paused: bool = False
    """Whether reconciliation is paused: nothing is scaled or applied; the status is still updated."""
    model: ModelSpec = ModelSpec()
    """Checkpoint that the workers load."""
    kafka: KafkaSpec
    """Kafka cluster, consumer groups and topics."""
    scaling: ScalingSpec
    """Scaling of the number of workers."""
    retry: RetrySpec = RetrySpec()
    """Retry policy of failed tasks."""
    storage: StorageSpec
    """Storage of the generated images."""
    image: ImageSpec = ImageSpec()
    """Metadata and signature of the image files, and input images of tasks."""
    tenants: TenantsSpec = TenantsSpec()
    """Proof of the tenants of tasks."""
    worker: WorkerSpec
    """Pod template of the workers."""
    disruption: DisruptionSpec = DisruptionSpec()
    """PodDisruptionBudget of the workers."""
    pod_monitor: PodMonitorSpec | None = None
    """PodMonitor for the workers. Requires the Prometheus Operator."""

    rules: ClassVar = (
        # A change from Manual to Active may change spec.replicas too, as an edited manifest does.
        Rule(
            "self.scaling.mode != 'Active' || oldSelf.scaling.mode != 'Active' || self.replicas == oldSelf.replicas",
            "replicas: has no effect in mode Active; change scaling.minReplicas and maxReplicas,"
            " or set scaling.mode to Manual",
            ".replicas",
        ),
        Rule(
            "self.tenants.foreignTopics.all(topic, self.kafka.lanes.exists(lane, lane.topic == topic))",
            "tenants.foreignTopics: each must be the topic of a lane",
            ".tenants.foreignTopics",
        ),
    )


class ObjectMeta(ApiModel):
    """Fields of the metadata that the operator reads."""

    name: str
    namespace: str
    uid: str
    generation: int = 1
    creation_timestamp: str = ""
    """Timestamp as Kubernetes writes it, which sorts by time; empty for an object that was never stored."""


class FluxWorkerPool(ApiModel):
    """A pool of GPU workers that consume image tasks from Kafka and run a FLUX model."""

    metadata: ObjectMeta
    spec: FluxWorkerPoolSpec
    """Desired state of the pool."""
    status: FluxWorkerPoolStatus = FluxWorkerPoolStatus()
    """Observed state of the pool, as of the last reconciliation."""

    rules: ClassVar = (
        Rule(
            f"self.metadata.name.size() <= {MAX_NAME_CHARACTERS} && !self.metadata.name.contains('.')",
            f"metadata.name: is part of pod names; use at most {MAX_NAME_CHARACTERS} characters and no dot",
        ),
    )

    @classmethod
    def parse(cls, body: Mapping[str, Any]) -> Self:
        """The pool in an object of the Kubernetes API; raises `InvalidPoolError`."""
        try:
            pool = cls.model_validate(dict(body))
        except ValidationError as error:
            raise InvalidPoolError(explain(error)) from error
        return pool.model_copy(update={"spec": share_parts(pool.spec)})

    @property
    def name(self) -> str:
        """The pool's name."""
        return self.metadata.name

    @property
    def namespace(self) -> str:
        """Namespace of the pool and its children."""
        return self.metadata.namespace


def scaling_config(spec: FluxWorkerPoolSpec) -> ScalingConfig:
    """The scaling limits of a pool as `planning` takes them; raises `InvalidPoolError`."""
    scaling, unavailable = spec.scaling, spec.scaling.on_lag_unavailable
    try:
        return ScalingConfig(
            min_replicas=scaling.min_replicas,
            max_replicas=scaling.max_replicas,
            target_lag_per_replica=scaling.target_lag_per_replica,
            activation_lag_records=scaling.activation_lag,
            idle_grace_seconds=scaling.idle_grace_period_seconds,
            scale_up_window_seconds=scaling.scale_up.stabilization_window_seconds,
            scale_up_step_replicas=scaling.scale_up.max_step_pods,
            scale_up_period_seconds=scaling.scale_up.period_seconds,
            cool_down_seconds=scaling.scale_down.stabilization_window_seconds,
            scale_down_step_replicas=scaling.scale_down.max_step_pods,
            scale_down_period_seconds=scaling.scale_down.period_seconds,
            stale_after_seconds=unavailable.stale_after_seconds,
            fallback_replicas=unavailable.replicas if unavailable.policy is LagUnavailablePolicy.FALLBACK else None,
            paused=spec.paused,
        )
    except ValueError as error:
        raise InvalidPoolError((FieldProblem(field="spec.scaling", message=str(error)),)) from error
