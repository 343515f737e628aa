"""`spec.scaling`: how many workers there are and how fast that changes."""

from enum import StrEnum
from typing import Annotated, ClassVar

from pydantic import Field

from fluxpool_operator.api.schema import ApiModel, Rule

Replicas = Annotated[int, Field(ge=0, le=1000)]
WindowSeconds = Annotated[int, Field(ge=0, le=3600)]


class ScalingMode(StrEnum):
    """Who decides the number of workers."""

    ACTIVE = "Active"
    SHADOW = "Shadow"
    MANUAL = "Manual"

    @property
    def follows_plan(self) -> bool:
        """Whether the plan's number is the pool's number; otherwise spec.replicas is."""
        return self is ScalingMode.ACTIVE


class ScalingPolicy(StrEnum):
    """From what the number of workers is computed."""

    LAG = "Lag"


class LagUnavailablePolicy(StrEnum):
    """What happens while the backlog cannot be read."""

    HOLD = "Hold"
    FALLBACK = "Fallback"


class LagUnavailableSpec(ApiModel):
    """What happens while Kafka does not tell the backlog. Workers are never taken away for it."""

    policy: LagUnavailablePolicy = LagUnavailablePolicy.HOLD
    """Hold keeps the number of workers; Fallback raises it to replicas."""
    replicas: Annotated[int, Field(ge=1, le=1000)] | None = None
    """The number of workers of Fallback, when there are fewer."""
    stale_after_seconds: Annotated[int, Field(ge=5, le=3600)] = 30
    """A backlog older than this takes no workers away."""

    rules: ClassVar = (
        Rule(
            "(self.policy == 'Fallback') == has(self.replicas)",
            "replicas: is required with policy Fallback, and only then",
            ".replicas",
        ),
    )


class ScaleUpSpec(ApiModel):
    """How fast workers are added."""

    stabilization_window_seconds: WindowSeconds = 0
    """The demand must have lasted this long; every worker added at once saves the group a rebalance."""
    max_step_pods: Annotated[int, Field(ge=1, le=1000)] | None = None
    """The most workers added within periodSeconds; no limit when absent. minReplicas is reached at once."""
    period_seconds: Annotated[int, Field(ge=1, le=3600)] = 60
    """The period of maxStepPods."""


class ScaleDownSpec(ApiModel):
    """How fast workers are taken away."""

    stabilization_window_seconds: WindowSeconds = 30
    """Fewer workers must have sufficed for this long."""
    max_step_pods: Annotated[int, Field(ge=1, le=1000)] | None = None
    """The most workers taken away within periodSeconds; no limit when absent. Those above maxReplicas go at once."""
    period_seconds: Annotated[int, Field(ge=1, le=3600)] = 60
    """The period of maxStepPods."""


class ScalingSpec(ApiModel):
    """How many workers there are."""

    mode: ScalingMode = ScalingMode.ACTIVE
    """Active: the plan decides. Shadow: the plan is made and shown, spec.replicas decides. Manual: spec.replicas
    decides, so that kubectl scale or a HorizontalPodAutoscaler can set it."""
    policy: ScalingPolicy = ScalingPolicy.LAG
    """Lag: one worker per targetLagPerReplica unfinished tasks."""
    min_replicas: Replicas = 0
    """Workers kept without any work; 0 lets the pool sleep."""
    max_replicas: Annotated[int, Field(ge=1, le=1000)]
    """The most workers; not more than there are partitions can work at once."""
    target_lag_per_replica: Annotated[int, Field(ge=1, le=1_000_000)] = 5
    """Unfinished tasks that one worker should have before it."""
    activation_lag: Annotated[int, Field(ge=0, le=1_000_000)] = 0
    """A pool at zero wakes for more unfinished tasks than this."""
    poll_interval_seconds: Annotated[int, Field(ge=1, le=300)] = 5
    """How often the backlog is read."""
    idle_grace_period_seconds: Annotated[int, Field(ge=0, le=604_800)] = 300
    """Time without any work before the pool goes down to minReplicas."""
    scale_up: ScaleUpSpec = ScaleUpSpec()
    """How fast workers are added."""
    scale_down: ScaleDownSpec = ScaleDownSpec()
    """How fast workers are taken away."""
    on_lag_unavailable: LagUnavailableSpec = LagUnavailableSpec()
    """What happens while the backlog cannot be read."""

    rules: ClassVar = (
        Rule(
            "self.minReplicas <= self.maxReplicas",
            "minReplicas: must not be above maxReplicas; lower the one or raise the other",
            ".minReplicas",
        ),
        Rule(
            "!has(self.onLagUnavailable.replicas) || self.onLagUnavailable.replicas <= self.maxReplicas",
            "onLagUnavailable.replicas: must not be above maxReplicas; lower the one or raise the other",
            ".onLagUnavailable.replicas",
        ),
        Rule(
            "self.onLagUnavailable.staleAfterSeconds >= 2 * self.pollIntervalSeconds",
            "onLagUnavailable.staleAfterSeconds: must be at least twice pollIntervalSeconds,"
            " or one late reading makes the backlog stale",
            ".onLagUnavailable.staleAfterSeconds",
        ),
    )
