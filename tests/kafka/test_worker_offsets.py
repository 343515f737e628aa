"""Offsets committed by another client: by a reset, or before the pool used its group."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from confluent_kafka import ConsumerGroupTopicPartitions, TopicPartition
from confluent_kafka.admin import AdminClient

from fluxpool_contract.kafka.connection import KafkaConnection
from fluxpool_contract.kafka.ledger import committed_model_family, is_ledger
from fluxpool_transport.lag.lag_reader import LagReader
from kit.brokers.kafka import committed_offsets, produce
from kit.waiting import wait_until
from kit.workers.worker import WorkerBench, task_body, worker_bench

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(420)]

KEPT_SECONDS = 60.0


@pytest.fixture
async def bench(bootstrap_servers: str, tmp_path: Path) -> AsyncIterator[WorkerBench]:
    async with worker_bench(bootstrap_servers, tmp_path, model="none", stand_in=True, partitions=1) as bench:
        yield bench


async def commit_as_another_client(bench: WorkerBench, offset: int) -> None:
    """Commit as `kafka-consumer-groups --reset-offsets` does."""
    admin = AdminClient({"bootstrap.servers": bench.bootstrap_servers})
    reset = ConsumerGroupTopicPartitions(bench.group, [TopicPartition(bench.topics.tasks, 0, offset)])
    for answer in admin.alter_consumer_group_offsets([reset]).values():
        await asyncio.wrap_future(answer)


async def is_foreign(bench: WorkerBench) -> bool:
    async with LagReader(KafkaConnection(bootstrap_servers=(bench.bootstrap_servers,))) as reader:
        [partition] = (await reader.read({bench.group: bench.topics.tasks}))[bench.group].readable_partitions
    return partition.is_foreign_commit


async def test_a_worker_commits_the_unchanged_offset_of_another_client_again(bench: WorkerBench) -> None:
    bodies = [(None, task_body(f"done-elsewhere-{number}")) for number in range(2)]
    await produce(bench.bootstrap_servers, bench.topics.tasks, bodies)
    await commit_as_another_client(bench, 2)
    assert await is_foreign(bench)
    worker = await bench.start_ready()
    place = (bench.topics.tasks, 0)

    async def kept() -> bool:
        return is_ledger((await committed_offsets(bench.bootstrap_servers, bench.group))[place].metadata)

    await wait_until(kept, deadline_seconds=KEPT_SECONDS, what="the worker's own commit")
    committed = (await committed_offsets(bench.bootstrap_servers, bench.group))[place]
    assert (committed.offset, committed_model_family(committed.metadata)) == (2, "tiny")
    assert not await is_foreign(bench)
    assert (worker.events("job_done"), await bench.results()) == ([], [])


async def test_a_worker_begins_where_an_offset_was_reset_to(bench: WorkerBench) -> None:
    bodies = [(None, task_body(f"task-{number}")) for number in range(3)]
    await produce(bench.bootstrap_servers, bench.topics.tasks, bodies)
    await commit_as_another_client(bench, 2)
    await bench.start_ready()
    [result] = await bench.wait_results(1)
    assert result["request_id"] == "task-2"
    await bench.wait_committed({0: 3}, deadline_seconds=KEPT_SECONDS)
