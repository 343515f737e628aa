"""Watches the lanes: what successive readings of their lag tell, without a question to Kafka.

The partitioner reads the lag in the background of every server process and gives each reading to `LaneWatch.observe`.
Owns speed, rates and ages; what they mean for a task is said in `queue.place`. Pure: time is an argument.
"""

from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from fluxpool_gateway.queue.lanes import LaneQueue, PartitionQueue, Queue, ServedLane
from fluxpool_gateway.queue.place import Estimate, estimate, estimate_new, estimate_running
from fluxpool_gateway.queue.pool_states import PoolStates
from fluxpool_gateway.store.task_state import RecordRef
from fluxpool_transport.lag import GroupLag, PartitionLag

RATE_SECONDS: Final = 60.0
"""Over so long completions are counted."""
LEAST_RATE_SECONDS: Final = 5.0
"""A rate of less time than that is none."""
MAX_GAP_SECONDS: Final = 5.0
"""Between readings farther apart workers may have been idle as well as busy."""
MAX_AGE_SECONDS: Final = 10.0
"""Past it a reading says nothing of now: a lane is read at least once a second."""
MEMORY_TASKS: Final = 50.0
"""Over about so many tasks the speed is averaged: it follows another model or GPU, and not a single task."""
LEAST_TASKS: Final = 3.0
"""Before so many are finished, the speed is a guess."""
MAX_ARRIVALS: Final = 256
"""Times remembered for each partition; of more every second one is forgotten, so that ages become a little less."""


@dataclass(slots=True)
class _Watched:
    """One lane."""

    lag: GroupLag | None = None
    """The latest reading that holds any partition."""
    read_at: float = 0.0
    problem: str | None = "was not read yet"
    first_read_at: float | None = None
    next_offsets: dict[int, int] = field(default_factory=dict)
    arrivals: dict[int, list[tuple[int, float]]] = field(default_factory=dict)
    """By partition: an end of the log, and when a reading found it first."""
    finished: deque[tuple[float, int]] = field(default_factory=deque)
    """When, and how many tasks."""


class LaneWatch:
    """The lanes of one gateway, in one of its processes."""

    def __init__(
        self, lanes: Sequence[ServedLane], *, clock: Callable[[], float], wall_clock: Callable[[], float]
    ) -> None:
        """`clock` is monotonic, `wall_clock` is since 1970; both in seconds."""
        self._clock = clock
        self._wall_clock = wall_clock
        self._lanes = {lane: _Watched() for lane in lanes}
        self.pools = PoolStates(lanes, wall_clock=wall_clock)
        """What their operator tells of the pools."""
        self._busy: frozenset[str] = frozenset()
        self._observed_at: float | None = None
        self._finished = 0.0
        self._worker_seconds = 0.0
        self.readings = 0
        """How many were taken."""
        self._queue: Queue | None = None
        self._made_at = 0.0

    def observe(self, lags: Mapping[str, GroupLag], at: float) -> None:
        """Take a reading: the lag of each group, which was asked for at this time."""
        self._queue = None
        self.readings += 1
        finished = 0
        busy: set[str] = set()
        for lane, watched in self._lanes.items():
            lag = lags.get(lane.group)
            if lag is None:
                continue
            watched.problem = _problem_of(lag)
            if not lag.readable_partitions:
                continue
            watched.lag, watched.read_at = lag, at
            finished += _advance(watched, lag, at)
            behind = {item.partition for item in lag.readable_partitions if item.lag_records}
            owners = _owners(lag)
            busy |= {owners[number] for number in behind & owners.keys()}
        self._learn(finished, frozenset(busy), at)

    def queue(self) -> Queue:
        """What is known now."""
        # Made once for each reading, and again after a second without one, in which ages and rates went on.
        now = self._clock()
        known = self._queue
        if known is None or now - self._made_at >= 1:
            known = self._queue = Queue(
                lanes=tuple(self._state(lane, watched, now) for lane, watched in self._lanes.items()),
                seconds_per_task=self._worker_seconds / self._finished if self._finished >= LEAST_TASKS else None,
            )
            self._made_at = now
        return known

    def place_of(self, record: RecordRef | None) -> Estimate:
        """The place of a waiting task whose record lies there."""
        return estimate(self.queue(), record, wall_seconds=self._wall_clock())

    def place_of_new(self, lane: LaneQueue) -> Estimate:
        """The place of a task that is sent to this lane now."""
        return estimate_new(self.queue(), lane, wall_seconds=self._wall_clock())

    def place_of_running(self) -> Estimate:
        """The place of a task that a worker has begun, wherever its record lies."""
        return estimate_running(self.queue())

    def _learn(self, finished: int, busy: frozenset[str], at: float) -> None:
        before, self._observed_at = self._observed_at, at
        was_busy, self._busy = self._busy, busy
        if before is None or at - before > MAX_GAP_SECONDS:
            return
        kept = 0.5 ** (finished / MEMORY_TASKS)
        self._finished = self._finished * kept + finished
        # Busy at one of two readings: for half of the time between, on average.
        self._worker_seconds = self._worker_seconds * kept + (at - before) * (len(was_busy) + len(busy)) / 2

    def _state(self, lane: ServedLane, watched: _Watched, now: float) -> LaneQueue:
        lag, pool = watched.lag, self.pools.of_lane(lane)
        state = pool.state if pool is not None and pool.is_current else None
        silent_seconds = None if pool is None or pool.is_current else pool.age_seconds
        if lag is None or now - watched.read_at > MAX_AGE_SECONDS:
            problem = watched.problem or f"was not read for {now - watched.read_at:.0f} s, because no broker answers"
            return LaneQueue(lane=lane, problem=problem, pool=state, operator_silent_seconds=silent_seconds)
        owners = _owners(lag)
        partitions = {
            item.partition: PartitionQueue(
                next_offset=item.next_offset,
                end_offset=item.log_end_offset,
                running={offset: float(entry.started_at) for offset, entry in item.in_flight.items()},
                worker=owners.get(item.partition),
            )
            for item in lag.readable_partitions
        }
        return LaneQueue(
            lane=lane,
            partitions=partitions,
            workers=frozenset(_names(lag).values()),
            oldest_waiting_seconds=_oldest(watched, partitions, now),
            completed_per_minute=_per_minute(watched, now),
            problem=watched.problem,
            pool=state,
            operator_silent_seconds=silent_seconds,
        )


def _problem_of(lag: GroupLag) -> str | None:
    if lag.problem is not None:
        return lag.problem
    if not lag.partitions:
        return f"the topic {lag.topic} has no partition"
    unread = len(lag.partitions) - len(lag.readable_partitions)
    return f"{unread} of {len(lag.partitions)} partitions could not be read" if unread else None


def _names(lag: GroupLag) -> dict[str, str]:
    """A name of each member: its client id, which a worker has on all its lanes, unless several members share one."""
    shared = Counter(member.client_id for member in lag.members)
    return {
        member.member_id: member.client_id if shared[member.client_id] == 1 else member.member_id
        for member in lag.members
    }


def _owners(lag: GroupLag) -> dict[int, str]:
    names = _names(lag)
    return {
        number: names[member.member_id] for member in lag.members for number in member.partitions.get(lag.topic, ())
    }


def _advance(watched: _Watched, lag: GroupLag, at: float) -> int:
    """Note what arrived; returns how many tasks were finished since the reading before."""
    if watched.first_read_at is None:
        watched.first_read_at = at
    finished = 0
    for item in lag.readable_partitions:
        before = watched.next_offsets.get(item.partition)
        watched.next_offsets[item.partition] = item.next_offset
        arrivals = watched.arrivals.setdefault(item.partition, [])
        if before is not None and item.next_offset < before:
            # Set back: the offsets of a recreated topic mean other records.
            arrivals.clear()
        elif before is not None:
            finished += item.next_offset - before
        _note_arrival(arrivals, item, at)
    if finished:
        watched.finished.append((at, finished))
    while watched.finished and watched.finished[0][0] < at - RATE_SECONDS:
        watched.finished.popleft()
    return finished


def _note_arrival(arrivals: list[tuple[int, float]], item: PartitionLag, at: float) -> None:
    if not arrivals or arrivals[-1][0] < item.log_end_offset:
        arrivals.append((item.log_end_offset, at))
    done = sum(end <= item.next_offset for end, _ in arrivals)
    # The last is kept: without it the next reading would take its end for a new one.
    del arrivals[: min(done, len(arrivals) - 1)]
    if len(arrivals) > MAX_ARRIVALS:
        del arrivals[:-1:2]


def _oldest(watched: _Watched, partitions: Mapping[int, PartitionQueue], now: float) -> float | None:
    since = [
        next((at for end, at in watched.arrivals[number] if end > first), watched.read_at)
        for number, partition in partitions.items()
        if partition.waiting
        for first in [_first_waiting(partition)]
    ]
    return max(0.0, now - min(since)) if since else None


def _first_waiting(partition: PartitionQueue) -> int:
    return next(
        offset for offset in range(partition.next_offset, partition.end_offset) if offset not in partition.running
    )


def _per_minute(watched: _Watched, now: float) -> float | None:
    assert watched.first_read_at is not None  # noqa: S101 - a lag was read
    seconds = min(now - watched.first_read_at, RATE_SECONDS)
    if seconds < LEAST_RATE_SECONDS:
        return None
    return sum(count for at, count in watched.finished if at > now - RATE_SECONDS) * 60 / seconds
