"""The lag of consumer groups: committed offsets, group members and the ends of logs."""

from fluxpool_transport.lag.group_offsets import GroupOffsetsError, MemberlessOffsets, StoredOffset
from fluxpool_transport.lag.lag_reader import GroupLag, KnownFor, LagReader, PartitionLag, StalePartition
from fluxpool_transport.lag.log_bounds import LogBounds

__all__ = [
    "GroupLag",
    "GroupOffsetsError",
    "KnownFor",
    "LagReader",
    "LogBounds",
    "MemberlessOffsets",
    "PartitionLag",
    "StalePartition",
    "StoredOffset",
]
