"""Faults of all kinds, one after the other, under one load: what holds for each alone must hold for their sum."""

import asyncio
import logging
import random
import signal
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from fluxpool_contract.kafka.connection import KafkaConnection
from kit.chaos_invariants import PromiseWatch
from kit.chaos_kafka import ProxiedKafka, proxies_of
from kit.kafka_cluster import KafkaCluster
from kit.kafka_settings import ListenerSpec
from kit.worker import SESSION_TIMEOUT_SECONDS, WorkerBench, WorkerProcess, worker_bench

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(600)]

log = logging.getLogger(__name__)

WORKERS = 2
TASKS_PER_FAULT = 6
EXIT_SECONDS = 120.0


@dataclass(slots=True)
class Storm:
    """Workers behind one line to one broker, and what can happen to them."""

    bench: WorkerBench
    kafka: ProxiedKafka
    chance: random.Random
    crew: list[WorkerProcess] = field(default_factory=list)

    async def hire(self) -> None:
        """One more worker."""
        connection = KafkaConnection(bootstrap_servers=(self.kafka.bootstrap_servers,))
        self.crew.append(await self.bench.start_ready(kafka=connection))

    async def tear(self) -> int:
        """Every connection is reset."""
        for line in self.kafka.lines:
            line.reset_connections()
        return 0

    async def silence(self) -> int:
        """Nothing comes through for a while, but nobody is thrown out."""
        await self.kafka.on_every_line(lambda line: line.black_hole())
        await asyncio.sleep(SESSION_TIMEOUT_SECONDS / 3)  # the outage itself, not a synchronisation
        await self.kafka.on_every_line(lambda line: line.pass_all())
        return 0

    async def kill(self) -> int:
        """A worker dies and another takes its place."""
        victim = self._draw()
        victim.signal(signal.SIGKILL)
        await victim.wait_exit(EXIT_SECONDS)
        await self.hire()
        # What it drew and what stood ready behind it, and what the two rebalances moved away from the others.
        return 2 + 2 * (WORKERS - 1)

    async def replace(self) -> int:
        """A worker is asked to go and another takes its place."""
        victim = self._draw()
        victim.signal(signal.SIGTERM)
        assert await victim.wait_exit(EXIT_SECONDS) == 0
        await self.hire()
        return 2 * (WORKERS - 1)

    async def sleep(self) -> int:
        """A worker is stopped for longer than its session, and goes on."""
        victim = self._draw()
        victim.signal(signal.SIGSTOP)
        await asyncio.sleep(SESSION_TIMEOUT_SECONDS * 1.5)  # the fault itself, not a synchronisation
        victim.signal(signal.SIGCONT)
        self.crew.append(victim)
        return 2 + 2 * (WORKERS - 1)

    def _draw(self) -> WorkerProcess:
        return self.crew.pop(self.chance.randrange(len(self.crew)))


@pytest.mark.parametrize("seed", [1, 2])
async def test_a_storm_of_faults_breaks_no_promise(
    own_kafka: KafkaCluster, listener: ListenerSpec, tmp_path: Path, seed: int
) -> None:
    async with (
        proxies_of(own_kafka, listener) as kafka,
        worker_bench(own_kafka.bootstrap_servers, tmp_path, model="none", stand_in=True, partitions=4) as bench,
    ):
        storm = Storm(bench, kafka, random.Random(seed))  # noqa: S311 - the same storm in every run
        await asyncio.gather(*(storm.hire() for _ in range(WORKERS)))
        faults: list[Callable[[], Awaitable[int]]] = [storm.tear, storm.silence, storm.kill, storm.replace, storm.sleep]
        storm.chance.shuffle(faults)
        repeated_generations = 0
        async with PromiseWatch(bench) as watch:
            for fault in faults:
                await watch.submit(TASKS_PER_FAULT, "seconds=1", steps=10)
                await watch.wait_another_end()
                log.info("fault: %s", fault.__name__)
                repeated_generations += await fault()
                await watch.wait_another_end()
            await watch.assert_kept(repeated_generations=repeated_generations)
        assert [worker.process.poll() for worker in storm.crew] == [None] * WORKERS
