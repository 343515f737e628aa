"""Retry topics on the real broker: a failed task waits there, comes back when it is due, and ends after its budget."""

import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from fluxpool_contract.dead_letter import DeadLetter
from fluxpool_contract.headers import Envelope, parse_envelope
from fluxpool_contract.retries import MAX_JITTER, scheduler_group
from kit.kafka import TopicRecord, committed_offsets, produce
from kit.waiting import wait_until
from kit.worker import WorkerBench, task_body, worker_bench

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
    """What lies on the retry topics, shortest delay first."""
    records = [record for topic in bench.topics.retry for record in await bench.records(topic)]
    return [(record, parse_envelope(record.headers)) for record in records]


async def wait_handed_on(bench: WorkerBench, topic: str, count: int) -> None:
    async def handed_on() -> bool:
        committed = await committed_offsets(bench.bootstrap_servers, scheduler_group(topic))
        return sum(found.offset for found in committed.values()) == count

    await wait_until(handed_on, deadline_seconds=60, what=f"{count} records of {topic} to be handed on")


async def test_a_failed_task_comes_back_by_way_of_the_first_retry_topic(bench: WorkerBench) -> None:
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
    assert waited_ms >= DELAYS_MS[0] - 50, "it came back before it was due"
    assert envelope.not_before.timestamp() * 1000 - record.timestamp_ms <= DELAYS_MS[0] * (1 + MAX_JITTER)
    assert envelope.first_seen is not None
    assert envelope.first_seen.timestamp() * 1000 == pytest.approx(first.timestamp_ms, abs=1)
    await wait_handed_on(bench, bench.topics.retry[0], 1)
    await bench.wait_committed({0: 2})
    assert await bench.records(bench.topics.dead_letters) == []
    assert [line["lane"] for line in worker.events("task_ended")] == ["standard", "standard"]


async def test_a_task_that_always_fails_climbs_the_retry_topics_and_ends_as_a_dead_letter(bench: WorkerBench) -> None:
    await bench.start_ready()
    hopeless, after = task_body("hopeless", "ends=error"), task_body("after")
    await produce(bench.bootstrap_servers, bench.topics.tasks, [(b"key", hopeless), (None, after)])
    results = await bench.wait_results(2)

    assert [(result["request_id"], result["status"]) for result in results] == [
        ("after", "success"),
        ("hopeless", "failed"),
    ], "a task that waits holds nobody up"
    error = results[1]["error"]
    assert (error["code"], error["retryable"], results[1]["attempt"]) == ("generation-failed", True, 3)
    assert [(record.topic, envelope.attempt) for record, envelope in await retries(bench)] == [
        (bench.topics.retry[0], 2),
        (bench.topics.retry[1], 3),
    ]
    [record] = await bench.records(bench.topics.dead_letters)
    letter = DeadLetter.from_headers(record.headers)
    assert (record.key, record.value) == (b"key", hopeless)
    assert (letter.disposition, letter.attempts, letter.crashes) == ("exhausted", 3, 0)
    assert "told to fail" in letter.message
    await bench.wait_committed({0: 4})


async def test_a_task_that_kills_engines_crosses_the_retry_topics_alone_and_ends_as_a_crash_loop(
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
    letter = DeadLetter.from_headers(record.headers)
    assert (letter.disposition, letter.attempts, letter.crashes) == ("crash-loop", 1, 3)
    poisoned = [envelope.crashes for record, envelope in await retries(bench) if b"poison" in (record.value or b"")]
    assert poisoned == [1, 2]
    assert worker.process.poll() is None


async def test_a_rejected_task_fails_at_once_and_is_nothing_for_people_to_look_at(bench: WorkerBench) -> None:
    await bench.start_ready()
    await produce(bench.bootstrap_servers, bench.topics.tasks, [(None, task_body("refused", "ends=rejected"))])
    [result] = await bench.wait_results(1)

    assert (result["status"], result["error"]["code"], result["error"]["retryable"]) == ("failed", "rejected", False)
    await bench.wait_committed({0: 1})
    assert await bench.records(bench.topics.dead_letters) == []
    assert await retries(bench) == []


async def test_a_crash_between_handing_on_and_committing_costs_a_copy_and_no_second_image(bench: WorkerBench) -> None:
    """The retry record is handed on twice; the second copy finds what the first one left."""
    first = await bench.start_ready(environment={"FLUXPOOL_FAULT": "retry-after-republish:kill"})
    await produce(bench.bootstrap_servers, bench.topics.tasks, [(None, task_body("memory", "ends=full"))])
    await first.wait_exit(120)
    second = await bench.start_ready()

    async def twice() -> bool:
        records = await bench.records(bench.topics.tasks)
        return len([record for record in records if parse_envelope(record.headers).attempt == 2]) == 2

    await wait_until(twice, deadline_seconds=120, what="the record to be handed on twice")
    results = await bench.wait_results(1)
    assert {(result["request_id"], result["error"]["code"]) for result in results} == {("memory", "out-of-memory")}
    records = await bench.records(bench.topics.results)
    assert len({dict(record.headers)["ce_id"] for record in records}) == 1
    assert second.process.poll() is None


async def test_a_record_that_does_not_say_where_it_belongs_goes_to_the_first_lane(bench: WorkerBench) -> None:
    await produce(bench.bootstrap_servers, bench.topics.retry[1], [(None, task_body("stray"))])
    looping = [("fluxpool-origin-topic", bench.topics.retry[0].encode())]
    await produce(bench.bootstrap_servers, bench.topics.retry[0], [(None, task_body("looping"))], headers=looping)
    await bench.start_ready()
    results = await bench.wait_results(2)
    assert {result["request_id"] for result in results} == {"stray", "looping"}
    for topic in bench.topics.retry:
        await wait_handed_on(bench, topic, 1)


async def test_a_task_whose_home_is_gone_is_dead_lettered_and_answered(bench: WorkerBench) -> None:
    homeless = [("fluxpool-origin-topic", b"no/such/topic"), ("fluxpool-attempt", b"2")]
    body = task_body("homeless")
    await produce(bench.bootstrap_servers, bench.topics.retry[0], [(None, body)], headers=homeless)
    await bench.start_ready()
    [result] = await bench.wait_results(1)

    assert (result["status"], result["error"]["code"]) == ("failed", "refused-by-topic")
    [record] = await bench.records(bench.topics.dead_letters)
    assert record.value == body
    assert "no/such/topic" in DeadLetter.from_headers(record.headers).message
    await wait_handed_on(bench, bench.topics.retry[0], 1)


async def test_a_worker_without_its_topics_ends_and_names_them(bench: WorkerBench) -> None:
    topics = bench.topics.model_copy(update={"retry": (*bench.topics.retry, "no-such-topic-15s")})
    worker = bench.start(topics=topics, retry_delays=(*bench.retry_delays, "15s"))

    assert await worker.wait_exit(120) == 1
    [line] = worker.events("worker_failed")
    assert "topics: no-such-topic-15s: not there" in line["error"]
    assert "Traceback" not in worker.log_file.read_text()


async def test_progress_tells_of_another_attempt(bench: WorkerBench) -> None:
    await bench.start_ready(environment={"FLUXPOOL_FAULT": "engine-step:raise"})
    await produce(bench.bootstrap_servers, bench.topics.tasks, [(None, task_body("again"))])
    await bench.wait_results(1)

    async def told() -> bool:
        events = [json.loads(record.value or b"{}") for record in await bench.records(bench.topics.progress)]
        return ("retrying", 2) in [(event["type"], event["attempt"]) for event in events]

    await wait_until(told, deadline_seconds=30, what="the event of the second attempt")
