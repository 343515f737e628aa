"""Lanes as the operator observes them, from numbers for each partition."""

from collections.abc import Sequence

from fluxpool_contract.kafka import LedgerEntry
from fluxpool_operator.backlog import LaneObservation, LaneTarget
from fluxpool_operator.backlog.observation import PartitionObservation


def lane_of(
    *pending: int, in_flight: Sequence[int] = (), name: str = "standard", age_seconds: float = 0.0, due_retries: int = 0
) -> LaneObservation:
    """A lane with these numbers of pending records and these tasks in flight on each partition."""
    numbers = [*in_flight, *[0] * (len(pending) - len(in_flight))]
    partitions = tuple(
        PartitionObservation(
            partition=partition,
            pending_records=records,
            in_flight={offset: entry_of(partition) for offset in range(numbers[partition])},
        )
        for partition, records in enumerate(pending)
    )
    return LaneObservation(
        target=LaneTarget(name=name, topic=f"tasks-{name}", consumer_group=f"group-{name}"),
        partitions=partitions,
        age_seconds=age_seconds,
        due_retries=due_retries,
    )


def entry_of(partition: int) -> LedgerEntry:
    """The ledger entry of a task in flight."""
    return LedgerEntry(task="t-1", worker=f"pod-{partition}", started_at=0, crashes=0)
