"""The lag of consumer groups: committed offsets, group members and the ends of logs."""

from fluxpool_transport.lag.backlog import BacklogReader, GroupBacklog, KnownFor, PartitionBacklog, StalePartition
from fluxpool_transport.lag.log_bounds import LogBounds, PartitionKey
from fluxpool_transport.lag.memberless_offsets import GroupOffsetsError, MemberlessOffsets, StoredOffset

__all__ = [
    "BacklogReader",
    "GroupBacklog",
    "GroupOffsetsError",
    "KnownFor",
    "LogBounds",
    "MemberlessOffsets",
    "PartitionBacklog",
    "PartitionKey",
    "StalePartition",
    "StoredOffset",
]
