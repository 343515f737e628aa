"""The partition of a new task on one topic: one of the consumer-group member that will be free first.

Kafka binds a record to its partition's owner however busy that owner is, so this choice decides how long a task waits
while other workers are idle. Pure: knows nothing of how loads are read (`load_aware`) or estimated (`member_load`);
time and randomness are arguments.
"""

import random
from collections import defaultdict, deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from heapq import heapify, heappop, heappush
from typing import Final

MAX_SNAPSHOT_AGE_SECONDS: Final = 2.0
"""Older loads say little about which member is idle now, and would send every task to the same few owners."""
SETTLING_SECONDS: Final = 0.05
"""From a choice until its record shows in the log: the producer's linger and the broker's round trip. What was sent
later than that before a reading may be missing in it, and is added. To add a record that is in it does little harm: its
owner has just got work, and another one is the better choice."""
MAX_SENT: Final = 10_000
"""Records remembered as sent; with more in flight every owner is busy anyway."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnerLoad:
    """One member of the consumer group with the lag of its partitions."""

    work: float
    """Pending and running work before it would begin one more task; in the unit that `choose` uses."""
    records: Mapping[int, int]
    """The lag of each of its partitions, in records; never empty."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadSnapshot:
    """The owners of one topic's partitions at one moment."""

    taken_at: float
    """When the reading began, in monotonic seconds."""
    partition_count: int
    """Of the topic; partitions without an owner, or unreadable, are in no `OwnerLoad` and get nothing."""
    owners: tuple[OwnerLoad, ...]
    """Empty while the group has no members or rebalances."""
    end_offsets: Mapping[int, int] = field(default_factory=dict)
    """Of each partition that was read: records below are in the loads."""
    others_per_second: float = 0.0
    """Tasks of other senders of which `arrived` does not tell; they choose by the same loads."""
    others_work: float = 1.0
    """Of one such task, on average."""


class TopicPartitioner:
    """Chooses partitions of one topic, in logarithmic time.

    The owner with the least work comes first, then its partition with the smallest lag; ties are broken at random, or
    many producers would all take the same one. What was sent since the snapshot is added to it, and so are the records
    of other senders that `arrived`. Where those are not known, what the others will have sent is estimated: if each
    took the best owner it knows of, all would meet on it, so this one takes any of those that all of them need
    together. Without owners, or with a snapshot that is too old or of another number of partitions, the partitions are
    chosen round robin.
    """

    def __init__(self, source: random.Random) -> None:
        """`source` breaks ties and chooses the first partition."""
        self._source = source
        self._next: int | None = None
        """Of the round robin."""
        self._least: _LeastLoaded | None = None
        self._sent: deque[tuple[float, int, float]] = deque(maxlen=MAX_SENT)
        """When, to which partition, how much work."""
        self._arrived: dict[tuple[int, int], tuple[float, float]] = {}
        """Records that are not in the snapshot, by partition and offset: when they arrived, how much work."""
        self._end_offsets: Mapping[int, int] = {}
        self._announced: defaultdict[int, deque[tuple[float, float]]] = defaultdict(deque)
        """Tasks of others that have not arrived yet, by partition: when they were sent, how much work."""

    def begin_reading(self, *, now: float) -> None:
        """A reading of loads begins at `now`: what was sent just before may be missing in its snapshot."""
        while self._sent and self._sent[0][0] < now - SETTLING_SECONDS:
            self._sent.popleft()
        for tasks in self._announced.values():
            while tasks and tasks[0][0] < now - SETTLING_SECONDS:
                tasks.popleft()

    def use(self, snapshot: LoadSnapshot) -> None:
        """Choose by `snapshot`, the outcome of the reading that began last."""
        self._end_offsets = snapshot.end_offsets
        # Only by offset it is certain what the loads include. By age: the offsets of a topic that was recreated since
        # would never be reached.
        oldest = snapshot.taken_at - MAX_SNAPSHOT_AGE_SECONDS
        self._arrived = {
            place: (at, work) for place, (at, work) in self._arrived.items() if at >= oldest and self._is_new(*place)
        }
        self._least = None
        if snapshot.owners:
            sent = [(number, work) for _, number, work in self._sent]
            sent += [(number, work) for (number, _), (_, work) in self._arrived.items()]
            sent += [(number, work) for number, tasks in self._announced.items() for _, work in tasks]
            self._least = _LeastLoaded(snapshot, sent=sent, source=self._source)

    def announced(self, *, partition: int, work: float, now: float) -> None:
        """Another sender has chosen a partition; its record will arrive."""
        self._announced[partition].append((now, work))
        if self._least is not None:
            self._least.add(partition, work=work)

    def arrived(self, *, partition: int, offset: int, work: float, now: float) -> None:
        """Another sender's record was written there, as far as is known: `is_own` may say otherwise later."""
        announced = self._announced.get(partition)
        counted = announced.popleft()[1] if announced else None
        if self._is_new(partition, offset):
            self._arrived[partition, offset] = now, work
            if counted is None and self._least is not None:
                self._least.add(partition, work=work)
        elif counted is not None and self._least is not None:
            # The reading has found it already.
            self._least.add(partition, work=-counted, records=-1)

    def is_own(self, *, partition: int, offset: int) -> None:
        """The record that arrived there is one that was chosen here, which counts already."""
        known = self._arrived.pop((partition, offset), None)
        if known is not None and self._least is not None:
            self._least.add(partition, work=-known[1], records=-1)

    def _is_new(self, partition: int, offset: int) -> bool:
        return offset >= self._end_offsets.get(partition, 0)

    def is_by_load(self, *, partitions: int, now: float) -> bool:
        """Whether the next choice of a topic with so many partitions is by load rather than round robin."""
        return self._usable(partitions=partitions, now=now) is not None

    def choose(self, *, partitions: int, work: float, now: float) -> int:
        """The partition, 0 to `partitions` - 1, of the next task, which takes `work`; `now` is monotonic seconds."""
        least = self._usable(partitions=partitions, now=now)
        chosen = self._round_robin(partitions) if least is None else least.take(work, now=now)
        self._sent.append((now, chosen, work))
        return chosen

    def _usable(self, *, partitions: int, now: float) -> "_LeastLoaded | None":
        least = self._least
        if least is None or now - least.taken_at > MAX_SNAPSHOT_AGE_SECONDS or least.partition_count != partitions:
            return None
        return least

    def _round_robin(self, partitions: int) -> int:
        # From a random partition on, so that many producers do not walk in step.
        chosen = self._source.randrange(partitions) if self._next is None else self._next % partitions
        self._next = chosen + 1
        return chosen


class _LeastLoaded:
    """A snapshot as heaps: of owners by work, and for each owner of its partitions by records.

    A change adds an entry; the former one is dropped when it comes to the top.
    """

    def __init__(self, snapshot: LoadSnapshot, *, sent: Iterable[tuple[int, float]], source: random.Random) -> None:
        self.taken_at = snapshot.taken_at
        self.partition_count = snapshot.partition_count
        self._random = source.random
        self._others_per_second = snapshot.others_per_second
        self._others_work = snapshot.others_work
        self._others = 0
        """Tasks of other senders that are added already."""
        self._loads = [owner.work for owner in snapshot.owners]
        self._records = {number: records for owner in snapshot.owners for number, records in owner.records.items()}
        self._owner_of = {number: index for index, owner in enumerate(snapshot.owners) for number in owner.records}
        for number, work in sent:
            index = self._owner_of.get(number)
            if index is not None:
                self._loads[index] += work
                self._records[number] += 1
        self._owners = [(load, self._random(), index) for index, load in enumerate(self._loads)]
        self._partitions = [
            [(self._records[number], self._random(), number) for number in owner.records] for owner in snapshot.owners
        ]
        heapify(self._owners)
        for heap in self._partitions:
            heapify(heap)

    def add(self, number: int, *, work: float, records: int = 1) -> None:
        """So much more lies on a partition; nothing happens when it has no owner."""
        index = self._owner_of.get(number)
        if index is None:
            return
        self._loads[index] = load = max(0.0, self._loads[index] + work)
        self._records[number] = count = self._records[number] + records
        heappush(self._owners, (load, self._random(), index))
        heappush(self._partitions[index], (count, self._random(), number))

    def take(self, work: float, *, now: float) -> int:
        """The best partition but for what others will have taken by `now`; its owner has more to do from now on."""
        others = self._others_by(now)
        before = int(self._random() * (others + 1))
        for _ in range(before):
            self._take_best(self._others_work)
        chosen = self._take_best(work)
        for _ in range(others - before):
            self._take_best(self._others_work)
        return chosen

    def _others_by(self, now: float) -> int:
        """How many tasks of other senders are to be added."""
        expected = self._others_per_second * (now - self.taken_at + SETTLING_SECONDS) - self._others
        if expected <= 0:
            return 0
        # A fraction is a probability. More than one for each owner change nothing about who has least to do.
        count = min(int(expected + self._random()), len(self._loads))
        self._others += count
        return count

    def _take_best(self, work: float) -> int:
        owners = self._owners
        while owners[0][0] != self._loads[owners[0][2]]:
            heappop(owners)
        partitions = self._partitions[owners[0][2]]
        while partitions[0][0] != self._records[partitions[0][2]]:
            heappop(partitions)
        number = partitions[0][2]
        self.add(number, work=work)
        return number
