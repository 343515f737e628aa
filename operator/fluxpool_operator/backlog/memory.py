"""The last good reading of each partition of a pool, and the count of expired records.

Owns the rules for missing and implausible readings. Pure: readings and times are arguments. `cluster_reader` makes the
readings; the result is a `LaneObservation`.

A partition keeps its last good reading while it cannot be read, is missing in an answer, has lost its committed offset,
or has one that is lower than before or past the log end. All but the first occur while coordinators load, leaders move
and metadata propagate, and would be a false zero or a false flood: a coordinator that has just taken over returns older
commits for a moment. So they are accepted only after `CONFIRMING_ANSWERS` consistent answers, `CONFIRMING_SECONDS`
after the first of them. Until then the partition is stale: it can hold or raise the replicas, never lower them.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from fluxpool_contract.kafka import committed_model_family
from fluxpool_operator.backlog.observation import LaneObservation, LaneTarget, PartitionObservation
from fluxpool_operator.backlog.reading import Head, LaneReading, head_of, pending_records
from fluxpool_transport.lag import PartitionLag, StalePartition

CONFIRMING_ANSWERS: Final = 2
CONFIRMING_SECONDS: Final = 20.0
"""A restarted broker loads its groups within seconds; a real reset is accepted this much later, which costs little."""


class PoolBacklog:
    """The backlog of one pool: `update` it with readings, `observe` the result.

    `expired_before` is each lane's `expired_records_total` in the pool's status, from an earlier process. Records that
    expired while no operator ran are counted if the gap still exists; a gap at the first reading that is not larger
    than the earlier total counts as already counted.
    """

    def __init__(self, targets: Sequence[LaneTarget], expired_before: Mapping[str, int]) -> None:
        self._lanes = {target: _Lane(target, expired_before.get(target.name, 0)) for target in targets}

    def update(self, readings: Iterable[LaneReading], now_seconds: float) -> None:
        """Apply readings; a lane without one only ages. `now_seconds` is monotonic."""
        for reading in readings:
            lane = self._lanes.get(reading.target)
            if lane is not None:
                lane.update(reading, now_seconds)

    def idle_ends(self) -> dict[tuple[str, int], int]:
        """End offsets by (topic, partition) of the lanes without pending records: where the next record appears."""
        return {
            (target.topic, number): end
            for target, lane in self._lanes.items()
            for number, end in lane.idle_ends().items()
        }

    @property
    def lag_records(self) -> int:
        """Records of all lanes that are not committed, as last read."""
        return sum(lane.lag_records for lane in self._lanes.values())

    def observe(self, now_seconds: float, wall_seconds: float) -> tuple[LaneObservation, ...]:
        """Each lane at a moment; `wall_seconds` is the same moment since 1970, UTC."""
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
            # Unread retries may be due: they make the lane old, not empty.
            ages.append(math.inf if self._retries_read_at is None else now_seconds - self._retries_read_at)
        return max(ages)

    @property
    def lag_records(self) -> int:
        return sum(item.lag_records for item in self._partitions.values())

    def idle_ends(self) -> dict[int, int]:
        """The end offset of every partition; empty when one has pending records."""
        if any(item.pending_records > 0 for item in self._partitions.values()):
            return {}
        known = ((number, item.backlog) for number, item in self._partitions.items())
        return {number: backlog.log_end_offset for number, backlog in known if backlog is not None}

    def _doubt_missing(self, present: set[int], now_seconds: float) -> list[str]:
        """Partitions missing in a complete answer: a topic never shrinks, unless it was recreated with fewer."""
        missing = sorted(self._partitions.keys() - present)
        for number in missing:
            if self._partitions[number].doubt.confirms(now_seconds):
                del self._partitions[number]
        return [f"partition {number}: missing in the topic" for number in missing if number in self._partitions]


class _Doubt:
    """Counts implausible answers until there are enough of them to be accepted."""

    def __init__(self) -> None:
        self._answers = 0
        self._since_seconds = 0.0

    def confirms(self, now_seconds: float) -> bool:
        """Count one more such answer; true once they are accepted."""
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
        """Derived from the two above; computed once for each change, because most readings bring none."""
        self.doubt = _Doubt()
        self._read_at_seconds: float | None = None
        self._expired_until: int | None = None

    def update(self, item: PartitionLag | StalePartition, head: Head | None, now_seconds: float) -> str | None:
        """Apply a plausible answer; otherwise nothing changes and the reason is returned."""
        if isinstance(item, StalePartition):
            return item.reason
        implausible = self._implausible(item)
        if implausible is not None and not self.doubt.confirms(now_seconds):
            return implausible
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
        """Records that no worker has started, as last read."""
        return 0 if self.observation is None else self.observation.pending_records

    @property
    def lag_records(self) -> int:
        """Records that are not committed: pending and in flight."""
        return 0 if self.observation is None else self.pending_records + len(self.observation.in_flight)

    def count_expired(self) -> int:
        """Records that retention deleted since the last count, before they were consumed."""
        if self.backlog is None:
            return 0
        start = self.backlog.log_start_offset
        taken = 0 if self.backlog.is_recreated else self.backlog.committed_offset
        if self._expired_until is None and (taken is None or self.backlog.is_recreated):
            self._expired_until = start  # earlier records were never observed as pending
        expired = max(0, start - max(taken or 0, self._expired_until or 0))
        self._expired_until = max(start, self._expired_until or 0)
        return expired

    def age_seconds(self, now_seconds: float) -> float:
        return math.inf if self._read_at_seconds is None else now_seconds - self._read_at_seconds

    def _implausible(self, item: PartitionLag) -> str | None:
        known = self.backlog
        if known is None or known.committed_offset is None:
            return None
        if item.committed_offset is None:
            return "the group's committed offset is gone; ignored until confirmed"
        if item.is_recreated and not known.is_recreated:
            return "the group's committed offset is past the log end; ignored until confirmed"
        if item.committed_offset < known.committed_offset:
            return "the group's committed offset is lower than before; ignored until confirmed"
        return None


def _observation(backlog: PartitionLag, head: Head | None) -> PartitionObservation:
    return PartitionObservation(
        partition=backlog.partition,
        pending_records=pending_records(backlog, head),
        in_flight=backlog.in_flight,
        is_foreign_commit=backlog.is_foreign_commit,
        model_family=committed_model_family(backlog.metadata),
    )


def _sentence(problems: list[str]) -> str | None:
    if not problems:
        return None
    return problems[0] if len(problems) == 1 else f"{problems[0]} (and {len(problems) - 1} more)"
