"""The partition of a new record, by the load of the consumer-group members."""

from fluxpool_transport.partitioner.idle_aware import AHEAD_SECONDS, ChoiceOnDemand
from fluxpool_transport.partitioner.load_aware import PartitionChooser

__all__ = ["AHEAD_SECONDS", "ChoiceOnDemand", "PartitionChooser"]
