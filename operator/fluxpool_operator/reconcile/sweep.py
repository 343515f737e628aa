"""Finds deletions that the watches missed: kopf announces no object that was deleted while a watch was away.

Lists metadata only, in pages, so that ten thousand pods cost little.
"""

import asyncio
from typing import Final, TypeVar

import structlog

from fluxpool_operator.children import MANAGED_BY
from fluxpool_operator.cluster import ClusterClient, ClusterError, ClusterUnreachableError, KindPath
from fluxpool_operator.reconcile.child_cache import DEPLOYMENT, ChildCache
from fluxpool_operator.reconcile.pool_tasks import PoolTasks

log = structlog.get_logger(__name__)

T = TypeVar("T")

METADATA_ONLY: Final = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1"
_PAGE_OBJECTS: Final = 100
"""All of a page are in memory at once, some 20 KB each."""


class Sweep:
    """Compares the known uids with those in the API server."""

    def __init__(
        self, cluster: ClusterClient, *, pool_tasks: PoolTasks, cache: ChildCache, namespaces: tuple[str, ...]
    ) -> None:
        """`namespaces` are the watched ones; all when empty."""
        self._cluster = cluster
        self._pool_tasks = pool_tasks
        self._cache = cache
        self._namespaces: tuple[str | None, ...] = namespaces or (None,)

    async def run(self, *, interval_seconds: float) -> None:
        """Sweep at an interval until cancelled; an error ends one sweep only."""
        while True:
            # First: at a start the watches list everything anyway.
            await asyncio.sleep(interval_seconds)
            try:
                await self.sweep()
            except (ClusterError, ClusterUnreachableError) as error:
                log.warning("sweep_failed", error=str(error))

    async def sweep(self) -> None:
        """Remove what is known and not there."""
        # Known uids first, then the lists: what is created meanwhile is not among them and cannot seem deleted.
        pools, pods, deployments = self._pool_tasks.pool_uids, self._cache.pod_uids(), self._cache.deployment_uids()
        managed = ",".join(f"{name}={value}" for name, value in MANAGED_BY.items())
        for uid in await self._missing(dict.fromkeys(pools), KindPath.POOL, selector=None):
            self._pool_tasks.remove_pool(uid)
        for uid, key in (await self._missing(pods, KindPath.POD, selector=managed)).items():
            self._cache.remove_pod(key, uid)
        for uid, key in (await self._missing(deployments, KindPath.DEPLOYMENT, selector=managed)).items():
            self._cache.remove_child(key, DEPLOYMENT, uid)

    async def _missing(self, known: dict[str, T], kind: KindPath, *, selector: str | None) -> dict[str, T]:
        """Remove what is there from `known`, and return the rest."""
        for namespace in self._namespaces:
            query = {"limit": str(_PAGE_OBJECTS), **({"labelSelector": selector} if selector else {})}
            while True:
                page = await self._cluster.get(kind.collection(namespace), query=query, accept=METADATA_ONLY)
                for item in page.get("items", ()):
                    known.pop(item["metadata"]["uid"], None)
                if not (token := page.get("metadata", {}).get("continue")):
                    break
                query["continue"] = token
        return known
