"""`spec.worker`: the pod template of the workers: image, scheduling, resources and time limits."""

from typing import Annotated, ClassVar, Final

from pydantic import Field

from fluxpool_operator.api.kubernetes_types import (
    Affinity,
    EnvironmentVariable,
    ImagePullSecrets,
    Labels,
    PullPolicy,
    ResourceRequirements,
    Toleration,
    TopologySpreadConstraint,
)
from fluxpool_operator.api.schema import ATOMIC, EMPTY_MAP, ApiModel, ObjectName, QualifiedName, Quantity, Rule, map_by

RESERVED_VARIABLES: Final = (
    "HF_HOME",
    "HF_TOKEN",
    "HOME",
    "TMPDIR",
    "TORCHINDUCTOR_CACHE_DIR",
    "TRITON_CACHE_DIR",
)
"""Set for every worker beside its settings: the writable folders and the token."""

Annotations = Annotated[
    dict[str, Annotated[str, Field(max_length=4096)]], Field(max_length=32, json_schema_extra=EMPTY_MAP)
]

_RESERVED_LIST: Final = ", ".join(f"'{name}'" for name in RESERVED_VARIABLES)


class GpuSpec(ApiModel):
    """GPU of a worker. The taint of the same name is tolerated."""

    resource_name: QualifiedName = "nvidia.com/gpu"
    """Resource name of the device plugin: nvidia.com/gpu, nvidia.com/gpu.shared, nvidia.com/mig-3g.40gb, ..."""
    count: Annotated[int, Field(ge=0, le=1024)] = 1
    """Number of units requested. A worker uses one GPU; with 0 it runs on the CPU."""


class WorkerSpec(ApiModel):
    """Pod template of the workers."""

    image: Annotated[str, Field(min_length=1, max_length=1024)]
    """Worker image."""
    image_pull_policy: PullPolicy | None = None
    """Image pull policy. Defaults to Always for the tag latest, otherwise to IfNotPresent."""
    image_pull_secrets: ImagePullSecrets = ()
    """References to Secrets in the pool's namespace used for pulling the image."""
    gpu: GpuSpec = GpuSpec()
    """GPU of each worker."""
    resources: ResourceRequirements = ResourceRequirements()
    """CPU, memory and ephemeral storage of each worker."""
    node_selector: Labels = Field(default_factory=dict)
    """Node labels that must match for a worker to be scheduled, such as nvidia.com/gpu.product."""
    tolerations: Annotated[tuple[Toleration, ...], Field(max_length=32, json_schema_extra=ATOMIC)] = ()
    """Tolerations of the pods, in addition to that of the GPU's taint."""
    affinity: Affinity | None = None
    """Scheduling constraints of the pods."""
    topology_spread_constraints: Annotated[
        tuple[TopologySpreadConstraint, ...],
        Field(max_length=8, json_schema_extra=map_by("topologyKey", "whenUnsatisfiable")),
    ] = ()
    """How pods are spread across topology domains. Defaults to spreading across nodes with ScheduleAnyway."""
    priority_class_name: ObjectName | None = None
    """PriorityClass of the pods."""
    runtime_class_name: ObjectName | None = None
    """RuntimeClass of the pods, such as nvidia."""
    scheduler_name: ObjectName | None = None
    """Scheduler that dispatches the pods. Defaults to the default scheduler."""
    service_account_name: ObjectName | None = None
    """Existing ServiceAccount of the pods. Absent, the operator creates one without permissions."""
    service_account_annotations: Annotations = Field(default_factory=dict)
    """Annotations of the ServiceAccount that the operator creates, such as the IAM role of a web identity."""
    run_as_user: Annotated[int, Field(ge=1, le=2_147_483_647)] = 65_532
    """UID and GID of the worker processes."""
    shared_memory_size: Quantity = "2Gi"
    """Size of /dev/shm. Counts against the memory limit of the pod."""
    startup_timeout_seconds: Annotated[int, Field(ge=10, le=86_400)] = 1800
    """Time for a worker to load its model and join its consumer groups before its container is restarted."""
    termination_grace_period_seconds: Annotated[int, Field(ge=30, le=86_400)] = 285
    """Time for a stopping worker to finish or hand back its task before it is killed."""
    task_hard_limit_seconds: Annotated[int, Field(ge=1, le=86_400)] = 900
    """Maximum duration of one generation. The engine process of a longer one is killed, which counts as a crash."""
    env: Annotated[tuple[EnvironmentVariable, ...], Field(max_length=64, json_schema_extra=map_by("name"))] = ()
    """Environment variables of the worker, after those set by the operator. Worker settings cannot be set here."""
    pod_labels: Labels = Field(default_factory=dict)
    """Labels added to the pods."""
    pod_annotations: Annotations = Field(default_factory=dict)
    """Annotations added to the pods."""

    rules: ClassVar = (
        Rule(
            "!self.env.exists(variable, variable.name.startsWith('FLUXPOOL_'))",
            "env: variables that begin with FLUXPOOL_ are rendered from the pool; use the field of the setting",
            ".env",
        ),
        Rule(
            f"!self.env.exists(variable, variable.name in [{_RESERVED_LIST}])",
            f"env: {', '.join(RESERVED_VARIABLES)} are set by the operator; remove them",
            ".env",
        ),
        Rule(
            "!(has(self.resources.limits) && self.gpu.resourceName in self.resources.limits)"
            " && !(has(self.resources.requests) && self.gpu.resourceName in self.resources.requests)",
            "resources: gpu.resourceName and gpu.count request the GPU; remove it here",
            ".resources",
        ),
        Rule(
            "!self.podLabels.exists(name, name.startsWith('app.kubernetes.io/') || name.startsWith('fluxpool.dev/'))",
            "podLabels: labels that begin with app.kubernetes.io/ or fluxpool.dev/ are reserved; choose others",
            ".podLabels",
        ),
        Rule(
            "!self.podAnnotations.exists(name, name.startsWith('fluxpool.dev/'))",
            "podAnnotations: annotations that begin with fluxpool.dev/ are reserved; choose others",
            ".podAnnotations",
        ),
        Rule(
            "!has(self.serviceAccountName) || self.serviceAccountAnnotations.size() == 0",
            "serviceAccountAnnotations: cannot be used with serviceAccountName; annotate that account instead",
            ".serviceAccountAnnotations",
        ),
    )
