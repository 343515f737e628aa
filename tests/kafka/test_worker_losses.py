"""Records deleted before they are done are logged once; a recreated topic is processed in full."""

import asyncio
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from aiokafka import AIOKafkaConsumer
from aiokafka import TopicPartition as AiokafkaPartition
from aiokafka.structs import OffsetAndMetadata
from confluent_kafka import TopicPartition
from confluent_kafka.admin import AdminClient

from fluxpool_contract.kafka.ledger import encode_ledger
from fluxpool_worker.agent.consumer.lane import HEADS_PER_PARTITION
from kit.brokers.kafka import create_topics, produce
from kit.waiting import wait_until
from kit.workers.gate import Gate
from kit.workers.worker import WorkerBench, WorkerProcess, task_body, wait_for_step, worker_bench

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(420)]

NOTICED_SECONDS = 90.0
"""A deleted topic is noticed within the maximum age of the metadata, at most a minute, even when no request fails."""
NEW = 12
"""Records of the new topic: more than a worker takes of the former one before it checks again."""


@pytest.fixture
async def bench(bootstrap_servers: str, tmp_path: Path) -> AsyncIterator[WorkerBench]:
    async with worker_bench(bootstrap_servers, tmp_path, model="none", stand_in=True, partitions=1) as bench:
        yield bench


async def submit(bench: WorkerBench, name: str, count: int, **fields: Any) -> None:
    bodies = [(None, task_body(f"{name}-{number}", **fields)) for number in range(count)]
    await produce(bench.bootstrap_servers, bench.topics.tasks, bodies)


async def delete_before(bench: WorkerBench, offset: int) -> None:
    admin = AdminClient({"bootstrap.servers": bench.bootstrap_servers})
    for deleted in admin.delete_records([TopicPartition(bench.topics.tasks, 0, offset)]).values():
        await asyncio.wrap_future(deleted)


async def delete_topic(bench: WorkerBench) -> None:
    admin = AdminClient({"bootstrap.servers": bench.bootstrap_servers})
    for deleted in admin.delete_topics([bench.topics.tasks], operation_timeout=10).values():
        await asyncio.wrap_future(deleted)
    await wait_until(
        lambda: bench.topics.tasks not in admin.list_topics(timeout=10).topics,
        deadline_seconds=30,
        what="the topic to be gone",
    )


async def make_topic_again(bench: WorkerBench) -> None:
    await delete_topic(bench)
    await create_topics(bench.bootstrap_servers, {bench.topics.tasks: 1})


async def answered(bench: WorkerBench, names: set[str]) -> list[str]:
    """Wait until these tasks have results; return the request id of every result at that time."""

    async def all_of_them() -> list[str]:
        found = [result["request_id"] for result in await bench.results()]
        return found if names <= set(found) else []

    return await wait_until(all_of_them, deadline_seconds=NOTICED_SECONDS, what=f"answers to {sorted(names)}")


async def logged_losses(worker: WorkerProcess) -> list[tuple[int, int]]:
    await wait_until(lambda: worker.events("records_lost"), deadline_seconds=60, what="the loss to be logged")
    return [(lost["first"], lost["end"]) for lost in worker.events("records_lost")]


async def counted_losses(worker: WorkerProcess) -> str:
    async with httpx.AsyncClient(base_url=worker.health_url, timeout=60) as client:
        metrics = (await client.get("/metrics")).text
    [line] = [line for line in metrics.splitlines() if line.startswith('fluxpool_records_lost_total{lane="standard"}')]
    return line.rpartition(" ")[2]


async def test_deleted_records_are_logged_and_counted_and_later_ones_are_done(bench: WorkerBench) -> None:
    first = await bench.start_ready()
    await submit(bench, "done", 2)
    await bench.wait_committed({0: 2})
    first.signal(signal.SIGTERM)
    assert await first.wait_exit(90) == 0
    assert first.events("records_lost") == []
    await submit(bench, "later", 4)
    await delete_before(bench, 5)

    second = await bench.start_ready()
    assert await logged_losses(second) == [(2, 5)]
    results = await bench.wait_results(3)
    await bench.wait_committed({0: 6})
    assert await counted_losses(second) == "3.0"
    assert {result["request_id"] for result in results} == {"done-0", "done-1", "later-3"}


async def test_records_deleted_before_a_running_worker_are_logged_once_and_the_rest_is_done(
    bench: WorkerBench,
) -> None:
    worker = await bench.start_ready()
    with Gate() as gate:
        await submit(bench, "long", 1, prompt=gate.prompt)
        await wait_for_step(bench, "long-0")
        count = HEADS_PER_PARTITION + 14
        await submit(bench, "waiting", count)
        await delete_before(bench, count - 2)
    await bench.wait_committed({0: count + 1})
    [(first, end)] = await logged_losses(worker)
    assert 1 < first < end == count - 2
    assert await counted_losses(worker) == f"{float(end - first)}"
    results = await bench.results()
    done = [0, *range(1, first), *range(count - 2, count + 1)]
    assert sorted(result["request_id"] for result in results) == sorted(
        "long-0" if offset == 0 else f"waiting-{offset - 1}" for offset in done
    )


async def test_all_records_deleted_before_a_running_worker_are_logged_and_leave_no_lag(bench: WorkerBench) -> None:
    worker = await bench.start_ready()
    with Gate() as gate:
        await submit(bench, "long", 1, prompt=gate.prompt)
        await wait_for_step(bench, "long-0")
        end_offset = HEADS_PER_PARTITION + 11
        await submit(bench, "waiting", end_offset - 1)
        await delete_before(bench, end_offset)
    await bench.wait_committed({0: end_offset})
    [(first, end)] = await logged_losses(worker)
    assert first < end == end_offset
    assert await counted_losses(worker) == f"{float(end - first)}"


async def ends_with_the_remedy(worker: WorkerProcess) -> None:
    """Wait until a worker has noticed that its topic was recreated."""
    assert await worker.wait_exit(NOTICED_SECONDS) == 1
    [failure] = worker.events("worker_failed")
    assert "its next start begins with the first record" in failure["error"]


async def test_an_idle_worker_ends_when_its_topic_is_recreated_and_the_next_processes_all_of_it(
    bench: WorkerBench,
) -> None:
    worker = await bench.start_ready(module="kit.workers.eager_worker")
    await submit(bench, "old", 3)
    await bench.wait_committed({0: 3})
    await make_topic_again(bench)
    await submit(bench, "new", 2)
    await ends_with_the_remedy(worker)
    second = await bench.start_ready()
    # Tasks done before the worker noticed get their result again without another generation.
    results = await answered(bench, {"new-0", "new-1"})
    await bench.wait_committed({0: 2})
    assert set(results) == {"new-0", "new-1", "old-0", "old-1", "old-2"}
    assert len(worker.events("job_done")) + len(second.events("job_done")) == 5
    assert worker.events("records_lost") == second.events("records_lost") == []


async def start_over_full_heads(bench: WorkerBench) -> WorkerProcess:
    """A worker with tasks of a topic that was since recreated and has more records than the former one."""
    worker = await bench.start_ready()
    with Gate() as gate:
        await submit(bench, "old", 1, prompt=gate.prompt)
        await wait_for_step(bench, "old-0")
        await submit(bench, "waiting", 6)
        await make_topic_again(bench)
        await submit(bench, "new", NEW)
    return worker


async def test_a_longer_recreated_topic_is_processed_from_its_beginning(bench: WorkerBench) -> None:
    worker = await start_over_full_heads(bench)
    await ends_with_the_remedy(worker)
    await bench.start_ready()
    await answered(bench, {f"new-{number}" for number in range(NEW)})
    await bench.wait_committed({0: NEW})


async def test_a_recreated_topic_of_a_killed_worker_is_processed_from_its_beginning_by_the_next(
    bench: WorkerBench,
) -> None:
    first = await start_over_full_heads(bench)

    async def has_committed_what_it_did_of_the_former_topic() -> bool:
        return first.process.poll() is not None or (await bench.committed()).get(0, 0) >= 2

    await wait_until(
        has_committed_what_it_did_of_the_former_topic, deadline_seconds=60, what="a commit by the topic's name"
    )
    first.signal(signal.SIGKILL)
    await bench.start_ready()
    await answered(bench, {f"new-{number}" for number in range(NEW)})
    await bench.wait_committed({0: NEW})


async def test_a_commit_for_a_former_topic_is_not_used_for_the_new_one(bench: WorkerBench) -> None:
    """Forced order: a worker of the former topic commits after the new one was created."""
    await submit(bench, "new", 5)
    former = encode_ledger({}, topic_id="former-topic-id")
    consumer = AIOKafkaConsumer(bootstrap_servers=bench.bootstrap_servers, group_id=bench.group)
    partition = AiokafkaPartition(bench.topics.tasks, 0)
    consumer.assign([partition])
    await consumer.start()
    try:
        await consumer.commit({partition: OffsetAndMetadata(3, former)})
    finally:
        await consumer.stop()
    worker = await bench.start_ready()
    results = await bench.wait_results(5)
    await bench.wait_committed({0: 5})
    assert sorted(result["request_id"] for result in results) == [f"new-{number}" for number in range(5)]
    assert [line["offset"] for line in worker.events("former_topic_commit_ignored")] == [3]


async def test_a_worker_logs_a_missing_topic_and_ends_when_it_is_recreated(bench: WorkerBench) -> None:
    worker = await bench.start_ready(module="kit.workers.eager_worker")
    await submit(bench, "old", 1)
    await bench.wait_committed({0: 1})
    await delete_topic(bench)
    await wait_until(
        lambda: worker.events("topic_missing"), deadline_seconds=NOTICED_SECONDS, what="the topic to be missed"
    )
    assert worker.process.poll() is None
    await create_topics(bench.bootstrap_servers, {bench.topics.tasks: 1})
    await submit(bench, "new", 2)
    await ends_with_the_remedy(worker)
    await bench.start_ready()
    await answered(bench, {"new-0", "new-1"})
    await bench.wait_committed({0: 2})
