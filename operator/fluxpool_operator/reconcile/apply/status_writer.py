"""Writes one pool's status and tells its events: only what differs, and not more often than somebody could read.

Owns what was written last. Must not know what a status means.
"""

import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Final

import structlog

from fluxpool_operator.api import FluxWorkerPool, FluxWorkerPoolStatus
from fluxpool_operator.assessment import narrate, status_patch, worth_writing
from fluxpool_operator.cluster import ClusterClient, ClusterError, ClusterUnreachableError, KindPath, pool_path
from fluxpool_operator.cluster.events import pool_event

log = structlog.get_logger(__name__)

NEVER: Final = float("-inf")


class PoolGoneError(Exception):
    """The pool does not exist any more."""


class StatusWriter:
    """The status of one pool as it stands in the API server."""

    def __init__(
        self,
        cluster: ClusterClient,
        *,
        written: FluxWorkerPoolStatus,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._cluster = cluster
        self._clock = clock
        self._written_at = NEVER
        self.written = written
        """What is there now; the only memory that outlives this process."""

    async def write(self, pool: FluxWorkerPool, status: FluxWorkerPoolStatus) -> bool:
        """Write the status if it is worth it, and tell what changed as events; returns whether it was written.

        Raises `PoolGoneError` and what the cluster client raises.
        """
        since = self._clock() - self._written_at
        if not worth_writing(self.written, status, seconds_since_write=since):
            return False
        path = pool_path(pool.namespace, pool.name, subresource="status")
        try:
            await self._cluster.merge_patch(path, {"status": status_patch(self.written, status)})
        except ClusterError as error:
            if error.status == 404:
                raise PoolGoneError from error
            raise
        before, self.written, self._written_at = self.written, status, self._clock()
        for event in narrate(before, status):
            await self._post_event(pool, type=event.type, reason=event.reason.value, message=event.message)
        return True

    async def _post_event(self, pool: FluxWorkerPool, *, type: str, reason: str, message: str) -> None:  # noqa: A002
        """Post an event. One that is refused is logged: the status says the same."""
        body = pool_event(pool, type=type, reason=reason, message=message, now=datetime.now(UTC))
        log.info("pool_event", type=type, reason=reason, message=message)
        try:
            await self._cluster.create(KindPath.EVENT.collection(pool.namespace), body)
        except (ClusterError, ClusterUnreachableError) as error:
            log.warning("event_not_posted", reason=reason, error=str(error))
