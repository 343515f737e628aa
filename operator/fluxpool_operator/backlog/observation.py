"""The lanes of a pool, and what is known of their backlog: the input of the plan and of the status. Pure values.

`cluster_reader` reads the targets, `memory` makes the observations. Must not know how offsets are read.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

from fluxpool_contract.kafka import LedgerEntry
from fluxpool_contract.settings import WorkerSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryTier:
    """A retry topic as one pool sees it: records wait there for a fixed delay until a worker relays them."""

    topic: str
    group: str
    """Group of the pool's offsets on retry topics."""
    delay_seconds: float
    origins: tuple[str, ...]
    """Lane topics of the pool; records of other origins belong to other pools."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LaneTarget:
    """A lane to read: a topic and its consumer group."""

    name: str
    topic: str
    consumer_group: str
    retry_tiers: tuple[RetryTier, ...] = ()
    """Retry topics whose due records count for this lane: all of the pool's at its first lane."""


def lane_targets_of(settings: WorkerSettings) -> tuple[LaneTarget, ...]:
    """The lanes of workers with these settings, with the groups that the workers join.

    The retry topics count for the first lane.
    """
    tiers = tuple(
        RetryTier(
            topic=topic,
            group=settings.retry_group,
            delay_seconds=delay_seconds,
            origins=tuple(dict.fromkeys(lane.topic for lane in settings.lanes)),
        )
        for topic, delay_seconds in zip(settings.topics.retry, settings.retry_delays_seconds, strict=True)
    )
    return tuple(
        LaneTarget(
            name=lane.name,
            topic=lane.topic,
            consumer_group=settings.group_of(lane),
            retry_tiers=tiers if lane == settings.lanes[0] else (),
        )
        for lane in settings.lanes
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class PartitionObservation:
    """One partition as last read."""

    partition: int
    pending_records: int
    """Consumable records that no worker has started."""
    in_flight: Mapping[int, LedgerEntry] = field(default_factory=dict)
    """Ledger entries of the tasks that a worker has started, by offset."""
    model_family: str | None = None
    """Family of the model that the last worker to commit had loaded."""
    is_foreign_commit: bool = False
    """Another client committed the offset: Kafka expires it some days after the last member left."""

    @property
    def lag_records(self) -> int:
        """Records that are not committed: pending and in flight."""
        return self.pending_records + len(self.in_flight)


@dataclass(frozen=True, kw_only=True)
class LaneObservation:
    """One lane: each partition as last read, the age of the reading, and its problem. Satisfies `planning.LaneLag`."""

    target: LaneTarget
    partitions: tuple[PartitionObservation, ...]
    """By number; empty when the topic was never read."""
    age_seconds: float
    """Since all partitions and retry topics were last read; infinite when one never was."""
    oldest_age_seconds: float | None = None
    """Age of the oldest pending record; None when none is pending or its timestamp is not known."""
    expired_records_total: int = 0
    """Tasks deleted by retention since the pool was created."""
    member_count: int | None = None
    due_retries: int = 0
    """The pool's records on retry topics that are due and not relayed yet, as last read."""
    problem: str | None = None
    """Why the last reading was incomplete; None when it was complete."""

    @property
    def name(self) -> str:
        """Name of the lane."""
        return self.target.name

    @cached_property
    def pending_records(self) -> int:
        """Tasks that no worker has started, due retries included; 0 while the topic was never read."""
        return sum(item.pending_records for item in self.partitions) + (self.due_retries if self.partitions else 0)

    @cached_property
    def in_flight(self) -> tuple[LedgerEntry, ...]:
        """Tasks in flight in all partitions."""
        return tuple(entry for partition in self.partitions for entry in partition.in_flight.values())

    @property
    def in_flight_records(self) -> int:
        """Number of tasks in flight."""
        return len(self.in_flight)

    @property
    def lag_records(self) -> int:
        """Tasks that are not committed: pending and in flight."""
        return self.pending_records + self.in_flight_records

    @property
    def partitions_with_lag(self) -> int:
        """Partitions with a task, once the due retries are relayed: workers relay to idle partitions first."""
        busy = sum(1 for item in self.partitions if item.lag_records > 0)
        return min(len(self.partitions), busy + self.due_retries)

    @property
    def has_foreign_commits(self) -> bool:
        """Whether another client than a worker committed an offset of any partition."""
        return any(partition.is_foreign_commit for partition in self.partitions)
