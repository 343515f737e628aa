"""Partitioners for tasks: they choose the consumer-group member that will be free first."""

from fluxpool_transport.partitioner.load_aware import AHEAD_SECONDS, IdleAwarePartitioner, LoadAwarePartitioner
from fluxpool_transport.partitioner.shared_sends import SharedSends

__all__ = ["AHEAD_SECONDS", "IdleAwarePartitioner", "LoadAwarePartitioner", "SharedSends"]
