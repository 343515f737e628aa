"""`spec.worker`: the pods; where they run, what they ask for and how long they may take."""

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
"""Set for every worker beside its settings: the folders that can be written to, and the token."""

Annotations = Annotated[
    dict[str, Annotated[str, Field(max_length=4096)]], Field(max_length=32, json_schema_extra=EMPTY_MAP)
]

_RESERVED_LIST: Final = ", ".join(f"'{name}'" for name in RESERVED_VARIABLES)


class GpuSpec(ApiModel):
    """The GPU of a worker. Its taint of the same name is tolerated."""

    resource_name: QualifiedName = "nvidia.com/gpu"
    """What the device plugin calls it: nvidia.com/gpu, nvidia.com/gpu.shared, nvidia.com/mig-3g.40gb, ..."""
    count: Annotated[int, Field(ge=0, le=1024)] = 1
    """How many units of it; a worker uses one GPU. 0 runs on the CPU."""


class WorkerSpec(ApiModel):
    """The pods of the pool."""

    image: Annotated[str, Field(min_length=1, max_length=1024)]
    """The worker's image."""
    image_pull_policy: PullPolicy | None = None
    """When the image is pulled; Kubernetes decides by the tag when absent."""
    image_pull_secrets: ImagePullSecrets = ()
    """Credentials of the image's registry."""
    gpu: GpuSpec = GpuSpec()
    """The GPU of each worker."""
    resources: ResourceRequirements = ResourceRequirements()
    """Processor, memory and disk of each worker."""
    node_selector: Labels = Field(default_factory=dict)
    """Labels of the nodes that workers may run on, such as nvidia.com/gpu.product."""
    tolerations: Annotated[tuple[Toleration, ...], Field(max_length=32, json_schema_extra=ATOMIC)] = ()
    """Further taints that do not keep workers away."""
    affinity: Affinity | None = None
    """Where workers may and should run."""
    topology_spread_constraints: Annotated[
        tuple[TopologySpreadConstraint, ...],
        Field(max_length=8, json_schema_extra=map_by("topologyKey", "whenUnsatisfiable")),
    ] = ()
    """How evenly workers are spread; over nodes as far as possible when empty."""
    priority_class_name: ObjectName | None = None
    """Priority of the pods."""
    runtime_class_name: ObjectName | None = None
    """Container runtime of the pods, such as nvidia."""
    scheduler_name: ObjectName | None = None
    """Scheduler of the pods; the cluster's own when absent."""
    service_account_name: ObjectName | None = None
    """An existing service account; one without any rights is made for the pool when absent."""
    service_account_annotations: Annotations = Field(default_factory=dict)
    """Annotations of the service account that is made, such as the role of a cloud's web identity."""
    run_as_user: Annotated[int, Field(ge=1, le=2_147_483_647)] = 65_532
    """User and group of the worker's processes."""
    shared_memory_size: Quantity = "2Gi"
    """Size of /dev/shm; counts as memory of the pod."""
    startup_timeout_seconds: Annotated[int, Field(ge=10, le=86_400)] = 1800
    """A worker that has not loaded its model and joined its groups by then is started again."""
    termination_grace_period_seconds: Annotated[int, Field(ge=30, le=86_400)] = 285
    """Time to finish or hand back the running task when a pod is stopped."""
    task_hard_limit_seconds: Annotated[int, Field(ge=1, le=86_400)] = 900
    """A generation that takes longer is ended and counts as a crash."""
    env: Annotated[tuple[EnvironmentVariable, ...], Field(max_length=64, json_schema_extra=map_by("name"))] = ()
    """Further variables, after those of the operator's; the worker's own settings cannot be set here."""
    pod_labels: Labels = Field(default_factory=dict)
    """Further labels of the pods."""
    pod_annotations: Annotations = Field(default_factory=dict)
    """Further annotations of the pods."""

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
            "resources: the GPU is asked for by gpu.resourceName and gpu.count; remove it here",
            ".resources",
        ),
        Rule(
            "!self.podLabels.exists(name, name.startsWith('app.kubernetes.io/') || name.startsWith('fluxpool.dev/'))",
            "podLabels: labels that begin with app.kubernetes.io/ or fluxpool.dev/ are the operator's; choose others",
            ".podLabels",
        ),
        Rule(
            "!self.podAnnotations.exists(name, name.startsWith('fluxpool.dev/'))",
            "podAnnotations: annotations that begin with fluxpool.dev/ are the operator's; choose others",
            ".podAnnotations",
        ),
        Rule(
            "!has(self.serviceAccountName) || self.serviceAccountAnnotations.size() == 0",
            "serviceAccountAnnotations: are for the account that is made; annotate the one you named yourself",
            ".serviceAccountAnnotations",
        ),
    )
