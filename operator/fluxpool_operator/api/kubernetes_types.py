"""The parts of Kubernetes' own pod API that a pool passes on, fully typed so that a misspelt field is told.

Owns their fields as far as a worker pod has a use for them; values go through unchanged.
"""

from enum import StrEnum
from typing import Annotated, ClassVar

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


class SelectorOperator(StrEnum):
    """How a label is compared."""

    IN = "In"
    NOT_IN = "NotIn"
    EXISTS = "Exists"
    DOES_NOT_EXIST = "DoesNotExist"


class NodeSelectorOperator(StrEnum):
    """How a label of a node is compared."""

    IN = "In"
    NOT_IN = "NotIn"
    EXISTS = "Exists"
    DOES_NOT_EXIST = "DoesNotExist"
    GREATER = "Gt"
    LESS = "Lt"


class TolerationOperator(StrEnum):
    """How the value of a taint is compared."""

    EQUAL = "Equal"
    EXISTS = "Exists"


class TaintEffect(StrEnum):
    """What a taint does to pods that do not tolerate it."""

    NO_SCHEDULE = "NoSchedule"
    PREFER_NO_SCHEDULE = "PreferNoSchedule"
    NO_EXECUTE = "NoExecute"


class UnsatisfiableAction(StrEnum):
    """What happens to a pod that would break a spread."""

    DO_NOT_SCHEDULE = "DoNotSchedule"
    SCHEDULE_ANYWAY = "ScheduleAnyway"


class NodeInclusion(StrEnum):
    """Whether a spread respects something about nodes."""

    HONOR = "Honor"
    IGNORE = "Ignore"


class PullPolicy(StrEnum):
    """When an image is pulled."""

    ALWAYS = "Always"
    IF_NOT_PRESENT = "IfNotPresent"
    NEVER = "Never"


SelectorValues = Annotated[tuple[LabelValue, ...], Field(max_length=64, json_schema_extra=ATOMIC)]
Labels = Annotated[dict[str, LabelValue], Field(max_length=32, json_schema_extra=EMPTY_MAP)]
Weight = Annotated[int, Field(ge=1, le=100)]
LabelKeys = Annotated[tuple[QualifiedName, ...], Field(max_length=16, json_schema_extra=ATOMIC)]


class LabelRequirement(ApiModel):
    """One comparison of a label."""

    key: QualifiedName
    """The label's name."""
    operator: SelectorOperator
    """How the label is compared with the values."""
    values: SelectorValues | None = None
    """The values of In and NotIn."""


class LabelSelector(ApiModel):
    """Objects by their labels; all conditions must hold."""

    match_labels: Labels | None = None
    """Labels that must have exactly these values."""
    match_expressions: (
        Annotated[tuple[LabelRequirement, ...], Field(max_length=16, json_schema_extra=ATOMIC)] | None
    ) = None
    """Further comparisons of labels."""


class NodeRequirement(ApiModel):
    """One comparison of a node's label or field."""

    key: QualifiedName
    """The name of the label or field."""
    operator: NodeSelectorOperator
    """How it is compared with the values."""
    values: SelectorValues | None = None
    """The values of In, NotIn, Gt and Lt."""


NodeRequirements = Annotated[tuple[NodeRequirement, ...], Field(max_length=16, json_schema_extra=ATOMIC)]


class NodeSelectorTerm(ApiModel):
    """Nodes for which all of these hold."""

    match_expressions: NodeRequirements | None = None
    """Comparisons of the node's labels."""
    match_fields: NodeRequirements | None = None
    """Comparisons of the node's fields, such as metadata.name."""


class NodeSelector(ApiModel):
    """Nodes for which at least one term holds."""

    node_selector_terms: Annotated[
        tuple[NodeSelectorTerm, ...], Field(min_length=1, max_length=16, json_schema_extra=ATOMIC)
    ]
    """The alternatives."""


class PreferredNodes(ApiModel):
    """A preference for nodes and how much it counts."""

    weight: Weight
    """Added to a node's score, 1 to 100."""
    preference: NodeSelectorTerm
    """The nodes preferred."""


class NodeAffinity(ApiModel):
    """On which nodes a pod may or should run."""

    required_during_scheduling_ignored_during_execution: NodeSelector | None = None
    """Nodes a pod may run on; others never."""
    preferred_during_scheduling_ignored_during_execution: (
        Annotated[tuple[PreferredNodes, ...], Field(max_length=16, json_schema_extra=ATOMIC)] | None
    ) = None
    """Nodes a pod should rather run on."""


class PodAffinityTerm(ApiModel):
    """Other pods, and what being near them means."""

    topology_key: QualifiedName
    """Label of nodes: two nodes with the same value are near each other."""
    label_selector: LabelSelector | None = None
    """The pods meant."""
    namespaces: Annotated[tuple[ObjectName, ...], Field(max_length=16, json_schema_extra=ATOMIC)] | None = None
    """Namespaces of these pods; the pool's own when absent."""
    namespace_selector: LabelSelector | None = None
    """Namespaces of these pods by label."""
    match_label_keys: LabelKeys | None = None
    """Labels in which those pods must be like the new one."""
    mismatch_label_keys: LabelKeys | None = None
    """Labels in which those pods must differ from the new one."""


class WeightedPodAffinityTerm(ApiModel):
    """A preference about other pods and how much it counts."""

    weight: Weight
    """Added to a node's score, 1 to 100."""
    pod_affinity_term: PodAffinityTerm
    """The pods meant."""


class PodAffinity(ApiModel):
    """Which other pods a pod must or should be near to; as anti-affinity, away from."""

    required_during_scheduling_ignored_during_execution: (
        Annotated[tuple[PodAffinityTerm, ...], Field(max_length=16, json_schema_extra=ATOMIC)] | None
    ) = None
    """Must hold."""
    preferred_during_scheduling_ignored_during_execution: (
        Annotated[tuple[WeightedPodAffinityTerm, ...], Field(max_length=16, json_schema_extra=ATOMIC)] | None
    ) = None
    """Should hold."""


class Affinity(ApiModel):
    """Where pods may and should run."""

    node_affinity: NodeAffinity | None = None
    """By the labels of nodes."""
    pod_affinity: PodAffinity | None = None
    """Near which other pods."""
    pod_anti_affinity: PodAffinity | None = None
    """Away from which other pods."""


class Toleration(ApiModel):
    """A taint of nodes that does not keep pods away."""

    key: QualifiedName | None = None
    """The taint's name; every taint when absent, with operator Exists."""
    operator: TolerationOperator | None = None
    """How the taint's value is compared; Equal when absent."""
    value: LabelValue | None = None
    """The taint's value, for Equal."""
    effect: TaintEffect | None = None
    """The taint's effect; all effects when absent."""
    toleration_seconds: Annotated[int, Field(ge=0, le=2_592_000)] | None = None
    """How long a pod stays on a node that gets a NoExecute taint; for ever when absent."""


class TopologySpreadConstraint(ApiModel):
    """How evenly pods are spread over nodes or zones."""

    max_skew: Annotated[int, Field(ge=1, le=1000)]
    """Largest difference in pods between two places."""
    topology_key: QualifiedName
    """Label of nodes that names the place."""
    when_unsatisfiable: UnsatisfiableAction
    """What happens to a pod that would break this."""
    label_selector: LabelSelector | None = None
    """The pods counted; this pool's when absent."""
    min_domains: Annotated[int, Field(ge=1, le=1000)] | None = None
    """Count at least so many places, there or not."""
    node_affinity_policy: NodeInclusion | None = None
    """Whether nodes that affinity excludes count; Honor when absent."""
    node_taints_policy: NodeInclusion | None = None
    """Whether nodes with taints that are not tolerated count; Ignore when absent."""
    match_label_keys: LabelKeys | None = None
    """Labels in which the counted pods must be like the new one."""


class KeySelector(ApiModel):
    """One entry of a Secret or ConfigMap of the pool's namespace."""

    name: ObjectName
    """Name of the Secret or ConfigMap."""
    key: SecretEntry
    """Entry in it."""
    optional: bool | None = None
    """Start without the variable when there is no such entry."""


class PodFieldSelector(ApiModel):
    """A field of the pod itself."""

    field_path: Annotated[str, Field(min_length=1, max_length=317)]
    """Such as metadata.name, spec.nodeName or status.hostIP."""


class EnvironmentSource(ApiModel):
    """Where the value of a variable comes from."""

    secret_key_ref: KeySelector | None = None
    """An entry of a Secret."""
    config_map_key_ref: KeySelector | None = None
    """An entry of a ConfigMap."""
    field_ref: PodFieldSelector | None = None
    """A field of the pod."""

    rules: ClassVar = (
        Rule(
            "[has(self.secretKeyRef), has(self.configMapKeyRef), has(self.fieldRef)].filter(given, given).size() == 1",
            "valueFrom: give exactly one of secretKeyRef, configMapKeyRef and fieldRef",
        ),
    )


class EnvironmentVariable(ApiModel):
    """A further variable of the worker's environment."""

    name: Annotated[str, Field(min_length=1, max_length=128, pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
    """The variable."""
    value: Annotated[str, Field(max_length=4096)] | None = None
    """Its value; $(OTHER) is replaced by the value of OTHER, if that comes before."""
    value_from: EnvironmentSource | None = None
    """Where its value comes from instead."""

    rules: ClassVar = (
        Rule(
            "!(has(self.value) && has(self.valueFrom))",
            "env: give a variable either value or valueFrom, not both",
        ),
    )


class LocalObjectReference(ApiModel):
    """An object of the pool's namespace."""

    name: ObjectName
    """Its name."""


class ResourceRequirements(ApiModel):
    """What a pod asks of a node; the GPU is asked for by `worker.gpu`."""

    limits: Annotated[dict[str, Quantity], Field(max_length=16)] | None = None
    """The most a pod may use, by resource: cpu, memory, ephemeral-storage."""
    requests: Annotated[dict[str, Quantity], Field(max_length=16)] | None = None
    """What is set aside for a pod, by resource."""


ImagePullSecrets = Annotated[tuple[LocalObjectReference, ...], Field(max_length=16, json_schema_extra=map_by("name"))]
