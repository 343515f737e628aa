"""Canceled and expired tasks on the real broker: before, during and after their generation."""

from collections.abc import AsyncIterator, Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import pytest_asyncio

from fluxpool_contract.messages.control import CancelCommand
from fluxpool_contract.messages.headers import format_time
from kit.brokers.kafka import produce
from kit.waiting import wait_until
from kit.workers.worker import UNHURRIED, WorkerBench, WorkerProcess, task_body, wait_for_step, worker_bench

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(420), pytest.mark.asyncio(loop_scope="module")]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def bench(bootstrap_servers: str, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[WorkerBench]:
    """One worker for all tasks of these tests."""
    async with worker_bench(
        bootstrap_servers,
        tmp_path_factory.mktemp("bench"),
        model="none",
        stand_in=True,
        partitions=1,
        retry_delays=("60s",),
    ) as bench:
        # Before any worker reads the topic.
        await cancel(bench, "early")
        await bench.start_ready(**UNHURRIED)
        yield bench


@pytest.fixture
def worker(bench: WorkerBench) -> WorkerProcess:
    return bench.workers[0]


async def send(bench: WorkerBench, *bodies: bytes, headers: Iterable[tuple[str, bytes]] = ()) -> int:
    """Send tasks; returns the offset behind them."""
    records = [(None, body) for body in bodies]
    places = await produce(bench.bootstrap_servers, bench.topics.tasks, records, headers=headers)
    return places[-1][1] + 1


async def cancel(bench: WorkerBench, request_id: str) -> None:
    command = CancelCommand(request_id=request_id, requested_by="ops", reason="wrong prompt", at=datetime.now(UTC))
    value = command.model_dump_json().encode()
    await produce(bench.bootstrap_servers, bench.topics.control, [(request_id.encode(), value)])


def deadline_in(seconds: float) -> list[tuple[str, bytes]]:
    return [("fluxpool-deadline", format_time(datetime.now(UTC) + timedelta(seconds=seconds)).encode())]


async def test_a_task_is_canceled_in_the_middle_of_its_generation(bench: WorkerBench, worker: WorkerProcess) -> None:
    generated = len(worker.events("job_done"))
    end = await send(bench, task_body("stopped", "seconds=120", steps=100), task_body("after"))
    await wait_for_step(bench, "stopped")
    await cancel(bench, "stopped")
    results = await bench.wait_answers("stopped", "after")

    stopped = results["stopped"]
    assert (stopped["status"], stopped["image_url"]) == ("canceled", None)
    assert (stopped["error"]["code"], stopped["error"]["retryable"]) == ("canceled", False)
    assert stopped["error"]["message"] == "canceled by ops: wrong prompt"
    assert results["after"]["status"] == "success"
    await bench.wait_committed({0: end})
    assert await bench.records(bench.topics.dead_letters) == []
    assert len(worker.events("job_done")) == generated + 1


async def test_a_task_canceled_before_it_is_consumed_is_never_begun(bench: WorkerBench, worker: WorkerProcess) -> None:
    generated, stored = len(worker.events("job_done")), bench.stored_images()
    await cancel(bench, "waits")
    # The topic has one partition: it was read once a command sent later takes effect.
    end = await send(bench, task_body("running", "seconds=120", steps=100), task_body("waits"), task_body("early"))
    await wait_for_step(bench, "running")
    await cancel(bench, "running")
    results = await bench.wait_answers("running", "waits", "early")

    assert {result["status"] for result in results.values()} == {"canceled"}
    assert len(worker.events("job_done")) == generated
    assert bench.stored_images() == stored
    await bench.wait_committed({0: end})


async def test_a_task_past_its_deadline_is_not_begun_and_one_that_becomes_late_is_stopped(
    bench: WorkerBench, worker: WorkerProcess
) -> None:
    generated = len(worker.events("job_done"))
    await send(bench, task_body("past"), headers=deadline_in(-1))
    await send(bench, task_body("late", "seconds=300", steps=100), headers=deadline_in(10))
    end = await send(bench, task_body("in-time"), headers=deadline_in(600))
    results = await bench.wait_answers("past", "late", "in-time")

    assert {name: result["status"] for name, result in results.items()} == {
        "past": "expired",
        "late": "expired",
        "in-time": "success",
    }
    assert results["past"]["error"]["code"] == "deadline-exceeded"
    assert "has passed" in results["late"]["error"]["message"]
    assert len(worker.events("job_done")) == generated + 1
    await bench.wait_committed({0: end})
    assert await bench.records(bench.topics.dead_letters) == []


async def test_a_task_that_would_be_late_by_the_estimate_for_its_size_is_not_begun(
    bench: WorkerBench, worker: WorkerProcess
) -> None:
    generated = len(worker.events("job_done"))
    # A size of its own: the worker estimates by its fastest of that size.
    await send(bench, task_body("measured", "seconds=2", steps=2, width=128, height=128))
    await bench.wait_answers("measured")
    await send(bench, task_body("hopeless", steps=100, width=128, height=128), headers=deadline_in(80))
    results = await bench.wait_answers("hopeless")

    assert results["hopeless"]["status"] == "expired"
    assert "would have passed: the images take" in results["hopeless"]["error"]["message"]
    assert len(worker.events("job_done")) == generated + 1


async def test_a_failed_task_whose_deadline_is_nearer_than_its_retry_expires_at_once(bench: WorkerBench) -> None:
    await send(bench, task_body("fails", "ends=error"), headers=deadline_in(50))
    result = (await bench.wait_answers("fails"))["fails"]

    assert (result["status"], result["attempt"]) == ("expired", 1)
    assert "told to fail" in result["error"]["message"]
    assert await bench.records(bench.topics.retry[0]) == []


async def test_without_the_control_topic_tasks_are_still_done(bootstrap_servers: str, tmp_path: Path) -> None:
    async with worker_bench(bootstrap_servers, tmp_path, model="none", stand_in=True, partitions=1) as bench:
        topics = bench.topics.model_copy(update={"control": "no-such-control"})
        worker = await bench.start_ready(topics=topics)
        await send(bench, task_body("unaffected"))
        [result] = await bench.wait_results(1)
        assert result["status"] == "success"
        await wait_until(
            lambda: worker.events("control_topic_away"), deadline_seconds=60, what="the worker to report the topic"
        )
