"""The Deployment of a pool in a few values: its spec, its status, other field managers, and the width of a rollout.

Owns how a Deployment's body is read. `child_cache` keeps the summary, `assessment` reports it.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from fluxpool_operator.api import ConditionStatus
from fluxpool_operator.children import FIELD_MANAGER, SECRETS_CHECKSUM_ANNOTATION, TEMPLATE_HASH_ANNOTATION
from fluxpool_operator.workload.pods import PodSummary, count_pods, spans_templates

_EXPECTED_MANAGERS: Final = frozenset({FIELD_MANAGER, "kube-controller-manager"})
_RESTARTED_AT: Final = "metadata.annotations.kubectl.kubernetes.io/restartedAt"
"""Written by `kubectl rollout restart`: expected, not a foreign change."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeploymentSummary:
    """The Deployment of a pool."""

    uid: str
    generation: int
    observed_generation: int
    """The generation that the status describes."""
    spec_replicas: int
    replicas: int = 0
    """Pods that exist and are not terminating."""
    ready: int = 0
    updated: int = 0
    """Pods of the current template."""
    template_hash: str | None = None
    """As the last apply wrote it."""
    secrets_checksum: str = ""
    """Of the Secrets that the pod template was rendered with; empty for none."""
    replica_failure: tuple[str, str] | None = None
    """Reason and message of condition ReplicaFailure: pods cannot be created."""
    progressing: tuple[str, str] | None = None
    """Reason and message of condition Progressing, whatever its status."""
    foreign_template_managers: tuple[str, ...] = ()
    """Other managers of fields of the pod template: their values survive every apply."""
    foreign_template_fields: tuple[str, ...] = ()
    """These fields, such as `metadata.annotations.example.com/inject`."""

    @property
    def is_observed(self) -> bool:
        """Whether the Deployment controller has seen the latest spec."""
        return self.observed_generation >= self.generation

    @property
    def is_over_quota(self) -> bool:
        """Whether a quota of the namespace refuses further pods."""
        return self.replica_failure is not None and "exceeded quota" in self.replica_failure[1]


def summarize_deployment(body: Mapping[str, Any]) -> DeploymentSummary:
    """Read a Deployment's body."""
    metadata, spec, status = body["metadata"], body["spec"], body.get("status") or {}
    conditions = {condition["type"]: condition for condition in status.get("conditions") or ()}
    failure, progressing = conditions.get("ReplicaFailure", {}), conditions.get("Progressing", {})
    foreign = _foreign_template_fields(metadata)
    return DeploymentSummary(
        uid=metadata["uid"],
        generation=metadata.get("generation", 1),
        observed_generation=status.get("observedGeneration", 0),
        spec_replicas=spec.get("replicas", 1),
        replicas=status.get("replicas", 0),
        ready=status.get("readyReplicas", 0),
        updated=status.get("updatedReplicas", 0),
        template_hash=(metadata.get("annotations") or {}).get(TEMPLATE_HASH_ANNOTATION),
        secrets_checksum=_template_annotations(spec).get(SECRETS_CHECKSUM_ANNOTATION, ""),
        replica_failure=_reason_and_message(failure) if failure.get("status") == ConditionStatus.TRUE else None,
        progressing=_reason_and_message(progressing) if progressing else None,
        foreign_template_managers=tuple(sorted(foreign)),
        foreign_template_fields=tuple(sorted({path for paths in foreign.values() for path in paths})),
    )


def is_rolling_out(deployment: DeploymentSummary, pods: Sequence[PodSummary]) -> bool:
    """Whether pods of an older template are among the replicas."""
    return deployment.updated < deployment.replicas or spans_templates(pods)


def rollout_width(deployment: DeploymentSummary, pods: Sequence[PodSummary]) -> int:
    """The `maxUnavailable` of the Deployment.

    Normally 1. Pods without a GPU use that up and would block a rollout (8 wanted, 5 GPUs: stuck with one new pod that
    finds no room), so they are added. Pods that load, or wait for the GPU of a terminating pod, are not: each replaced
    pod is one of them for a while, and adding it would take away the next, and so all at once.
    """
    if not is_rolling_out(deployment, pods):
        return 1
    counts = count_pods(pods)
    return 1 + counts.unschedulable + counts.gated


def _reason_and_message(condition: Mapping[str, Any]) -> tuple[str, str]:
    return condition.get("reason", ""), condition.get("message", "")


def _template_annotations(spec: Mapping[str, Any]) -> Mapping[str, str]:
    return ((spec.get("template") or {}).get("metadata") or {}).get("annotations") or {}


def _foreign_template_fields(metadata: Mapping[str, Any]) -> dict[str, set[str]]:
    """Fields of the pod template by unexpected managers, as `managedFields` names them."""
    fields: dict[str, set[str]] = {}
    for entry in metadata.get("managedFields") or ():
        manager, spec = entry.get("manager", ""), (entry.get("fieldsV1") or {}).get("f:spec") or {}
        if manager in _EXPECTED_MANAGERS or entry.get("subresource") or "f:template" not in spec:
            continue
        paths = set(_leaves(spec["f:template"]))
        if paths != {_RESTARTED_AT}:
            fields.setdefault(manager, set()).update(paths - {_RESTARTED_AT})
    return fields


def _leaves(fields: Mapping[str, Any], above: str = "") -> Iterator[str]:
    """Paths of the fields in a `fieldsV1`: `f:` names a field, `k:` an item by its keys, `.` the thing itself."""
    for name, below in fields.items():
        kind, _, rest = name.partition(":")
        if kind == ".":
            continue
        path = f"{above}[{rest}]" if kind in ("k", "v", "i") else f"{above}.{rest}".removeprefix(".")
        if set(below) - {"."}:
            yield from _leaves(below, path)
        else:
            yield path
