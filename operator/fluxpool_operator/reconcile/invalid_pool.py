"""What can still be said of a pool that cannot be read."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from pydantic import ValidationError

from fluxpool_operator.api import (
    ConditionStatus,
    ConditionType,
    FluxWorkerPool,
    FluxWorkerPoolStatus,
    InvalidPoolError,
    Reason,
    with_condition,
)
from fluxpool_operator.api.pool import ObjectMeta


def read_status(body: Mapping[str, Any]) -> FluxWorkerPoolStatus:
    """The status of a pool as it stands there; an empty one when a newer operator wrote what this one cannot read."""
    try:
        return FluxWorkerPoolStatus.model_validate(body.get("status") or {})
    except ValidationError:
        return FluxWorkerPoolStatus()


def invalid_pool(body: Mapping[str, Any]) -> FluxWorkerPool:
    """A pool of which only the metadata can be used."""
    metadata = ObjectMeta.model_validate(dict(body["metadata"]))
    known: dict[str, Any] = {"metadata": metadata, "status": read_status(body)}
    return FluxWorkerPool.model_construct(**known)


def invalid_status(
    written: FluxWorkerPoolStatus, pool: FluxWorkerPool, error: InvalidPoolError, *, now: datetime
) -> FluxWorkerPoolStatus:
    """The status with the problem said; what was known before stays."""
    generation = pool.metadata.generation
    conditions = written.conditions
    for type_, message in (
        (ConditionType.READY, str(error)),
        (ConditionType.SCALING_ACTIVE, f"Nothing is changed until the pool can be read: {error}"),
    ):
        conditions = with_condition(
            conditions,
            type=type_,
            status=ConditionStatus.FALSE,
            reason=Reason.INVALID_SPEC,
            message=message,
            observed_generation=generation,
            now=now,
        )
    return written.model_copy(update={"conditions": conditions, "observed_generation": generation})
