"""One reading of a lane as it came from Kafka, and what is first in line there. Values and their arithmetic, no I/O.

Must not know of earlier readings: what a gap in this one means is decided by the pool's memory.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from fluxpool_operator.backlog.observation import LaneTarget
from fluxpool_transport.lag import PartitionBacklog, StalePartition


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """What a read-committed reader finds at an offset: the first record from there on, if there is any.

    Offsets without a record are transaction markers, aborted records, or gaps that compaction left.
    """

    offset: int
    """Where the search began."""
    end_offset: int
    """Where it ended: the log's end as known then."""
    record_offset: int | None
    """Of the first record; None when nothing between the two can be consumed."""
    timestamp_ms: int | None = None
    """Of that record, since 1970, UTC."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LaneReading:
    """What Kafka said about one lane; whatever it did not say is marked and never zero."""

    target: LaneTarget
    partitions: tuple[PartitionBacklog | StalePartition, ...] = ()
    """By number; empty when the topic could not be read."""
    heads: Mapping[int, Head] = field(default_factory=dict)
    """By partition, of those where something waits and the answer came in time."""
    member_count: int | None = None
    due_retries: int | None = None
    """None when a tier could not be read."""
    problem: str | None = None
    """Why the whole topic or group could not be read, or its retry tiers."""

    @property
    def is_whole(self) -> bool:
        """Whether every partition that the topic has was read."""
        return bool(self.partitions) and all(isinstance(item, PartitionBacklog) for item in self.partitions)


def head_offset(partition: PartitionBacklog) -> int:
    """The lowest offset that nobody has begun; the log's end when there is none."""
    in_flight = partition.in_flight
    offset = partition.next_offset
    while offset in in_flight:
        offset += 1
    return offset


def head_of(partition: PartitionBacklog, head: Head | None) -> Head | None:
    """The head, when it is about where the partition stands; one looked up for another offset says nothing."""
    if head is None or head.offset != head_offset(partition) or head.end_offset > partition.log_end_offset:
        return None
    return head


def waiting_records(partition: PartitionBacklog, head: Head | None) -> int:
    """Records that nobody has begun, without the offsets before the first of them that hold no record."""
    head = head_of(partition, head)
    if head is None:
        return partition.waiting_records
    first = head.end_offset if head.record_offset is None else head.record_offset
    return max(0, partition.waiting_records - (first - head.offset))
