"""Partitioners for tasks: they choose the consumer-group member that will be free first."""

from fluxpool_transport.partitioner.idle_aware import AHEAD_SECONDS, IdleAwarePartitioner
from fluxpool_transport.partitioner.load_aware import LoadAwarePartitioner

__all__ = ["AHEAD_SECONDS", "IdleAwarePartitioner", "LoadAwarePartitioner"]
