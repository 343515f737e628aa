"""`PromiseWatch` detects each violation."""

import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition

from kit.brokers.kafka import produce
from kit.faults.chaos_invariants import PromiseWatch
from kit.waiting import wait_until
from kit.workers.worker import WorkerBench, worker_bench

pytestmark = [pytest.mark.kafka, pytest.mark.on_change]

DEADLINE_SECONDS = 60.0


@pytest.fixture
async def bench(bootstrap_servers: str, tmp_path: Path) -> AsyncIterator[WorkerBench]:
    """Topics without workers: the test acts as a faulty one."""
    async with worker_bench(bootstrap_servers, tmp_path, model="none", partitions=1) as bench:
        yield bench


async def commit(bench: WorkerBench, *offsets: int) -> None:
    consumer = AIOKafkaConsumer(
        bootstrap_servers=bench.bootstrap_servers, group_id=bench.group, enable_auto_commit=False
    )
    await consumer.start()
    partition = TopicPartition(bench.topics.tasks, 0)
    try:
        consumer.assign([partition])
        for offset in offsets:
            await consumer.commit({partition: offset})
    finally:
        await consumer.stop()


async def answer(bench: WorkerBench, name: str, *, event_id: bytes = b"1") -> None:
    value = json.dumps({"request_id": name, "status": "success", "attempt": 1}).encode()
    await produce(bench.bootstrap_servers, bench.topics.results, [(None, value)], headers=[("ce_id", event_id)])


async def wait_observed(watch: PromiseWatch) -> None:
    """Wait for an observation that begins after this call."""
    looks = watch.looks
    await wait_until(lambda: watch.looks >= looks + 2, deadline_seconds=DEADLINE_SECONDS, what="two looks")


async def test_an_offset_past_an_unfinished_task_is_detected(bench: WorkerBench) -> None:
    async with PromiseWatch(bench) as watch:
        await watch.submit(2, "x")
        await answer(bench, "task-000")
        await commit(bench, 1)
        await wait_observed(watch)
        assert watch.broken == []
        await commit(bench, 2)
        await wait_observed(watch)
    assert watch.broken == ["offset 2 of partition 0 passed task-001 at 1, which has no result"]


async def test_a_lowered_offset_is_detected(bench: WorkerBench) -> None:
    async with PromiseWatch(bench) as watch:
        await watch.submit(1, "x")
        await answer(bench, "task-000")
        await commit(bench, 1)
        await wait_observed(watch)
        await commit(bench, 0)
        await wait_observed(watch)
    assert watch.broken == ["the offset of partition 0 went back from 1 to 0"]


async def test_a_second_event_id_a_missing_image_and_a_missing_generation_are_detected(bench: WorkerBench) -> None:
    stored: list[str] = []
    async with PromiseWatch(bench, stored_ids=lambda: stored) as watch:
        await watch.submit(1, "x")
        await answer(bench, "task-000")
        await commit(bench, 1)
        with pytest.raises(AssertionError, match="stored images"):
            await watch.assert_kept()
        stored.append("task-000")
        with pytest.raises(AssertionError, match="generated 0 times, not 1 to 1"):
            await watch.assert_kept()
        await answer(bench, "task-000", event_id=b"2")
        with pytest.raises(AssertionError, match="different answers"):
            await watch.assert_kept()
