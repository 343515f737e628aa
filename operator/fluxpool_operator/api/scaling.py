"""`spec.scaling`: the number of workers and how fast it changes."""

from enum import StrEnum
from typing import Annotated, ClassVar

from pydantic import Field

from fluxpool_operator.api.schema import ApiModel, Rule

Replicas = Annotated[int, Field(ge=0, le=1000)]
WindowSeconds = Annotated[int, Field(ge=0, le=3600)]


class ScalingMode(StrEnum):
    """What sets the number of workers."""

    ACTIVE = "Active"
    SHADOW = "Shadow"
    MANUAL = "Manual"

    @property
    def follows_plan(self) -> bool:
        """Whether the scaling plan sets the number of workers; otherwise spec.replicas does."""
        return self is ScalingMode.ACTIVE


class ScalingPolicy(StrEnum):
    """Metric that the number of workers is computed from."""

    LAG = "Lag"


class LagUnavailablePolicy(StrEnum):
    """Behavior while the lag cannot be read."""

    HOLD = "Hold"
    FALLBACK = "Fallback"


class LagUnavailableSpec(ApiModel):
    """Behavior while the lag cannot be read from Kafka. It never removes workers."""

    policy: LagUnavailablePolicy = LagUnavailablePolicy.HOLD
    """Hold keeps the current number of workers; Fallback raises it to replicas."""
    replicas: Annotated[int, Field(ge=1, le=1000)] | None = None
    """Minimum number of workers with policy Fallback."""
    stale_after_seconds: Annotated[int, Field(ge=5, le=3600)] = 30
    """Age at which a lag reading is stale. No workers are removed on a stale reading."""

    rules: ClassVar = (
        Rule(
            "(self.policy == 'Fallback') == has(self.replicas)",
            "replicas: is required with policy Fallback, and only then",
            ".replicas",
        ),
    )


class ScaleUpSpec(ApiModel):
    """Scaling policy for scaling up."""

    stabilization_window_seconds: WindowSeconds = 0
    """How long a higher number must have been required before workers are added. Adding workers together saves
    rebalances."""
    max_step_pods: Annotated[int, Field(ge=1, le=1000)] | None = None
    """Maximum number of workers added within periodSeconds. Unlimited when absent, and below minReplicas."""
    period_seconds: Annotated[int, Field(ge=1, le=3600)] = 60
    """Period of maxStepPods."""


class ScaleDownSpec(ApiModel):
    """Scaling policy for scaling down."""

    stabilization_window_seconds: WindowSeconds = 30
    """How long a lower number must have been sufficient before workers are removed."""
    max_step_pods: Annotated[int, Field(ge=1, le=1000)] | None = None
    """Maximum number of workers removed within periodSeconds. Unlimited when absent, and above maxReplicas."""
    period_seconds: Annotated[int, Field(ge=1, le=3600)] = 60
    """Period of maxStepPods."""


class ScalingSpec(ApiModel):
    """Scaling of the number of workers."""

    mode: ScalingMode = ScalingMode.ACTIVE
    """Active: the scaling plan sets the number of workers. Shadow: the plan is only shown in the status; spec.replicas
    sets the number. Manual: spec.replicas sets it, for kubectl scale or a HorizontalPodAutoscaler."""
    policy: ScalingPolicy = ScalingPolicy.LAG
    """Scaling policy. Lag: one worker for each targetLagPerReplica tasks of lag."""
    min_replicas: Replicas = 0
    """Minimum number of workers. 0 allows scale to zero."""
    max_replicas: Annotated[int, Field(ge=1, le=1000)]
    """Maximum number of workers. Workers beyond the number of partitions are idle."""
    target_lag_per_replica: Annotated[int, Field(ge=1, le=1_000_000)] = 5
    """Target lag for each worker."""
    activation_lag: Annotated[int, Field(ge=0, le=1_000_000)] = 0
    """Lag above which a pool with zero workers is activated."""
    poll_interval_seconds: Annotated[int, Field(ge=1, le=300)] = 5
    """Interval at which the lag is read."""
    idle_grace_period_seconds: Annotated[int, Field(ge=0, le=604_800)] = 300
    """How long a pool must have had no lag before it is scaled down to minReplicas."""
    scale_up: ScaleUpSpec = ScaleUpSpec()
    """Scaling policy for scaling up."""
    scale_down: ScaleDownSpec = ScaleDownSpec()
    """Scaling policy for scaling down."""
    on_lag_unavailable: LagUnavailableSpec = LagUnavailableSpec()
    """Behavior while the lag cannot be read."""

    rules: ClassVar = (
        Rule(
            "self.minReplicas <= self.maxReplicas",
            "minReplicas: must not exceed maxReplicas; lower minReplicas or raise maxReplicas",
            ".minReplicas",
        ),
        Rule(
            "!has(self.onLagUnavailable.replicas) || self.onLagUnavailable.replicas <= self.maxReplicas",
            "onLagUnavailable.replicas: must not exceed maxReplicas; lower it or raise maxReplicas",
            ".onLagUnavailable.replicas",
        ),
        Rule(
            "self.onLagUnavailable.staleAfterSeconds >= 2 * self.pollIntervalSeconds",
            "onLagUnavailable.staleAfterSeconds: must be at least twice pollIntervalSeconds,"
            " or one late reading makes the lag stale",
            ".onLagUnavailable.staleAfterSeconds",
        ),
    )
