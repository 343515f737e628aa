"""The death of one of three brokers costs the workers latency and nothing else."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from confluent_kafka.admin import AdminClient, AlterConfigOpType, ConfigEntry, ConfigResource, ResourceType

from kit.brokers.kafka import running_kafka
from kit.brokers.kafka_cluster import ClusterBroker, KafkaCluster
from kit.faults.chaos_invariants import PromiseWatch
from kit.faults.chaos_kafka import coordinator_of, leader_of
from kit.waiting import wait_until
from kit.workers.generation_gate import PARTITIONS, each_worker_generating
from kit.workers.worker import UNHURRIED, WorkerBench, worker_bench

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(420)]

EVENT_SECONDS = 90.0
TASKS = 16


@pytest.fixture(scope="module")
def three_brokers(kafka_libs: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[KafkaCluster]:
    with running_kafka(tmp_path_factory.mktemp("three-brokers"), libs=kafka_libs, brokers=3) as cluster:
        yield cluster


@pytest.fixture
async def bench(three_brokers: KafkaCluster, tmp_path: Path) -> AsyncIterator[WorkerBench]:
    """Two workers on three running brokers."""
    await three_brokers.start()
    await three_brokers.wait_ready()
    async with worker_bench(
        three_brokers.bootstrap_servers, tmp_path, model="none", stand_in=True, partitions=PARTITIONS
    ) as bench:
        await asyncio.gather(bench.start_ready(**UNHURRIED), bench.start_ready(**UNHURRIED))
        yield bench


@asynccontextmanager
async def work_under_way(bench: WorkerBench) -> AsyncIterator[PromiseWatch]:
    async with PromiseWatch(bench) as watch:
        await watch.submit(TASKS, "seconds=1", steps=10)
        await bench.wait_results(2)
        yield watch
    assert [worker.process.poll() for worker in bench.workers] == [None, None]


async def leader_after(cluster: KafkaCluster, topic: str, former: ClusterBroker) -> ClusterBroker:
    """The broker that leads partition 0 after the death of the former leader."""

    async def found() -> ClusterBroker | None:
        leader = await leader_of(cluster, topic, 0)
        return leader if leader is not former else None

    broker = await wait_until(found, deadline_seconds=EVENT_SECONDS, what=f"another leader of {topic}")
    assert broker is not None
    return broker


async def test_the_death_of_the_groups_coordinator_costs_nothing(
    three_brokers: KafkaCluster, bench: WorkerBench
) -> None:
    async with work_under_way(bench) as watch:
        coordinator = await coordinator_of(three_brokers, bench.group)
        await coordinator.kill()
        await watch.assert_kept()
        assert coordinator.pid is None, "the tasks were done without it"
        assert await coordinator_of(three_brokers, bench.group) is not coordinator


async def test_the_death_of_a_leader_of_tasks_and_of_results_costs_nothing(
    three_brokers: KafkaCluster, bench: WorkerBench
) -> None:
    async with work_under_way(bench) as watch:
        for topic in (bench.topics.tasks, bench.topics.results):
            await watch.submit(TASKS, "seconds=1", steps=10)
            leader = await leader_of(three_brokers, topic, 0)
            await leader.kill()
            await leader_after(three_brokers, topic, leader)
            await watch.wait_another_end()
            await leader.start()
            await three_brokers.wait_ready()
        await watch.assert_kept()


async def test_results_without_enough_in_sync_replicas_are_retried_and_not_committed(
    three_brokers: KafkaCluster, bench: WorkerBench
) -> None:
    admin = AdminClient({"bootstrap.servers": three_brokers.bootstrap_servers})
    all_three = ConfigResource(
        ResourceType.TOPIC,
        bench.topics.results,
        incremental_configs=[ConfigEntry("min.insync.replicas", "3", incremental_operation=AlterConfigOpType.SET)],
    )
    await asyncio.wrap_future(admin.incremental_alter_configs([all_three])[all_three])
    async with PromiseWatch(bench) as watch:
        async with each_worker_generating(bench, watch, tasks=TASKS):
            leader = await leader_of(three_brokers, bench.topics.results, 0)
            missing = next(broker for broker in three_brokers.brokers if broker is not leader)
            await missing.kill()
        await wait_until(
            lambda: all(worker.events("outage_started") for worker in bench.workers),
            deadline_seconds=EVENT_SECONDS,
            what="both workers to hold",
        )
        await missing.start()
        await three_brokers.wait_ready()
        await watch.assert_kept()
    assert [worker.process.poll() for worker in bench.workers] == [None, None]
