"""One asyncio task per pool, from its creation to its deletion.

Owns the tasks. Must not know what a loop (`pool_loop`) does.
"""

import asyncio
from collections.abc import Mapping
from typing import Any, Final

import structlog

from fluxpool_operator.cluster.client import Body
from fluxpool_operator.reconcile.apply.status_writer import PoolGoneError
from fluxpool_operator.reconcile.child_cache import Change, pool_key
from fluxpool_operator.reconcile.context import OperatorContext
from fluxpool_operator.reconcile.pool_loop import PoolLoop
from fluxpool_transport.process import Backoff

log = structlog.get_logger(__name__)

RESTART_SECONDS: Final = 5.0
"""Before a loop that a defect ended begins again for the first time; at most twelve times as long, which is well below
the silence that fails the liveness probe."""


class PoolTasks:
    """The loops of all pools, by the pools' uids."""

    def __init__(self, context: OperatorContext, *, restart_seconds: float = RESTART_SECONDS) -> None:
        self._context = context
        self._restart_seconds = restart_seconds
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
        self._running[uid] = loop, asyncio.create_task(self._run(uid, loop), name=f"pool {key}")
        self._context.metrics.pools.set(len(self._running))

    def remove_pool(self, uid: str) -> None:
        """A pool was deleted; Kubernetes deletes its children by their owner references."""
        if uid not in self._running:
            return
        loop, task = self._running.pop(uid)
        log.info("pool_removed", pool=str(loop.key), uid=uid)
        # Before the loop ends: with it the reconciler forgets the connection.
        loop.withdraw()
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
        # They raise nothing but what cancels them: `_run` logs every other error.
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _run(self, uid: str, loop: PoolLoop) -> None:
        """Run a pool's loop until the pool is gone; one that a defect ends begins again after a growing delay."""
        backoff = Backoff(initial_seconds=self._restart_seconds, maximum_seconds=12 * self._restart_seconds)
        while True:
            try:
                await loop.run()
            except PoolGoneError:
                # It cancels the present task too, which has no await left.
                self.remove_pool(uid)
                return
            except Exception:
                # A loop catches the errors of its reconciles, so this is a defect. It must end neither this pool's
                # scaling for good nor, by way of the liveness probe, the loops of all other pools.
                delay_seconds = backoff.next_seconds()
                log.exception("pool_loop_failed", pool=str(loop.key), retry_in_seconds=round(delay_seconds, 1))
                self._context.metrics.count_loop_failure(loop.key.namespace, loop.key.name)
            await asyncio.sleep(delay_seconds)
