"""The loop of one pool: reconcile at the pool's interval and whenever something changes.

Owns when `pool_reconciler` runs and what keeps the loop alive: an error ends one reconcile, never the loop.
`pool_tasks` starts and cancels it.
"""

import asyncio
from collections.abc import Callable
from typing import Final, Never

import structlog

from fluxpool_operator.api import FluxWorkerPool, InvalidPoolError
from fluxpool_operator.cluster import ClusterUnreachableError
from fluxpool_operator.cluster.client import Body
from fluxpool_operator.reconcile.apply.status_writer import (
    PoolGoneError,
    StatusWriter,
    invalid_pool,
    invalid_status,
    read_status,
)
from fluxpool_operator.reconcile.child_cache import Change, pool_key
from fluxpool_operator.reconcile.context import OperatorContext
from fluxpool_operator.reconcile.pool_reconciler import PoolReconciler
from fluxpool_transport.process import Backoff

log = structlog.get_logger(__name__)

FIRST_BACKOFF_SECONDS: Final = 0.5
LONGEST_BACKOFF_SECONDS: Final = 5.0
"""So soon after an outage of the API server every pool is reconciled again."""
COALESCE_SECONDS: Final = 0.1
"""Events of children come in bursts; one reconcile answers all of a burst."""
MIN_INTERVAL_SECONDS: Final = 0.05
"""Between two reconciles of a pool, so that no condition makes its loop spin."""
INVALID_POOL_SECONDS: Final = 60.0
RECONCILE_DEADLINE_SECONDS: Final = 120.0
"""Every request has a deadline of its own; this one ends a reconcile that hangs all the same."""


class PoolLoop:
    """One pool's loop, from the first event of the pool to its deletion."""

    def __init__(
        self, body: Body, *, context: OperatorContext, notify_conflicting_pools: Callable[[frozenset[str]], None]
    ) -> None:
        self.key = pool_key(body)
        self.alive_at_seconds = context.clock()
        """When the loop began or a reconcile last ended, with or without an error."""
        self._context = context
        self._pool: FluxWorkerPool | Body = body
        """The body only until it is parsed: it takes far more memory."""
        self._desired = _desired_state(body)
        self._changes: set[Change] = set()
        self._woken = asyncio.Event()
        self._backoff = Backoff(initial_seconds=FIRST_BACKOFF_SECONDS, maximum_seconds=LONGEST_BACKOFF_SECONDS)
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

    def on_pool(self, body: Body) -> None:
        """The pool changed. Writes to its status, our own among them, do not wake the loop."""
        before, self._desired = self._desired, _desired_state(body)
        if before != self._desired:
            self._pool = body
            self.wake(Change.SPEC)

    def wake(self, change: Change) -> None:
        """Reconcile soon."""
        self._changes.add(change)
        self._woken.set()

    def withdraw(self) -> None:
        """Say that the pool was deleted."""
        self._reconciler.withdraw()

    async def run(self) -> Never:
        """Reconcile until cancelled; raises `PoolGoneError` when the pool turns out to be deleted. May run again."""
        self.alive_at_seconds = self._context.clock()
        self.wake(Change.SPEC)
        # Before the first reconcile: a change of a child during it causes the next one.
        self._context.cache.subscribe(self.key, self.wake)
        try:
            while True:
                delay_seconds = await self._reconcile_guarded()
                await self._sleep(delay_seconds)
        finally:
            self._context.cache.unsubscribe(self.key, self.wake)
            self._reconciler.close()

    async def _reconcile_guarded(self) -> float:
        """Reconcile once; returns the seconds until the next time if nothing changes."""
        # Cleared before anything is read: an event that arrives during this reconcile causes the next one.
        changes, self._changes = frozenset(self._changes), set()
        self._woken.clear()
        outcome, delay_seconds = "done", 0.0
        try:
            async with asyncio.timeout(RECONCILE_DEADLINE_SECONDS):
                delay_seconds = await self._reconcile(changes)
            self._backoff.reset()
        except (PoolGoneError, asyncio.CancelledError):
            raise
        except Exception as error:  # noqa: BLE001 - the top of the loop: it must live
            is_outage = isinstance(error, ClusterUnreachableError)
            outcome = "unreachable" if is_outage else "failed"
            # The next reconcile must still act on what woke this one.
            self._changes |= changes
            delay_seconds = self._backoff.next_seconds()
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
        pool = self._pool
        try:
            if isinstance(pool, dict):
                pool = self._pool = FluxWorkerPool.parse(pool)
            return await self._reconciler.reconcile(pool, changes)
        except InvalidPoolError as error:
            # Not `self._pool`: it may have changed meanwhile, and the error is about this one.
            refused = invalid_pool(pool) if isinstance(pool, dict) else pool
            status = invalid_status(self._writer.written, refused, error, now=self._context.utc_now())
            await self._writer.write(refused, status)
            return INVALID_POOL_SECONDS

    async def _sleep(self, seconds: float) -> None:
        """Wait until the time is over or the loop is woken."""
        if self._backoff.failures:
            # Events must not shorten the backoff.
            await asyncio.sleep(seconds)
            return
        await asyncio.sleep(MIN_INTERVAL_SECONDS)
        try:
            async with asyncio.timeout(max(0.0, seconds - MIN_INTERVAL_SECONDS)):
                await self._woken.wait()
        except TimeoutError:
            return
        if self._changes <= {Change.CHILDREN}:
            await asyncio.sleep(COALESCE_SECONDS)


def _desired_state(body: Body) -> tuple[object, ...]:
    """What users set on a pool: changes with the spec and the metadata, not with the status."""
    metadata = body["metadata"]
    return metadata.get("generation"), metadata.get("labels"), metadata.get("annotations")
