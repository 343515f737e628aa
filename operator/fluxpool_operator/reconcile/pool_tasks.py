"""One task per pool: started when the pool is seen, ended when it goes, started again should it ever end by itself.

Owns the tasks. Must not know what a turn of a loop does.
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

log = structlog.get_logger(__name__)

RESTART_SECONDS: Final = 5.0
"""Before a loop that broke is started again; its own errors are caught within, so this should not happen."""


class PoolTasks:
    """The loops of all pools."""

    def __init__(self, context: OperatorContext) -> None:
        self._context = context
        self._loops: dict[str, PoolLoop] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}

    @property
    def pool_uids(self) -> frozenset[str]:
        """The pools that have a loop."""
        return frozenset(self._loops)

    def on_pool(self, body: Mapping[str, Any], *, is_deleted: bool) -> None:
        """A pool appeared, changed or went."""
        plain: Body = dict(body)
        uid = plain["metadata"]["uid"]
        # A pool that waits for its children to be deleted first must not get them back.
        if is_deleted or plain["metadata"].get("deletionTimestamp"):
            self.remove_pool(uid)
            return
        loop = self._loops.get(uid)
        if loop is not None:
            loop.on_pool(plain)
            return
        key = pool_key(plain)
        # A name has one pool: the end of an earlier one went by while nobody watched.
        for earlier in [other for other, loop in self._loops.items() if loop.key == key]:
            self.remove_pool(earlier)
        log.info("pool_added", pool=str(key), uid=uid)
        self._start(uid, plain)

    def remove_pool(self, uid: str) -> None:
        """A pool is not there any more; its children go by their owner references."""
        loop, task = self._loops.pop(uid, None), self._tasks.pop(uid, None)
        if loop is None or task is None:
            return
        log.info("pool_removed", pool=str(loop.key), uid=uid)
        task.cancel()
        self._context.metrics.remove_pool(loop.key.namespace, loop.key.name)
        self._context.metrics.pools.set(len(self._loops))
        self.notify_conflicting_pools(self._context.claims.remove(uid))

    def notify_conflicting_pools(self, uids: frozenset[str]) -> None:
        """Wake the loops of pools whose consumer groups another pool took or gave up."""
        for uid in uids:
            if (loop := self._loops.get(uid)) is not None:
                loop.wake(Change.GROUP_CONFLICT)

    def longest_silence_seconds(self) -> float:
        """Since the longest-waiting loop last finished a turn without an error in our own code; 0 without pools."""
        now = self._context.clock()
        return max((now - loop.alive_at_seconds for loop in self._loops.values()), default=0.0)

    async def stop(self) -> None:
        """End every loop; the children stay as they are."""
        tasks = list(self._tasks.values())
        self._tasks.clear()
        self._loops.clear()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _start(self, uid: str, body: Body) -> None:
        loop = PoolLoop(body, context=self._context, notify_conflicting_pools=self.notify_conflicting_pools)
        self._loops[uid] = loop
        self._context.metrics.pools.set(len(self._loops))
        task = asyncio.create_task(loop.run(), name=f"pool {loop.key}")
        self._tasks[uid] = task
        task.add_done_callback(lambda ended: self._ended(uid, ended))

    def _ended(self, uid: str, task: asyncio.Task[None]) -> None:
        if task.cancelled() or self._tasks.get(uid) is not task:
            return
        loop = self._loops[uid]
        error = task.exception()
        if isinstance(error, PoolGoneError):
            self.remove_pool(uid)
            return
        log.error("pool_loop_ended", pool=str(loop.key), error=repr(error), restart_in_seconds=RESTART_SECONDS)
        asyncio.get_running_loop().call_later(RESTART_SECONDS, self._restart, uid, task)

    def _restart(self, uid: str, ended: asyncio.Task[None]) -> None:
        if self._tasks.get(uid) is ended:
            self._start(uid, self._loops[uid].body)
