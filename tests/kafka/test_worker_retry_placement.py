"""Tasks from a retry topic are sent to the worker with the least work, for any keys."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiokafka.partitioner import DefaultPartitioner

from fluxpool_contract.settings.worker import Lane
from kit.brokers.kafka import TopicRecord, create_topics, produce
from kit.waiting import PATIENCE, wait_until
from kit.workers.worker import UNHURRIED, WorkerBench, WorkerProcess, task_body, wait_for_step, worker_bench

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(420)]

PARTITIONS = 4
DELAY = f"{6 * PATIENCE:g}s"
"""Much longer than the interval of readings, so that also a slow machine has read what was sent before it."""
ENDLESS = "seconds=600"


@pytest.fixture
async def bench(bootstrap_servers: str, tmp_path: Path) -> AsyncIterator[WorkerBench]:
    async with worker_bench(
        bootstrap_servers, tmp_path, model="none", stand_in=True, partitions=PARTITIONS, retry_delays=(DELAY,)
    ) as bench:
        yield bench


def key_of(partition: int) -> bytes:
    """A key that the usual producers send to that partition."""
    numbers = list(range(PARTITIONS))
    keys = (b"key-%d" % number for number in range(1000))
    return next(key for key in keys if DefaultPartitioner()(key, numbers, numbers) == partition)


async def owned(*workers: WorkerProcess) -> list[list[int]]:
    """The standard lane's partitions of each worker, once all are assigned."""

    def dealt() -> list[list[int]]:
        assigned = [
            [line["partitions"] for line in worker.events("lane_assigned") if line["lane"] == "standard"]
            for worker in workers
        ]
        found = [every[-1] for every in assigned if every]
        dealt_out = sorted(partition for partitions in found for partition in partitions)
        return found if all(found) and dealt_out == list(range(PARTITIONS)) else []

    return await wait_until(dealt, deadline_seconds=60, what="an assignment for every worker")


async def retry(bench: WorkerBench, *names: str, key: bytes, topic: str, prompt: str = "a hill") -> None:
    """Put tasks on the retry topic, as the second attempts of tasks of `topic`."""
    headers = [("fluxpool-origin-topic", topic.encode()), ("fluxpool-attempt", b"2")]
    bodies = [(key, task_body(name, prompt, steps=60)) for name in names]
    await produce(bench.bootstrap_servers, bench.topics.retry[0], bodies, partition=0, headers=headers)


async def load(bench: WorkerBench, name: str, count: int, *, partition: int) -> None:
    """Send this many endless tasks to a partition; the first is being generated, the others are pending."""
    first, *others = [(None, task_body(f"{name}-{number}", ENDLESS, steps=100)) for number in range(count)]
    await produce(bench.bootstrap_servers, bench.topics.tasks, [first], partition=partition)
    await wait_for_step(bench, f"{name}-0")
    await produce(bench.bootstrap_servers, bench.topics.tasks, others, partition=partition)


async def relayed(bench: WorkerBench, topic: str, *names: str) -> list[TopicRecord]:
    """The tasks of those names on their topic, once all were relayed."""

    async def back() -> list[TopicRecord]:
        records = [
            record
            for record in await bench.records(topic)
            if any(f'"{name}"'.encode() in (record.value or b"") for name in names)
        ]
        await asyncio.sleep(0 if len(records) >= len(names) else 0.2)
        return records if len(records) >= len(names) else []

    return await wait_until(back, deadline_seconds=90, what=f"{names} to be back on {topic}")


async def test_a_task_returns_to_the_emptiest_partition_of_the_worker_with_least_work(bench: WorkerBench) -> None:
    workers = await asyncio.gather(bench.start_ready(**UNHURRIED), bench.start_ready(**UNHURRIED))
    busy, idle = await owned(*workers)
    tasks, key = bench.topics.tasks, key_of(busy[0])
    await load(bench, "load", 8, partition=busy[0])

    await retry(bench, "first", "second", key=key, topic=tasks)
    records = await relayed(bench, tasks, "first", "second")
    assert {record.partition for record in records} <= set(idle)
    assert {record.key for record in records} == {key}
    results = await bench.wait_results(2)
    assert {result["worker"] for result in results} == {workers[1].name}, "they did not wait for the others"

    # It has work on one of its partitions now, and still less than the other worker.
    await load(bench, "more", 5, partition=idle[0])
    await retry(bench, "third", "fourth", key=key, topic=tasks, prompt=ENDLESS)
    records = await relayed(bench, tasks, "third", "fourth")
    assert [record.partition for record in records] == [idle[1]] * 2


async def test_tasks_of_another_pool_are_not_relayed(bench: WorkerBench) -> None:
    other = f"{bench.topics.tasks}-of-another-pool"
    await create_topics(bench.bootstrap_servers, {other: PARTITIONS})
    await bench.start_ready()
    await retry(bench, "foreign", key=key_of(0), topic=other)
    await retry(bench, "own", key=key_of(0), topic=bench.topics.tasks)
    await relayed(bench, bench.topics.tasks, "own")
    assert await bench.records(other) == []

    lanes = (Lane(name="standard", topic=other),)
    await bench.start_ready(lanes=lanes, consumer_group=f"{bench.group}-of-another-pool")
    await relayed(bench, other, "foreign")
    assert len(await bench.wait_results(2)) == 2
    assert len(await bench.records(bench.topics.tasks)) == 1
