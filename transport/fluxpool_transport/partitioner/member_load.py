"""Estimates the work that each member of a consumer group still has to do, from successive readings of its lag.

The lag alone says which member has most to do, but with one task on every worker all look the same. Two more things are
known: how long each member has been at its task, and how large the tasks are that this process sent or saw. With both
the estimate finds the member that will be free first, and tasks wait as short as in one queue shared by all workers.
Pure: time is an argument.
"""

from bisect import bisect_left
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

from fluxpool_transport.lag.group_offsets import GroupMember
from fluxpool_transport.lag.lag_reader import GroupLag, PartitionLag
from fluxpool_transport.partitioner.topic_partitioner import OwnerLoad

MAX_KNOWN_TASKS: Final = 1000
"""Sizes remembered of each partition; behind so many tasks an average is as good, and memory stays bounded."""
MAX_GAP_SECONDS: Final = 5.0
"""Between readings farther apart a member may have been idle as well as busy."""
MEMORY_TASKS: Final = 50.0
"""Over about so many tasks the speed is averaged: it follows another model or GPU, and not a single task."""
LEAST_TASKS: Final = 3.0
"""Before so many are finished, the speed is a guess."""
OTHERS_SECONDS: Final = 10.0
"""Over about so long the rate of other senders is averaged."""
_MEAN_WEIGHT: Final = 0.02
_LEAST_REST: Final = 0.1
"""A task that takes longer than expected is nearly finished, one would think: a tenth is left ..."""
_OVERDUE: Final = 2.0
"""... but past twice the expected time something is wrong with it, and the longer it takes, the longer it may take."""


@dataclass(slots=True)
class _Partition:
    """The tasks on one partition whose size is known."""

    offsets: list[int] = field(default_factory=list)
    """Ascending."""
    sizes: dict[int, float] = field(default_factory=dict)
    """By offset."""
    work: float = 0.0
    next_offset: int | None = None
    """By the last reading."""


@dataclass(frozen=True, slots=True)
class _Progress:
    """How far one member had come by a reading."""

    read_at: float
    is_busy: bool
    since: float
    """When it began its present task, by what readings can tell."""


class WorkEstimate:
    """One group on one topic. The unit of work is the sender's; a task of unknown size counts as an average one."""

    def __init__(self) -> None:
        self._partitions: dict[int, _Partition] = {}
        self._members: dict[str, _Progress] = {}
        self.mean_work = 1.0
        """Of a task, as far as sizes are known."""
        self._finished_work = 0.0
        self._busy_seconds = 0.0
        self._acknowledged = 0
        self._ends: dict[int, int] = {}
        self._read_at: float | None = None
        self._others_per_second = 0.0

    @property
    def seconds_per_work(self) -> float | None:
        """How long a member takes for one unit; None until some tasks were finished."""
        return self._busy_seconds / self._finished_work if self._finished_work >= LEAST_TASKS else None

    @property
    def others_per_second(self) -> float:
        """Tasks that arrived from other senders, which had not announced them, on average."""
        return max(0.0, self._others_per_second)

    def acknowledged(self, *, partition: int, offset: int, work: float) -> bool:
        """A task of this size, sent here, lies there now; whether that was not known by `arrived`."""
        self._acknowledged += 1
        return self.arrived(partition=partition, offset=offset, work=work)

    def announced(self) -> None:
        """A task of another sender is on its way, and known: it is none of those that are estimated."""
        self._acknowledged += 1

    def arrived(self, *, partition: int, offset: int, work: float) -> bool:
        """A task of this size lies there now; whether that was not known."""
        known = self._partitions.get(partition)
        if known is None:
            known = self._partitions[partition] = _Partition()
        if offset in known.sizes:
            return False
        self.mean_work += _MEAN_WEIGHT * (work - self.mean_work)
        finished = known.next_offset is not None and offset < known.next_offset
        if not finished and len(known.offsets) < MAX_KNOWN_TASKS:
            # Acknowledgements and arrivals of one partition overtake each other, by little.
            known.offsets.insert(bisect_left(known.offsets, offset), offset)
            known.sizes[offset] = work
            known.work += work
        return True

    def owners(self, lag: GroupLag, *, now: float) -> tuple[OwnerLoad, ...]:
        """The load of every member that owns readable partitions; `now` is when they were read, monotonic seconds."""
        partitions = {item.partition: item for item in lag.readable_partitions}
        self._count_arrivals(partitions.values(), now=now)
        finished = {number: self._advance(item) for number, item in partitions.items()}
        members, owners = {}, []
        for member in lag.members:
            assigned = member.partitions.get(lag.topic, ())
            owned = [partitions[number] for number in assigned if number in partitions]
            if not owned:
                continue
            progress = self._progress(member, owned, finished=finished, now=now)
            members[member.member_id] = progress
            work = self._work_left(owned, age_seconds=now - progress.since)
            owners.append(OwnerLoad(work=work, records={item.partition: item.lag_records for item in owned}))
        self._members = members
        return tuple(owners)

    def _count_arrivals(self, read: Iterable[PartitionLag], *, now: float) -> None:
        ends = {item.partition: item.log_end_offset for item in read}
        arrived = sum(max(0, end - self._ends[number]) for number, end in ends.items() if number in self._ends)
        if self._read_at is not None and now > self._read_at:
            elapsed_seconds = now - self._read_at
            kept = 0.5 ** (elapsed_seconds / OTHERS_SECONDS)
            rate_per_second = (arrived - self._acknowledged) / elapsed_seconds
            self._others_per_second = kept * self._others_per_second + (1 - kept) * rate_per_second
        self._ends |= ends
        self._read_at, self._acknowledged = now, 0

    def _advance(self, item: PartitionLag) -> float:
        """Forget what was committed since the last reading; returns how much work it was."""
        known = self._partitions.setdefault(item.partition, _Partition())
        before, known.next_offset = known.next_offset, item.next_offset
        if before is None or item.next_offset < before:
            # First seen, or set back: the offsets of a recreated topic mean other records.
            known.offsets.clear()
            known.sizes.clear()
            known.work = 0.0
            return 0.0
        count = bisect_left(known.offsets, item.next_offset)
        finished = sum(known.sizes.pop(offset) for offset in known.offsets[:count])
        del known.offsets[:count]
        known.work = known.work - finished if known.offsets else 0.0
        return finished + max(0, item.next_offset - before - count) * self.mean_work

    def _progress(
        self, member: GroupMember, owned: Iterable[PartitionLag], *, finished: Mapping[int, float], now: float
    ) -> _Progress:
        is_busy = any(item.lag_records for item in owned)
        before = self._members.get(member.member_id)
        if before is None:
            return _Progress(now, is_busy, now)
        work = sum(finished[item.partition] for item in owned)
        elapsed_seconds = now - before.read_at
        if elapsed_seconds <= MAX_GAP_SECONDS:
            # Busy at one of two readings: for half of the time between, on average.
            self._learn(work=work, busy_seconds=elapsed_seconds * (before.is_busy + is_busy) / 2)
        begins = work > 0 or not before.is_busy
        return _Progress(now, is_busy, now - elapsed_seconds / 2 if begins else before.since)

    def _learn(self, *, work: float, busy_seconds: float) -> None:
        kept = 0.5 ** (work / (MEMORY_TASKS * self.mean_work))
        self._finished_work = self._finished_work * kept + work
        self._busy_seconds = self._busy_seconds * kept + busy_seconds

    def _work_left(self, owned: Iterable[PartitionLag], *, age_seconds: float) -> float:
        total, records = 0.0, 0
        begun: list[tuple[int, int, int]] = []
        for item in owned:
            if not item.lag_records:
                continue
            total += self._work_on(item)
            records += item.lag_records
            for offset, entry in item.in_flight.items():
                if entry.generated:
                    # Its images are being stored, and the member is free for the next task.
                    total -= self._size(offset, item.partition)
                    records -= 1
                else:
                    begun.append((entry.started_at, offset, item.partition))
        if not records:
            return 0.0
        # Without a ledger any of them may be the one in flight.
        present = self._size(*min(begun)[1:]) if begun else total / records
        return max(0.0, total - present) + self._rest(present, age_seconds)

    def _work_on(self, item: PartitionLag) -> float:
        known = self._partitions[item.partition]
        work, count = known.work, len(known.offsets)
        # Written after the end was read: `topic_partitioner` adds these itself.
        for offset in reversed(known.offsets):
            if offset < item.log_end_offset:
                break
            work -= known.sizes[offset]
            count -= 1
        return max(0.0, work) + max(0, item.lag_records - count) * self.mean_work

    def _size(self, offset: int, partition: int) -> float:
        return self._partitions[partition].sizes.get(offset, self.mean_work)

    def _rest(self, work: float, age_seconds: float) -> float:
        speed = self.seconds_per_work
        if not speed or work <= 0:
            return max(0.0, work)
        done = age_seconds / speed
        return max(work - done, _LEAST_REST * work, done - _OVERDUE * work)
