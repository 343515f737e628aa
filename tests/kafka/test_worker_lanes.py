"""Lanes on a real broker: their commits when nothing is pending, and when each leaves its group."""

import asyncio
import signal
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest
from aiokafka import AIOKafkaProducer
from confluent_kafka import TopicPartition
from confluent_kafka.admin import AdminClient, OffsetSpec

from kit.brokers.kafka import committed_offsets, produce, unique_name
from kit.waiting import wait_until
from kit.workers.gate import Gate
from kit.workers.worker import UNHURRIED, WorkerBench, WorkerProcess, task_body, wait_for_step, worker_bench

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(420)]

EVENT_SECONDS = 90.0
"""For a rebalance or a commit on a busy machine."""


@pytest.fixture
async def bench(bootstrap_servers: str, tmp_path: Path) -> AsyncIterator[WorkerBench]:
    async with worker_bench(bootstrap_servers, tmp_path, model="none", stand_in=True, retry_delays=("1h",)) as bench:
        yield bench


def partitions_of(worker: WorkerProcess, lane: str) -> list[int]:
    """The partitions of the worker's present assignment in a lane."""
    given = [line["partitions"] for line in worker.events("lane_assigned") if line["lane"] == lane]
    return given[-1] if given else []


async def end_offsets(bench: WorkerBench, topic: str, partitions: int) -> dict[int, int]:
    """High watermarks, to which other tools count the lag of a group."""
    admin = AdminClient({"bootstrap.servers": bench.bootstrap_servers})
    wanted = {TopicPartition(topic, number): OffsetSpec.latest() for number in range(partitions)}
    asked = admin.list_offsets(wanted)
    return {partition.partition: (await asyncio.wrap_future(found)).offset for partition, found in asked.items()}


async def send_in_transaction(
    producer: AIOKafkaProducer, topic: str, bodies: Sequence[bytes], *, partition: int, aborted: bool = False
) -> None:
    await producer.begin_transaction()
    for body in bodies:
        await producer.send_and_wait(topic, body, partition=partition)
    await (producer.abort_transaction() if aborted else producer.commit_transaction())


async def test_markers_behind_the_last_task_are_committed_and_leave_no_lag(bench: WorkerBench) -> None:
    topic = bench.topics.tasks
    worker = await bench.start_ready(**UNHURRIED)
    async with AIOKafkaProducer(
        bootstrap_servers=bench.bootstrap_servers, transactional_id=unique_name("tx")
    ) as producer:
        await send_in_transaction(producer, topic, [task_body("first")], partition=0)
        await bench.wait_committed({0: 2})
        with Gate() as gate:
            await send_in_transaction(producer, topic, [task_body("running", gate.prompt)], partition=0)
            await wait_for_step(bench, "running")
            await send_in_transaction(producer, topic, [task_body("never")], partition=0, aborted=True)
            # No readable record was ever sent here.
            await send_in_transaction(producer, topic, [task_body("never")], partition=1, aborted=True)
            await bench.wait_committed({0: 2, 1: 2})
            assert [result["request_id"] for result in await bench.results()] == ["first"]

    await bench.wait_committed({0: 6, 1: 2}, deadline_seconds=EVENT_SECONDS)
    assert await end_offsets(bench, topic, 2) == await bench.committed()
    assert sorted(result["request_id"] for result in await bench.results()) == ["first", "running"]
    worker.signal(signal.SIGTERM)
    assert await worker.wait_exit(EVENT_SECONDS) == 0
    assert await end_offsets(bench, topic, 2) == await bench.committed()


async def test_a_draining_worker_leaves_lanes_without_a_task_in_flight_at_once(bench: WorkerBench) -> None:
    workers = await asyncio.gather(bench.start_ready(**UNHURRIED), bench.start_ready(**UNHURRIED))
    shares = {"vip": [[], [0]], "standard": [[0], [1]]}
    await wait_until(
        lambda: shares == {lane: sorted(partitions_of(worker, lane) for worker in workers) for lane in shares},
        deadline_seconds=EVENT_SECONDS,
        what="an assignment in each lane",
    )
    busy, other = sorted(workers, key=lambda worker: partitions_of(worker, "vip"), reverse=True)
    [partition] = partitions_of(busy, "standard")
    with Gate() as gate:
        long = task_body("long", gate.prompt)
        [(_, offset)] = await produce(bench.bootstrap_servers, bench.topics.tasks, [(None, long)], partition=partition)
        await wait_for_step(bench, "long")
        busy.signal(signal.SIGTERM)
        await wait_until(
            lambda: partitions_of(other, "vip") == [0],
            deadline_seconds=EVENT_SECONDS,
            what="the idle lane to be reassigned",
        )
        await produce(bench.bootstrap_servers, bench.topics.tasks_vip, [(None, task_body("urgent"))])
        [urgent] = await bench.wait_results(1, deadline_seconds=EVENT_SECONDS)
        assert (urgent["request_id"], urgent["worker"]) == ("urgent", other.name)
        assert partitions_of(other, "standard") != [0, 1], "the lane of the running task is not reassigned"

    assert await busy.wait_exit(EVENT_SECONDS) == 0
    results = {result["request_id"]: result["worker"] for result in await bench.results()}
    assert results == {"long": busy.name, "urgent": other.name}
    await bench.wait_committed({partition: offset + 1})
    assert (await committed_offsets(bench.bootstrap_servers, f"{bench.group}-vip"))[
        bench.topics.tasks_vip, 0
    ].offset == 1
    await wait_until(
        lambda: partitions_of(other, "standard") == [0, 1],
        deadline_seconds=EVENT_SECONDS,
        what="the other partition to be reassigned",
    )
    assert sum(len(worker.events("job_done")) for worker in workers) == 2
