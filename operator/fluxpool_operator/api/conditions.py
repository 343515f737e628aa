"""Condition types and reasons of a pool, and the update of a list of conditions."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Annotated, Final

from pydantic import Field, WithJsonSchema

from fluxpool_operator.api.schema import ApiModel

MAX_MESSAGE_CHARACTERS: Final = 4096
"""Limit of a condition's message; Kubernetes allows 32768, too long to read."""


class ConditionType(StrEnum):
    """Types of a pool's conditions."""

    READY = "Ready"
    """The spec is valid, the children exist and as many pods are ready as desired."""
    SCALING_ACTIVE = "ScalingActive"
    """The scaling plan sets the number of workers."""
    SCALING_LIMITED = "ScalingLimited"
    """The lag requires more workers than a limit allows."""
    LAG_AVAILABLE = "LagAvailable"
    """The lag of every lane was read recently."""
    TOPICS_READY = "TopicsReady"
    """The lanes' topics exist and have at least maxReplicas partitions together."""
    TASKS_EXPIRED = "TasksExpired"
    """Topic retention deleted tasks before a worker consumed them."""
    OFFSETS_RETAINED = "OffsetsRetained"
    """The brokers retain the committed offsets while the pool is scaled to zero."""
    LOG_APPEND_TIME = "LogAppendTime"
    """Tasks carry the broker's timestamp, so that a wrong producer clock cannot make retention delete them early."""
    IMAGES_SIGNED = "ImagesSigned"
    """Image files are signed with a certificate that is valid."""


class ConditionStatus(StrEnum):
    """Status of a condition."""

    TRUE = "True"
    FALSE = "False"
    UNKNOWN = "Unknown"


class Reason(StrEnum):
    """Reasons of conditions, events and metrics."""

    ACTIVATED = "Activated"
    ADDRESS_NOT_ALLOWED = "AddressNotAllowed"
    AT_MAX_REPLICAS = "AtMaxReplicas"
    CAPACITY_SHORT = "CapacityShort"
    CERTIFICATE_NOT_VALID = "CertificateNotValid"
    CERTIFICATE_VALID = "CertificateValid"
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
    OFFSETS_SAFE = "OffsetsSafe"
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
    SIGNING_OFF = "SigningOff"
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
    """Condition of the pool."""

    # A plain string in the definition: an older definition must accept the values of a newer operator.
    type: Annotated[ConditionType, WithJsonSchema({"type": "string", "maxLength": 316})]
    """Type of condition: Ready, ScalingActive, ScalingLimited, LagAvailable, TopicsReady, TasksExpired,
    OffsetsRetained, LogAppendTime or ImagesSigned."""
    status: ConditionStatus
    """Status of the condition, one of True, False, Unknown."""
    reason: Annotated[Reason, WithJsonSchema({"type": "string", "maxLength": 1024})]
    """Reason for the condition's last transition, in CamelCase."""
    message: Annotated[str, Field(max_length=MAX_MESSAGE_CHARACTERS)]
    """Human-readable message: cause and remedy."""
    last_transition_time: datetime
    """Last time the condition transitioned from one status to another."""
    observed_generation: int | None = None
    """Generation of the pool that the condition was set upon."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """Status, reason and message of one condition."""

    status: ConditionStatus
    reason: Reason
    message: str


def with_condition(
    conditions: Iterable[Condition],
    type_: ConditionType,
    verdict: Verdict,
    *,
    observed_generation: int,
    now: datetime,
) -> tuple[Condition, ...]:
    """The conditions with one of them set, in the order of `ConditionType`.

    The transition time, in whole seconds, changes only with `status`. A message that is too long is truncated.
    """
    known = {condition.type: condition for condition in conditions}
    before = known.get(type_)
    now = now.replace(microsecond=0)
    known[type_] = Condition(
        type=type_,
        status=verdict.status,
        reason=verdict.reason,
        message=verdict.message[:MAX_MESSAGE_CHARACTERS],
        last_transition_time=before.last_transition_time if before and before.status is verdict.status else now,
        observed_generation=observed_generation,
    )
    return tuple(known[kind] for kind in ConditionType if kind in known)
