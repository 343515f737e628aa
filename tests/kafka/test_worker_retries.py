"""Retry topics on a real broker: a failed task waits there, returns when it is due, and ends after its budget."""

import asyncio
import json
import signal
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import pytest
from aiokafka import TopicPartition
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient, AlterConfigOpType, ConfigEntry, ConfigResource, ResourceType

from fluxpool_contract.kafka.connection import KafkaConnection
from fluxpool_contract.kafka.retries import MAX_JITTER, former_scheduler_group, retry_group, strays_group
from fluxpool_contract.messages.dead_letter import DeadLetter
from fluxpool_contract.messages.headers import Envelope, parse_envelope
from fluxpool_contract.settings.worker import Lane
from fluxpool_transport.kafka.batch_decompression import MAX_BATCH_BYTES
from fluxpool_transport.lag.group_offsets import MemberlessOffsets, StoredOffset
from kit.brokers.kafka import TopicRecord, committed_offsets, create_topics, produce
from kit.waiting import wait_until
from kit.workers.worker import UNHURRIED, WorkerBench, task_body, worker_bench

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(420)]

DELAYS_MS = (300, 900)


@pytest.fixture
async def bench(bootstrap_servers: str, tmp_path: Path) -> AsyncIterator[WorkerBench]:
    delays = tuple(f"{delay_ms}ms" for delay_ms in DELAYS_MS)
    async with worker_bench(
        bootstrap_servers, tmp_path, model="none", stand_in=True, partitions=1, retry_delays=delays
    ) as bench:
        yield bench


async def retries(bench: WorkerBench) -> list[tuple[TopicRecord, Envelope]]:
    """Records of the retry topics, shortest delay first."""
    records = [record for topic in bench.topics.retry for record in await bench.records(topic)]
    return [(record, parse_envelope(record.headers)) for record in records]


async def wait_relayed(bench: WorkerBench, topic: str, count: int) -> None:
    async def relayed() -> bool:
        committed = await committed_offsets(bench.bootstrap_servers, retry_group(bench.group))
        return sum(found.offset for (of, _), found in committed.items() if of == topic) == count

    await wait_until(relayed, deadline_seconds=60, what=f"{count} records of {topic} to be handed on")


async def test_a_failed_task_returns_through_the_first_retry_topic(bench: WorkerBench) -> None:
    worker = await bench.start_ready(environment={"FLUXPOOL_FAULT": "engine-step:raise"})
    body = task_body("stumbles")
    [(_, offset)] = await produce(
        bench.bootstrap_servers, bench.topics.tasks, [(b"key", body)], headers=[("fluxpool-tenant", b"acme")]
    )
    [result] = await bench.wait_results(1)

    assert (result["status"], result["attempt"]) == ("success", 2)
    [(record, envelope)] = await retries(bench)
    assert (record.topic, record.key, record.value) == (bench.topics.retry[0], b"key", body)
    assert (envelope.attempt, envelope.crashes, envelope.tenant) == (2, 0, "acme")
    assert (envelope.origin_topic, envelope.origin_offset) == (bench.topics.tasks, offset)
    assert (envelope.error_class, envelope.error_code) == ("transient", "generation-failed")
    first, second = await bench.records(bench.topics.tasks)
    assert parse_envelope(second.headers).not_before is None
    assert envelope.not_before is not None
    waited_ms = second.timestamp_ms - record.timestamp_ms
    assert waited_ms >= DELAYS_MS[0] - 50, "it returned before it was due"
    assert envelope.not_before.timestamp() * 1000 - record.timestamp_ms <= DELAYS_MS[0] * (1 + MAX_JITTER)
    assert envelope.first_seen is not None
    assert envelope.first_seen.timestamp() * 1000 == pytest.approx(first.timestamp_ms, abs=1)
    await wait_relayed(bench, bench.topics.retry[0], 1)
    await bench.wait_committed({0: 2})
    assert await bench.records(bench.topics.dead_letters) == []
    await wait_until(
        lambda: [line["lane"] for line in worker.events("task_ended")] == ["standard", "standard"],
        deadline_seconds=30,
        what="the log lines of both attempts",
    )


async def test_a_task_that_always_fails_goes_through_the_retry_topics_and_ends_as_a_dead_letter(
    bench: WorkerBench,
) -> None:
    await bench.start_ready()
    hopeless, after = task_body("hopeless", "ends=error"), task_body("after")
    await produce(bench.bootstrap_servers, bench.topics.tasks, [(b"key", hopeless), (None, after)])
    results = await bench.wait_results(2)

    assert [(result["request_id"], result["status"]) for result in results] == [
        ("after", "success"),
        ("hopeless", "failed"),
    ], "a waiting task blocks no other"
    error = results[1]["error"]
    assert (error["code"], error["retryable"], results[1]["attempt"]) == ("generation-failed", True, 3)
    assert [(record.topic, envelope.attempt) for record, envelope in await retries(bench)] == [
        (bench.topics.retry[0], 2),
        (bench.topics.retry[1], 3),
    ]
    [record] = await bench.records(bench.topics.dead_letters)
    dead_letter = DeadLetter.from_headers(record.headers)
    assert (record.key, record.value) == (b"key", hopeless)
    assert (dead_letter.disposition, dead_letter.attempts, dead_letter.crashes) == ("exhausted", 3, 0)
    assert "told to fail" in dead_letter.message
    await bench.wait_committed({0: 4})


async def test_a_task_that_kills_engines_is_retried_alone_and_ends_as_a_crash_loop(
    bench: WorkerBench,
) -> None:
    worker = await bench.start_ready()
    names = [f"innocent-{number}" for number in range(6)]
    bodies = [task_body(name, "seconds=0.2") for name in names]
    bodies.insert(1, task_body("poison", "ends=killed"))
    await produce(bench.bootstrap_servers, bench.topics.tasks, [(None, body) for body in bodies])
    results = {result["request_id"]: result for result in await bench.wait_results(7, deadline_seconds=180)}

    assert {results[name]["status"] for name in names} == {"success"}
    assert {results[name]["attempt"] for name in names} == {1}
    assert results["poison"]["error"]["code"] == "crash-loop"
    [record] = await bench.records(bench.topics.dead_letters)
    dead_letter = DeadLetter.from_headers(record.headers)
    assert (dead_letter.disposition, dead_letter.attempts, dead_letter.crashes) == ("crash-loop", 1, 3)
    poisoned = [envelope.crashes for record, envelope in await retries(bench) if b"poison" in (record.value or b"")]
    assert poisoned == [1, 2]
    assert worker.process.poll() is None


async def test_a_rejected_task_fails_at_once_without_a_dead_letter(bench: WorkerBench) -> None:
    await bench.start_ready()
    await produce(bench.bootstrap_servers, bench.topics.tasks, [(None, task_body("refused", "ends=rejected"))])
    [result] = await bench.wait_results(1)

    assert (result["status"], result["error"]["code"], result["error"]["retryable"]) == ("failed", "rejected", False)
    await bench.wait_committed({0: 1})
    assert await bench.records(bench.topics.dead_letters) == []
    assert await retries(bench) == []


async def test_a_crash_between_relay_and_commit_costs_a_copy_and_no_second_image(bench: WorkerBench) -> None:
    """The retry record is relayed twice; the second copy finds the objects of the first."""
    first = await bench.start_ready(environment={"FLUXPOOL_FAULT": "retry-after-republish:kill"})
    await produce(bench.bootstrap_servers, bench.topics.tasks, [(None, task_body("memory", "ends=full"))])
    await first.wait_exit(120)
    second = await bench.start_ready()

    async def twice() -> bool:
        records = await bench.records(bench.topics.tasks)
        return len([record for record in records if parse_envelope(record.headers).attempt == 2]) == 2

    await wait_until(twice, deadline_seconds=120, what="the record to be relayed twice")
    results = await bench.wait_results(1)
    assert {(result["request_id"], result["error"]["code"]) for result in results} == {("memory", "out-of-memory")}
    records = await bench.records(bench.topics.results)
    assert len({dict(record.headers)["ce_id"] for record in records}) == 1
    assert second.process.poll() is None


async def test_a_record_without_an_origin_is_relayed_to_the_first_lane_of_a_pool(bench: WorkerBench) -> None:
    [(partition, offset)] = await produce(bench.bootstrap_servers, bench.topics.retry[1], [(None, task_body("stray"))])
    await bench.start_ready()
    [result] = await bench.wait_results(1)
    assert result["request_id"] == "stray"
    await wait_relayed(bench, bench.topics.retry[1], 1)
    strays = await committed_offsets(bench.bootstrap_servers, strays_group(bench.topics.retry[1]))
    assert {place: found.offset for place, found in strays.items()} == {(bench.topics.retry[1], partition): offset + 1}


async def test_records_without_an_origin_are_relayed_whichever_of_them_is_due_first(bench: WorkerBench) -> None:
    names = [f"stray-{number}" for number in range(8)]
    await produce(
        bench.bootstrap_servers, bench.topics.retry[0], [(b"one-partition", task_body(name)) for name in names]
    )
    await bench.start_ready()
    results = await bench.wait_results(len(names))
    assert sorted(result["request_id"] for result in results) == names


async def test_a_worker_relays_only_to_lanes_of_its_pool(bench: WorkerBench) -> None:
    topics = bench.topics
    foreign = [topics.results, topics.control, topics.dead_letters, *topics.retry, "no/such/topic"]
    for topic in foreign:
        headers = [("fluxpool-origin-topic", topic.encode()), ("fluxpool-not-before", b"2026-01-01T00:00:00Z")]
        await produce(bench.bootstrap_servers, topics.retry[0], [(None, task_body("forged"))], headers=headers)
    brought = [("fluxpool-origin-topic", topics.control.encode())]
    await bench.start_ready(environment={"FLUXPOOL_FAULT": "engine-step:raise"})
    await produce(bench.bootstrap_servers, topics.tasks, [(None, task_body("brings-one"))], headers=brought)
    [result] = await bench.wait_results(1)

    assert (result["request_id"], result["attempt"]) == ("brings-one", 2)
    await wait_relayed(bench, topics.retry[0], len(foreign) + 1)
    [*_, (_, envelope)] = [item for item in await retries(bench) if b"brings-one" in (item[0].value or b"")]
    assert envelope.origin_topic == topics.tasks
    for topic in (topics.results, topics.control, topics.dead_letters, topics.retry[1], topics.tasks):
        assert [record for record in await bench.records(topic) if b"forged" in (record.value or b"")] == []


async def test_a_retry_record_that_cannot_be_decoded_gets_one_dead_letter_from_one_pool(bench: WorkerBench) -> None:
    topic, other = bench.topics.retry[0], f"{bench.topics.tasks}-of-another-pool"
    await create_topics(bench.bootstrap_servers, {other: 1})
    limits = {"message.max.bytes": 2 * MAX_BATCH_BYTES, "queue.buffering.max.kbytes": 2 * MAX_BATCH_BYTES // 1024}
    producer = Producer({"bootstrap.servers": bench.bootstrap_servers, "compression.type": "zstd", **limits})
    producer.produce(topic, b"0" * (MAX_BATCH_BYTES + 1), partition=1)
    assert await asyncio.to_thread(producer.flush, 30) == 0
    for origin in (bench.topics.tasks, other):
        headers = [("fluxpool-origin-topic", origin.encode())]
        await produce(bench.bootstrap_servers, topic, [(None, task_body(origin))], partition=1, headers=headers)
    lanes = (Lane(name="standard", topic=other),)
    await asyncio.gather(
        bench.start_ready(), bench.start_ready(lanes=lanes, consumer_group=f"{bench.group}-of-another-pool")
    )

    async def answered() -> bool:
        ids = {result["request_id"] for result in await bench.results()}
        return {bench.topics.tasks, other} <= ids

    await wait_until(answered, deadline_seconds=120, what="the tasks behind it")
    await wait_relayed(bench, topic, 3)
    [record] = await bench.records(bench.topics.dead_letters)
    dead_letter = DeadLetter.from_headers(record.headers)
    assert (dead_letter.origin_topic, dead_letter.origin_partition, dead_letter.origin_offset) == (topic, 1, 0)
    assert dead_letter.error_code == "undecodable"


async def test_a_task_that_its_lane_refuses_is_dead_lettered_and_has_a_result(bench: WorkerBench) -> None:
    admin = AdminClient({"bootstrap.servers": bench.bootstrap_servers})
    small = ConfigResource(
        ResourceType.TOPIC,
        bench.topics.tasks_vip,
        incremental_configs=[ConfigEntry("max.message.bytes", "2000", incremental_operation=AlterConfigOpType.SET)],
    )
    await asyncio.wrap_future(admin.incremental_alter_configs([small])[small])
    headers = [("fluxpool-origin-topic", bench.topics.tasks_vip.encode()), ("fluxpool-attempt", b"2")]
    body = task_body("too-large-by-now", "x" * 3000)
    await produce(bench.bootstrap_servers, bench.topics.retry[0], [(None, body)], headers=headers)
    await bench.start_ready()
    [result] = await bench.wait_results(1)

    assert (result["status"], result["error"]["code"]) == ("failed", "refused-by-topic")
    [record] = await bench.records(bench.topics.dead_letters)
    assert record.value == body
    assert bench.topics.tasks_vip in DeadLetter.from_headers(record.headers).message
    await wait_relayed(bench, bench.topics.retry[0], 1)


async def test_a_pool_without_offsets_begins_at_those_of_earlier_versions(bench: WorkerBench) -> None:
    topic, headers = bench.topics.retry[0], [("fluxpool-origin-topic", bench.topics.tasks.encode())]
    bodies = [(None, task_body(name)) for name in ("relayed-before", "not-yet")]
    places = await produce(bench.bootstrap_servers, topic, bodies, partition=0, headers=headers)
    offsets = MemberlessOffsets(
        KafkaConnection(bootstrap_servers=tuple(bench.bootstrap_servers.split(","))),
        client_id="test",
        retention=timedelta(days=1),
    )
    await offsets.commit(former_scheduler_group(topic), {TopicPartition(topic, 0): StoredOffset(places[0][1] + 1)})
    await offsets.close()
    await bench.start_ready()
    await bench.wait_results(1)
    await wait_relayed(bench, topic, 2)
    assert [result["request_id"] for result in await bench.results()] == ["not-yet"]


async def test_retries_are_relayed_once_while_the_relay_moves(
    bench: WorkerBench,
) -> None:
    async def put(*numbers: int) -> None:
        headers = [("fluxpool-origin-topic", bench.topics.tasks_vip.encode())]
        for number in numbers:
            body = [(None, task_body(f"retry-{number}", steps=1))]
            await produce(bench.bootstrap_servers, bench.topics.retry[0], body, partition=number % 2, headers=headers)

    first = await bench.start_ready(**UNHURRIED)
    await put(0, 1)
    second = await bench.start_ready(**UNHURRIED)
    await put(2, 3)
    first.signal(signal.SIGTERM)
    await first.wait_exit(60)
    await put(4, 5)
    results = await bench.wait_results(6)

    assert {result["request_id"] for result in results} == {f"retry-{number}" for number in range(6)}
    await wait_relayed(bench, bench.topics.retry[0], 6)
    assert len(await bench.records(bench.topics.tasks_vip)) == 6, "nothing was relayed twice"
    assert second.events("retry_relay_duty")[-1]["held"] is True


async def test_a_worker_without_its_topics_ends_and_names_them(bench: WorkerBench) -> None:
    topics = bench.topics.model_copy(update={"retry": (*bench.topics.retry, "no-such-topic-15s")})
    worker = bench.start(topics=topics, retry_delays=(*bench.retry_delays, "15s"))

    assert await worker.wait_exit(120) == 1
    [line] = worker.events("worker_failed")
    assert "topics: no-such-topic-15s: not there" in line["error"]
    assert "Traceback" not in worker.log_file.read_text()


async def test_progress_reports_another_attempt(bench: WorkerBench) -> None:
    await bench.start_ready(environment={"FLUXPOOL_FAULT": "engine-step:raise"})
    await produce(bench.bootstrap_servers, bench.topics.tasks, [(None, task_body("again"))])
    await bench.wait_results(1)

    async def told() -> bool:
        events = [json.loads(record.value or b"{}") for record in await bench.records(bench.topics.progress)]
        return ("retrying", 2) in [(event["type"], event["attempt"]) for event in events]

    await wait_until(told, deadline_seconds=30, what="the event of the second attempt")
