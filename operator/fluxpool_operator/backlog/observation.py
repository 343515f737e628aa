"""What is known of a pool's backlog at one moment: values only, no I/O.

Owns the words in which readings reach the plan and the status. Must not know how offsets are read.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryTier:
    """One retry topic as one pool sees it: its records wait there for a fixed time before a worker relays them."""

    topic: str
    group: str
    """The group in which the pool keeps its offsets of retry topics."""
    delay_seconds: float
    origins: tuple[str, ...]
    """The lane topics of the pool: other records on the topic are other pools'."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LaneTarget:
    """One lane to be read: its topic as its consumer group sees it."""

    name: str
    topic: str
    consumer_group: str
    retry_tiers: tuple[RetryTier, ...] = ()
    """Retry topics whose due records are this lane's work too: those of the pool, at its first lane."""


@dataclass(frozen=True, slots=True, kw_only=True)
class InFlightTask:
    """A task that a worker has begun, as its partition's ledger says."""

    partition: int
    offset: int
    task: str
    worker: str
    """Name of the pod."""
    started_at_seconds: int
    """Since 1970, UTC."""
    crashes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PartitionObservation:
    """One partition as last read."""

    partition: int
    waiting_records: int
    """Consumable records that nobody has begun."""
    in_flight: tuple[InFlightTask, ...] = ()
    expired_records: int = 0
    """Records between the committed offset and the log's start: deleted before anybody took them."""
    is_recreated: bool = False
    """The commit lies past the end: the topic was deleted and made again."""
    is_foreign_commit: bool = False
    """Another client than a worker committed the offset: Kafka forgets it some days after the last member left."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LaneObservation:
    """One lane: each partition as last read, how long ago that was, and what is wrong now."""

    target: LaneTarget
    partitions: tuple[PartitionObservation, ...]
    """By number; empty when the topic was never read."""
    age_seconds: float
    """Since every partition and all retry topics were last read; infinite when some never were."""
    oldest_age_seconds: float | None = None
    """Age of the oldest record that waits; None when none waits or its time is not known."""
    expired_records_total: int = 0
    """Tasks lost to retention since the pool was made."""
    member_count: int | None = None
    due_retries: int = 0
    """The pool's own records on retry topics that are due and that no worker has relayed, as last read."""
    problem: str | None = None
    """Why the latest reading lacked something; None when it was whole."""

    @property
    def waiting_records(self) -> int:
        """Of all partitions."""
        return sum(partition.waiting_records for partition in self.partitions)

    @property
    def has_foreign_commits(self) -> bool:
        """Whether another client than a worker committed an offset of any partition."""
        return any(partition.is_foreign_commit for partition in self.partitions)

    @property
    def in_flight(self) -> tuple[InFlightTask, ...]:
        """Of all partitions."""
        return tuple(task for partition in self.partitions for task in partition.in_flight)
