"""The input of the assessment: one pool after a reconciliation, and the rounding of its numbers."""

import math
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cached_property, partial
from typing import Final

from fluxpool_operator.api import ConditionStatus, FluxWorkerPool, Reason, Verdict
from fluxpool_operator.backlog.observation import LaneObservation
from fluxpool_operator.planning import Plan
from fluxpool_operator.workload import DeploymentSummary, PodCounts, PodSummary, count_pods

_AGE_STEPS: Final = ((60, 5), (300, 15), (3600, 60), (86_400, 600))
"""Upper limit and step in seconds; one hour above the last limit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolProblem:
    """A problem that prevents the operator from applying the spec."""

    reason: Reason
    message: str
    """Human-readable cause and remedy."""
    stops_scaling: bool = True
    """Whether the Deployment is not changed until this is solved; otherwise it is only reported."""
    stops_reading: bool = False
    """Whether the lag is not read until this is solved."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SigningCertificate:
    """The entry of a Secret with the certificates that image files are signed with."""

    entry: str
    """Name of the Secret and key of the entry."""
    valid_from: datetime | None
    """None when the entry holds no certificates."""
    valid_until: datetime | None


true, false, unknown = (partial(Verdict, status) for status in ConditionStatus)
"""A condition with that status, from its reason and message."""


@dataclass(frozen=True, kw_only=True)
class PoolView:
    """One pool after a reconciliation."""

    pool: FluxWorkerPool
    """With the status that was last written."""
    now: datetime
    lanes: tuple[LaneObservation, ...]
    plan: Plan
    desired_replicas: int
    """Replicas of the Deployment: from the plan or from spec.replicas."""
    deployment: DeploymentSummary | None
    pods: tuple[PodSummary, ...]
    template_hash: str | None
    """Hash of the pool's pod template; None before it was rendered."""
    problems: tuple[PoolProblem, ...] = ()
    topics_are_settling: bool = False
    """Whether the operator has just created topics, which cannot be read until their partitions have leaders."""
    create_time_topics: tuple[str, ...] | None = None
    """Task topics with message.timestamp.type=CreateTime; None when unknown."""
    signing_certificate: SigningCertificate | None = None
    """None when the pool names none or its Secret is missing."""

    @cached_property
    def counts(self) -> PodCounts:
        """Number of pods by stage."""
        return count_pods(self.pods)

    @cached_property
    def stale_lanes(self) -> tuple[LaneObservation, ...]:
        """Lanes whose last reading is too old to remove workers."""
        limit = self.pool.spec.scaling.on_lag_unavailable.stale_after_seconds
        return tuple(lane for lane in self.lanes if lane.age_seconds > limit)

    @cached_property
    def created(self) -> datetime | None:
        """When the pool was created; None for one that was never stored."""
        stamp = self.pool.metadata.creation_timestamp
        return datetime.fromisoformat(stamp) if stamp else None

    @property
    def age(self) -> timedelta:
        """Time since the pool was created."""
        return self.now - self.created if self.created else timedelta.max

    @property
    def asleep_for(self) -> timedelta:
        """How long the pool has had no worker; zero while it has one."""
        if (self.deployment is not None and self.deployment.replicas) or self.counts.terminating:
            return timedelta()
        return self.now - max(filter(None, (self.created, self.pool.status.last_scale_time)), default=self.now)

    @cached_property
    def obstacle(self) -> PoolProblem | None:
        """The first problem that stops scaling."""
        return next((problem for problem in self.problems if problem.stops_scaling), None)

    @property
    def lag_is_known(self) -> bool:
        """Whether every lane was read recently."""
        return bool(self.lanes) and not self.stale_lanes


def coarse_count(count: int) -> int:
    """Two significant digits, rounded half up; never rounds to zero."""
    if count < 100:
        return count
    unit = int(10 ** (len(str(count)) - 2))
    return (count + unit // 2) // unit * unit


def coarse_seconds(seconds: float) -> int:
    """Whole steps, rounded down; steps grow with the age."""
    step = next((step for below, step in _AGE_STEPS if seconds < below), 3600)
    return int(max(0.0, seconds) // step) * step


def duration_text(seconds: float) -> str:
    """`45 s`, `10 min`, `3 h`, from a coarse number of seconds."""
    if not math.isfinite(seconds):
        return "a long time"
    whole = coarse_seconds(seconds)
    if whole < 300:
        return f"{whole} s"
    return f"{whole // 60} min" if whole < 7200 else f"{whole // 3600} h"
