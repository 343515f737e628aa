"""A network between workers and broker that drops packets, resets connections or is slow."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from fluxpool_contract.kafka.connection import KafkaConnection
from kit.brokers.kafka import running_kafka
from kit.brokers.kafka_cluster import KafkaCluster
from kit.brokers.kafka_settings import ListenerSpec
from kit.faults.chaos_invariants import MOST_BEGUN, PromiseWatch
from kit.faults.chaos_kafka import ProxiedKafka, proxied_listener, proxies_of
from kit.faults.tcp_proxy import TcpProxy
from kit.waiting import wait_until
from kit.workers.worker import (
    SESSION_TIMEOUT_SECONDS,
    UNHURRIED,
    UNHURRIED_REBALANCE,
    WorkerBench,
    WorkerProcess,
    wait_for_step,
    worker_bench,
)

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(420)]

SILENCE_SECONDS = SESSION_TIMEOUT_SECONDS * 1.5
"""Long enough for all sessions to expire."""
EVENT_SECONDS = 90.0


@pytest.fixture(scope="module")
def listeners() -> list[ListenerSpec]:
    """Two listeners of the broker, so that each worker can be cut off separately."""
    return [proxied_listener(name="LEFT"), proxied_listener(name="RIGHT")]


@pytest.fixture(scope="module")
def own_kafka(
    kafka_libs: Path, tmp_path_factory: pytest.TempPathFactory, listeners: list[ListenerSpec]
) -> Iterator[KafkaCluster]:
    with running_kafka(tmp_path_factory.mktemp("network"), libs=kafka_libs, listeners=listeners) as cluster:
        yield cluster


class Network:
    """Two workers, each behind its own proxy, and observers without one."""

    def __init__(self, bench: WorkerBench, left: ProxiedKafka, right: ProxiedKafka) -> None:
        self.bench = bench
        self.ways = (left, right)
        self.workers: list[WorkerProcess] = []

    @property
    def lines(self) -> list[TcpProxy]:
        return [line for way in self.ways for line in way.lines]

    async def start_workers(self, **settings: Any) -> None:
        self.workers = [
            self.bench.start(kafka=KafkaConnection(bootstrap_servers=(way.bootstrap_servers,)), **settings)
            for way in self.ways
        ]
        for worker in self.workers:
            await worker.wait_ready()


@asynccontextmanager
async def two_workers(
    own_kafka: KafkaCluster, listeners: list[ListenerSpec], folder: Path, **settings: Any
) -> AsyncIterator[Network]:
    async with (
        proxies_of(own_kafka, listeners[0]) as left,
        proxies_of(own_kafka, listeners[1]) as right,
        worker_bench(own_kafka.bootstrap_servers, folder, model="none", stand_in=True, partitions=4) as bench,
    ):
        network = Network(bench, left, right)
        await network.start_workers(**settings)
        yield network


@pytest.fixture
async def network(own_kafka: KafkaCluster, listeners: list[ListenerSpec], tmp_path: Path) -> AsyncIterator[Network]:
    """Workers whose sessions expire in an outage."""
    async with two_workers(own_kafka, listeners, tmp_path, **UNHURRIED_REBALANCE) as network:
        yield network


@pytest.fixture
async def steady_network(
    own_kafka: KafkaCluster, listeners: list[ListenerSpec], tmp_path: Path
) -> AsyncIterator[Network]:
    """Workers that remain members."""
    async with two_workers(own_kafka, listeners, tmp_path, **UNHURRIED) as network:
        yield network


@asynccontextmanager
async def work_under_way(
    bench: WorkerBench, *, tasks: int = 16, prompt: str = "seconds=1"
) -> AsyncIterator[PromiseWatch]:
    """Some tasks done, some being generated, some pending."""
    async with PromiseWatch(bench) as watch:
        await watch.submit(tasks, prompt, steps=10)
        await bench.wait_results(2)
        yield watch


async def test_workers_continue_after_a_network_outage_and_generate_nothing_twice(network: Network) -> None:
    async with work_under_way(network.bench) as watch:
        await asyncio.gather(*(line.black_hole() for line in network.lines))
        await asyncio.sleep(SILENCE_SECONDS)  # the outage itself, not a synchronisation
        known = len(await network.bench.results())
        await asyncio.gather(*(line.pass_all() for line in network.lines))
        await network.bench.wait_results(known + 1)
        await watch.assert_kept()
    assert [worker.process.poll() for worker in network.workers] == [None, None]
    assert [worker.events("crash_counted") for worker in network.workers] == [[], []]


async def test_after_a_network_outage_an_idle_worker_counts_no_crash(network: Network) -> None:
    async with PromiseWatch(network.bench) as watch:
        # Longer than the outage; the other worker has no task.
        await watch.submit(1, f"seconds={SILENCE_SECONDS * 2:g}", partition=0, steps=10)
        await wait_for_step(network.bench, "task-000")
        await asyncio.gather(*(line.black_hole() for line in network.lines))
        await asyncio.sleep(SILENCE_SECONDS)  # the outage itself, not a synchronisation
        assigned = [len(worker.events("lane_assigned")) for worker in network.workers]
        await asyncio.gather(*(line.pass_all() for line in network.lines))
        await wait_until(
            lambda: all(
                len(worker.events("lane_assigned")) > known
                for worker, known in zip(network.workers, assigned, strict=True)
            ),
            deadline_seconds=EVENT_SECONDS,
            what="both to be members again",
        )
        # The first worker to join has the partition and may begin with it before the other has joined.
        await watch.assert_kept(repeated_generations=1)
    assert [worker.events("crash_counted") for worker in network.workers] == [[], []]


async def test_a_worker_that_is_cut_off_loses_its_tasks_and_its_offsets_are_never_lowered(
    network: Network,
) -> None:
    cut_off, other = network.workers
    tasks = 8
    async with work_under_way(network.bench, tasks=tasks, prompt="seconds=3") as watch:
        assigned = len(other.events("lane_assigned"))
        await network.lines[0].black_hole()
        await wait_until(
            lambda: any(len(line["partitions"]) == 4 for line in other.events("lane_assigned")[assigned:]),
            deadline_seconds=EVENT_SECONDS,
            what="the other worker to have all partitions",
        )
        # One more while the first is cut off, unless the other has done everything by now.
        known = len(await network.bench.results())
        await network.bench.wait_results(min(known + 1, tasks))
        await network.lines[0].pass_all()
        await watch.assert_kept(repeated_generations=MOST_BEGUN)
    assert [worker.process.poll() for worker in (cut_off, other)] == [None, None]


async def test_repeated_connection_resets_cost_nothing(steady_network: Network) -> None:
    async with work_under_way(steady_network.bench) as watch:
        for _ in range(6):
            for line in steady_network.lines:
                line.reset_connections()
            seen = [line.accepted for line in steady_network.lines]
            await wait_until(
                lambda: all(line.accepted > before for line, before in zip(steady_network.lines, seen, strict=True)),  # noqa: B023 - called at once
                deadline_seconds=EVENT_SECONDS,
                what="all workers to connect again",
            )
        await watch.assert_kept()


async def test_a_broker_that_refuses_connections_for_a_while_costs_nothing(steady_network: Network) -> None:
    async with work_under_way(steady_network.bench) as watch:
        await asyncio.gather(*(line.refuse() for line in steady_network.lines))
        await asyncio.sleep(SESSION_TIMEOUT_SECONDS / 2)  # within the session: no member is fenced
        await asyncio.gather(*(line.pass_all() for line in steady_network.lines))
        await watch.assert_kept()


async def test_a_slow_network_is_only_slow(steady_network: Network) -> None:
    await asyncio.gather(*(line.delay(0.15) for line in steady_network.lines))
    async with work_under_way(steady_network.bench) as watch:
        await watch.assert_kept()
