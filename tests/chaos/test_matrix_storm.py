"""Faults of all kinds in sequence under one load violate no invariant."""

import asyncio
import logging
import random
import signal
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from fluxpool_contract.kafka.connection import KafkaConnection
from kit.brokers.kafka_cluster import KafkaCluster
from kit.brokers.kafka_settings import ListenerSpec
from kit.faults.chaos_invariants import MOST_BEGUN, PromiseWatch
from kit.faults.chaos_kafka import ProxiedKafka, proxies_of
from kit.workers.worker import SESSION_TIMEOUT_SECONDS, WorkerBench, WorkerProcess, worker_bench

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(600)]

log = logging.getLogger(__name__)

WORKERS = 2
TASKS_PER_FAULT = 6
EXIT_SECONDS = 120.0


@dataclass(slots=True)
class Storm:
    """Workers behind one proxy to one broker, and the faults."""

    bench: WorkerBench
    kafka: ProxiedKafka
    chance: random.Random
    crew: list[WorkerProcess] = field(default_factory=list)

    async def start_worker(self) -> None:
        """One more worker."""
        connection = KafkaConnection(bootstrap_servers=(self.kafka.bootstrap_servers,))
        self.crew.append(await self.bench.start_ready(kafka=connection))

    async def reset_connections(self) -> int:
        """Reset every connection."""
        for line in self.kafka.lines:
            line.reset_connections()
        return 0

    async def drop_traffic(self) -> int:
        """Drop all traffic for a while, shorter than the session."""
        await self.kafka.on_every_line(lambda line: line.black_hole())
        await asyncio.sleep(SESSION_TIMEOUT_SECONDS / 3)  # the outage itself, not a synchronisation
        await self.kafka.on_every_line(lambda line: line.pass_all())
        return 0

    async def kill(self) -> int:
        """Kill a worker and start another one."""
        victim = self._choose()
        victim.signal(signal.SIGKILL)
        await victim.wait_exit(EXIT_SECONDS)
        await self.start_worker()
        # The task it was generating and the prepared one after it, and those that the two rebalances moved.
        return 2 + 2 * (WORKERS - 1)

    async def replace(self) -> int:
        """Terminate a worker and start another one."""
        victim = self._choose()
        victim.signal(signal.SIGTERM)
        assert await victim.wait_exit(EXIT_SECONDS) == 0
        await self.start_worker()
        return 2 * (WORKERS - 1)

    async def sleep(self) -> int:
        """Stop a worker for longer than its session, then continue it."""
        victim = self._choose()
        victim.signal(signal.SIGSTOP)
        await asyncio.sleep(SESSION_TIMEOUT_SECONDS * 1.5)  # the fault itself, not a synchronisation
        victim.signal(signal.SIGCONT)
        self.crew.append(victim)
        return MOST_BEGUN + 2 * (WORKERS - 1)

    def _choose(self) -> WorkerProcess:
        return self.crew.pop(self.chance.randrange(len(self.crew)))


@pytest.mark.parametrize("seed", [1, 2])
async def test_a_sequence_of_faults_violates_no_invariant(
    own_kafka: KafkaCluster, listener: ListenerSpec, tmp_path: Path, seed: int
) -> None:
    async with (
        proxies_of(own_kafka, listener) as kafka,
        worker_bench(own_kafka.bootstrap_servers, tmp_path, model="none", stand_in=True, partitions=4) as bench,
    ):
        storm = Storm(bench, kafka, random.Random(seed))  # noqa: S311 - the same storm in every run
        await asyncio.gather(*(storm.start_worker() for _ in range(WORKERS)))
        faults: list[Callable[[], Awaitable[int]]] = [
            storm.reset_connections,
            storm.drop_traffic,
            storm.kill,
            storm.replace,
            storm.sleep,
        ]
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
