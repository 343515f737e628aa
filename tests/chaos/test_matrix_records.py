"""Records that are sent twice, rejected by the broker, or deleted before they were consumed."""

import asyncio
import json
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from confluent_kafka import Producer, TopicPartition
from confluent_kafka.admin import AdminClient, AlterConfigOpType, ConfigEntry, ConfigResource, ResourceType

from fluxpool_contract.messages.dead_letter import DeadLetter
from fluxpool_contract.messages.headers import parse_envelope
from kit.brokers.kafka import committed_offsets, produce
from kit.waiting import wait_until
from kit.workers.worker import WorkerBench, task_body, worker_bench

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(420)]

EVENT_SECONDS = 120.0


@pytest.fixture
async def bench(bootstrap_servers: str, tmp_path: Path) -> AsyncIterator[WorkerBench]:
    async with worker_bench(
        bootstrap_servers, tmp_path, model="none", stand_in=True, partitions=1, retry_delays=("300ms", "900ms")
    ) as bench:
        yield bench


async def distinct_answers(bench: WorkerBench) -> set[tuple[bytes | None, bytes | None]]:
    return {(dict(record.headers)["ce_id"], record.value) for record in await bench.records(bench.topics.results)}


async def wait_all_committed(bench: WorkerBench) -> None:
    """Wait until everything on the task topic is committed, including retries."""

    async def at_the_end() -> bool:
        records = await bench.records(bench.topics.tasks)
        return await bench.committed() == {0: records[-1].offset + 1}

    await wait_until(at_the_end, deadline_seconds=EVENT_SECONDS, what="the tasks' last offset to be committed")


async def test_a_crash_between_a_dead_letter_and_the_commit_costs_a_second_dead_letter_and_no_second_result(
    bench: WorkerBench,
) -> None:
    first = await bench.start_ready(environment={"FLUXPOOL_FAULT": "agent-after-publish:kill"})
    body = task_body("hopeless", steps=0)
    [(_, offset)] = await produce(bench.bootstrap_servers, bench.topics.tasks, [(b"key", body)], partition=0)
    assert await first.wait_exit(EVENT_SECONDS) == -signal.SIGKILL
    assert (await bench.committed()).get(0, offset) == offset
    await bench.start_ready()
    await bench.wait_committed({0: offset + 1})

    dead_letters = await bench.records(bench.topics.dead_letters)
    origins = {DeadLetter.from_headers(dead_letter.headers).origin_offset for dead_letter in dead_letters}
    assert (len(dead_letters), origins) == (2, {offset})
    assert {(dead_letter.key, dead_letter.value) for dead_letter in dead_letters} == {(b"key", body)}
    [(_, value)] = await distinct_answers(bench)
    assert json.loads(value or b"")["status"] == "failed"


async def test_a_crash_between_a_retry_record_and_the_commit_costs_a_second_record_and_no_second_result(
    bench: WorkerBench,
) -> None:
    first = await bench.start_ready(environment={"FLUXPOOL_FAULT": "agent-after-retry:kill"})
    body = task_body("stumbles", "ends=error")
    [(_, offset)] = await produce(bench.bootstrap_servers, bench.topics.tasks, [(None, body)], partition=0)
    assert await first.wait_exit(EVENT_SECONDS) == -signal.SIGKILL
    assert (await bench.committed()).get(0, offset) == offset
    await bench.start_ready()
    await bench.wait_results(1, deadline_seconds=EVENT_SECONDS)
    await wait_all_committed(bench)

    again = await bench.records(bench.topics.retry[0])
    assert len(again) == 2
    assert {parse_envelope(record.headers).attempt for record in again} == {2}
    [(_, value)] = await distinct_answers(bench)
    assert json.loads(value or b"")["status"] == "failed"
    assert bench.stored_images() == []


async def test_a_dead_letter_that_the_broker_rejects_is_stored_and_later_records_are_processed(
    bench: WorkerBench,
) -> None:
    admin = AdminClient({"bootstrap.servers": bench.bootstrap_servers})
    small = ConfigResource(
        ResourceType.TOPIC,
        bench.topics.dead_letters,
        incremental_configs=[ConfigEntry("max.message.bytes", "5000", incremental_operation=AlterConfigOpType.SET)],
    )
    await asyncio.wrap_future(admin.incremental_alter_configs([small])[small])
    worker = await bench.start_ready()
    large = b'{"request_id": "large", "prompt": "' + b"x" * 20_000 + b'", "steps": 0}'
    little = task_body("little", steps=0)
    sent = await produce(
        bench.bootstrap_servers,
        bench.topics.tasks,
        [(None, large), (None, little), (None, task_body("sound"))],
        partition=0,
    )
    await bench.wait_committed({0: sent[-1][1] + 1}, deadline_seconds=EVENT_SECONDS)

    dead_letters = {
        DeadLetter.from_headers(record.headers).origin_offset: record
        for record in await bench.records(bench.topics.dead_letters)
    }
    assert set(dead_letters) == {sent[0][1], sent[1][1]}
    key = DeadLetter.from_headers(dead_letters[sent[0][1]].headers).object
    assert key is not None
    assert (bench.images / key).read_bytes() == large
    assert dead_letters[sent[1][1]].value == little
    refused = await wait_until(lambda: worker.events("record_refused"), deadline_seconds=30, what="the refusal's line")
    assert len(refused) == 1
    statuses = {result["request_id"]: result["status"] for result in await bench.results()}
    assert statuses == {"large": "failed", "little": "failed", "sound": "success"}


async def test_a_record_with_neither_key_nor_value_is_dead_lettered_and_later_records_are_processed(
    bench: WorkerBench,
) -> None:
    producer = Producer({"bootstrap.servers": bench.bootstrap_servers})
    producer.produce(bench.topics.tasks, partition=0)
    assert await asyncio.to_thread(producer.flush, EVENT_SECONDS) == 0
    [(_, offset)] = await produce(
        bench.bootstrap_servers, bench.topics.tasks, [(None, task_body("sound"))], partition=0
    )
    await bench.start_ready()
    await bench.wait_committed({0: offset + 1}, deadline_seconds=EVENT_SECONDS)

    [dead_letter] = await bench.records(bench.topics.dead_letters)
    assert DeadLetter.from_headers(dead_letter.headers).error_code == "undecodable"
    statuses = {result["request_id"]: result["status"] for result in await bench.results()}
    assert statuses == {None: "failed", "sound": "success"}


async def test_a_worker_continues_with_the_remaining_records_when_some_were_deleted(bench: WorkerBench) -> None:
    bodies = [(None, task_body(f"task-{number}")) for number in range(5)]
    await produce(bench.bootstrap_servers, bench.topics.tasks, bodies[:1], partition=0)
    first = await bench.start_ready()
    await bench.wait_committed({0: 1})
    first.signal(signal.SIGTERM)
    assert await first.wait_exit(EVENT_SECONDS) == 0
    await produce(bench.bootstrap_servers, bench.topics.tasks, bodies[1:], partition=0)
    admin = AdminClient({"bootstrap.servers": bench.bootstrap_servers})
    place = TopicPartition(bench.topics.tasks, 0, 3)
    await asyncio.wrap_future(admin.delete_records([place])[place])
    assert (await committed_offsets(bench.bootstrap_servers, bench.group))[bench.topics.tasks, 0].offset == 1
    await bench.start_ready()
    await bench.wait_committed({0: 5}, deadline_seconds=EVENT_SECONDS)
    assert sorted(result["request_id"] for result in await bench.results()) == ["task-0", "task-3", "task-4"]
