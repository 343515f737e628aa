"""The faults of workers and brokers in a soak, and their order.

Owns the workers and the kills of brokers. A fault ends when the affected process has been replaced, as by a
Deployment, so that successive faults do not leave an empty cluster. Counts no tasks.
"""

import asyncio
import os
import random
import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Final, assert_never

from kit.brokers.kafka_cluster import KafkaCluster
from kit.waiting import wait_until
from kit.workers.worker import WorkerBench, WorkerProcess, is_engine
from soak_parts.engine import JOURNAL_VARIABLE

EXIT_SECONDS: Final = 120.0
BROKER_SECONDS: Final = 120.0
ENGINE_SECONDS: Final = 120.0
OUTAGE_SECONDS: Final = (1.0, 5.0)
"""How long a killed broker is down before it is restarted."""


class Fault(StrEnum):
    """What can happen."""

    KILL_AGENT = "kill-agent"
    """SIGKILL; another worker is started."""
    KILL_ENGINE = "kill-engine"
    """SIGKILL; the agent starts another one."""
    KILL_BROKER = "kill-broker"
    """SIGKILL; it is restarted with its data."""
    JOIN = "join"
    """One more worker."""
    LEAVE = "leave"
    """SIGTERM; one worker fewer."""


GENERATION_KILLS: Final = frozenset({Fault.KILL_AGENT, Fault.KILL_ENGINE})
"""Faults that may cost a generation; the death of a broker may not."""


def endless_faults(kinds: Sequence[Fault], chance: random.Random) -> Iterator[Fault]:
    """The faults in order: every kind once in each round, shuffled for every round.

    So each kind happens early, and as many workers join as leave.
    """
    while True:
        yield from chance.sample(kinds, len(kinds))


@dataclass(slots=True)
class Scene:
    """The workers and brokers."""

    bench: WorkerBench
    kafka: KafkaCluster
    journal: Path
    chance: random.Random
    crew: list[WorkerProcess] = field(default_factory=list)
    unasked_exits: int = 0
    """Workers that ended by themselves, or not with 0 after SIGTERM."""

    async def start_worker(self) -> None:
        """Start another worker and wait until it is ready."""
        self.crew.append(await self.bench.start_ready(environment={JOURNAL_VARIABLE: str(self.journal)}))

    async def replace_ended(self) -> None:
        """Replace workers that ended by themselves."""
        ended = [worker for worker in self.crew if worker.process.poll() is not None]
        self.unasked_exits += len(ended)
        self.crew = [worker for worker in self.crew if worker not in ended]
        for _ in ended:
            await self.start_worker()

    async def happen(self, fault: Fault) -> str:
        """Cause the fault and wait until it ends; return the affected process.

        Raises `AssertionError` when a worker does not start or end in time, `KafkaError` when a broker stays down.
        """
        match fault:
            case Fault.KILL_AGENT:
                return await self._kill_agent()
            case Fault.KILL_ENGINE:
                return await self._kill_engine()
            case Fault.KILL_BROKER:
                return await self._kill_broker()
            case Fault.JOIN:
                await self.start_worker()
                return self.crew[-1].name
            case Fault.LEAVE:
                return await self._leave()
            case _:
                assert_never(fault)

    async def _kill_agent(self) -> str:
        victim = self._choose()
        self.crew.remove(victim)
        victim.signal(signal.SIGKILL)
        await victim.wait_exit(EXIT_SECONDS)
        await self.start_worker()
        return victim.name

    async def _kill_engine(self) -> str:
        victim = self._choose()
        engine = victim.engine_pid()
        if is_engine(engine):
            os.kill(engine, signal.SIGKILL)
        await wait_until(
            lambda: victim.engine_pid() != engine or victim.process.poll() is not None,
            deadline_seconds=ENGINE_SECONDS,
            what=f"another engine of {victim.name}",
        )
        await self.replace_ended()
        if victim in self.crew:
            await victim.wait_ready()
        return victim.name

    async def _kill_broker(self) -> str:
        broker = self.chance.choice(self.kafka.brokers)
        away_seconds = self.chance.uniform(*OUTAGE_SECONDS)
        await broker.kill()
        await asyncio.sleep(away_seconds)  # the outage itself
        await broker.start(deadline_seconds=BROKER_SECONDS)
        await self.kafka.wait_ready(deadline_seconds=BROKER_SECONDS)
        return broker.name

    async def _leave(self) -> str:
        victim = self._choose()
        self.crew.remove(victim)
        victim.signal(signal.SIGTERM)
        self.unasked_exits += await victim.wait_exit(EXIT_SECONDS) != 0
        return victim.name

    def _choose(self) -> WorkerProcess:
        return self.chance.choice(self.crew)
