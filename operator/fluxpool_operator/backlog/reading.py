"""One answer of Kafka for a lane, and the first pending record of a partition. Values and their arithmetic, no I/O.

Made by `cluster_reader`; `memory` decides what a gap in one means. Must not know of earlier readings.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from fluxpool_operator.backlog.observation import LaneTarget
from fluxpool_transport.lag import PartitionLag, StalePartition


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """What a read-committed consumer finds at an offset: the first record from there on, if any.

    Offsets without a record are transaction markers, aborted records, or gaps left by compaction.
    """

    offset: int
    """Where the search began."""
    end_offset: int
    """Where it ended: the log end offset as known then."""
    record_offset: int | None
    """Offset of the first record; None when nothing between the two can be consumed."""
    timestamp_ms: int | None = None
    """Timestamp of that record, since 1970, UTC."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LaneReading:
    """Kafka's answer for one lane. What is missing is marked and never zero."""

    target: LaneTarget
    partitions: tuple[PartitionLag | StalePartition, ...] = ()
    """By number; empty when the topic could not be read."""
    heads: Mapping[int, Head] = field(default_factory=dict)
    """By partition, where records are pending and the answer came in time."""
    member_count: int | None = None
    due_retries: int | None = None
    """None when a tier could not be read."""
    problem: str | None = None
    """Why the topic, the group or the retry tiers could not be read."""

    @property
    def is_complete(self) -> bool:
        """Whether every partition of the topic was read."""
        return bool(self.partitions) and all(isinstance(item, PartitionLag) for item in self.partitions)


def head_offset(partition: PartitionLag) -> int:
    """The lowest offset that no worker has started; the log end offset when there is none."""
    in_flight = partition.in_flight
    offset = partition.next_offset
    while offset in in_flight:
        offset += 1
    return offset


def head_of(partition: PartitionLag, head: Head | None) -> Head | None:
    """The head if it belongs to the present offset of the partition; one found for another offset is useless."""
    if head is None or head.offset != head_offset(partition) or head.end_offset > partition.log_end_offset:
        return None
    return head


def pending_records(partition: PartitionLag, head: Head | None) -> int:
    """Records that no worker has started, without the offsets before the first of them that hold no record."""
    head = head_of(partition, head)
    if head is None:
        return partition.pending_records
    first = head.end_offset if head.record_offset is None else head.record_offset
    return max(0, partition.pending_records - (first - head.offset))
