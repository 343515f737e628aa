"""The loop of one pool: observe -> plan -> apply, at the pool's pace and whenever something happens.

Owns the order of a turn and what keeps the loop alive: every error of a turn ends that turn only. Must not decide
anything itself.
"""

import asyncio
import json
import random
from collections.abc import Callable
from typing import Final

import structlog

from fluxpool_operator.api import FluxWorkerPool, InvalidPoolError
from fluxpool_operator.cluster import ClusterUnreachableError
from fluxpool_operator.cluster.client import Body
from fluxpool_operator.reconcile.apply.status_writer import PoolGoneError, StatusWriter
from fluxpool_operator.reconcile.child_cache import Change, pool_key
from fluxpool_operator.reconcile.context import OperatorContext
from fluxpool_operator.reconcile.invalid_pool import invalid_pool, invalid_status, read_status
from fluxpool_operator.reconcile.pool_reconciler import PoolReconciler

log = structlog.get_logger(__name__)

FIRST_BACKOFF_SECONDS: Final = 0.5
LONGEST_BACKOFF_SECONDS: Final = 5.0
"""An outage of the API server is over for a pool at most so long after it is over for everybody."""
COALESCE_SECONDS: Final = 0.1
"""Changes of children come in flocks: a turn waits for the others of its flock."""
MIN_INTERVAL_SECONDS: Final = 0.05
"""Between two turns of a pool, so that no condition can make its loop spin."""
INVALID_POOL_SECONDS: Final = 60.0
RECONCILE_DEADLINE_SECONDS: Final = 120.0
"""Every request has a deadline of its own; this ends a turn that hangs all the same."""


class PoolLoop:
    """One pool's loop, from the first observation of the pool to its end."""

    def __init__(
        self, body: Body, *, context: OperatorContext, notify_conflicting_pools: Callable[[frozenset[str]], None]
    ) -> None:
        self._text = json.dumps(body)
        self._told = _told(body)
        self.key = pool_key(body)
        self.alive_at_seconds = context.clock()
        """When the loop last came around, successful or refused."""
        self._context = context
        self._changes: set[Change] = {Change.SPEC}
        self._woken = asyncio.Event()
        self._failures = 0
        self._pool: FluxWorkerPool | None = None
        self._writer = StatusWriter(context.cluster, written=read_status(body), clock=context.clock)
        self._reconciler = PoolReconciler(
            self.key,
            uid=body["metadata"]["uid"],
            context=context,
            writer=self._writer,
            wake=self.wake,
            notify_conflicting_pools=notify_conflicting_pools,
        )
        self._log = log.bind(pool=str(self.key))

    @property
    def body(self) -> Body:
        """The pool as it was last seen; kept as text, which takes a tenth of what its many small objects do."""
        body: Body = json.loads(self._text)
        return body

    def on_pool(self, body: Body) -> None:
        """The pool as it is now; our own writes to its status are no reason to wake."""
        before, self._told, self._text = self._told, _told(body), json.dumps(body)
        if before != self._told:
            self._pool = None
            self.wake(Change.SPEC)

    def wake(self, change: Change) -> None:
        """Make the next turn come soon."""
        self._changes.add(change)
        self._woken.set()

    async def run(self) -> None:
        """Turn until cancelled; raises `PoolGoneError` when the pool turns out not to exist."""
        self._context.cache.subscribe(self.key, self.wake)
        try:
            while True:
                delay_seconds = await self._reconcile_guarded()
                await self._sleep(delay_seconds)
        finally:
            self._context.cache.unsubscribe(self.key, self.wake)
            self._reconciler.close()

    async def _reconcile_guarded(self) -> float:
        """One turn; returns the seconds to the next one if nothing happens."""
        changes, self._changes = frozenset(self._changes), set()
        self._woken.clear()
        outcome, delay_seconds = "done", 0.0
        try:
            async with asyncio.timeout(RECONCILE_DEADLINE_SECONDS):
                delay_seconds = await self._reconcile(changes)
            self._failures = 0
        except (PoolGoneError, asyncio.CancelledError):
            raise
        except Exception as error:  # noqa: BLE001 - the top of the loop: it must live
            is_outage = isinstance(error, ClusterUnreachableError)
            outcome = "unreachable" if is_outage else "failed"
            self._changes |= changes
            delay_seconds = self._backoff_seconds()
            self._log.warning(
                "reconcile_failed",
                error=str(error) or repr(error),
                retry_in_seconds=round(delay_seconds, 1),
                exc_info=not is_outage,
            )
        self.alive_at_seconds = self._context.clock()
        self._context.metrics.reconciles.labels(outcome=outcome).inc()
        return delay_seconds

    async def _reconcile(self, changes: frozenset[Change]) -> float:
        try:
            self._pool = self._pool or FluxWorkerPool.parse(self.body)
            return await self._reconciler.reconcile(self._pool, changes)
        except InvalidPoolError as error:
            return await self._refuse(error)

    async def _refuse(self, error: InvalidPoolError) -> float:
        """Say what is wrong with the pool; everything stays as it is until it is changed."""
        pool = self._pool or invalid_pool(self.body)
        status = invalid_status(self._writer.written, pool, error, now=self._context.utc_now())
        await self._writer.write(pool, status)
        return INVALID_POOL_SECONDS

    def _backoff_seconds(self) -> float:
        self._failures += 1
        longest = min(LONGEST_BACKOFF_SECONDS, FIRST_BACKOFF_SECONDS * 2 ** (self._failures - 1))
        return random.uniform(longest / 2, longest)  # noqa: S311 - spreads retries

    async def _sleep(self, seconds: float) -> None:
        """Until the time is over or somebody wakes the loop; while it fails, waking it must not make it fail faster."""
        if self._failures:
            await asyncio.sleep(seconds)
            return
        # Whatever says that a turn is due or changed something, there is time for others between two turns.
        await asyncio.sleep(MIN_INTERVAL_SECONDS)
        try:
            async with asyncio.timeout(max(0.0, seconds - MIN_INTERVAL_SECONDS)):
                await self._woken.wait()
        except TimeoutError:
            return
        if self._changes <= {Change.CHILDREN}:
            await asyncio.sleep(COALESCE_SECONDS)


def _told(body: Body) -> tuple[object, ...]:
    """What others tell the operator by a pool."""
    metadata = body["metadata"]
    return metadata.get("generation"), metadata.get("labels"), metadata.get("annotations")
