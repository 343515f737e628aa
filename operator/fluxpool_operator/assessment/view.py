"""Everything that a status is made from, at one moment."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import cached_property
from typing import Final

from fluxpool_operator.api import ConditionStatus, FluxWorkerPool, Reason
from fluxpool_operator.backlog.observation import LaneObservation
from fluxpool_operator.planning import Plan
from fluxpool_operator.workload import DeploymentSummary, PodCounts, PodSummary, count_pods

_AGE_STEPS: Final = ((60, 5), (300, 15), (3600, 60), (86_400, 600))
"""Below so many seconds, steps of so many; an hour above the last."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolProblem:
    """Something that keeps the operator from doing what the pool asks for."""

    reason: Reason
    message: str
    """What is wrong and how to mend it, for a person."""
    stops_scaling: bool = True
    """Whether the Deployment stays as it is until this is solved; otherwise it is only reported."""
    stops_reading: bool = False
    """Whether Kafka is not asked for the backlog until this is solved."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What one condition is to say."""

    status: ConditionStatus
    reason: Reason
    message: str


@dataclass(frozen=True, kw_only=True)
class PoolView:
    """One pool as a turn left it."""

    pool: FluxWorkerPool
    """With the status as it was last written."""
    now: datetime
    lanes: tuple[LaneObservation, ...]
    plan: Plan
    desired_replicas: int
    """What the Deployment is to have: of the plan, or of a person."""
    deployment: DeploymentSummary | None
    pods: tuple[PodSummary, ...]
    template_hash: str | None
    """Of the template that the pool asks for; None before it was rendered."""
    problems: tuple[PoolProblem, ...] = ()
    topics_are_settling: bool = False
    """Whether the operator is creating topics or has just done so: until their partitions have leaders they cannot be
    read, and that is nothing to warn of."""
    create_time_topics: tuple[str, ...] | None = None
    """Topics with tasks whose records carry the producer's time; None when that is not known."""
    topic_partitions: Mapping[str, int] = field(default_factory=dict)
    """Partitions of each lane's topic by the lane's name, without those that were never read."""

    @cached_property
    def counts(self) -> PodCounts:
        """The pods by what they do."""
        return count_pods(self.pods)

    @cached_property
    def stale_lanes(self) -> tuple[LaneObservation, ...]:
        """Lanes whose last reading is too old to take workers away."""
        limit = self.pool.spec.scaling.on_lag_unavailable.stale_after_seconds
        return tuple(lane for lane in self.lanes if lane.age_seconds > limit)

    @property
    def age(self) -> timedelta:
        """Since the pool was created."""
        created = self.pool.metadata.creation_timestamp
        return self.now - datetime.fromisoformat(created) if created else timedelta.max

    @property
    def asleep_for(self) -> timedelta:
        """How long there has been no worker; zero while there is one."""
        if (self.deployment is not None and self.deployment.replicas) or self.counts.terminating:
            return timedelta()
        created = self.pool.metadata.creation_timestamp
        since = [datetime.fromisoformat(created)] if created else []
        since += [self.pool.status.last_scale_time] if self.pool.status.last_scale_time else []
        return self.now - max(since, default=self.now)

    @cached_property
    def obstacle(self) -> PoolProblem | None:
        """The first problem for which the Deployment is left as it is."""
        return next((problem for problem in self.problems if problem.stops_scaling), None)

    @property
    def lag_is_known(self) -> bool:
        """Whether every lane was read lately."""
        return bool(self.lanes) and not self.stale_lanes


def coarse_count(count: int) -> int:
    """Two significant digits, rounded half up; what is not zero stays so."""
    if count < 100:
        return count
    unit = int(10 ** (len(str(count)) - 2))
    return (count + unit // 2) // unit * unit


def coarse_seconds(seconds: float) -> int:
    """Whole steps, rounded down: finer for what is young."""
    step = next((step for below, step in _AGE_STEPS if seconds < below), 3600)
    return int(max(0.0, seconds) // step) * step


def duration_text(seconds: float) -> str:
    """`45 s`, `10 min`, `3 h`, from a coarse number of seconds."""
    whole = coarse_seconds(seconds)
    if whole < 300:
        return f"{whole} s"
    return f"{whole // 60} min" if whole < 7200 else f"{whole // 3600} h"
