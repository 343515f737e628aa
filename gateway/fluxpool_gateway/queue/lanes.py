"""The lanes at one moment, as read from Kafka. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

from fluxpool_contract.kafka import TopicNames
from fluxpool_contract.messages import PoolState
from fluxpool_contract.settings import STANDARD_LANE, VIP_LANE, Lane, serving_groups
from fluxpool_gateway.http.generation_request import Priority


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedLane:
    """A topic that workers serve."""

    name: str
    topic: str
    group: str
    """The workers' consumer group on it."""
    preference: int
    """A worker takes a task of the lane with the highest preference first; the others keep a share."""
    pool: str
    """Consumer group of the pool that serves it: a pool has one for its first lane, and others are named after that."""
    priority: Priority | None
    """Of the requests that the gateway sends to it; None when it sends none."""


def served_lanes(consumer_group: str, lanes: tuple[Lane, ...], topics: TopicNames) -> tuple[ServedLane, ...]:
    """The lanes of these settings, in their order."""
    known = {lane.topic: lane for lane in lanes} or {topics.tasks: STANDARD_LANE, topics.tasks_vip: VIP_LANE}
    priorities = {topics.tasks: Priority.STANDARD, topics.tasks_vip: Priority.VIP}
    return tuple(
        ServedLane(
            name=known[topic].name,
            topic=topic,
            group=group,
            pool=consumer_group if known[topic].consumer_group is None else group,
            preference=known[topic].preference,
            priority=priorities.get(topic),
        )
        for group, topic in serving_groups(consumer_group, lanes, topics).items()
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class PartitionQueue:
    """The tasks of one partition that are not done."""

    next_offset: int
    """Of the first one."""
    end_offset: int
    running: Mapping[int, float] = field(default_factory=dict)
    """When a worker began each that it has begun, by offset; seconds since 1970. Empty where workers keep no ledger."""
    worker: str | None = None
    """Its owner; None while it has none, or the group rebalances."""

    @property
    def waiting(self) -> int:
        """Tasks that no worker has begun."""
        return max(0, self.end_offset - self.next_offset - len(self.running))

    def waiting_before(self, offset: int) -> int:
        """Tasks before this one that no worker has begun."""
        return max(0, offset - self.next_offset - sum(begun < offset for begun in self.running))


@dataclass(frozen=True, kw_only=True)
class LaneQueue:
    """One lane."""

    lane: ServedLane
    partitions: Mapping[int, PartitionQueue] = field(default_factory=dict)
    """Those that could be read."""
    workers: frozenset[str] = frozenset()
    """Members of the consumer group: a worker joins it once its model is loaded."""
    oldest_waiting_seconds: float | None = None
    """How long the first waiting task has waited, at least; None when none waits."""
    completed_per_minute: float | None = None
    """Lately; None while that is not known."""
    problem: str | None = None
    """Why its numbers are missing, old or in part; None when they are whole."""
    pool: PoolState | None = None
    """The pool that serves it, by its operator; None while that is not known."""
    operator_silent_seconds: float | None = None
    """How long ago the operator told of the pool, where that is too long ago to say something of now."""

    @cached_property
    def waiting(self) -> int:
        """Tasks that no worker has begun."""
        return sum(partition.waiting for partition in self.partitions.values())

    @cached_property
    def running(self) -> int:
        """Tasks that a worker has begun, where workers keep a ledger."""
        return sum(len(partition.running) for partition in self.partitions.values())

    @cached_property
    def coming_workers(self) -> int:
        """Workers of the pool that start, or are about to, and are not ready."""
        pool = self.pool
        if pool is None:
            return 0
        # The consumer group knows those that are ready sooner than the operator's last record.
        missing = max(0, pool.desired_replicas - len(self.workers))
        return min(missing, pool.starting_replicas or missing)

    def next_ready_in(self, wall_seconds: float) -> float | None:
        """Seconds until the first of them is expected to be ready; None when none is expected."""
        if self.pool is None or self.pool.next_ready_at is None or not self.coming_workers:
            return None
        return max(0.0, self.pool.next_ready_at.timestamp() - wall_seconds)

    def of_worker(self, worker: str) -> list[PartitionQueue]:
        """Its partitions."""
        return [partition for partition in self.partitions.values() if partition.worker == worker]


@dataclass(frozen=True, kw_only=True)
class Queue:
    """All lanes."""

    lanes: tuple[LaneQueue, ...]
    seconds_per_task: float | None = None
    """How long a worker took for a task lately; None while that is not known."""

    @cached_property
    def by_topic(self) -> Mapping[str, LaneQueue]:
        """The lanes by their topics."""
        return {queue.lane.topic: queue for queue in self.lanes}

    @cached_property
    def workers(self) -> frozenset[str]:
        """Of any lane."""
        return frozenset(worker for queue in self.lanes for worker in queue.workers)

    def is_busy(self, worker: str) -> bool:
        """Whether a task runs on one of its partitions, or waits there."""
        return any(
            partition.running or partition.waiting for queue in self.lanes for partition in queue.of_worker(worker)
        )

    def preferred_to(self, queue: LaneQueue) -> list[LaneQueue]:
        """The lanes whose tasks a worker takes before those of this one."""
        return [other for other in self.lanes if other.lane.preference > queue.lane.preference]
