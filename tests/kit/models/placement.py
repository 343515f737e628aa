"""A queue in simulated time: senders that choose partitions, workers, and the ways of what each gets to know.

Partitioner and estimates are the real ones; log, ledger, readings and arrivals are simulated with the delays of an idle
broker. Deterministic for a seed.
"""

import heapq
import itertools
import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from fluxpool_contract.kafka.ledger import LedgerEntry, encode_ledger
from fluxpool_transport.lag.group_offsets import GroupMember
from fluxpool_transport.lag.lag_reader import GroupLag, PartitionLag
from fluxpool_transport.partitioner.load_aware import IDLE_INTERVAL_SECONDS, QUICK_INTERVAL_SECONDS
from fluxpool_transport.partitioner.member_load import WorkEstimate
from fluxpool_transport.partitioner.topic_partitioner import LoadSnapshot, TopicPartitioner

TOPIC: Final = "tasks"
WAY_SECONDS: Final = 0.008
"""From a choice until its record is in the log: the producer's linger and the broker."""
STEP_SECONDS: Final = 0.003
"""An answer of a broker, a fetch, a commit."""
SIZES: Final = ((0.5, 0.25), (1.0, 0.5), (1.5, 0.25))
"""Of tasks, with their shares."""
NOISE: Final = 0.05
WARM_UP_SHARE: Final = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """What is simulated."""

    seed: int
    senders: int
    arrivals_seconds: float | None
    """From the log to every other sender; None: they see records with their readings only."""
    announced: bool = False
    """Every sender knows at once what the others choose, as processes of one gateway do."""
    round_robin: bool = False
    """Senders choose round robin instead."""
    workers: int = 8
    partitions: int = 24
    load: float = 0.8
    service_seconds: float = 1.5
    tasks: int = 300


@dataclass(slots=True)
class _Sender:
    choice: TopicPartitioner
    estimate: WorkEstimate = field(default_factory=WorkEstimate)
    has_news: bool = False
    """Something was sent since the last reading began, as far as it knows."""
    idle: object | None = None
    """Set while it waits for news before it reads again."""


@dataclass(slots=True)
class _Worker:
    partitions: tuple[int, ...]
    waiting: deque[tuple[int, int, int]] = field(default_factory=deque)
    """Task, partition, offset."""
    prepared: tuple[int, int, int] | None = None
    running: tuple[int, int, int] | None = None


class SimulatedQueue:
    """One run: `waits` are those of all tasks but the first."""

    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        source = random.Random(setup.seed)  # noqa: S311 - no secret
        rate_per_second = setup.load * setup.workers / setup.service_seconds
        self._sizes = source.choices([size for size, _ in SIZES], [share for _, share in SIZES], k=setup.tasks)
        gaps = [source.expovariate(rate_per_second) for _ in self._sizes]
        self._due = list(itertools.accumulate(gaps))
        self._service = [setup.service_seconds * size * max(0.1, source.gauss(1, NOISE)) for size in self._sizes]
        self._senders = [
            _Sender(TopicPartitioner(random.Random(source.random())))  # noqa: S311 - no secret
            for _ in range(setup.senders)
        ]
        numbers = range(setup.partitions)
        self._workers = [_Worker(tuple(numbers[index :: setup.workers])) for index in range(setup.workers)]
        self._ends = [0 for _ in numbers]
        self._committed = [0 for _ in numbers]
        self._finished: list[set[int]] = [set() for _ in numbers]
        self._ledger: list[dict[int, LedgerEntry]] = [{} for _ in numbers]
        self._begun: dict[int, float] = {}
        self._now = -1.0
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()

    def waits(self) -> list[float]:
        """Run, and return the waits."""
        for sender in self._senders:
            if not self._setup.round_robin:
                self._after(0, lambda sender=sender: self._read(sender))  # type: ignore[misc]
        for task, due in enumerate(self._due):
            self._after(due - self._now, lambda task=task: self._send(task))  # type: ignore[misc]
        while len(self._begun) < len(self._due):
            self._now, _, happen = heapq.heappop(self._events)
            happen()
        return self._counted([self._begun[task] - due for task, due in enumerate(self._due)])

    def ideal_waits(self) -> list[float]:
        """Of one queue for all workers, first come, first served."""
        free_at = [0.0] * self._setup.workers
        waits = []
        for due, seconds in zip(self._due, self._service, strict=True):
            begins = max(due, free_at[0])
            heapq.heapreplace(free_at, begins + seconds)
            waits.append(begins - due)
        return self._counted(waits)

    @staticmethod
    def _counted(waits: list[float]) -> list[float]:
        return waits[int(WARM_UP_SHARE * len(waits)) :]

    def _after(self, seconds: float, happen: Callable[[], None]) -> None:
        heapq.heappush(self._events, (self._now + seconds, next(self._order), happen))

    # Sending

    def _send(self, task: int) -> None:
        sender = self._senders[task % len(self._senders)]
        work = self._sizes[task]
        partition = sender.choice.choose(partitions=self._setup.partitions, work=work, now=self._now)
        self._notice(sender)
        for other in self._senders:
            if self._setup.announced and other is not sender:
                other.estimate.announced()
                other.choice.announced(partition=partition, work=work, now=self._now)
        self._after(WAY_SECONDS, lambda: self._append(task, partition, sender))

    def _append(self, task: int, partition: int, sender: _Sender) -> None:
        offset, work = self._ends[partition], self._sizes[task]
        self._ends[partition] += 1
        self._after(STEP_SECONDS, lambda: self._acknowledge(sender, partition, offset, work))
        worker = next(worker for worker in self._workers if partition in worker.partitions)
        self._after(STEP_SECONDS, lambda: self._deliver(worker, (task, partition, offset)))
        if self._setup.arrivals_seconds is not None:
            for other in self._senders:
                if other is not sender:
                    self._after(
                        self._setup.arrivals_seconds,
                        lambda other=other: self._arrive(other, partition, offset, work),  # type: ignore[misc]
                    )

    def _acknowledge(self, sender: _Sender, partition: int, offset: int, work: float) -> None:
        sender.estimate.acknowledged(partition=partition, offset=offset, work=work)

    def _arrive(self, sender: _Sender, partition: int, offset: int, work: float) -> None:
        if sender.estimate.arrived(partition=partition, offset=offset, work=work):
            sender.choice.arrived(partition=partition, offset=offset, work=work, now=self._now)
            self._notice(sender)

    def _notice(self, sender: _Sender) -> None:
        sender.has_news = True
        if sender.idle is not None:
            sender.idle = None
            self._after(0, lambda: self._read(sender))

    # Working

    def _deliver(self, worker: _Worker, record: tuple[int, int, int]) -> None:
        worker.waiting.append(record)
        self._work(worker)

    def _work(self, worker: _Worker) -> None:
        if worker.running is None and worker.prepared is not None:
            worker.running, worker.prepared = worker.prepared, None
            task = worker.running[0]
            self._begun[task] = self._now
            self._after(self._service[task], lambda: self._finish(worker))
        if worker.prepared is None and worker.waiting:
            _, partition, offset = worker.prepared = worker.waiting.popleft()
            self._ledger[partition][offset] = LedgerEntry(task="t", worker="w", started_at=int(self._now + 10))
            self._work(worker)

    def _finish(self, worker: _Worker) -> None:
        assert worker.running is not None
        _, partition, offset = worker.running
        worker.running = None
        self._after(STEP_SECONDS, lambda: self._commit(partition, offset))
        self._work(worker)

    def _commit(self, partition: int, offset: int) -> None:
        self._finished[partition].add(offset)
        del self._ledger[partition][offset]
        while self._committed[partition] in self._finished[partition]:
            self._committed[partition] += 1

    # Reading

    def _read(self, sender: _Sender) -> None:
        began_at, sender.has_news = self._now, False
        sender.choice.begin_reading(now=began_at)

        def read_commits() -> None:
            committed, ledgers = list(self._committed), [encode_ledger(entries) for entries in self._ledger]
            self._after(STEP_SECONDS, lambda: self._use(sender, began_at, committed, ledgers))

        self._after(STEP_SECONDS, read_commits)

    def _use(self, sender: _Sender, began_at: float, committed: list[int], ledgers: list[str]) -> None:
        partitions = tuple(
            PartitionLag(
                partition=number,
                committed_offset=committed[number],
                log_start_offset=0,
                log_end_offset=end,
                metadata=ledgers[number],
            )
            for number, end in enumerate(self._ends)
        )
        members = tuple(
            GroupMember(member_id=str(index), client_id=str(index), partitions={TOPIC: worker.partitions})
            for index, worker in enumerate(self._workers)
        )
        lag = GroupLag(
            group="g", topic=TOPIC, partitions=partitions, member_count=len(members), state="Stable", members=members
        )
        estimate = sender.estimate
        sender.choice.use(
            LoadSnapshot(
                taken_at=began_at,
                partition_count=len(partitions),
                owners=estimate.owners(lag, now=began_at),
                end_offsets={item.partition: item.log_end_offset for item in partitions},
                others_per_second=estimate.others_per_second if self._setup.arrivals_seconds is None else 0.0,
                others_work=estimate.mean_work,
            )
        )
        self._after(QUICK_INTERVAL_SECONDS, lambda: self._pause(sender))

    def _pause(self, sender: _Sender) -> None:
        if sender.has_news:
            self._read(sender)
            return
        waiting = sender.idle = object()

        def end_of_pause() -> None:
            if sender.idle is waiting:
                sender.idle = None
                self._read(sender)

        self._after(IDLE_INTERVAL_SECONDS - QUICK_INTERVAL_SECONDS, end_of_pause)
