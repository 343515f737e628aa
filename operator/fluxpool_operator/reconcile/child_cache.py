"""What the watches said: pools, their Deployments and their pods, and whom to wake when that changes.

Owns the newest state of each object, kept small. Must not know what follows from it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any, Final

from fluxpool_operator.children import POOL_LABEL, child_name_of
from fluxpool_operator.cluster.client import Body
from fluxpool_operator.workload import (
    ChildSummary,
    DeploymentSummary,
    PodSummary,
    summarize_child,
    summarize_deployment,
    summarize_pod,
)

Wake = Callable[["Change"], None]

DEPLOYMENT: Final = "Deployment"


class Change(StrEnum):
    """Why a pool is looked at before its time."""

    SPEC = "spec"
    CHILDREN = "children"
    CHILD_DELETED = "child-deleted"
    """A child was deleted."""
    RECORDS = "records"
    """New tasks in a topic that had none."""
    GROUP_CONFLICT = "group-conflict"
    """Another pool's groups changed."""
    TOPICS = "topics"
    """The pool's topics were looked after."""


@dataclass(frozen=True, slots=True)
class PoolKey:
    """A pool by its place; what its children's labels tell."""

    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


@dataclass(slots=True)
class _PoolChildren:
    """The children of one pool."""

    deployment: DeploymentSummary | None = None
    children: dict[str, ChildSummary] = field(default_factory=dict)
    """By kind; the Deployment is among them."""
    pods: dict[str, PodSummary] = field(default_factory=dict)


_NOTHING: Final = _PoolChildren()


class ChildCache:
    """The children of all pools, and the loops that want to know of changes."""

    def __init__(self) -> None:
        self._children: dict[PoolKey, _PoolChildren] = {}
        self._subscribers: dict[PoolKey, Wake] = {}

    def subscribe(self, key: PoolKey, wake: Wake) -> None:
        """Call `wake` whenever a child of the pool changes."""
        self._subscribers[key] = wake

    def unsubscribe(self, key: PoolKey, wake: Wake) -> None:
        """Undo `listen`, unless somebody else listens by now."""
        if self._subscribers.get(key) == wake:
            del self._subscribers[key]

    def deployment(self, key: PoolKey) -> DeploymentSummary | None:
        """The pool's Deployment; None when none was seen."""
        return self._children.get(key, _NOTHING).deployment

    def children(self, key: PoolKey) -> Mapping[str, ChildSummary]:
        """The pool's children by kind, as far as they were seen."""
        return self._children.get(key, _NOTHING).children

    def pods(self, key: PoolKey) -> tuple[PodSummary, ...]:
        """The pool's pods, in no order."""
        return tuple(self._children.get(key, _NOTHING).pods.values())

    def pod_uids(self) -> dict[str, PoolKey]:
        """Every pod that is known, by uid."""
        return {uid: key for key, seen in self._children.items() for uid in seen.pods}

    def deployment_uids(self) -> dict[str, PoolKey]:
        """Every Deployment that is known, by uid."""
        return {seen.deployment.uid: key for key, seen in self._children.items() if seen.deployment is not None}

    def on_pod(self, body: Mapping[str, Any], *, is_deleted: bool) -> None:
        """A pod appeared, changed or went; one that no ReplicaSet controls is not the pool's, whatever its labels."""
        key = _pool_of(body)
        if key is None:
            return
        summary = summarize_pod(body)
        if is_deleted or summary.owner_uid is None:
            self.remove_pod(key, summary.uid)
            return
        pods = self._children.setdefault(key, _PoolChildren()).pods
        if pods.get(summary.uid) != summary:
            pods[summary.uid] = summary
            self._wake(key, Change.CHILDREN)

    def remove_pod(self, key: PoolKey, uid: str) -> None:
        """A pod is not there any more."""
        seen = self._children.get(key)
        if seen is not None and seen.pods.pop(uid, None) is not None:
            self._tidy(key)
            self._wake(key, Change.CHILDREN)

    def on_child(self, kind: str, body: Mapping[str, Any], *, is_deleted: bool) -> None:
        """A child appeared, changed or went. A copy under another name is not the pool's, whatever its labels."""
        key = _pool_of(body)
        if key is None or body["metadata"]["name"] != child_name_of(key.name):
            return
        if is_deleted:
            self.remove_child(key, kind, body["metadata"]["uid"])
        elif self.store_child(key, kind, body):
            self._wake(key, Change.CHILDREN)

    def remove_deployment(self, key: PoolKey, uid: str) -> None:
        """A Deployment is not there any more."""
        self.remove_child(key, DEPLOYMENT, uid)

    def remove_child(self, key: PoolKey, kind: str, uid: str) -> None:
        """A child is not there any more; one that took its name since stays."""
        seen = self._children.get(key)
        known = None if seen is None else seen.children.get(kind)
        if seen is None or known is None or known.uid != uid:
            return
        del seen.children[kind]
        if kind == DEPLOYMENT:
            seen.deployment = None
        self._tidy(key)
        self._wake(key, Change.CHILD_DELETED)

    def store_child(self, key: PoolKey, kind: str, body: Mapping[str, Any]) -> bool:
        """Note a child as it was read or written, unless something newer is known; returns whether it is news."""
        summary = summarize_child(body)
        seen = self._children.setdefault(key, _PoolChildren())
        known = seen.children.get(kind)
        if known is not None and summary.is_older_than(known):
            return False
        seen.children[kind] = summary
        # Of what controllers write to a status only the Deployment's counts.
        is_news = known is None or replace(known, resource_version=summary.resource_version) != summary
        if kind == DEPLOYMENT:
            before, seen.deployment = seen.deployment, summarize_deployment(body)
            is_news = is_news or before != seen.deployment
        return is_news

    def _tidy(self, key: PoolKey) -> None:
        seen = self._children[key]
        if not seen.pods and not seen.children:
            del self._children[key]

    def _wake(self, key: PoolKey, change: Change) -> None:
        if (wake := self._subscribers.get(key)) is not None:
            wake(change)


def _pool_of(body: Mapping[str, Any]) -> PoolKey | None:
    metadata = body["metadata"]
    name = (metadata.get("labels") or {}).get(POOL_LABEL)
    return PoolKey(metadata["namespace"], name) if name else None


def pool_key(body: Body) -> PoolKey:
    """The place of a pool."""
    return PoolKey(body["metadata"]["namespace"], body["metadata"]["name"])
