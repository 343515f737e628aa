"""Who works on what, as Kafka knows it: members of the lanes' consumer groups, their ledgers, and the pools' states.

Owns the reading and what it means; `view` shows it. Reads without joining a group, and changes nothing.
"""

import contextlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Final

from pydantic import ValidationError

from fluxpool_cli.kafka.target import KafkaTarget
from fluxpool_contract.kafka import worker_of_client
from fluxpool_contract.messages import PoolState
from fluxpool_transport.kafka import TopicError, find_ranges, scan
from fluxpool_transport.lag import GroupLag, LagReader

_STATES_SINCE: Final = timedelta(minutes=10)
"""An operator repeats the state of each pool every half minute."""
_REBALANCING: Final = frozenset({"PreparingRebalance", "CompletingRebalance"})


class WorkerState(StrEnum):
    """What a worker is doing."""

    BUSY = "busy"
    """It has begun a task."""
    IDLE = "idle"
    """No task waits on its partitions."""
    TAKING = "taking"
    """Tasks wait on its partitions, and it has begun none yet."""
    SPARE = "spare"
    """It has no partition: there are more workers than partitions, or the group is assigning them."""
    GONE = "gone"
    """It has begun a task and is in the group no more; the partition's next owner makes the task again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedLane:
    """One lane of a pool."""

    pool: str | None
    """Name of the FluxWorkerPool; None where no operator tells it."""
    name: str
    group: str
    topic: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RunningTask:
    """A task that a worker has begun."""

    request_id: str
    lane: str
    topic: str
    partition: int
    offset: int
    started_at: datetime
    crashes: int
    """Engines and workers that have died during it."""


@dataclass(slots=True, kw_only=True)
class Worker:
    """One worker."""

    name: str
    pool: str | None
    partitions: dict[str, list[int]] = field(default_factory=dict)
    """By lane."""
    waiting: int = 0
    """Tasks on its partitions that no worker has begun."""
    tasks: list[RunningTask] = field(default_factory=list)
    """The one that runs for the longest first."""
    is_member: bool = False

    @property
    def state(self) -> WorkerState:
        """What it is doing."""
        if self.tasks:
            return WorkerState.BUSY if self.is_member else WorkerState.GONE
        if not any(self.partitions.values()):
            return WorkerState.SPARE
        return WorkerState.TAKING if self.waiting else WorkerState.IDLE


@dataclass(frozen=True, slots=True, kw_only=True)
class Workers:
    """All workers of some pools."""

    workers: tuple[Worker, ...]
    pools: tuple[PoolState, ...]
    """As their operators last wrote them; none where none does."""
    problems: tuple[str, ...] = ()
    """What is not known, and why."""


async def read_workers(target: KafkaTarget, *, now: datetime) -> Workers:
    """The workers of the target's lanes, and of every pool whose operator writes its state to the same Kafka.

    Raises as `LagReader.read` and `scan` do.
    """
    pools: Sequence[PoolState] = ()
    problems: list[str] = []
    try:
        pools = await _read_pools(target, now=now)
    except TopicError as error:
        # Without the right to read it the workers are shown all the same.
        problems.append(f"states of pools are not known: {error}")
    lanes = list(lanes_of(target, pools))
    async with LagReader(target.kafka) as reader:
        lags = await reader.read({lane.group: lane.topic for lane in lanes})
    problems += _problems(lanes, lags)
    return Workers(workers=workers_of(lanes, lags), pools=tuple(pools), problems=tuple(problems))


async def _read_pools(target: KafkaTarget, *, now: datetime) -> Sequence[PoolState]:
    topic = target.topics.pools
    ranges = (await find_ranges(target.kafka, [topic], since=now - _STATES_SINCE))[topic]
    latest: dict[bytes, PoolState | None] = {}
    async with aclosing(scan(target.kafka, ranges or ())) as batches:
        async for records in batches:
            for record in records:
                # Without a value the pool was deleted; what is no state is nothing that can be shown.
                latest[record.key or b""] = None
                with contextlib.suppress(ValidationError):
                    if record.value is not None:
                        latest[record.key or b""] = PoolState.model_validate_json(record.value)
    return [
        state
        for _, state in sorted(latest.items())
        if state is not None and (now - state.decided_at).total_seconds() <= state.valid_seconds
    ]


def lanes_of(target: KafkaTarget, pools: Iterable[PoolState]) -> Iterator[ServedLane]:
    """The lanes of these pools, and those of the target that none of them serves; each group once."""
    told: set[str] = set()
    for pool in pools:
        for lane in pool.lanes:
            if lane.consumer_group not in told:
                told.add(lane.consumer_group)
                yield ServedLane(pool=pool.pool, name=lane.name, group=lane.consumer_group, topic=lane.topic)
    for name, (group, topic) in target.lane_groups().items():
        if group not in told:
            yield ServedLane(pool=None, name=name, group=group, topic=topic)


def workers_of(lanes: Iterable[ServedLane], lags: Mapping[str, GroupLag]) -> tuple[Worker, ...]:
    """The workers of these lanes, by pool and name."""
    found: dict[tuple[str, str], Worker] = {}
    for lane in lanes:
        lag = lags[lane.group]
        pending = {item.partition: item.pending_records for item in lag.readable_partitions}
        for name, numbers in _members(lag):
            worker = _named(found, lane, name)
            worker.is_member = True
            worker.partitions.setdefault(lane.name, []).extend(numbers)
            worker.waiting += sum(pending.get(number, 0) for number in numbers)
        for item in lag.readable_partitions:
            for offset, entry in item.in_flight.items():
                _named(found, lane, entry.worker).tasks.append(
                    RunningTask(
                        request_id=entry.task,
                        lane=lane.name,
                        topic=lane.topic,
                        partition=item.partition,
                        offset=offset,
                        started_at=datetime.fromtimestamp(entry.started_at, UTC),
                        crashes=entry.crashes,
                    )
                )
    for worker in found.values():
        worker.tasks.sort(key=lambda task: task.started_at)
    return tuple(worker for _, worker in sorted(found.items()))


def _named(found: dict[tuple[str, str], Worker], lane: ServedLane, name: str) -> Worker:
    # A worker serves all lanes of its pool; without a pool's name its own is all there is.
    return found.setdefault((lane.pool or "", name), Worker(name=name, pool=lane.pool))


def _members(lag: GroupLag) -> Iterator[tuple[str, list[int]]]:
    """Name and partitions of each member; several with one name, such as processes of one machine, are told apart."""
    shared = Counter(member.client_id for member in lag.members)
    for member in lag.members:
        name = worker_of_client(member.client_id) if shared[member.client_id] == 1 else member.member_id
        yield name, sorted(member.partitions.get(lag.topic, ()))


def _problems(lanes: Iterable[ServedLane], lags: Mapping[str, GroupLag]) -> Iterator[str]:
    for lane in lanes:
        lag = lags[lane.group]
        where = f"lane {lane.name} of {lane.pool or lane.group}"
        if lag.problem is not None:
            yield f"{where}: {lag.problem}"
        elif lag.state in _REBALANCING:
            yield f"{where}: the group is assigning its partitions, and tells owners in some seconds"
        elif lag.is_stale:
            unread = len(lag.partitions) - len(lag.readable_partitions)
            yield f"{where}: {unread} of {len(lag.partitions)} partitions could not be read"
