"""Input and output of the plan: the observed lag, the limits, the state between plans, the plan.

Owns the values and their units. `backlog.observation` and `api.pool` fill them in.
"""

import math
from dataclasses import dataclass, field, fields
from enum import StrEnum
from typing import Final, Protocol

from fluxpool_operator.planning.drain import Drain
from fluxpool_operator.planning.pace import Pace

_AT_LEAST_ONE: Final = frozenset(
    {
        "max_replicas",
        "target_lag_per_replica",
        "scale_up_step_replicas",
        "scale_up_period_seconds",
        "scale_down_step_replicas",
        "scale_down_period_seconds",
        "fallback_replicas",
    }
)
"""Fields of `ScalingConfig` that may not be 0: a step within no time would be no limit."""


class Constraint(StrEnum):
    """Constraint that determined the number of replicas."""

    LAG = "lag"
    """The lag itself: no limit applied."""
    PARTITIONS = "partitions"
    """More replicas than partitions with lag would be idle."""
    MINIMUM = "minimum"
    MAXIMUM = "maximum"
    QUOTA = "quota"
    """A quota admits no more replicas."""
    CAPACITY = "capacity"
    """More replicas would be unschedulable."""
    STALE = "stale"
    """The lag could not be read recently, so no replica is removed."""
    FALLBACK = "fallback"
    """The lag could not be read recently, and a fallback is configured."""
    HOLD = "hold"
    """Another number is required, but not for long enough yet, or the replicas are busy."""
    RATE = "rate"
    """Another number is required, but no more may be added or removed in this period."""
    IDLE = "idle"
    """The lag is zero."""
    PAUSED = "paused"


class LaneLag(Protocol):
    """What the plan reads of one lane: a topic and its consumer group."""

    @property
    def name(self) -> str:
        """The lane, in sentences."""

    @property
    def lag_records(self) -> int:
        """Tasks that are not committed: pending and in flight."""

    @property
    def in_flight_records(self) -> int:
        """Tasks that workers have started."""

    @property
    def partitions_with_lag(self) -> int:
        """How many replicas can have a task of this lane at once."""

    @property
    def age_seconds(self) -> float:
        """Time since the lag was read; infinite when it never was."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanState:
    """State between plans; starts as `PlanState()`."""

    idle_seconds: float = 0.0
    """Observed time without lag, up to now."""
    surplus_seconds: float = 0.0
    """Observed time during which fewer replicas would have sufficed."""
    surplus_replicas: int = 0
    """The most replicas that were required in that time."""
    shortage_seconds: float = 0.0
    """Observed time during which more replicas were required."""
    shortage_replicas: int = 0
    """The fewest replicas that were required in that time; 0 when there is no shortage."""
    silent_seconds: float = 0.0
    """Time during which the lag was stale, up to now."""
    pace: Pace = field(default_factory=Pace)
    """Recent changes of the number of replicas."""
    drain: Drain | None = None
    """How fast the lag shrinks; None when it does not or was not read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """One observation of a pool."""

    lanes: tuple[LaneLag, ...]
    current_replicas: int
    elapsed_seconds: float
    """Time since the snapshot of the plan that returned `state`; 0 for the first."""
    state: PlanState = field(default_factory=PlanState)
    quota_replicas: int | None = None
    """The most replicas that a quota admits; None without a limit."""
    gated_replicas: int = 0
    """Current replicas with scheduling gates, set by a queue for example. While there are any, none is added."""
    unschedulable_replicas: int = 0
    """Current replicas that are unschedulable. While there are any, none is added."""
    waiting_for_gpu_replicas: int = 0
    """Current replicas that wait for the GPU of a terminating one. While there are any, none is added."""
    terminating_replicas: int = 0
    """Terminating replicas, not counted as current; each still holds its GPU."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScalingConfig:
    """The configured limits. Raises `ValueError` with the field when they contradict each other."""

    min_replicas: int = 0
    max_replicas: int = 1
    target_lag_per_replica: int = 5
    """Target lag for each replica."""
    activation_lag_records: int = 0
    """Lag above which a pool with zero replicas is activated."""
    idle_grace_seconds: float = 60.0
    """Time without lag before the pool is scaled down to its minimum."""
    cool_down_seconds: float = 30.0
    """Time during which fewer replicas must have sufficed before some are removed."""
    scale_up_window_seconds: float = 0.0
    """Time during which more replicas must have been required before some are added."""
    scale_up_step_replicas: int | None = None
    """The most replicas added within `scale_up_period_seconds`; None for no limit. Not below the minimum."""
    scale_up_period_seconds: float = 60.0
    scale_down_step_replicas: int | None = None
    """The most replicas removed within `scale_down_period_seconds`; None for no limit. Not above the maximum."""
    scale_down_period_seconds: float = 60.0
    stale_after_seconds: float = 30.0
    """A lag older than this can hold or raise the number of replicas, never lower it."""
    fallback_replicas: int | None = None
    """Minimum number of replicas while the lag is stale; None to hold the current number."""
    paused: bool = False
    """Do not change the number of replicas."""

    def __post_init__(self) -> None:
        """Check each field and their order."""
        for name in (item.name for item in fields(self)):
            value, lowest = getattr(self, name), int(name in _AT_LEAST_ONE)
            if value is not None and (not math.isfinite(value) or value < lowest):
                raise ValueError(f"{name}: {value} is too small or not finite; use at least {lowest}")
        for name in ("min_replicas", "fallback_replicas"):
            value = getattr(self, name)
            if value is not None and value > self.max_replicas:
                raise ValueError(
                    f"{name}: {value} is above max_replicas ({self.max_replicas}); lower it or raise max_replicas"
                )


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The planned number of replicas, and why."""

    replicas: int
    constraint: Constraint
    reason: str
    """Human-readable sentences."""
    required_replicas: int
    """Replicas that the lag requires, before any limit but its own partitions."""
    lag_records: int
    """Tasks that are not committed, as last read."""
    state: PlanState
    """State for the next snapshot."""
    eta_seconds: float | None = None
    """Time until the lag is zero at the current rate; None when it does not shrink."""
