"""One asyncio task per pool, from its creation to its deletion.

Owns the tasks. Must not know what a loop (`pool_loop`) does.
"""

import asyncio
from collections.abc import Mapping
from typing import Any

import structlog

from fluxpool_operator.cluster.client import Body
from fluxpool_operator.reconcile.apply.status_writer import PoolGoneError
from fluxpool_operator.reconcile.child_cache import Change, pool_key
from fluxpool_operator.reconcile.context import OperatorContext
from fluxpool_operator.reconcile.pool_loop import PoolLoop

log = structlog.get_logger(__name__)


class PoolTasks:
    """The loops of all pools, by the pools' uids."""

    def __init__(self, context: OperatorContext) -> None:
        self._context = context
        self._running: dict[str, tuple[PoolLoop, asyncio.Task[None]]] = {}

    @property
    def pool_uids(self) -> frozenset[str]:
        """The pools that have a loop."""
        return frozenset(self._running)

    def on_pool(self, body: Mapping[str, Any], *, is_deleted: bool) -> None:
        """A pool was created, changed or deleted."""
        plain: Body = dict(body)
        uid = plain["metadata"]["uid"]
        # With foreground deletion a pool exists until its children are deleted; they must not be created again.
        if is_deleted or plain["metadata"].get("deletionTimestamp"):
            self.remove_pool(uid)
            return
        if uid in self._running:
            self._running[uid][0].on_pool(plain)
            return
        key = pool_key(plain)
        # A name has one pool at a time: the watch missed the deletion of the earlier one.
        for earlier in [other for other, (loop, _) in self._running.items() if loop.key == key]:
            self.remove_pool(earlier)
        log.info("pool_added", pool=str(key), uid=uid)
        loop = PoolLoop(plain, context=self._context, notify_conflicting_pools=self.notify_conflicting_pools)
        task = asyncio.create_task(loop.run(), name=f"pool {key}")
        task.add_done_callback(lambda ended: self._on_ended(uid, ended))
        self._running[uid] = loop, task
        self._context.metrics.pools.set(len(self._running))

    def remove_pool(self, uid: str) -> None:
        """A pool was deleted; Kubernetes deletes its children by their owner references."""
        if uid not in self._running:
            return
        loop, task = self._running.pop(uid)
        log.info("pool_removed", pool=str(loop.key), uid=uid)
        task.cancel()
        self._context.metrics.remove_pool(loop.key.namespace, loop.key.name)
        self._context.metrics.pools.set(len(self._running))
        self.notify_conflicting_pools(self._context.claims.remove(uid))

    def notify_conflicting_pools(self, uids: frozenset[str]) -> None:
        """Wake the pools whose consumer groups another pool claimed or released."""
        for uid in uids & self._running.keys():
            self._running[uid][0].wake(Change.GROUP_CONFLICT)

    def longest_silence_seconds(self) -> float:
        """Since the end of the last reconcile of the loop that is silent the longest; 0 without pools."""
        now = self._context.clock()
        return max((now - loop.alive_at_seconds for loop, _ in self._running.values()), default=0.0)

    async def stop(self) -> None:
        """End every loop; the children stay as they are."""
        tasks = [task for _, task in self._running.values()]
        self._running.clear()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _on_ended(self, uid: str, task: asyncio.Task[None]) -> None:
        # The uid may have a new task by now: a pool that a sweep removed wrongly comes back with its next event.
        if task.cancelled() or uid not in self._running or self._running[uid][1] is not task:
            return
        error = task.exception()
        if isinstance(error, PoolGoneError):
            self.remove_pool(uid)
            return
        # A loop catches its errors, so this is a defect. Its silence fails the liveness probe.
        log.error("pool_loop_ended", pool=str(self._running[uid][0].key), error=repr(error))
