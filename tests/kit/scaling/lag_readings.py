"""Readings of the lag of the standard lanes' groups, as a broker would answer them."""

from collections.abc import Mapping, Sequence

from fluxpool_contract.kafka.ledger import LedgerEntry, encode_ledger
from fluxpool_contract.kafka.topics import TopicNames
from fluxpool_gateway.queue.lane_watch import LaneWatch
from fluxpool_transport.lag.group_offsets import GroupMember
from fluxpool_transport.lag.lag_reader import GroupLag, PartitionLag, StalePartition

STANDARD, VIP = TopicNames().tasks, TopicNames().tasks_vip
GROUPS = {STANDARD: "flux-worker-group", VIP: "flux-worker-group-vip"}


def partition(number: int, committed: int | None, end: int, *, begun: Mapping[int, int] | None = None) -> PartitionLag:
    """`begun` has the offsets in flight, and since when."""
    entries = {
        offset: LedgerEntry(task="t", worker="w", started_at=started_at) for offset, started_at in (begun or {}).items()
    }
    return PartitionLag(
        partition=number,
        committed_offset=committed,
        log_start_offset=0,
        log_end_offset=end,
        metadata=encode_ledger(entries),
    )


def lag(
    *partitions: PartitionLag | StalePartition,
    topic: str = STANDARD,
    owned: Mapping[str, Sequence[int]] | None = None,
    client_ids: Mapping[str, str] | None = None,
) -> dict[str, GroupLag]:
    """A reading of one group. Without `owned` each partition has a member of its own."""
    dealt = {f"w{item.partition}": (item.partition,) for item in partitions} if owned is None else owned
    members = tuple(
        GroupMember(
            member_id=f"{topic}-{name}",
            client_id=(client_ids or {}).get(name, name),
            partitions={topic: tuple(numbers)},
        )
        for name, numbers in dealt.items()
    )
    read = GroupLag(
        group=GROUPS[topic],
        topic=topic,
        partitions=partitions,
        member_count=len(members),
        state="Stable",
        members=members,
    )
    return {GROUPS[topic]: read}


def teach_speed(watch: LaneWatch, *, seconds_per_task: int, until: float, number: int = 0, tasks: int = 20) -> None:
    """Readings of one worker that finished so many tasks back to back, and has eleven to go."""
    seconds = seconds_per_task * tasks
    for second in range(seconds + 1):
        watch.observe(lag(partition(number, second // seconds_per_task, tasks + 11)), until - seconds + second)
