"""The Deployment of a pool in a few values: what it was told, what its controller says, and who else writes to it.

Owns how a body of the Kubernetes API is read; must not know what is done about it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from fluxpool_operator.api import ConditionStatus
from fluxpool_operator.children import FIELD_MANAGER, TEMPLATE_HASH_ANNOTATION
from fluxpool_operator.workload.pods import controller_uid

_EXPECTED_MANAGERS: Final = frozenset({FIELD_MANAGER, "kube-controller-manager"})


@dataclass(frozen=True, slots=True)
class ControllerCondition:
    """What the Deployment controller says of its own work."""

    status: ConditionStatus
    reason: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DeploymentSummary:
    """The Deployment of a pool."""

    uid: str
    owner_uid: str | None
    """Of the pool that controls it."""
    generation: int
    observed_generation: int
    """The generation that everything of the status is about."""
    spec_replicas: int
    replicas: int = 0
    """Pods that exist and are not being stopped."""
    ready: int = 0
    updated: int = 0
    """Pods of the current template."""
    unavailable: int = 0
    terminating: int | None = None
    """None where Kubernetes does not tell; pods that have ended are left out."""
    template_hash: str | None = None
    """As our last apply wrote it."""
    max_unavailable: int | str | None = None
    """How many pods a rollout may take away at once."""
    replica_failure: tuple[str, str] | None = None
    """Reason and message when pods cannot be made."""
    progressing: ControllerCondition | None = None
    foreign_template_managers: tuple[str, ...] = ()
    """Who else owns fields of the pod template: what they wrote survives every apply of ours."""
    replicas_managers: tuple[str, ...] = ()
    """Who else owns the number of replicas."""

    @property
    def is_observed(self) -> bool:
        """Whether the Deployment controller has seen the latest spec."""
        return self.observed_generation >= self.generation


def summarize_deployment(body: Mapping[str, Any]) -> DeploymentSummary:
    """Read a Deployment as the API server hands it out."""
    metadata, spec, status = body["metadata"], body["spec"], body.get("status") or {}
    conditions = {condition["type"]: condition for condition in status.get("conditions") or ()}
    failure, progressing = conditions.get("ReplicaFailure"), conditions.get("Progressing")
    return DeploymentSummary(
        uid=metadata["uid"],
        owner_uid=controller_uid(metadata),
        generation=metadata.get("generation", 1),
        observed_generation=status.get("observedGeneration", 0),
        spec_replicas=spec.get("replicas", 1),
        replicas=status.get("replicas", 0),
        ready=status.get("readyReplicas", 0),
        updated=status.get("updatedReplicas", 0),
        unavailable=status.get("unavailableReplicas", 0),
        terminating=status.get("terminatingReplicas"),
        template_hash=(metadata.get("annotations") or {}).get(TEMPLATE_HASH_ANNOTATION),
        max_unavailable=((spec.get("strategy") or {}).get("rollingUpdate") or {}).get("maxUnavailable"),
        replica_failure=(failure.get("reason", ""), failure.get("message", ""))
        if failure and failure["status"] == ConditionStatus.TRUE
        else None,
        progressing=ControllerCondition(
            ConditionStatus(progressing["status"]), progressing.get("reason", ""), progressing.get("message", "")
        )
        if progressing
        else None,
        foreign_template_managers=_foreign_managers(metadata, "f:template", of_subresources=False),
        # `kubectl scale` and autoscalers write through a subresource, and own what they wrote all the same.
        replicas_managers=_foreign_managers(metadata, "f:replicas", of_subresources=True),
    )


def _foreign_managers(metadata: Mapping[str, Any], field: str, *, of_subresources: bool) -> tuple[str, ...]:
    """Managers, sorted, that nobody expects to own this field of the spec or something in it."""
    found = set()
    for entry in metadata.get("managedFields") or ():
        spec = (entry.get("fieldsV1") or {}).get("f:spec") or {}
        if field in spec and (of_subresources or not entry.get("subresource")):
            found.add(entry.get("manager", ""))
    return tuple(sorted(found - _EXPECTED_MANAGERS))
