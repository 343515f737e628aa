"""Applies the children of one pool with server-side apply, only when something differs.

Owns what was applied last, the drift check, the ownership check before the first apply (a forced apply takes over any
object of that name), and the delays of repairs and retries. Must not know what a child looks like.
"""

import math
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

import structlog

from fluxpool_operator.api import Reason
from fluxpool_operator.children import FIELD_MANAGER, Children
from fluxpool_operator.cluster import ClusterClient, ClusterError, child_path
from fluxpool_operator.cluster.client import Body
from fluxpool_operator.reconcile.child_cache import DEPLOYMENT
from fluxpool_operator.workload import ChildSummary, summarize_child
from fluxpool_transport.process import Backoff

log = structlog.get_logger(__name__)

JITTER: Final = 0.3
"""A check comes sooner by up to this share of the interval, so that pools created together spread."""
REPAIR_SECONDS: Final = 5.0
"""Between two applies of one manifest: against a controller that reverts each of them."""
FIRST_RETRY_SECONDS: Final = 2.0
LONGEST_RETRY_SECONDS: Final = 15.0
"""Between retries of a refused apply; a change of the manifest or of a watched child is tried at once."""


class ChildError(Exception):
    """The API server refuses a child, or an object of its name has another owner; says which, and the remedy."""

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        """Of the pool's condition."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Applied:
    """A child after the last apply, or the last check since."""

    manifest: Mapping[str, Any]
    stored: ChildSummary
    at_seconds: float
    check_at_seconds: float
    """When it is read again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Refused:
    """A refused apply, and when the same children are tried again."""

    children: Children
    error: ChildError
    retry_at_seconds: float


class ServerSideApply:
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
        self._check_absent_at: dict[str, float] = {}
        self._refused: _Refused | None = None
        self._backoff = Backoff(initial_seconds=FIRST_RETRY_SECONDS, maximum_seconds=LONGEST_RETRY_SECONDS)
        self._repair_at = math.inf

    def on_children_changed(self, observed: Mapping[str, ChildSummary]) -> None:
        """A child was deleted: it is applied again, and what was refused is tried at once."""
        for kind in self._applied.keys() - observed.keys():
            del self._applied[kind]
        if self._refused is not None:
            self._refused = replace(self._refused, retry_at_seconds=self._clock())

    def seconds_until_due(self) -> float:
        """Until the next repair or retry; infinite when there is none."""
        retry_at = math.inf if self._refused is None else self._refused.retry_at_seconds
        return max(0.0, min(retry_at, self._repair_at) - self._clock())

    async def reconcile(
        self, children: Children, *, observed: Mapping[str, ChildSummary], obsolete: Mapping[str, str]
    ) -> tuple[Body, ...]:
        """Apply what differs; returns the objects that were applied, in that order.

        `observed` are the cached children by kind; `obsolete` are the paths, by kind, of children to delete. Raises
        `ChildError` and `ClusterUnreachableError`; what was applied by then stays.
        """
        last = self._refused
        if last is not None and last.children == children and self._clock() < last.retry_at_seconds:
            raise last.error
        try:
            applied = await self._reconcile(children, observed=observed, obsolete=obsolete)
        except ChildError as error:
            retry_at = self._clock() + self._backoff.next_seconds()
            self._refused = _Refused(children=children, error=error, retry_at_seconds=retry_at)
            raise
        self._refused = None
        self._backoff.reset()
        return applied

    async def _reconcile(
        self, children: Children, *, observed: Mapping[str, ChildSummary], obsolete: Mapping[str, str]
    ) -> tuple[Body, ...]:
        applied = []
        self._repair_at = math.inf
        for manifest in children.in_order():
            kind = manifest["kind"]
            if await self._differs(manifest, observed=observed.get(kind)):
                applied.append(await self._apply(kind, manifest))
        for kind, path in obsolete.items():
            await self._remove(kind, path)
        return tuple(applied)

    async def _differs(self, manifest: Mapping[str, Any], *, observed: ChildSummary | None) -> bool:
        kind, path = manifest["kind"], child_path(manifest)
        last = self._applied.get(kind)
        if last is None or (observed is not None and observed.uid != last.stored.uid):
            await self._find_own(kind, path)
            return True
        if last.manifest != manifest:
            return True
        if observed is not None and _is_changed(last.stored, observed, manifest=manifest):
            log.info("child_drifted", kind=kind, path=path)
            return self._may_repair(last)
        # The sweep finds a Deployment whose deletion the watch missed; the other children are read here.
        if self._clock() < last.check_at_seconds or (kind == DEPLOYMENT and observed is not None):
            return False
        found = await self._find_own(kind, path)
        if found is None or _is_changed(last.stored, summarize_child(found), manifest=manifest):
            log.info("child_drifted", kind=kind, path=path)
            return True
        self._applied[kind] = replace(last, check_at_seconds=self._next_check())
        return False

    def _may_repair(self, last: _Applied) -> bool:
        repair_at = last.at_seconds + REPAIR_SECONDS
        if self._clock() >= repair_at:
            return True
        self._repair_at = min(self._repair_at, repair_at)
        return False

    def _next_check(self) -> float:
        share = random.uniform(1 - JITTER, 1)  # noqa: S311 - spreads checks
        return self._clock() + self._resync_interval_seconds * share

    async def _apply(self, kind: str, manifest: Mapping[str, Any]) -> Body:
        path = child_path(manifest)
        try:
            stored = await self._cluster.apply(path, manifest, field_manager=FIELD_MANAGER)
        except ClusterError as error:
            raise _refused(kind, path, error) from error
        summary = summarize_child(stored)
        self._applied[kind] = _Applied(
            manifest=manifest, stored=summary, at_seconds=self._clock(), check_at_seconds=self._next_check()
        )
        log.info("child_applied", kind=kind, name=path.rpartition("/")[2], version=summary.version)
        return stored

    async def _find_own(self, kind: str, path: str) -> Body | None:
        """The child in the API server; raises `ChildError` when it is not this pool's."""
        found = await self._cluster.find(path)
        if found is not None and not self._is_own(found):
            owners = found["metadata"].get("ownerReferences", ())
            whose = ", ".join(f"{owner['kind']} {owner['name']}" for owner in owners) or "no owner"
            raise ChildError(
                Reason.FOREIGN_CHILD,
                f"{kind} {found['metadata']['name']} exists and belongs to {whose}, not to this pool; "
                "it is not changed: delete or rename it, or name the pool differently",
            )
        return found

    def _is_own(self, found: Body) -> bool:
        return any(owner["uid"] == self._owner_uid for owner in found["metadata"].get("ownerReferences", ()))

    async def _remove(self, kind: str, path: str) -> None:
        """Delete an obsolete child if it exists and is this pool's."""
        if kind not in self._applied and self._clock() < self._check_absent_at.get(kind, 0.0):
            return
        try:
            found = await self._cluster.find(path)
            if found is not None and self._is_own(found):
                await self._cluster.delete(path, uid=found["metadata"]["uid"])
                log.info("child_deleted", kind=kind, name=found["metadata"]["name"])
        except ClusterError as error:
            raise _refused(kind, path, error) from error
        self._applied.pop(kind, None)
        self._check_absent_at[kind] = self._next_check()


def _refused(kind: str, path: str, error: ClusterError) -> ChildError:
    return ChildError(Reason.CHILD_FAILED, f"{kind} {path.rpartition('/')[2]}: {error.message or error}")


def _is_changed(stored: ChildSummary, seen: ChildSummary, *, manifest: Mapping[str, Any]) -> bool:
    """Whether others changed or replaced what the last apply stored."""
    if stored.uid != seen.uid:
        return True
    # The answer to an apply overtakes the watch: an event of an earlier state is late, not a drift.
    if seen.is_older_than(stored):
        return False
    return stored.version != seen.version or not seen.has_metadata_of(manifest)
