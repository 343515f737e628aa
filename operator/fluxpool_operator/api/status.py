"""`status`: the observed state of a pool. Also the only state that outlives the operator process.

No field has a default in the definition: an absent field is unknown.
"""

from datetime import datetime
from typing import Annotated, Any

from pydantic import Field, ValidationError, ValidatorFunctionWrapHandler, WithJsonSchema, field_validator

from fluxpool_operator.api.conditions import Condition, ConditionType, Reason
from fluxpool_operator.api.schema import ApiModel, map_by
from fluxpool_operator.planning import Constraint

_TYPES = frozenset(ConditionType)
_REASONS = frozenset(Reason)

Count = Annotated[int, Field(ge=0)]


class LaneStatus(ApiModel):
    """Backlog of one lane."""

    name: Annotated[str, Field(max_length=63)]
    """Name of the lane."""
    consumer_group: Annotated[str, Field(max_length=320)]
    """Consumer group of the lane."""
    partitions: Count | None = None
    """Number of partitions of the lane's topic."""
    pending: Count | None = None
    """Tasks that no worker has started, due retries included; rounded to two significant digits."""
    in_flight: Count | None = None
    """Tasks that workers have started and not finished."""
    oldest_age_seconds: Count | None = None
    """Age of the oldest pending task, in coarse steps."""
    expired: Count | None = None
    """Tasks deleted by topic retention before they were consumed, since the pool was created."""


class PlanStatus(ApiModel):
    """Last scaling plan."""

    required_replicas: Count
    """Number of workers that the lag requires, before any limit."""
    replicas: Count | None = None
    """Planned number of workers: applied in mode Active, only shown in Shadow and Manual."""
    # Plain text in the definition: one that is older than the operator must not refuse a new word.
    constraint: Annotated[Constraint, WithJsonSchema({"type": "string", "maxLength": 32})]
    """Constraint that determined the number: lag, partitions, minimum, maximum, quota, capacity, stale, fallback, hold,
    rate, idle or paused."""
    reason: Annotated[str, Field(max_length=1024)]
    """Human-readable explanation of the plan."""
    eta_seconds: Count | None = None
    """Estimated time until the lag is zero, in coarse steps. Absent while the lag does not shrink."""


class FluxWorkerPoolStatus(ApiModel):
    """Observed state of the pool, as of the last reconciliation."""

    observed_generation: int | None = None
    """Most recent generation that the operator has reconciled."""
    conditions: Annotated[tuple[Condition, ...], Field(max_length=16, json_schema_extra=map_by("type"))] = Field(
        default_factory=tuple
    )
    """Latest available observations of the pool's state."""
    replicas: Count | None = None
    """Number of non-terminating pods."""
    ready_replicas: Count | None = None
    """Number of ready pods."""
    updated_replicas: Count | None = None
    """Number of pods with the current pod template."""
    terminating_replicas: Count | None = None
    """Number of terminating pods. They finish their task and still occupy their GPU."""
    desired_replicas: Count | None = None
    """Desired number of pods."""
    selector: Annotated[str, Field(max_length=512)] | None = None
    """Label selector of the pods, for the scale subresource."""
    pending: Count | None = None
    """Tasks of all lanes that no worker has started; rounded to two significant digits."""
    in_flight: Count | None = None
    """Tasks that workers have started and not finished."""
    oldest_age_seconds: Count | None = None
    """Age of the oldest pending task, in coarse steps."""
    lag_observed_time: datetime | None = None
    """When the reported lag was read. Not updated by a later reading with the same values."""
    lanes: Annotated[tuple[LaneStatus, ...], Field(max_length=8, json_schema_extra=map_by("name"))] = Field(
        default_factory=tuple
    )
    """Backlog of each lane."""
    plan: PlanStatus | None = None
    """Last scaling plan."""
    start_seconds: Count | None = None
    """Time that workers took from their creation until they were ready, in coarse steps."""
    model_family: Annotated[str, Field(max_length=253)] | None = None
    """Family of the model, by its ID or as the workers report it. Absent until it is known."""
    license: Annotated[str, Field(max_length=253)] | None = None
    """License of the family's published weights."""
    last_scale_time: datetime | None = None
    """Last time the number of workers was changed."""
    last_active_time: datetime | None = None
    """Last time the pool had lag. While it has lag, the time of the last status update."""
    template_hash: Annotated[str, Field(max_length=64)] | None = None
    """Hash of the pod template that was last applied."""

    @field_validator("conditions", mode="before")
    @classmethod
    def _drop_unknown(cls, conditions: Any) -> Any:
        # An older or newer operator wrote other types and reasons; they must not make the pool invalid.
        if not isinstance(conditions, list):
            return conditions
        return [item for item in conditions if item.get("type") in _TYPES and item.get("reason") in _REASONS]

    @field_validator("plan", mode="wrap")
    @classmethod
    def _drop_other_plan(cls, plan: Any, parse: ValidatorFunctionWrapHandler) -> Any:
        # Likewise. Nothing is lost: each reconciliation computes the plan again.
        try:
            return parse(plan)
        except ValidationError:
            return None
