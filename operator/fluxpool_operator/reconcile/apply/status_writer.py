"""Writes one pool's status and posts its events, when something changed and at a bounded rate.

Owns what was written last. What a status says is `assessment`'s; only that of an invalid pool is made here.
"""

import math
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

import structlog
from pydantic import ValidationError

from fluxpool_operator.api import (
    ConditionStatus,
    ConditionType,
    FluxWorkerPool,
    FluxWorkerPoolStatus,
    InvalidPoolError,
    Reason,
    Verdict,
    with_condition,
)
from fluxpool_operator.api.pool import ObjectMeta
from fluxpool_operator.assessment import PoolEvent, events_of, status_patch, worth_writing
from fluxpool_operator.cluster import ClusterClient, ClusterError, ClusterUnreachableError, KindPath
from fluxpool_operator.cluster.objects import pool_event

log = structlog.get_logger(__name__)


class PoolGoneError(Exception):
    """The pool was deleted."""


class StatusWriter:
    """The status of one pool in the API server."""

    def __init__(
        self,
        cluster: ClusterClient,
        *,
        written: FluxWorkerPoolStatus,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._cluster = cluster
        self._clock = clock
        self._written_at = -math.inf
        self.written = written
        """As last written; the only memory that outlives this process."""

    async def write(self, pool: FluxWorkerPool, status: FluxWorkerPoolStatus) -> None:
        """Write the status if it is worth a request, and post what changed as events.

        Raises `PoolGoneError` and what the cluster client raises.
        """
        since = self._clock() - self._written_at
        if not worth_writing(self.written, status, seconds_since_write=since):
            return
        path = f"{KindPath.POOL.object(pool.namespace, pool.name)}/status"
        try:
            await self._cluster.merge_patch(path, {"status": status_patch(self.written, status)})
        except ClusterError as error:
            if error.status == 404:
                raise PoolGoneError from error
            raise
        before, self.written, self._written_at = self.written, status, self._clock()
        # After the status: an event of a transition that was not written would be posted again.
        for event in events_of(before, status):
            await self._post_event(pool, event)

    async def _post_event(self, pool: FluxWorkerPool, event: PoolEvent) -> None:
        """Post an event. One that is refused is only logged: the status says the same."""
        fields = {"type": event.type, "reason": event.reason.value, "message": event.message}
        log.info("pool_event", **fields)
        try:
            body = pool_event(pool, **fields, now=datetime.now(UTC))
            await self._cluster.create(KindPath.EVENT.collection(pool.namespace), body)
        except (ClusterError, ClusterUnreachableError) as error:
            log.warning("event_not_posted", reason=event.reason.value, error=str(error))


def read_status(body: Mapping[str, Any]) -> FluxWorkerPoolStatus:
    """The status of a pool's body; empty when a newer operator wrote one that this one cannot read."""
    try:
        return FluxWorkerPoolStatus.model_validate(body.get("status") or {})
    except ValidationError:
        return FluxWorkerPoolStatus()


def invalid_pool(body: Mapping[str, Any]) -> FluxWorkerPool:
    """A pool whose spec cannot be read: metadata and status only."""
    metadata = ObjectMeta.model_validate(dict(body["metadata"]))
    known: dict[str, Any] = {"metadata": metadata, "status": read_status(body)}
    return FluxWorkerPool.model_construct(**known)


def invalid_status(
    written: FluxWorkerPoolStatus, pool: FluxWorkerPool, error: InvalidPoolError, *, now: datetime
) -> FluxWorkerPoolStatus:
    """The written status with the error in its conditions; everything else stays."""
    generation = pool.metadata.generation
    conditions = written.conditions
    for type_, message in (
        (ConditionType.READY, str(error)),
        (ConditionType.SCALING_ACTIVE, f"Nothing is changed until the pool is valid: {error}"),
    ):
        invalid = Verdict(ConditionStatus.FALSE, Reason.INVALID_SPEC, message)
        conditions = with_condition(conditions, type_, invalid, observed_generation=generation, now=now)
    return written.model_copy(update={"conditions": conditions, "observed_generation": generation})
