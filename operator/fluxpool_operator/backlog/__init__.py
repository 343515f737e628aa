"""The backlog of pools: reading it for many pools at once, remembering what could not be read, waking for new tasks."""

from fluxpool_operator.backlog.observation import InFlightTask, LaneObservation, LaneTarget, PartitionObservation

__all__ = ["InFlightTask", "LaneObservation", "LaneTarget", "PartitionObservation"]
