"""The FluxWorkerPool itself: metadata, spec and status, and what is said when it cannot be read."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Final, Self

from pydantic import Field, ValidationError

from fluxpool_contract.problems import FieldProblem, explain
from fluxpool_operator.api.kafka import KafkaSpec
from fluxpool_operator.api.kubernetes_types import Labels
from fluxpool_operator.api.model import ModelSpec
from fluxpool_operator.api.scaling import LagUnavailablePolicy, Replicas, ScalingSpec
from fluxpool_operator.api.schema import ApiModel, CountOrPercentage, Rule
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
"""Names of pods are the pool's with 24 more characters, and a host's name has at most 63."""


class InvalidPoolError(ValueError):
    """A pool that cannot be acted on; the message names every field at fault."""

    def __init__(self, problems: tuple[FieldProblem, ...]) -> None:
        self.problems = problems
        super().__init__("; ".join(map(str, problems)))


class RetrySpec(ApiModel):
    """What happens to tasks that fail."""

    max_attempts: Annotated[int, Field(ge=1, le=10)] = 3
    """How often a task is tried before it is dead-lettered."""


class DisruptionSpec(ApiModel):
    """How many workers may be away at once by evictions, such as the drain of a node."""

    max_unavailable: CountOrPercentage = 1
    """A number or a percentage; 0 forbids evictions."""


class PodMonitorSpec(ApiModel):
    """The PodMonitor of the Prometheus operator."""

    interval_seconds: Annotated[int, Field(ge=1, le=3600)] = 30
    """How often metrics are fetched."""
    labels: Labels = Field(default_factory=dict)
    """Labels by which Prometheus finds it."""


class FluxWorkerPoolSpec(ApiModel):
    """What the pool should be."""

    replicas: Replicas = 1
    """Workers of a pool in mode Manual or Shadow; the target of kubectl scale. Has no effect in mode Active."""
    paused: bool = False
    """Leave everything as it is; the backlog is still shown."""
    model: ModelSpec = ModelSpec()
    """The checkpoint that the pool serves."""
    kafka: KafkaSpec
    """Where the tasks come from and the answers go."""
    scaling: ScalingSpec
    """How many workers there are."""
    retry: RetrySpec = RetrySpec()
    """What happens to tasks that fail."""
    storage: StorageSpec
    """Where images go."""
    worker: WorkerSpec
    """The pods."""
    disruption: DisruptionSpec = DisruptionSpec()
    """How many workers may be evicted at once."""
    pod_monitor: PodMonitorSpec | None = None
    """Make a PodMonitor for the workers; needs the Prometheus operator."""

    rules: ClassVar = (
        # Leaving Manual for Active may take spec.replicas along, as an edited manifest does.
        Rule(
            "self.scaling.mode != 'Active' || oldSelf.scaling.mode != 'Active' || self.replicas == oldSelf.replicas",
            "replicas: has no effect in mode Active; change scaling.minReplicas and maxReplicas,"
            " or set scaling.mode to Manual",
            ".replicas",
        ),
    )


class ObjectMeta(ApiModel):
    """The metadata that the operator reads."""

    name: str
    namespace: str
    uid: str
    generation: int = 1
    creation_timestamp: str = ""
    """As Kubernetes writes it, which sorts by time; empty for an object that was never stored."""
    labels: dict[str, str] = Field(default_factory=dict)
    annotations: dict[str, str] = Field(default_factory=dict)


class FluxWorkerPool(ApiModel):
    """Workers that make images with a FLUX model from the tasks of Kafka topics."""

    metadata: ObjectMeta
    spec: FluxWorkerPoolSpec
    """What the pool should be."""
    status: FluxWorkerPoolStatus = FluxWorkerPoolStatus()
    """What the operator last saw and decided."""

    rules: ClassVar = (
        Rule(
            f"self.metadata.name.size() <= {MAX_NAME_CHARACTERS} && !self.metadata.name.contains('.')",
            f"metadata.name: names of pods are made from it; use at most {MAX_NAME_CHARACTERS} characters and no dot",
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
        """Where the pool and its children live."""
        return self.metadata.namespace


def scaling_config(spec: FluxWorkerPoolSpec) -> ScalingConfig:
    """The limits of a pool as the plan reads them; raises `InvalidPoolError`."""
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
