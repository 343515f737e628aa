"""Parts of the Kubernetes pod API that a pool copies into its pod template, typed so that unknown fields are rejected.

Owns the fields that a worker pod can use; values are copied unchanged. Descriptions are those of Kubernetes, shortened.
"""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from fluxpool_operator.api.schema import (
    ATOMIC,
    EMPTY_MAP,
    ApiModel,
    LabelValue,
    ObjectName,
    QualifiedName,
    Quantity,
    Rule,
    SecretEntry,
    map_by,
)

# Values that are copied and never compared here, so plain literals.
SelectorOperator = Literal["In", "NotIn", "Exists", "DoesNotExist"]
NodeSelectorOperator = Literal["In", "NotIn", "Exists", "DoesNotExist", "Gt", "Lt"]
TolerationOperator = Literal["Equal", "Exists"]
TaintEffect = Literal["NoSchedule", "PreferNoSchedule", "NoExecute"]
UnsatisfiableAction = Literal["DoNotSchedule", "ScheduleAnyway"]
NodeInclusionPolicy = Literal["Honor", "Ignore"]
PullPolicy = Literal["Always", "IfNotPresent", "Never"]

SelectorValues = Annotated[tuple[LabelValue, ...], Field(max_length=64, json_schema_extra=ATOMIC)]
Labels = Annotated[dict[str, LabelValue], Field(max_length=32, json_schema_extra=EMPTY_MAP)]
Weight = Annotated[int, Field(ge=1, le=100)]
LabelKeys = Annotated[tuple[QualifiedName, ...], Field(max_length=16, json_schema_extra=ATOMIC)]


class LabelRequirement(ApiModel):
    """A label selector requirement: a key, an operator and values."""

    key: QualifiedName
    """Label key that the selector applies to."""
    operator: SelectorOperator
    """Relationship of the key to the values: In, NotIn, Exists or DoesNotExist."""
    values: SelectorValues | None = None
    """Values for In and NotIn. Must be empty for Exists and DoesNotExist."""


class LabelSelector(ApiModel):
    """Label query over objects. The results of matchLabels and matchExpressions are ANDed."""

    match_labels: Labels | None = None
    """Map of label keys to required values."""
    match_expressions: (
        Annotated[tuple[LabelRequirement, ...], Field(max_length=16, json_schema_extra=ATOMIC)] | None
    ) = None
    """List of label selector requirements. The requirements are ANDed."""


class NodeRequirement(ApiModel):
    """A node selector requirement: a key, an operator and values."""

    key: QualifiedName
    """Label key or field that the selector applies to."""
    operator: NodeSelectorOperator
    """Relationship of the key to the values: In, NotIn, Exists, DoesNotExist, Gt or Lt."""
    values: SelectorValues | None = None
    """Values for In and NotIn; one integer for Gt and Lt. Must be empty for Exists and DoesNotExist."""


NodeRequirements = Annotated[tuple[NodeRequirement, ...], Field(max_length=16, json_schema_extra=ATOMIC)]


class NodeSelectorTerm(ApiModel):
    """Node selector term. Its requirements are ANDed."""

    match_expressions: NodeRequirements | None = None
    """Node selector requirements by node labels."""
    match_fields: NodeRequirements | None = None
    """Node selector requirements by node fields, such as metadata.name."""


class NodeSelector(ApiModel):
    """Node selector. Its terms are ORed."""

    node_selector_terms: Annotated[
        tuple[NodeSelectorTerm, ...], Field(min_length=1, max_length=16, json_schema_extra=ATOMIC)
    ]
    """List of node selector terms. The terms are ORed."""


class PreferredNodes(ApiModel):
    """Preferred scheduling term with its weight."""

    weight: Weight
    """Weight of the preference, in the range 1-100."""
    preference: NodeSelectorTerm
    """Node selector term associated with the weight."""


class NodeAffinity(ApiModel):
    """Node affinity scheduling rules."""

    required_during_scheduling_ignored_during_execution: NodeSelector | None = None
    """Required scheduling constraints. Pods are not scheduled onto nodes that do not meet them."""
    preferred_during_scheduling_ignored_during_execution: (
        Annotated[tuple[PreferredNodes, ...], Field(max_length=16, json_schema_extra=ATOMIC)] | None
    ) = None
    """Preferred scheduling constraints. The scheduler prefers nodes that meet them."""


class PodAffinityTerm(ApiModel):
    """Set of pods that the worker pod is co-located with, or kept apart from."""

    topology_key: QualifiedName
    """Node label key. Nodes with the same value belong to the same topology domain."""
    label_selector: LabelSelector | None = None
    """Label query over the pods."""
    namespaces: Annotated[tuple[ObjectName, ...], Field(max_length=16, json_schema_extra=ATOMIC)] | None = None
    """Namespaces that the term applies to. Defaults to the namespace of the pool."""
    namespace_selector: LabelSelector | None = None
    """Label query over the namespaces that the term applies to."""
    match_label_keys: LabelKeys | None = None
    """Pod label keys. Only pods with the same values as the incoming pod are considered."""
    mismatch_label_keys: LabelKeys | None = None
    """Pod label keys. Only pods with other values than the incoming pod are considered."""


class WeightedPodAffinityTerm(ApiModel):
    """Preferred pod affinity term with its weight."""

    weight: Weight
    """Weight of the term, in the range 1-100."""
    pod_affinity_term: PodAffinityTerm
    """Pod affinity term associated with the weight."""


class PodAffinity(ApiModel):
    """Pod affinity or anti-affinity scheduling rules."""

    required_during_scheduling_ignored_during_execution: (
        Annotated[tuple[PodAffinityTerm, ...], Field(max_length=16, json_schema_extra=ATOMIC)] | None
    ) = None
    """Required scheduling constraints."""
    preferred_during_scheduling_ignored_during_execution: (
        Annotated[tuple[WeightedPodAffinityTerm, ...], Field(max_length=16, json_schema_extra=ATOMIC)] | None
    ) = None
    """Preferred scheduling constraints."""


class Affinity(ApiModel):
    """Scheduling constraints of the pods."""

    node_affinity: NodeAffinity | None = None
    """Node affinity scheduling rules."""
    pod_affinity: PodAffinity | None = None
    """Pod affinity scheduling rules: co-locate the worker with other pods."""
    pod_anti_affinity: PodAffinity | None = None
    """Pod anti-affinity scheduling rules: keep the worker apart from other pods."""


class Toleration(ApiModel):
    """Toleration of any taint that matches key, value and effect."""

    key: QualifiedName | None = None
    """Taint key that the toleration applies to. Absent, with operator Exists, it matches all taints."""
    operator: TolerationOperator | None = None
    """Relationship of the key to the value: Equal or Exists. Defaults to Equal."""
    value: LabelValue | None = None
    """Taint value that the toleration matches. Must be empty with operator Exists."""
    effect: TaintEffect | None = None
    """Taint effect to match. Absent, it matches all effects."""
    toleration_seconds: Annotated[int, Field(ge=0, le=2_592_000)] | None = None
    """How long a NoExecute taint is tolerated. Absent, it is tolerated forever."""


class TopologySpreadConstraint(ApiModel):
    """How matching pods are spread among a topology."""

    max_skew: Annotated[int, Field(ge=1, le=1000)]
    """Degree to which pods may be unevenly distributed."""
    topology_key: QualifiedName
    """Node label key. Nodes with the same value belong to the same topology domain."""
    when_unsatisfiable: UnsatisfiableAction
    """How to deal with a pod that does not satisfy the constraint: DoNotSchedule or ScheduleAnyway."""
    label_selector: LabelSelector | None = None
    """Label query over the pods that are counted. Defaults to the pods of this pool."""
    min_domains: Annotated[int, Field(ge=1, le=1000)] | None = None
    """Minimum number of eligible domains."""
    node_affinity_policy: NodeInclusionPolicy | None = None
    """How nodeAffinity and nodeSelector are treated when the skew is calculated. Defaults to Honor."""
    node_taints_policy: NodeInclusionPolicy | None = None
    """How node taints are treated when the skew is calculated. Defaults to Ignore."""
    match_label_keys: LabelKeys | None = None
    """Pod label keys. Only pods with the same values as the incoming pod are counted."""


class KeySelector(ApiModel):
    """Key of a Secret or ConfigMap in the pool's namespace."""

    name: ObjectName
    """Name of the Secret or ConfigMap."""
    key: SecretEntry
    """Key to select."""
    optional: bool | None = None
    """Whether the object or its key may be absent."""


class PodFieldSelector(ApiModel):
    """Field of the pod."""

    field_path: Annotated[str, Field(min_length=1, max_length=317)]
    """Path of the field to select, such as metadata.name, spec.nodeName or status.hostIP."""


class EnvironmentSource(ApiModel):
    """Source of an environment variable's value."""

    secret_key_ref: KeySelector | None = None
    """Selects a key of a Secret."""
    config_map_key_ref: KeySelector | None = None
    """Selects a key of a ConfigMap."""
    field_ref: PodFieldSelector | None = None
    """Selects a field of the pod."""

    rules: ClassVar = (
        Rule(
            "[has(self.secretKeyRef), has(self.configMapKeyRef), has(self.fieldRef)].filter(given, given).size() == 1",
            "valueFrom: give exactly one of secretKeyRef, configMapKeyRef and fieldRef",
        ),
    )


class EnvironmentVariable(ApiModel):
    """Environment variable of the worker container."""

    name: Annotated[str, Field(min_length=1, max_length=128, pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
    """Name of the environment variable."""
    value: Annotated[str, Field(max_length=4096)] | None = None
    """Value of the variable. References $(VAR_NAME) to previously defined variables are expanded."""
    value_from: EnvironmentSource | None = None
    """Source of the value. Cannot be used together with value."""

    rules: ClassVar = (
        Rule(
            "!(has(self.value) && has(self.valueFrom))",
            "env: give a variable either value or valueFrom, not both",
        ),
    )


class LocalObjectReference(ApiModel):
    """Reference to an object in the pool's namespace."""

    name: ObjectName
    """Name of the object."""


class ResourceRequirements(ApiModel):
    """Compute resources of the worker container; `worker.gpu` requests the GPU."""

    limits: Annotated[dict[str, Quantity], Field(max_length=16)] | None = None
    """Maximum amount of compute resources allowed: cpu, memory, ephemeral-storage."""
    requests: Annotated[dict[str, Quantity], Field(max_length=16)] | None = None
    """Minimum amount of compute resources required."""


ImagePullSecrets = Annotated[tuple[LocalObjectReference, ...], Field(max_length=16, json_schema_extra=map_by("name"))]
