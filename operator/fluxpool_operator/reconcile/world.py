"""What the watches said: pools, their Deployments and their pods, and whom to wake when that changes.

Owns the newest state of each object, kept small. Must not know what follows from it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final

from fluxpool_operator.children import POOL_LABEL
from fluxpool_operator.cluster.client import Body
from fluxpool_operator.workload import DeploymentSummary, PodSummary, summarize_deployment, summarize_pod

Wake = Callable[["Change"], None]


class Change(StrEnum):
    """Why a pool is looked at before its time."""

    SPEC = "spec"
    CHILDREN = "children"
    DEPLOYMENT_GONE = "deployment-gone"
    RECORDS = "records"
    """New tasks in a topic that had none."""
    RIVAL = "rival"
    """Another pool's groups changed."""


@dataclass(frozen=True, slots=True)
class PoolKey:
    """A pool by its place; what its children's labels tell."""

    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


@dataclass(slots=True)
class _Seen:
    """The children of one pool."""

    deployment: DeploymentSummary | None = None
    pods: dict[str, PodSummary] = field(default_factory=dict)


_NOTHING: Final = _Seen()


class World:
    """The children of all pools, and the loops that want to know of changes."""

    def __init__(self) -> None:
        self._children: dict[PoolKey, _Seen] = {}
        self._listeners: dict[PoolKey, Wake] = {}

    def listen(self, key: PoolKey, wake: Wake) -> None:
        """Call `wake` whenever a child of the pool changes."""
        self._listeners[key] = wake

    def ignore(self, key: PoolKey, wake: Wake) -> None:
        """Undo `listen`, unless somebody else listens by now."""
        if self._listeners.get(key) == wake:
            del self._listeners[key]

    def deployment(self, key: PoolKey) -> DeploymentSummary | None:
        """The pool's Deployment; None when none was seen."""
        return self._children.get(key, _NOTHING).deployment

    def pods(self, key: PoolKey) -> tuple[PodSummary, ...]:
        """The pool's pods, in no order."""
        return tuple(self._children.get(key, _NOTHING).pods.values())

    def pod_uids(self) -> dict[str, PoolKey]:
        """Every pod that is known, by uid."""
        return {uid: key for key, seen in self._children.items() for uid in seen.pods}

    def deployment_uids(self) -> dict[str, PoolKey]:
        """Every Deployment that is known, by uid."""
        return {seen.deployment.uid: key for key, seen in self._children.items() if seen.deployment is not None}

    def saw_pod(self, body: Mapping[str, Any], *, is_deleted: bool) -> None:
        """A pod appeared, changed or went."""
        key = _pool_of(body)
        if key is None:
            return
        uid = body["metadata"]["uid"]
        if is_deleted:
            self.lost_pod(key, uid)
            return
        pods = self._children.setdefault(key, _Seen()).pods
        summary = summarize_pod(body)
        if pods.get(uid) != summary:
            pods[uid] = summary
            self._wake(key, Change.CHILDREN)

    def lost_pod(self, key: PoolKey, uid: str) -> None:
        """A pod is not there any more."""
        seen = self._children.get(key)
        if seen is not None and seen.pods.pop(uid, None) is not None:
            self._tidy(key)
            self._wake(key, Change.CHILDREN)

    def saw_deployment(self, body: Mapping[str, Any], *, is_deleted: bool) -> None:
        """A Deployment appeared, changed or went."""
        key = _pool_of(body)
        if key is None:
            return
        if is_deleted:
            self.lost_deployment(key, body["metadata"]["uid"])
            return
        summary = summarize_deployment(body)
        if self.remember_deployment(key, summary):
            self._wake(key, Change.CHILDREN)

    def lost_deployment(self, key: PoolKey, uid: str) -> None:
        """A Deployment is not there any more; one that took its name since stays."""
        seen = self._children.get(key)
        if seen is None or seen.deployment is None or seen.deployment.uid != uid:
            return
        seen.deployment = None
        self._tidy(key)
        self._wake(key, Change.DEPLOYMENT_GONE)

    def remember_deployment(self, key: PoolKey, summary: DeploymentSummary) -> bool:
        """Note a Deployment as it was read or written, unless something newer is known; returns whether it is news."""
        seen = self._children.setdefault(key, _Seen())
        known = seen.deployment
        if known == summary or (known and known.uid == summary.uid and known.generation > summary.generation):
            return False
        seen.deployment = summary
        return True

    def _tidy(self, key: PoolKey) -> None:
        seen = self._children[key]
        if not seen.pods and seen.deployment is None:
            del self._children[key]

    def _wake(self, key: PoolKey, change: Change) -> None:
        if (wake := self._listeners.get(key)) is not None:
            wake(change)


def _pool_of(body: Mapping[str, Any]) -> PoolKey | None:
    metadata = body["metadata"]
    name = metadata.get("labels", {}).get(POOL_LABEL)
    return PoolKey(metadata["namespace"], name) if name else None


def pool_key(body: Body) -> PoolKey:
    """The place of a pool."""
    return PoolKey(body["metadata"]["namespace"], body["metadata"]["name"])
