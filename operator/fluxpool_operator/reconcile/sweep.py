"""Mends what a watch missed: an object that was deleted while nobody watched is never announced as gone.

Lists names and uids only, in pages, so that ten thousand pods cost little.
"""

import asyncio
from collections.abc import AsyncIterator
from typing import Any, Final, TypeVar

import structlog

from fluxpool_operator.api import PLURAL
from fluxpool_operator.children import MANAGED_BY
from fluxpool_operator.cluster import ClusterClient, ClusterError, ClusterUnreachableError, KindPath
from fluxpool_operator.cluster.objects import POOLS_PATH, listing_path
from fluxpool_operator.reconcile.child_cache import ChildCache
from fluxpool_operator.reconcile.pool_tasks import PoolTasks

log = structlog.get_logger(__name__)

T = TypeVar("T")

METADATA_ONLY: Final = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1"
_PAGE_OBJECTS: Final = 100
"""All of a page are in memory at once, some 20 KB each."""
_POOLS: Final = f"{POOLS_PATH}/namespaces/{{}}/{PLURAL}"


class Sweep:
    """Compares what is known with what is there."""

    def __init__(
        self, cluster: ClusterClient, *, pool_tasks: PoolTasks, cache: ChildCache, namespaces: tuple[str, ...]
    ) -> None:
        """`namespaces` are those that are watched; all when empty."""
        self._cluster = cluster
        self._pool_tasks = pool_tasks
        self._cache = cache
        self._namespaces: tuple[str | None, ...] = namespaces or (None,)

    async def run(self, *, interval_seconds: float) -> None:
        """Sweep for ever; an error ends one sweep only."""
        while True:
            await asyncio.sleep(interval_seconds)
            try:
                await self.sweep()
            except (ClusterError, ClusterUnreachableError) as error:
                log.warning("sweep_failed", error=str(error))

    async def sweep(self) -> None:
        """Forget what is not there. Only what was known before the list began can be missing from it."""
        pools, pods, deployments = self._pool_tasks.pool_uids, self._cache.pod_uids(), self._cache.deployment_uids()
        managed = ",".join(f"{name}={value}" for name, value in MANAGED_BY.items())
        for uid in await self._missing(dict.fromkeys(pools), _POOLS, selector=None):
            self._pool_tasks.remove_pool(uid)
        for uid, key in (await self._missing(pods, KindPath.POD, selector=managed)).items():
            self._cache.remove_pod(key, uid)
        for uid, key in (await self._missing(deployments, KindPath.DEPLOYMENT, selector=managed)).items():
            self._cache.remove_deployment(key, uid)

    async def _missing(self, known: dict[str, T], path: str, *, selector: str | None) -> dict[str, T]:
        """Of what is known by uid, the rest that is not there; takes away from `known`."""
        async for uid in self._uids(path, selector=selector):
            known.pop(uid, None)
        return known

    async def _uids(self, path: str, *, selector: str | None) -> AsyncIterator[str]:
        for namespace in self._namespaces:
            query = {"limit": str(_PAGE_OBJECTS), **({"labelSelector": selector} if selector else {})}
            while True:
                page = await self._cluster.get(
                    listing_path(path, namespace=namespace), query=query, accept=METADATA_ONLY
                )
                for item in page.get("items", ()):
                    yield _uid(item)
                if not (token := page.get("metadata", {}).get("continue")):
                    break
                query = {**query, "continue": token}


def _uid(item: dict[str, Any]) -> str:
    return str(item["metadata"]["uid"])
