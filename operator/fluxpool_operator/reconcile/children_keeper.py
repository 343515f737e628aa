"""Keeps the children of one pool as they are rendered: by server-side apply, when and only when something differs.

Owns what was applied last, and the look before the first apply: a forced apply takes over whatever bears the name.
Must not know what a child should look like.
"""

import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

import structlog

from fluxpool_operator.children import FIELD_MANAGER, Children
from fluxpool_operator.cluster import ClusterClient, ClusterError, child_path
from fluxpool_operator.cluster.client import Body
from fluxpool_operator.workload import DeploymentSummary

log = structlog.get_logger(__name__)

DEPLOYMENT = "Deployment"

JITTER: Final = 0.3
"""A look comes sooner by up to this share of the interval: pools made together do not look together for ever."""


class ForeignChildError(Exception):
    """An object of a child's name belongs to somebody else; the message names it and the remedy."""


class ChildRefusedError(Exception):
    """The API server refuses a child; the message says which and why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Applied:
    """A child as the last apply, or the look at it since, left it."""

    manifest: Mapping[str, Any]
    uid: str
    version: str
    """The generation where the kind has one, else the resource version: moves when somebody changes it."""
    look_at_seconds: float
    """When it is to be looked at again."""


class ChildrenKeeper:
    """The children of one pool."""

    def __init__(
        self,
        cluster: ClusterClient,
        *,
        owner_uid: str,
        resync_interval_seconds: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._cluster = cluster
        self._owner_uid = owner_uid
        self._resync_interval_seconds = resync_interval_seconds
        self._clock = clock
        self._applied: dict[str, _Applied] = {}
        self._look_for_absent_at: dict[str, float] = {}

    def forget(self, kind: str) -> None:
        """A child of this kind was deleted: apply it anew."""
        self._applied.pop(kind, None)

    async def keep(
        self, children: Children, *, deployment: DeploymentSummary | None, unwanted: Mapping[str, str]
    ) -> tuple[Body, ...]:
        """Apply what differs; returns the objects that were applied, in that order.

        `deployment` is the Deployment as last seen; `unwanted` are the paths of children, by kind, that are not to be
        there. Raises `ForeignChildError`, `ChildRefusedError` and `ClusterUnreachableError`; what was applied by then
        stays.
        """
        applied = []
        for manifest in children.in_order():
            kind = manifest["kind"]
            if await self._differs(manifest, deployment=deployment):
                applied.append(await self._apply(kind, manifest))
        for kind, path in unwanted.items():
            await self._remove(kind, path)
        return tuple(applied)

    async def _differs(self, manifest: Mapping[str, Any], *, deployment: DeploymentSummary | None) -> bool:
        kind, path = manifest["kind"], child_path(manifest)
        last = self._applied.get(kind)
        if last is None:
            await self._find_own(kind, path)
            return True
        if last.manifest != manifest:
            return True
        if kind == DEPLOYMENT and deployment is not None and deployment.uid == last.uid:
            # The watch may lag behind our own apply; only a generation beyond it is somebody else's edit.
            return deployment.generation > int(last.version)
        if self._clock() < last.look_at_seconds:
            return False
        found = await self._find_own(kind, path)
        if found is None or (found["metadata"]["uid"], _version(found)) != (last.uid, last.version):
            log.info("child_changed_by_others", kind=kind, path=path)
            return True
        self._applied[kind] = replace(last, look_at_seconds=self._next_look())
        return False

    def _next_look(self) -> float:
        share = random.uniform(1 - JITTER, 1)  # noqa: S311 - spreads looks
        return self._clock() + self._resync_interval_seconds * share

    async def _apply(self, kind: str, manifest: Mapping[str, Any]) -> Body:
        path = child_path(manifest)
        try:
            stored = await self._cluster.apply(path, manifest, field_manager=FIELD_MANAGER)
        except ClusterError as error:
            raise ChildRefusedError(f"{kind} {path.rpartition('/')[2]}: {error.message or error}") from error
        self._applied[kind] = _Applied(
            manifest=manifest,
            uid=stored["metadata"]["uid"],
            version=_version(stored),
            look_at_seconds=self._next_look(),
        )
        log.info("child_applied", kind=kind, name=path.rpartition("/")[2], version=_version(stored))
        return stored

    async def _find_own(self, kind: str, path: str) -> Body | None:
        """The child as it is there; raises `ForeignChildError` when it is not this pool's."""
        found = await self._cluster.find(path)
        if found is not None and not self._is_own(found):
            owners = found["metadata"].get("ownerReferences", ())
            whose = ", ".join(f"{owner['kind']} {owner['name']}" for owner in owners) or "nobody"
            raise ForeignChildError(
                f"{kind} {found['metadata']['name']} exists and belongs to {whose}, not to this pool; "
                "it is left alone: delete or rename it, or name the pool differently"
            )
        return found

    def _is_own(self, found: Body) -> bool:
        return any(owner["uid"] == self._owner_uid for owner in found["metadata"].get("ownerReferences", ()))

    async def _remove(self, kind: str, path: str) -> None:
        """Delete a child that is not wanted, if it is there and ours; one of others is none of our business."""
        if kind not in self._applied and self._clock() < self._look_for_absent_at.get(kind, 0.0):
            return
        try:
            found = await self._cluster.find(path)
            if found is not None and self._is_own(found):
                await self._cluster.delete(path, uid=found["metadata"]["uid"])
                log.info("child_deleted", kind=kind, name=found["metadata"]["name"])
        except ClusterError as error:
            raise ChildRefusedError(f"{kind} {path.rpartition('/')[2]}: {error.message or error}") from error
        self._applied.pop(kind, None)
        self._look_for_absent_at[kind] = self._next_look()


def _version(stored: Body) -> str:
    metadata = stored["metadata"]
    return str(metadata.get("generation") or metadata["resourceVersion"])
