"""Conditions of a pool: their types and reasons, and how a list of them changes."""

from collections.abc import Iterable
from datetime import datetime
from enum import StrEnum
from typing import Annotated, Final

from pydantic import Field, WithJsonSchema

from fluxpool_operator.api.schema import ApiModel

MAX_MESSAGE_CHARACTERS: Final = 4096
"""Of a condition; Kubernetes itself allows 32768, which nobody reads."""


class ConditionType(StrEnum):
    """What can be said about a pool."""

    READY = "Ready"
    """The pool does what it should: its spec is valid, its children exist and as many pods are ready as planned."""
    SCALING_ACTIVE = "ScalingActive"
    """The plan decides the number of workers."""
    SCALING_LIMITED = "ScalingLimited"
    """The work asks for more workers than there may or can be."""
    LAG_AVAILABLE = "LagAvailable"
    """The backlog is known and fresh."""
    TOPICS_READY = "TopicsReady"
    """The lanes' topics exist, with partitions for as many workers as there may be."""
    TASKS_EXPIRED = "TasksExpired"
    """Tasks were deleted by the topic's retention before a worker took them."""
    OFFSETS_KEPT = "OffsetsKept"
    """The brokers keep what the groups have committed for as long as the pool may sleep."""
    LOG_APPEND_TIME = "LogAppendTime"
    """Records of tasks carry the brokers' time, so that no producer's clock makes retention delete one too early."""


class ConditionStatus(StrEnum):
    """Whether a condition holds."""

    TRUE = "True"
    FALSE = "False"
    UNKNOWN = "Unknown"


class Reason(StrEnum):
    """Why something is so; conditions, events and metrics use the same words."""

    ACTIVATED = "Activated"
    ADDRESS_NOT_ALLOWED = "AddressNotAllowed"
    AT_MAX_REPLICAS = "AtMaxReplicas"
    CAPACITY_SHORT = "CapacityShort"
    CHILD_FAILED = "ChildFailed"
    CONTAINER_FAILED = "ContainerFailed"
    CREATE_TIME = "CreateTime"
    FALLBACK_APPLIED = "FallbackApplied"
    FOREIGN_CHILD = "ForeignChild"
    FOREIGN_FIELDS = "ForeignFields"
    GROUP_CONFLICT = "GroupConflict"
    IMAGE_PULL_FAILED = "ImagePullFailed"
    INVALID_SPEC = "InvalidSpec"
    LAG_READ = "LagRead"
    LAG_RESTORED = "LagRestored"
    LAG_UNAVAILABLE = "LagUnavailable"
    LOG_APPEND_TIME = "LogAppendTime"
    MANUAL_MODE = "ManualMode"
    MODEL_LOAD_FAILED = "ModelLoadFailed"
    NO_OFFSETS_EXPIRED = "NoOffsetsExpired"
    OFFSETS_MAY_EXPIRE = "OffsetsMayExpire"
    OFFSETS_STAY = "OffsetsStay"
    PARTITIONS_FEWER_THAN_REPLICAS = "PartitionsFewerThanReplicas"
    PARTITION_LIMIT = "PartitionLimit"
    PAUSED = "Paused"
    PLAN_APPLIED = "PlanApplied"
    PODS_GATED = "PodsGated"
    PODS_UNSCHEDULABLE = "PodsUnschedulable"
    QUOTA_EXCEEDED = "QuotaExceeded"
    RATE_LIMITED = "RateLimited"
    READY = "Ready"
    RESUMED = "Resumed"
    RETENTION_PASSED = "RetentionPassed"
    ROLLING_OUT = "RollingOut"
    ROLLOUT_COMPLETE = "RolloutComplete"
    ROLLOUT_STARTED = "RolloutStarted"
    SCALED_DOWN = "ScaledDown"
    SCALED_TO_ZERO = "ScaledToZero"
    SCALED_UP = "ScaledUp"
    SECRET_INVALID = "SecretInvalid"  # noqa: S105 - a reason
    SECRET_NOT_FOUND = "SecretNotFound"  # noqa: S105 - a reason
    SHADOW_MODE = "ShadowMode"
    TOPICS_FAILED = "TopicsFailed"
    TOPICS_FOUND = "TopicsFound"
    TOPICS_MISSING = "TopicsMissing"
    TOPICS_UNREADABLE = "TopicsUnreadable"
    WAITING_FOR_GPU = "WaitingForGPU"
    WITHIN_LIMITS = "WithinLimits"
    WORKERS_LOADING = "WorkersLoading"
    WORKERS_NOT_READY = "WorkersNotReady"
    WORKER_CRASH_LOOPING = "WorkerCrashLooping"


class Condition(ApiModel):
    """One statement about the pool."""

    # Plain text in the definition: one that is older than the operator must not refuse a new word.
    type: Annotated[ConditionType, WithJsonSchema({"type": "string", "maxLength": 316})]
    """What is said: Ready, ScalingActive, ScalingLimited, LagAvailable, TopicsReady, TasksExpired, OffsetsKept or
    LogAppendTime."""
    status: ConditionStatus
    """Whether it holds."""
    reason: Annotated[Reason, WithJsonSchema({"type": "string", "maxLength": 1024})]
    """Why, in one word for programs."""
    message: Annotated[str, Field(max_length=MAX_MESSAGE_CHARACTERS)]
    """Why, in sentences for people."""
    last_transition_time: datetime
    """When status last changed."""
    observed_generation: int | None = None
    """The generation of the pool that this is about."""


def with_condition(
    conditions: Iterable[Condition],
    *,
    type: ConditionType,  # noqa: A002 - the field's name
    status: ConditionStatus,
    reason: Reason,
    message: str,
    observed_generation: int,
    now: datetime,
) -> tuple[Condition, ...]:
    """The conditions with one of them said anew, in the order of `ConditionType`.

    The time of transition, in whole seconds, moves only when `status` does. A message that is too long is cut.
    """
    known = {condition.type: condition for condition in conditions}
    before, message = known.get(type), message[:MAX_MESSAGE_CHARACTERS]
    said = (status, reason, message, observed_generation)
    if before is None or (before.status, before.reason, before.message, before.observed_generation) != said:
        known[type] = Condition(
            type=type,
            status=status,
            reason=reason,
            message=message,
            last_transition_time=before.last_transition_time
            if before and before.status is status
            else now.replace(microsecond=0),
            observed_generation=observed_generation,
        )
    return tuple(known[each] for each in ConditionType if each in known)
