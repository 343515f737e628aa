"""What a plan is made from and what it says: the observed backlog, the limits, the memory between plans, the plan.

Owns the values and their units; must not know how a backlog is read, how time passes or how replicas are started.
"""

import math
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

from fluxpool_operator.planning.drain import Drain
from fluxpool_operator.planning.pace import Pace


class Constraint(StrEnum):
    """What decided the number of replicas."""

    LAG = "lag"
    """The backlog itself: it got what it asked for."""
    PARTITIONS = "partitions"
    """More replicas than partitions with work would idle."""
    MINIMUM = "minimum"
    MAXIMUM = "maximum"
    QUOTA = "quota"
    """Nobody would admit more replicas."""
    CAPACITY = "capacity"
    """More replicas would be admitted, but find no place to run."""
    STALE = "stale"
    """The backlog could not be read lately, so nothing is taken away."""
    FALLBACK = "fallback"
    """The backlog could not be read lately, and a person set the number for that."""
    HOLD = "hold"
    """Another number is wanted, but not for long enough yet, or the replicas are busy."""
    RATE = "rate"
    """Another number is wanted, but no more may be added or taken away within this period."""
    IDLE = "idle"
    """There is no work."""
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
    """What a plan must remember for the next one; start with `PlanState()`."""

    idle_seconds: float = 0.0
    """Observed time without any work, up to now."""
    surplus_seconds: float = 0.0
    """Observed time during which fewer replicas than there are would have done."""
    surplus_replicas: int = 0
    """The most replicas that were needed in that time."""
    shortage_seconds: float = 0.0
    """Observed time during which more replicas than there are were needed."""
    shortage_replicas: int = 0
    """The fewest replicas that were needed in that time; 0 when there is no shortage."""
    silent_seconds: float = 0.0
    """Time during which the backlog was stale, up to now."""
    pace: Pace = field(default_factory=Pace)
    """How fast the number of replicas changed lately."""
    drain: Drain | None = None
    """How fast the backlog shrinks; null when it does not, or nobody watched."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """One observation of a pool."""

    lanes: tuple[LaneLag, ...]
    current_replicas: int
    elapsed_seconds: float
    """Since the snapshot of the plan that left `state`; 0 for the first."""
    state: PlanState = field(default_factory=PlanState)
    quota_replicas: int | None = None
    """The most replicas that will be admitted; null when nothing limits them."""
    gated_replicas: int = 0
    """Of the current ones: held back before scheduling, by a quota for example. While there are any, none is added."""
    unschedulable_replicas: int = 0
    """Of the current ones: without a place to run. While there are any, none is added."""
    waiting_for_gpu_replicas: int = 0
    """Of the current ones: without a place until a replica that is being stopped gives its up. None is added."""
    terminating_replicas: int = 0
    """Not among the current ones: being stopped, no capacity, but each still holds its place."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScalingConfig:
    """The limits that a person sets. Raises `ValueError`, naming the field, when they contradict each other."""

    min_replicas: int = 0
    max_replicas: int = 1
    target_lag_per_replica: int = 5
    """Tasks that one replica should have before it."""
    activation_lag_records: int = 0
    """A pool at zero wakes for more work than this."""
    idle_grace_seconds: float = 60.0
    """Time without waiting tasks and without tasks in flight before the pool goes down to its minimum."""
    cool_down_seconds: float = 30.0
    """Time during which fewer replicas would have done before some are taken away."""
    scale_up_window_seconds: float = 0.0
    """Time during which more replicas were needed before some are added."""
    scale_up_step_replicas: int | None = None
    """The most replicas added within `scale_up_period_seconds`; null for no limit. The minimum is reached at once."""
    scale_up_period_seconds: float = 60.0
    scale_down_step_replicas: int | None = None
    """The most replicas taken away within `scale_down_period_seconds`; null for no limit. Those above the maximum go at
    once."""
    scale_down_period_seconds: float = 60.0
    stale_after_seconds: float = 30.0
    """A backlog older than this may hold or raise the number of replicas, never lower it."""
    fallback_replicas: int | None = None
    """Raise to so many replicas while the backlog is stale; null to hold what there is."""
    paused: bool = False
    """Leave the number of replicas alone."""

    def __post_init__(self) -> None:
        """Check each field and their order."""
        for name, lowest in (
            ("min_replicas", 0),
            ("max_replicas", 1),
            ("target_lag_per_replica", 1),
            ("activation_lag_records", 0),
            ("idle_grace_seconds", 0),
            ("cool_down_seconds", 0),
            ("scale_up_window_seconds", 0),
            ("scale_up_step_replicas", 1),
            ("scale_up_period_seconds", 0),
            ("scale_down_step_replicas", 1),
            ("scale_down_period_seconds", 0),
            ("stale_after_seconds", 0),
            ("fallback_replicas", 1),
        ):
            value = getattr(self, name)
            if value is None:
                continue
            if not math.isfinite(value) or value < lowest:
                raise ValueError(f"{name}: {value} is too small or not finite; use at least {lowest}")
        if self.min_replicas > self.max_replicas:
            raise ValueError(
                f"min_replicas: {self.min_replicas} is above max_replicas ({self.max_replicas}); "
                "lower the one or raise the other"
            )
        if self.fallback_replicas is not None and self.fallback_replicas > self.max_replicas:
            raise ValueError(
                f"fallback_replicas: {self.fallback_replicas} is above max_replicas ({self.max_replicas}); "
                "lower the one or raise the other"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How many replicas there should be and why."""

    replicas: int
    constraint: Constraint
    reason: str
    """Full sentences for a person."""
    required_replicas: int
    """What the backlog asks for before any limit but its own partitions."""
    lag_records: int
    """Tasks waiting or in flight, as last read."""
    state: PlanState
    """To be put into the next snapshot."""
    eta_seconds: float | None = None
    """Until the backlog is done if it goes on to shrink as it did lately; null when it does not shrink."""
