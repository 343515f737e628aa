"""What a pool remembers of its backlog between readings: the last good value of each partition, and what was lost.

Owns the rules by which silence and surprising answers are held against what was known. Pure: readings and times come as
arguments. Must not know how anything is read.

A partition keeps its last good value while it cannot be read, while it is missing in an answer, while its group's
offset is suddenly gone or lower than it was, and while its offset suddenly lies past the log's end. All but the first
are seen while coordinators load, leaders move and metadata spread, and would each be a wrong zero or a wrong flood: a
coordinator that has just taken over knows the last commits, and tells for a moment those before them. So they are
believed only after `CONFIRMING_ANSWERS` answers without an error that agree, `CONFIRMING_SECONDS` after the first of
them. Until then the partition is stale: it may hold or raise replicas, never lower them.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from fluxpool_operator.backlog.observation import InFlightTask, LaneObservation, LaneTarget, PartitionObservation
from fluxpool_operator.backlog.reading import Head, LaneReading, head_of, pending_records
from fluxpool_transport.lag import PartitionLag, StalePartition

CONFIRMING_ANSWERS: Final = 2
CONFIRMING_SECONDS: Final = 20.0
"""A broker that restarts loads its groups within some seconds; a pool that waits so long for the truth loses little."""


class PoolBacklog:
    """The backlog of one pool: `update` it with readings, `observe` what is known.

    `expired_before` gives each lane's `expired_records_total` as an earlier process left it in the pool's status.
    Losses that happened while no operator ran are counted as far as they still show: a gap that stands at the first
    reading and is not larger than the earlier total is taken for counted.
    """

    def __init__(self, targets: Sequence[LaneTarget], expired_before: Mapping[str, int]) -> None:
        self._lanes = {target: _Lane(target, expired_before.get(target.name, 0)) for target in targets}

    def update(self, readings: Iterable[LaneReading], now_seconds: float) -> None:
        """Take in what was read; a lane without a reading grows older. `now_seconds` is monotonic."""
        for reading in readings:
            lane = self._lanes.get(reading.target)
            if lane is not None:
                lane.update(reading, now_seconds)

    def idle_ends(self) -> dict[tuple[str, int], int]:
        """Where the next record will appear, by (topic, partition), in lanes that are known to have nothing waiting."""
        return {
            (target.topic, number): end
            for target, lane in self._lanes.items()
            for number, end in lane.idle_ends().items()
        }

    @property
    def lag_records(self) -> int:
        """Records of all lanes that wait or are in work, as last read."""
        return sum(lane.lag_records for lane in self._lanes.values())

    def observe(self, now_seconds: float, wall_seconds: float) -> tuple[LaneObservation, ...]:
        """What is known at a moment, lane by lane; `wall_seconds` is the same moment since 1970, UTC."""
        return tuple(lane.observe(now_seconds, wall_seconds) for lane in self._lanes.values())


class _Lane:
    def __init__(self, target: LaneTarget, expired_before: int) -> None:
        self._target = target
        self._partitions: dict[int, _Partition] = {}
        self._expired_before = expired_before
        self._expired_at_first = 0
        self._expired_since = 0
        self._member_count: int | None = None
        self._due_retries = 0
        self._retries_read_at: float | None = None
        self._problem: str | None = None

    def update(self, reading: LaneReading, now_seconds: float) -> None:
        problems = [] if reading.problem is None else [reading.problem]
        for item in reading.partitions:
            partition = self._partitions.setdefault(item.partition, _Partition())
            is_first = partition.backlog is None
            problem = partition.update(item, reading.heads.get(item.partition), now_seconds)
            if problem is not None:
                problems.append(f"partition {item.partition}: {problem}")
            elif is_first:
                self._expired_at_first += partition.count_expired()
            else:
                self._expired_since += partition.count_expired()
        if reading.is_complete:
            problems += self._doubt_missing({item.partition for item in reading.partitions}, now_seconds)
        if reading.member_count is not None:
            self._member_count = reading.member_count
        if reading.due_retries is not None:
            self._due_retries = reading.due_retries
            self._retries_read_at = now_seconds
        self._problem = _sentence(problems)

    def observe(self, now_seconds: float, wall_seconds: float) -> LaneObservation:
        known = [item for _, item in sorted(self._partitions.items())]
        stamps = [item.head.timestamp_ms for item in known if item.head is not None and item.pending_records > 0]
        oldest_ms = min((stamp for stamp in stamps if stamp is not None), default=None)
        return LaneObservation(
            target=self._target,
            partitions=tuple(item.observation for item in known if item.observation is not None),
            age_seconds=self._age_seconds(now_seconds),
            oldest_age_seconds=None if oldest_ms is None else max(0.0, wall_seconds - oldest_ms / 1000),
            expired_records_total=max(self._expired_before, self._expired_at_first) + self._expired_since,
            member_count=self._member_count,
            due_retries=self._due_retries,
            problem=self._problem,
        )

    def _age_seconds(self, now_seconds: float) -> float:
        ages = [item.age_seconds(now_seconds) for item in self._partitions.values()] or [math.inf]
        if self._target.retry_tiers:
            # Retries that cannot be read may be due as well: what is not known is old, not zero.
            ages.append(math.inf if self._retries_read_at is None else now_seconds - self._retries_read_at)
        return max(ages)

    @property
    def lag_records(self) -> int:
        return sum(item.lag_records for item in self._partitions.values())

    def idle_ends(self) -> dict[int, int]:
        """The end of every partition; empty when something waits in one of them."""
        if any(item.pending_records > 0 for item in self._partitions.values()):
            return {}
        known = ((number, item.backlog) for number, item in self._partitions.items())
        return {number: backlog.log_end_offset for number, backlog in known if backlog is not None}

    def _doubt_missing(self, present: set[int], now_seconds: float) -> list[str]:
        """Partitions that a whole answer lacks: a topic never shrinks, unless it was made again smaller."""
        missing = sorted(self._partitions.keys() - present)
        for number in missing:
            if self._partitions[number].doubt.confirms(now_seconds):
                del self._partitions[number]
        return [f"partition {number}: missing in the topic" for number in missing if number in self._partitions]


class _Doubt:
    """Counts answers that contradict what was known, until there are enough of them to be believed."""

    def __init__(self) -> None:
        self._answers = 0
        self._since_seconds = 0.0

    def confirms(self, now_seconds: float) -> bool:
        """Count one more such answer; true once they are to be believed."""
        if self._answers == 0:
            self._since_seconds = now_seconds
        self._answers += 1
        return self._answers >= CONFIRMING_ANSWERS and now_seconds - self._since_seconds >= CONFIRMING_SECONDS

    def clear(self) -> None:
        self._answers = 0


class _Partition:
    def __init__(self) -> None:
        self.backlog: PartitionLag | None = None
        self.head: Head | None = None
        self.observation: PartitionObservation | None = None
        """What the two above come to; made once for each news, because most readings bring none."""
        self.doubt = _Doubt()
        self._read_at_seconds: float | None = None
        self._expired_until: int | None = None

    def update(self, item: PartitionLag | StalePartition, head: Head | None, now_seconds: float) -> str | None:
        """Take in a good answer; anything else changes nothing and is named."""
        if isinstance(item, StalePartition):
            return item.reason
        surprise = self._surprise(item)
        if surprise is not None and not self.doubt.confirms(now_seconds):
            return surprise
        self.doubt.clear()
        if item.is_recreated:
            self._expired_until = None
        head = head_of(item, head) or head_of(item, self.head)
        if (item, head) != (self.backlog, self.head):
            self.backlog, self.head, self.observation = item, head, _observation(item, head)
        self._read_at_seconds = now_seconds
        return None

    @property
    def pending_records(self) -> int:
        """Records that nobody has begun, as last read."""
        return 0 if self.observation is None else self.observation.pending_records

    @property
    def lag_records(self) -> int:
        """Those, and the ones in work."""
        return 0 if self.observation is None else self.pending_records + len(self.observation.in_flight)

    def count_expired(self) -> int:
        """Records that retention took since the last count, before anybody did."""
        if self.backlog is None:
            return 0
        start = self.backlog.log_start_offset
        taken = 0 if self.backlog.is_recreated else self.backlog.committed_offset
        if self._expired_until is None and (taken is None or self.backlog.is_recreated):
            self._expired_until = start  # what went before was never seen waiting
        expired = max(0, start - max(taken or 0, self._expired_until or 0))
        self._expired_until = max(start, self._expired_until or 0)
        return expired

    def age_seconds(self, now_seconds: float) -> float:
        return math.inf if self._read_at_seconds is None else now_seconds - self._read_at_seconds

    def _surprise(self, item: PartitionLag) -> str | None:
        known = self.backlog
        if known is None or known.committed_offset is None:
            return None
        if item.committed_offset is None:
            return "the group's committed offset is gone; held until Kafka confirms it"
        if item.is_recreated and not known.is_recreated:
            return "the group's committed offset lies past the end of the log; held until Kafka confirms it"
        if item.committed_offset < known.committed_offset:
            return "the group's committed offset is lower than it was; held until Kafka confirms it"
        return None


def _observation(backlog: PartitionLag, head: Head | None) -> PartitionObservation:
    return PartitionObservation(
        partition=backlog.partition,
        pending_records=pending_records(backlog, head),
        in_flight=tuple(
            InFlightTask(
                partition=backlog.partition,
                offset=offset,
                task=entry.task,
                worker=entry.worker,
                started_at_seconds=entry.started_at,
                crashes=entry.crashes,
            )
            for offset, entry in sorted(backlog.in_flight.items())
        ),
        expired_records=backlog.expired_records,
        is_recreated=backlog.is_recreated,
        is_foreign_commit=backlog.is_foreign_commit,
    )


def _sentence(problems: list[str]) -> str | None:
    if not problems:
        return None
    return problems[0] if len(problems) == 1 else f"{problems[0]} (and {len(problems) - 1} more)"
