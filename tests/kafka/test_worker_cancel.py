"""Canceled and expired tasks on the real broker: before, during and after their generation."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from fluxpool_contract.messages.control import CancelCommand
from fluxpool_contract.messages.headers import format_time
from kit.kafka import produce
from kit.waiting import wait_until
from kit.worker import WorkerBench, task_body, wait_for_step, worker_bench

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(420)]


@pytest.fixture
async def bench(bootstrap_servers: str, tmp_path: Path) -> AsyncIterator[WorkerBench]:
    async with worker_bench(
        bootstrap_servers, tmp_path, model="none", stand_in=True, partitions=1, retry_delays=("60s",)
    ) as bench:
        yield bench


async def cancel(bench: WorkerBench, request_id: str) -> None:
    command = CancelCommand(request_id=request_id, requested_by="ops", reason="wrong prompt", at=datetime.now(UTC))
    value = command.model_dump_json().encode()
    await produce(bench.bootstrap_servers, bench.topics.control, [(request_id.encode(), value)])


def deadline_in(seconds: float) -> list[tuple[str, bytes]]:
    return [("fluxpool-deadline", format_time(datetime.now(UTC) + timedelta(seconds=seconds)).encode())]


async def results_by_id(bench: WorkerBench, count: int) -> dict[str, dict[str, Any]]:
    return {result["request_id"]: result for result in await bench.wait_results(count)}


async def test_a_task_is_canceled_in_the_middle_of_its_generation(bench: WorkerBench) -> None:
    worker = await bench.start_ready()
    bodies = [task_body("stopped", "seconds=120", steps=100), task_body("after")]
    await produce(bench.bootstrap_servers, bench.topics.tasks, [(None, body) for body in bodies])
    await wait_for_step(bench, "stopped")
    await cancel(bench, "stopped")
    results = await results_by_id(bench, 2)

    stopped = results["stopped"]
    assert (stopped["status"], stopped["image_url"]) == ("canceled", None)
    assert (stopped["error"]["code"], stopped["error"]["retryable"]) == ("canceled", False)
    assert stopped["error"]["message"] == "canceled by ops: wrong prompt"
    assert results["after"]["status"] == "success"
    await bench.wait_committed({0: 2})
    assert await bench.records(bench.topics.dead_letters) == []
    assert len(worker.events("job_done")) == 1


async def test_a_task_canceled_before_it_is_consumed_is_never_begun(bench: WorkerBench) -> None:
    await cancel(bench, "early")
    worker = await bench.start_ready()
    await cancel(bench, "waits")
    # The topic has one partition: it was read once a command sent later takes effect.
    bodies = [task_body("running", "seconds=120", steps=100), task_body("waits"), task_body("early")]
    await produce(bench.bootstrap_servers, bench.topics.tasks, [(None, body) for body in bodies])
    await wait_for_step(bench, "running")
    await cancel(bench, "running")
    results = await results_by_id(bench, 3)

    assert {result["status"] for result in results.values()} == {"canceled"}
    assert worker.events("job_done") == []
    assert bench.stored_images() == []
    await bench.wait_committed({0: 3})


async def test_a_task_past_its_deadline_is_not_begun_and_one_that_becomes_late_is_stopped(bench: WorkerBench) -> None:
    worker = await bench.start_ready()
    for name, prompt, seconds in (("past", "", -1.0), ("late", "seconds=300", 10.0), ("in-time", "", 600.0)):
        body = task_body(name, prompt or "a lighthouse", steps=100 if name == "late" else 2)
        headers = deadline_in(seconds)
        await produce(bench.bootstrap_servers, bench.topics.tasks, [(None, body)], headers=headers)
    results = await results_by_id(bench, 3)

    assert {name: result["status"] for name, result in results.items()} == {
        "past": "expired",
        "late": "expired",
        "in-time": "success",
    }
    assert results["past"]["error"]["code"] == "deadline-exceeded"
    assert "has passed" in results["late"]["error"]["message"]
    assert len(worker.events("job_done")) == 1
    await bench.wait_committed({0: 3})
    assert await bench.records(bench.topics.dead_letters) == []


async def test_a_task_that_would_be_late_by_the_estimate_for_its_size_is_not_begun(bench: WorkerBench) -> None:
    worker = await bench.start_ready()
    await produce(bench.bootstrap_servers, bench.topics.tasks, [(None, task_body("measured", "seconds=2", steps=2))])
    await bench.wait_results(1)
    body = task_body("hopeless", steps=100)
    await produce(bench.bootstrap_servers, bench.topics.tasks, [(None, body)], headers=deadline_in(80))
    results = await results_by_id(bench, 2)

    assert results["hopeless"]["status"] == "expired"
    assert "would have passed: the images take" in results["hopeless"]["error"]["message"]
    assert len(worker.events("job_done")) == 1


async def test_a_failed_task_whose_deadline_is_nearer_than_its_retry_expires_at_once(bench: WorkerBench) -> None:
    await bench.start_ready()
    body = task_body("fails", "ends=error")
    await produce(bench.bootstrap_servers, bench.topics.tasks, [(None, body)], headers=deadline_in(50))
    [result] = await bench.wait_results(1)

    assert (result["status"], result["attempt"]) == ("expired", 1)
    assert "told to fail" in result["error"]["message"]
    assert await bench.records(bench.topics.retry[0]) == []


async def test_without_the_control_topic_tasks_are_still_done(bench: WorkerBench) -> None:
    topics = bench.topics.model_copy(update={"control": "no-such-control"})
    worker = await bench.start_ready(topics=topics)
    await produce(bench.bootstrap_servers, bench.topics.tasks, [(None, task_body("unaffected"))])
    [result] = await bench.wait_results(1)
    assert result["status"] == "success"
    await wait_until(
        lambda: worker.events("control_topic_away"), deadline_seconds=60, what="the worker to report the topic"
    )
