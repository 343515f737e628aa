"""A broker outage longer than a session: nothing is restarted, lost or done twice."""

import asyncio
import json
import logging
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from kit.brokers.kafka import KafkaFactory, produce
from kit.brokers.kafka_cluster import ClusterBroker
from kit.waiting import wait_until
from kit.workers.worker import SESSION_TIMEOUT_SECONDS, WorkerBench, task_body, wait_for_step, worker_bench

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(600)]

log = logging.getLogger(__name__)

OUTAGE_SECONDS = SESSION_TIMEOUT_SECONDS + 4
FIRST_RESULT_SECONDS = 30
"""From the return of the broker to the first result."""

DRAIN_GRACE_SECONDS = 5.0
HOLD_LIMIT_SECONDS = 12.0
"""Longer than the tasks in flight take, and past the first check of an unacknowledged record."""


@pytest.fixture
async def bench(kafka_factory: KafkaFactory, tmp_path: Path) -> AsyncIterator[tuple[WorkerBench, ClusterBroker]]:
    """Two workers on a separate broker, with a stand-in for the model."""
    cluster = await kafka_factory()
    async with worker_bench(cluster.bootstrap_servers, tmp_path, model="none", stand_in=True, partitions=4) as bench:
        await asyncio.gather(*(bench.start_ready(drain_grace_seconds=DRAIN_GRACE_SECONDS) for _ in range(2)))
        yield bench, cluster.brokers[0]


async def begin_work(bench: WorkerBench) -> list[str]:
    """Twenty tasks: some done, some being generated, some pending."""
    names = [f"task-{number:02}" for number in range(20)]
    bodies = [(name.encode(), task_body(name, "seconds=1", steps=10)) for name in names]
    await produce(bench.bootstrap_servers, bench.topics.tasks, bodies)
    await bench.wait_results(2)
    await wait_for_step(bench, "task-05")
    return names


async def wait_answered(bench: WorkerBench, names: list[str]) -> list[dict[str, Any]]:
    """Wait until every task has a result; one whose acknowledgement was lost may have two equal records."""

    async def answered() -> list[dict[str, Any]]:
        results = await bench.results()
        return results if {result["request_id"] for result in results} >= set(names) else []

    return await wait_until(answered, deadline_seconds=240, what="a result for every task")


async def assert_nothing_lost_or_doubled(bench: WorkerBench, names: list[str]) -> None:
    pids = [worker.pid for worker in bench.workers]
    results = await wait_answered(bench, names)
    records = await bench.records(bench.topics.results)
    ends = {(json.loads(record.value or b"")["request_id"], dict(record.headers)["ce_id"]) for record in records}
    assert sorted(name for name, _ in ends) == names
    assert {result["status"] for result in results} == {"success"}
    assert {result["attempt"] for result in results} == {1}
    assert sorted(path.parent.name for path in bench.stored_images()) == names
    assert await bench.records(bench.topics.dead_letters) == []

    async def drained() -> bool:
        return sum((await bench.committed()).values()) == len(names)

    await wait_until(drained, deadline_seconds=30, what="every offset to be committed")
    assert [worker.process.poll() for worker in bench.workers] == [None, None]
    assert [worker.pid for worker in bench.workers] == pids
    generations = sum(len(worker.events("job_done")) for worker in bench.workers)
    assert generations == len(names), "an outage costs no generation"


async def wait_for_first_result(bench: WorkerBench, known: int) -> None:
    began = time.monotonic()

    async def another() -> bool:
        return len(await bench.results()) > known

    await wait_until(another, deadline_seconds=FIRST_RESULT_SECONDS, what="the first result after the outage")
    log.info("first result %.1f s after the broker was back", time.monotonic() - began)


async def test_a_restart_of_a_killed_broker_costs_nothing_but_time(
    bench: tuple[WorkerBench, ClusterBroker],
) -> None:
    workers, broker = bench
    names = await begin_work(workers)
    await broker.kill()
    await asyncio.sleep(OUTAGE_SECONDS)  # the outage itself, not a synchronisation
    await broker.start()

    known = len(await workers.results())
    await wait_for_first_result(workers, known)
    await assert_nothing_lost_or_doubled(workers, names)


async def test_a_broker_that_was_stopped_for_a_while_costs_nothing_but_time(
    bench: tuple[WorkerBench, ClusterBroker],
) -> None:
    workers, broker = bench
    names = await begin_work(workers)
    known = len(await workers.results())
    broker.pause()
    await asyncio.sleep(OUTAGE_SECONDS)  # the outage itself, not a synchronisation
    broker.resume()
    await wait_for_first_result(workers, known)
    await assert_nothing_lost_or_doubled(workers, names)


async def test_a_worker_without_a_broker_still_ends_on_sigterm(bench: tuple[WorkerBench, ClusterBroker]) -> None:
    workers, broker = bench
    names = await begin_work(workers)
    await broker.kill()
    for worker in workers.workers:
        worker.signal(signal.SIGTERM)
    codes = [await worker.wait_exit(150) for worker in workers.workers]
    await broker.start()
    stored = len(workers.stored_images())
    await workers.start_ready()
    await wait_answered(workers, names)

    assert codes == [0, 0]
    records = await workers.records(workers.topics.results)
    assert sorted({json.loads(record.value or b"")["request_id"] for record in records}) == names
    assert sorted(path.parent.name for path in workers.stored_images()) == names
    assert stored < len(names)


async def test_a_worker_past_its_hold_limit_ends_and_its_successor_generates_nothing_again(
    kafka_factory: KafkaFactory, tmp_path: Path
) -> None:
    cluster = await kafka_factory()
    async with worker_bench(cluster.bootstrap_servers, tmp_path, model="none", stand_in=True, partitions=4) as workers:
        first = await workers.start_ready(infra_hold_limit_seconds=HOLD_LIMIT_SECONDS)
        names = await begin_work(workers)
        await cluster.brokers[0].kill()
        assert await first.wait_exit(150) != 0
        assert "infra_hold_limit_seconds" in first.events("worker_failed")[0]["error"]
        await cluster.brokers[0].start()
        await workers.start_ready()
        results = await wait_answered(workers, names)
        assert {(result["status"], result["attempt"]) for result in results} == {("success", 1)}
        assert sum(len(worker.events("job_done")) for worker in workers.workers) == len(names)
        assert await workers.records(workers.topics.dead_letters) == []
