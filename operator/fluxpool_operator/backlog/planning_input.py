"""The backlog in the words of the scaling plan. Pure.

Knows both vocabularies and nothing of how either is used.
"""

from collections.abc import Iterable

from fluxpool_operator.backlog.observation import LaneObservation
from fluxpool_operator.planning import LaneBacklog, PartitionBacklog


def planning_lanes(observations: Iterable[LaneObservation]) -> tuple[LaneBacklog, ...]:
    """Each lane for the plan.

    Due retries are spread over the lane's partitions, as they will be when a worker hands them on.
    """
    return tuple(
        LaneBacklog(name=lane.target.name, partitions=_partitions(lane), age_seconds=lane.age_seconds)
        for lane in observations
    )


def _partitions(lane: LaneObservation) -> tuple[PartitionBacklog, ...]:
    count = len(lane.partitions)
    return tuple(
        PartitionBacklog(
            partition=item.partition,
            waiting_records=item.waiting_records + (lane.due_retries + count - 1 - place) // count,
            in_flight_records=len(item.in_flight),
        )
        for place, item in enumerate(lane.partitions)
    )
