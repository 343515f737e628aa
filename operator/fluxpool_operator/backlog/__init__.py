"""The lag of pools, read from Kafka for many pools at once; keeps the last good values and wakes idle pools.

Flow: `hub` -> `cluster_reader` (`probe`, `retries`) -> `memory` -> `observation`, which `planning` and
`assessment` take. `topics` creates and checks topics.
"""

from fluxpool_operator.backlog.hub import BacklogHub
from fluxpool_operator.backlog.memory import PoolBacklog
from fluxpool_operator.backlog.observation import (
    LaneObservation,
    LaneTarget,
    lane_targets_of,
)
from fluxpool_operator.backlog.reading import LaneReading
from fluxpool_operator.backlog.topics import TopicReport, manage_topics, observe_topics

__all__ = [
    "BacklogHub",
    "LaneObservation",
    "LaneReading",
    "LaneTarget",
    "PoolBacklog",
    "TopicReport",
    "lane_targets_of",
    "manage_topics",
    "observe_topics",
]
