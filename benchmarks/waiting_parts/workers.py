"""Workers for `waiting.py`: the agent's lanes on a real consumer group, with a device that only takes time.

Membership, polling, ledger and commits are those of a real worker; two tasks at a time use the device like an agent's,
so that the next task is prepared when one ends. Knows nothing of how tasks were sent.
"""

import asyncio
import contextlib
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, Self

from aiokafka import AIOKafkaConsumer

from fluxpool_contract.kafka.connection import KafkaConnection
from fluxpool_contract.kafka.ledger import LedgerEntry
from fluxpool_transport.kafka.clients import aiokafka_options
from fluxpool_worker.agent.consumer.events import LaneEvents
from fluxpool_worker.agent.consumer.lane import ClaimedRecord, LaneConsumer, PartitionLostError
from fluxpool_worker.agent.consumer.membership import own_sticky_assignor
from fluxpool_worker.agent.task.holds import Holds

HANDS: Final = 2
JOIN_SECONDS: Final = 60.0
LEAVE_SECONDS: Final = 15.0


@dataclass(slots=True)
class Journal:
    """The work of the devices; one journal for all workers of a run."""

    service_seconds: list[float]
    """The time of each task, by its number, with which its id ends."""
    begun_at: dict[int, float] = field(default_factory=dict)
    """Monotonic seconds, by task; a task that was delivered twice keeps its first."""
    finished: set[int] = field(default_factory=set)
    progressed: asyncio.Event = field(default_factory=asyncio.Event)


class Workers:
    """The members of one group: `async with Workers(...)` waits until they have all partitions."""

    def __init__(
        self,
        connection: KafkaConnection,
        *,
        topic: str,
        group: str,
        partitions: int,
        count: int,
        journal: Journal,
    ) -> None:
        self._partitions = partitions
        self._workers = [
            _Worker(connection, name=f"worker-{number}", topic=topic, group=group, journal=journal)
            for number in range(count)
        ]
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        """Join; raises `TimeoutError` when the group does not become stable."""
        for worker in self._workers:
            self._tasks.append(asyncio.create_task(worker.lane.run()))
            self._tasks += [asyncio.create_task(worker.work()) for _ in range(HANDS)]
        try:
            async with asyncio.timeout(JOIN_SECONDS):
                while not self._settled():  # noqa: ASYNC110 - there is no event to wait for
                    await asyncio.sleep(0.1)
        except BaseException:
            await self._cancel()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        """Leave, and end."""
        for worker in self._workers:
            worker.lane.stop_intake()
        try:
            async with asyncio.timeout(LEAVE_SECONDS):
                await asyncio.gather(*(worker.lane.leave() for worker in self._workers))
        except TimeoutError:
            pass
        await self._cancel()

    def _settled(self) -> bool:
        owned = [worker.assigned() for worker in self._workers]
        return all(owned) and sum(owned) == self._partitions

    async def _cancel(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


async def _unknown_id() -> None:
    """The topic is never replaced here."""


class _Worker(LaneEvents):
    def __init__(self, connection: KafkaConnection, *, name: str, topic: str, group: str, journal: Journal) -> None:
        self._name = name
        self._journal = journal
        self._wake = asyncio.Event()
        self._device = asyncio.Lock()
        self._consumer: AIOKafkaConsumer | None = None
        self.lane = LaneConsumer(
            name=name,
            topic=topic,
            build_consumer=self._builder(connection, group),
            ask_topic_id=_unknown_id,
            events=self,
            holds=Holds(limit_seconds=60),
            revoke_wait_seconds=0,
        )

    def on_record_waiting(self) -> None:
        """Wake the loops that take tasks."""
        self._wake.set()

    def _builder(self, connection: KafkaConnection, group: str) -> Callable[[], AIOKafkaConsumer]:
        def build() -> AIOKafkaConsumer:
            # Like the agent's.
            self._consumer = AIOKafkaConsumer(
                **aiokafka_options(connection, client_id=self._name),
                group_id=group,
                partition_assignment_strategy=[own_sticky_assignor()],
                enable_auto_commit=False,
                auto_offset_reset="earliest",
                isolation_level="read_committed",
                session_timeout_ms=45_000,
                heartbeat_interval_ms=3000,
                rebalance_timeout_ms=30_000,
                max_partition_fetch_bytes=64 * 1024,
                fetch_max_wait_ms=100,
            )
            return self._consumer

        return build

    def assigned(self) -> int:
        """How many partitions it has now."""
        return len(self._consumer.assignment()) if self._consumer is not None and self.lane.is_joined else 0

    async def work(self) -> None:
        """One loop: take a task, write it to the ledger, use the device, commit."""
        while True:
            taken = self.lane.claim_next()
            if taken is None:
                self._wake.clear()
                await self._wake.wait()
                continue
            # Lost in a rebalance: another worker has the task now.
            with contextlib.suppress(PartitionLostError):
                await self._serve(taken)

    async def _serve(self, taken: ClaimedRecord) -> None:
        number = int(json.loads(taken.record.value)["request_id"].removeprefix("task-"))
        entry = LedgerEntry(task=str(number), worker=self._name, started_at=int(time.time()))
        # The ledger is written while the device is busy with the previous task.
        recorded = asyncio.create_task(self.lane.record(taken, entry))
        async with self._device:
            await recorded
            self._journal.begun_at.setdefault(number, time.monotonic())
            await asyncio.sleep(self._journal.service_seconds[number])
        await self.lane.finish(taken)
        self._journal.finished.add(number)
        self._journal.progressed.set()
