"""`status`: what the operator last saw and decided. Also the only memory that outlives the operator's process.

No field has a default in the definition: an absent one says that nothing is known.
"""

from datetime import datetime
from typing import Annotated

from pydantic import Field, WithJsonSchema

from fluxpool_operator.api.conditions import Condition
from fluxpool_operator.api.schema import ApiModel, map_by
from fluxpool_operator.planning import Constraint

Count = Annotated[int, Field(ge=0)]


class LaneStatus(ApiModel):
    """The backlog of one lane."""

    name: Annotated[str, Field(max_length=63)]
    """The lane."""
    consumer_group: Annotated[str, Field(max_length=320)]
    """Its group."""
    partitions: Count | None = None
    """Partitions of its topic."""
    lag: Count | None = None
    """Tasks that wait; two significant digits."""
    in_flight: Count | None = None
    """Tasks that workers have taken and not finished."""
    oldest_age_seconds: Count | None = None
    """Age of the oldest task that waits, in steps."""
    expired: Count | None = None
    """Tasks lost to the topic's retention since the pool was made."""


class PlanStatus(ApiModel):
    """The number of workers that was decided, and why."""

    need: Count
    """Workers that the backlog asks for, before any limit."""
    replicas: Count | None = None
    """Workers that the plan decides on; they are the pool's in mode Active, and only shown in Shadow and Manual."""
    # Plain text in the definition: one that is older than the operator must not refuse a new word.
    constraint: Annotated[Constraint, WithJsonSchema({"type": "string", "maxLength": 32})]
    """What decided the number: lag, partitions, minimum, maximum, quota, capacity, stale, fallback, hold, rate, idle or
    paused."""
    reason: Annotated[str, Field(max_length=1024)]
    """The decision in sentences."""
    eta_seconds: Count | None = None
    """When the backlog will be done if it goes on to shrink as it does now, in steps; absent while it does not."""


class FluxWorkerPoolStatus(ApiModel):
    """What the operator last saw and decided."""

    observed_generation: int | None = None
    """The generation of the spec that this status is about."""
    conditions: Annotated[tuple[Condition, ...], Field(max_length=16, json_schema_extra=map_by("type"))] = Field(
        default_factory=tuple
    )
    """Ready, ScalingActive, ScalingLimited, LagAvailable, TopicsReady, TasksExpired, OffsetsKept."""
    replicas: Count | None = None
    """Pods that exist and are not being stopped."""
    ready_replicas: Count | None = None
    """Pods that can work."""
    updated_replicas: Count | None = None
    """Pods of the current template."""
    terminating_replicas: Count | None = None
    """Pods that finish their task and still hold their GPU."""
    desired_replicas: Count | None = None
    """Pods that there should be."""
    selector: Annotated[str, Field(max_length=512)] | None = None
    """Labels of the pods, for the scale subresource."""
    lag: Count | None = None
    """Tasks that wait, over all lanes; two significant digits."""
    in_flight: Count | None = None
    """Tasks that workers have taken and not finished."""
    oldest_age_seconds: Count | None = None
    """Age of the oldest task that waits, in steps."""
    lag_observed_time: datetime | None = None
    """When the backlog told here was read; a later reading that found the same is not written."""
    lanes: Annotated[tuple[LaneStatus, ...], Field(max_length=8, json_schema_extra=map_by("name"))] = Field(
        default_factory=tuple
    )
    """The backlog by lane."""
    plan: PlanStatus | None = None
    """The number of workers that was decided, and why."""
    last_scale_time: datetime | None = None
    """When the number of workers was last changed."""
    last_active_time: datetime | None = None
    """When there was last any work. While there is some, the time of the last change of the status."""
    template_hash: Annotated[str, Field(max_length=64)] | None = None
    """Identifies the pod template last applied."""
