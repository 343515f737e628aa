"""A child of a pool as the watch shows it: enough to detect that others changed or replaced it.

Owns how a child's body is read. `reconcile.apply.server_side_apply` compares it with the last apply.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

_LAST_APPLIED: Final = "kubectl.kubernetes.io/last-applied-configuration"
"""As large as the object itself, and never written by the operator."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChildSummary:
    """Identity, version and metadata of one child."""

    uid: str
    version: str
    """The generation where the kind has one, else the resource version: changes with the object."""
    resource_version: str
    labels: Mapping[str, str]
    annotations: Mapping[str, str]
    owner_uids: frozenset[str]

    def has_metadata_of(self, manifest: Mapping[str, Any]) -> bool:
        """Whether labels, annotations and owner of a manifest are still set; they do not change the generation."""
        metadata = manifest["metadata"]
        return (
            metadata.get("labels", {}).items() <= self.labels.items()
            and metadata.get("annotations", {}).items() <= self.annotations.items()
            and {owner["uid"] for owner in metadata.get("ownerReferences", ())} <= self.owner_uids
        )

    def is_older_than(self, other: "ChildSummary") -> bool:
        """Whether the other was stored later: resource versions of one API server are increasing integers."""
        try:
            return int(self.resource_version) < int(other.resource_version)
        except ValueError:
            return False


def summarize_child(body: Mapping[str, Any]) -> ChildSummary:
    """Read a child's body."""
    metadata = body["metadata"]
    annotations = metadata.get("annotations") or {}
    return ChildSummary(
        uid=metadata["uid"],
        version=str(metadata.get("generation") or metadata.get("resourceVersion", "")),
        resource_version=str(metadata.get("resourceVersion", "")),
        labels=dict(metadata.get("labels") or {}),
        annotations={name: value for name, value in annotations.items() if name != _LAST_APPLIED},
        owner_uids=frozenset(owner["uid"] for owner in metadata.get("ownerReferences") or ()),
    )
