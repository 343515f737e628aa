"""An informer's cache: the newest known state of all pools' children, in small summaries, and who is woken by changes.

Fed by watch events (`handlers`), by what applies return (`apply.child_applier`) and by `sweep`. Must not know what
follows from a change; that is decided in `pool_reconciler`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any, Final

from fluxpool_operator.children import POOL_LABEL, child_name
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
    """Why a pool is reconciled before its interval is over."""

    SPEC = "spec"
    CHILDREN = "children"
    CHILD_DELETED = "child-deleted"
    """A child was deleted."""
    RECORDS = "records"
    """New records in the topics of an idle pool."""
    GROUP_CONFLICT = "group-conflict"
    """Another pool claimed or released one of the pool's consumer groups."""
    TOPICS = "topics"
    """The pool's topics were read or changed."""


@dataclass(frozen=True, slots=True)
class PoolKey:
    """A pool by namespace and name, as the labels of its children say."""

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


_NO_CHILDREN: Final = _PoolChildren()


class ChildCache:
    """The children of all pools, and the loops that changes wake."""

    def __init__(self) -> None:
        self._children: dict[PoolKey, _PoolChildren] = {}
        self._subscribers: dict[PoolKey, Wake] = {}

    def subscribe(self, key: PoolKey, wake: Wake) -> None:
        """Call `wake` whenever a child of the pool changes."""
        self._subscribers[key] = wake

    def unsubscribe(self, key: PoolKey, wake: Wake) -> None:
        """Undo `subscribe`, unless the next pool of that name has subscribed by now."""
        if self._subscribers.get(key) == wake:
            del self._subscribers[key]

    def deployment(self, key: PoolKey) -> DeploymentSummary | None:
        """The pool's Deployment; None when none is known."""
        return self._children.get(key, _NO_CHILDREN).deployment

    def children(self, key: PoolKey) -> Mapping[str, ChildSummary]:
        """The pool's known children by kind."""
        return self._children.get(key, _NO_CHILDREN).children

    def pods(self, key: PoolKey) -> tuple[PodSummary, ...]:
        """The pool's pods, in no order."""
        return tuple(self._children.get(key, _NO_CHILDREN).pods.values())

    def pod_uids(self) -> dict[str, PoolKey]:
        """Every known pod, by uid."""
        return {uid: key for key, entry in self._children.items() for uid in entry.pods}

    def deployment_uids(self) -> dict[str, PoolKey]:
        """Every known Deployment, by uid."""
        return {entry.deployment.uid: key for key, entry in self._children.items() if entry.deployment is not None}

    def on_pod(self, body: Mapping[str, Any], *, is_deleted: bool) -> None:
        """A pod was created, changed or deleted; without a controlling ReplicaSet it is not the pool's."""
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
        """A pod was deleted."""
        entry = self._children.get(key)
        if entry is not None and entry.pods.pop(uid, None) is not None:
            self._drop_empty(key)
            self._wake(key, Change.CHILDREN)

    def on_child(self, kind: str, body: Mapping[str, Any], *, is_deleted: bool) -> None:
        """A child was created, changed or deleted; a copy under another name is not the pool's."""
        key = _pool_of(body)
        if key is None or body["metadata"]["name"] != child_name(key.name):
            return
        if is_deleted:
            self.remove_child(key, kind, body["metadata"]["uid"])
        elif self.store_child(key, kind, body):
            self._wake(key, Change.CHILDREN)

    def remove_child(self, key: PoolKey, kind: str, uid: str) -> None:
        """A child was deleted; one of the same kind with another uid is its successor and stays."""
        entry = self._children.get(key, _NO_CHILDREN)
        known = entry.children.get(kind)
        if known is None or known.uid != uid:
            return
        del entry.children[kind]
        if kind == DEPLOYMENT:
            entry.deployment = None
        self._drop_empty(key)
        self._wake(key, Change.CHILD_DELETED)

    def store_child(self, key: PoolKey, kind: str, body: Mapping[str, Any]) -> bool:
        """Store a child as it was read or written, unless a newer one is known; returns whether it changed."""
        summary = summarize_child(body)
        entry = self._children.setdefault(key, _PoolChildren())
        known = entry.children.get(kind)
        # The answer to an apply overtakes the watch, whose older events then arrive and must not bring back the past.
        if known is not None and summary.is_older_than(known):
            return False
        entry.children[kind] = summary
        # Only the Deployment's status matters; those of other children must not wake the loop.
        is_changed = known is None or replace(known, resource_version=summary.resource_version) != summary
        if kind == DEPLOYMENT:
            before, entry.deployment = entry.deployment, summarize_deployment(body)
            is_changed = is_changed or before != entry.deployment
        return is_changed

    def _drop_empty(self, key: PoolKey) -> None:
        entry = self._children[key]
        if not entry.pods and not entry.children:
            del self._children[key]

    def _wake(self, key: PoolKey, change: Change) -> None:
        if (wake := self._subscribers.get(key)) is not None:
            wake(change)


def _pool_of(body: Mapping[str, Any]) -> PoolKey | None:
    metadata = body["metadata"]
    name = (metadata.get("labels") or {}).get(POOL_LABEL)
    return PoolKey(metadata["namespace"], name) if name else None


def pool_key(body: Body) -> PoolKey:
    """Namespace and name of a pool."""
    return PoolKey(body["metadata"]["namespace"], body["metadata"]["name"])
