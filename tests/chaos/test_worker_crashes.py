"""Agents and engines that die or drain during a generation: the task ends once, and no offset passes it."""

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from fluxpool_contract.kafka.ledger import decode_ledger
from fluxpool_contract.messages.dead_letter import DeadLetter
from kit.brokers.kafka import committed_offsets, produce
from kit.programs.processes import command_line, is_alive
from kit.waiting import PATIENCE, wait_until
from kit.workers.gate import Gate
from kit.workers.worker import (
    SESSION_TIMEOUT_SECONDS,
    WorkerBench,
    WorkerProcess,
    is_engine,
    task_body,
    wait_for_step,
    worker_bench,
)

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(600)]

LONG_TASK: dict[str, Any] = {"width": 512, "height": 512, "steps": 90}
"""Several seconds on one CPU core with the tiny pipeline."""
TAKE_OVER_SECONDS = SESSION_TIMEOUT_SECONDS + 10 + 150
"""Limit of a take-over with its generation on a busy machine."""


@pytest.fixture
async def bench(bootstrap_servers: str, tmp_path: Path, tiny_checkpoint: Path) -> AsyncIterator[WorkerBench]:
    async with worker_bench(bootstrap_servers, tmp_path, model=str(tiny_checkpoint)) as bench:
        yield bench


@pytest.fixture
async def quick_bench(bootstrap_servers: str, tmp_path: Path) -> AsyncIterator[WorkerBench]:
    """Workers with a stand-in for the model; everything else is real."""
    async with worker_bench(bootstrap_servers, tmp_path, model="none", stand_in=True) as bench:
        yield bench


async def worker_of(bench: WorkerBench, request_id: str) -> WorkerProcess:
    """The worker that has a task in flight."""
    await wait_for_step(bench, request_id)
    events = [json.loads(record.value or b"") for record in await bench.records(bench.topics.progress)]
    name = next(event["worker"] for event in events if event["request_id"] == request_id)
    return next(worker for worker in bench.workers if worker.name == name)


async def assert_one_end(bench: WorkerBench, *request_ids: str) -> None:
    """Every task has one terminal event id and one result; there is one image for each success."""
    ends: dict[str, set[tuple[bytes | None, bytes | None]]] = {}
    for record in await bench.records(bench.topics.results):
        request_id = json.loads(record.value or b"")["request_id"]
        ends.setdefault(request_id, set()).add((dict(record.headers)["ce_id"], record.value))
    assert {request_id: len(answers) for request_id, answers in ends.items()} == dict.fromkeys(request_ids, 1)
    assert sorted(path.parent.name for path in bench.stored_images()) == sorted(request_ids)


async def test_another_worker_finishes_the_task_of_a_killed_agent(bench: WorkerBench) -> None:
    await asyncio.gather(bench.start_ready(), bench.start_ready())
    [(partition, offset)] = await produce(
        bench.bootstrap_servers, bench.topics.tasks, [(None, task_body("long", **LONG_TASK))]
    )
    victim = await worker_of(bench, "long")
    engine = victim.engine_pid()
    victim.signal(signal.SIGKILL)
    await wait_until(lambda: not is_engine(engine), deadline_seconds=20, what="the engine to die with its agent")
    committed = (await bench.committed()).get(partition, offset)

    [result] = await bench.wait_results(1, deadline_seconds=TAKE_OVER_SECONDS)
    assert committed <= offset
    assert result["status"] == "success"
    assert result["worker"] != victim.name
    await bench.wait_committed({partition: offset + 1})
    await assert_one_end(bench, "long")


async def test_a_killed_engine_is_replaced_and_its_task_tried_again(quick_bench: WorkerBench) -> None:
    bench = quick_bench
    worker = await bench.start_ready()
    with Gate() as gate:
        [(partition, offset)] = await produce(
            bench.bootstrap_servers, bench.topics.tasks, [(None, task_body("long", gate.prompt))]
        )
        await wait_for_step(bench, "long")
        engine = worker.engine_pid()
        os.kill(engine, signal.SIGKILL)

    [result] = await bench.wait_results(1, deadline_seconds=TAKE_OVER_SECONDS)
    assert (result["status"], result["worker"], result["attempt"]) == ("success", worker.name, 1)
    assert worker.engine_pid() != engine
    await bench.wait_committed({partition: offset + 1})
    await assert_one_end(bench, "long")


async def test_sigterm_finishes_the_task_and_the_next_member_continues(quick_bench: WorkerBench) -> None:
    bench = quick_bench
    first = await bench.start_ready()
    with Gate() as gate:
        sent = await produce(
            bench.bootstrap_servers,
            bench.topics.tasks,
            [(None, task_body("running", gate.prompt)), (None, task_body("next"))],
            partition=0,
        )
        await wait_for_step(bench, "running")
        # The lanes' heads are taken in order, so `next` is prepared after `running` in the first worker's engine.
        second = await bench.start_ready()
        first.signal(signal.SIGTERM)
        await wait_until(lambda: first.events("drain_requested"), deadline_seconds=20, what="the drain to begin")

    assert await first.wait_exit(90) == 0
    results = {result["request_id"]: result for result in await bench.wait_results(2)}
    assert results["running"]["worker"] == first.name
    assert results["next"]["status"] == "success"
    await bench.wait_committed({0: sent[-1][1] + 1})
    await assert_one_end(bench, "running", "next")
    assert second.process.poll() is None


async def test_a_draining_worker_releases_the_tasks_that_it_has_not_begun(quick_bench: WorkerBench) -> None:
    bench = quick_bench
    first = await bench.start_ready()
    bodies = [task_body(f"task-{number}", "seconds=4") for number in range(4)]
    await produce(bench.bootstrap_servers, bench.topics.tasks, [(None, body) for body in bodies], partition=0)
    await wait_for_step(bench, "task-0")
    first.signal(signal.SIGTERM)
    assert await first.wait_exit(90) == 0
    done = await bench.results()
    left_at = first.events("agent_stopped")[0]["timestamp"]
    second = await bench.start_ready()

    results = await bench.wait_results(4)
    assert 1 <= len(done) < 4
    assert {result["worker"] for result in done} == {first.name}
    assert {result["worker"] for result in results[len(done) :]} == {second.name}
    await bench.wait_committed({0: 4})
    await assert_one_end(bench, *(f"task-{number}" for number in range(4)))
    assert sum(len(worker.events("job_done")) for worker in (first, second)) == 4
    assert left_at < second.events("lane_assigned")[0]["timestamp"]


async def test_a_task_longer_than_the_grace_period_is_stopped_at_its_next_step_and_released(
    quick_bench: WorkerBench,
) -> None:
    bench = quick_bench
    first = await bench.start_ready(drain_grace_seconds=1.0)
    with Gate() as gate:
        body = task_body("endless", gate.prompt)
        [(partition, offset)] = await produce(bench.bootstrap_servers, bench.topics.tasks, [(None, body)])
        await wait_for_step(bench, "endless")
        first.signal(signal.SIGTERM)
        assert await first.wait_exit(90) == 0
    assert (await bench.committed()).get(partition, offset) == offset
    assert await bench.results() == []
    second = await bench.start_ready()
    await bench.wait_results(1)
    await bench.wait_committed({partition: offset + 1})
    await assert_one_end(bench, "endless")
    assert second.events("crash_counted") == [], "an orderly release is no crash"


async def test_a_second_sigterm_exits_at_once_and_loses_nothing(quick_bench: WorkerBench) -> None:
    bench = quick_bench
    first = await bench.start_ready()
    with Gate() as gate:
        await produce(bench.bootstrap_servers, bench.topics.tasks, [(None, task_body("patient", gate.prompt))])
        await wait_for_step(bench, "patient")
        engine = first.engine_pid()
        first.signal(signal.SIGTERM)
        await wait_until(lambda: first.events("drain_requested"), deadline_seconds=20, what="the drain to begin")
        first.signal(signal.SIGTERM)
        assert await first.wait_exit(20) == 128 + signal.SIGTERM
    await wait_until(lambda: not is_engine(engine), deadline_seconds=20, what="the engine to end too")
    await bench.start_ready()
    await bench.wait_results(1, deadline_seconds=TAKE_OVER_SECONDS)
    await assert_one_end(bench, "patient")


@pytest.mark.parametrize(
    ("point", "generations_after"),
    [
        ("store-after-claim", 1),
        ("agent-after-record", 1),
        ("agent-after-generate", 1),
        ("store-after-image", 1),
        ("store-after-manifest", 0),
        ("agent-after-publish", 0),
        ("agent-after-result", 0),
        ("agent-before-commit:2", None),
    ],
)
async def test_a_crash_between_any_two_steps_costs_at_most_one_generation(
    quick_bench: WorkerBench, point: str, generations_after: int | None
) -> None:
    bench = quick_bench
    name, _, nth = point.partition(":")
    fault = f"{name}:kill" + (f":{nth}" if nth else "")
    first = await bench.start_ready(environment={"FLUXPOOL_FAULT": fault})
    [(partition, offset)] = await produce(bench.bootstrap_servers, bench.topics.tasks, [(None, task_body("once"))])
    assert await first.wait_exit(90) == -signal.SIGKILL
    assert (await bench.committed()).get(partition, offset) == offset
    second = await bench.start_ready()

    await bench.wait_committed({partition: offset + 1}, deadline_seconds=TAKE_OVER_SECONDS)
    await assert_one_end(bench, "once")
    generations = len(second.events("job_done"))
    assert generations <= 1
    if generations_after is not None:
        assert generations == generations_after


async def test_without_retry_topics_a_failed_generation_is_repeated_in_place(quick_bench: WorkerBench) -> None:
    bench = quick_bench
    await bench.start_ready(environment={"FLUXPOOL_FAULT": "engine-step:raise"})
    await produce(bench.bootstrap_servers, bench.topics.tasks, [(None, task_body("stumbles"))])

    [result] = await bench.wait_results(1)
    assert (result["status"], result["attempt"]) == ("success", 2)
    assert await bench.records(bench.topics.dead_letters) == []


async def test_a_task_that_kills_every_engine_ends_as_a_crash_loop_and_affects_no_other(
    quick_bench: WorkerBench,
) -> None:
    bench = quick_bench
    worker = await bench.start_ready()
    body = task_body("poison", "ends=killed")
    sent = await produce(
        bench.bootstrap_servers,
        bench.topics.tasks,
        [(None, task_body("before")), (b"key", body), (None, task_body("after"))],
        partition=0,
    )

    results = {result["request_id"]: result for result in await bench.wait_results(3)}
    assert {name: result["status"] for name, result in results.items()} == {
        "before": "success",
        "poison": "failed",
        "after": "success",
    }
    poison = results["poison"]
    assert (poison["image_url"], poison["attempt"]) == (None, 1)
    assert (poison["error"]["code"], poison["error"]["error_class"]) == ("crash-loop", "worker-fatal")
    [record] = await bench.records(bench.topics.dead_letters)
    dead_letter = DeadLetter.from_headers(record.headers)
    assert (record.key, record.value) == (b"key", body)
    assert (dead_letter.disposition, dead_letter.attempts, dead_letter.crashes) == ("crash-loop", 1, 3)
    await bench.wait_committed({0: sent[-1][1] + 1})
    assert worker.process.poll() is None


async def test_a_task_that_kills_every_agent_ends_as_a_crash_loop(quick_bench: WorkerBench) -> None:
    bench = quick_bench
    body = task_body("poison")
    [(partition, offset)] = await produce(bench.bootstrap_servers, bench.topics.tasks, [(None, body)])
    for _ in range(2):
        victim = bench.start(environment={"FLUXPOOL_FAULT": "agent-after-record:kill"}, max_crashes=2)
        assert await victim.wait_exit(90) == -signal.SIGKILL
    last = await bench.start_ready(max_crashes=2)

    [result] = await bench.wait_results(1, deadline_seconds=TAKE_OVER_SECONDS)
    assert (result["status"], result["error"]["code"], result["worker"]) == ("failed", "crash-loop", last.name)
    [record] = await bench.records(bench.topics.dead_letters)
    assert DeadLetter.from_headers(record.headers).crashes == 2
    assert last.events("job_done") == []
    assert [line["crashes"] for line in last.events("crash_counted")] == [2]
    await bench.wait_committed({partition: offset + 1})


async def test_engines_that_keep_dying_end_the_pod_in_an_orderly_way_and_the_count_is_kept(
    quick_bench: WorkerBench,
) -> None:
    bench = quick_bench
    first = await bench.start_ready(environment={"FLUXPOOL_FAULT": "engine-job-started:kill"}, max_crashes=10)
    body = task_body("unlucky")
    [(partition, offset)] = await produce(bench.bootstrap_servers, bench.topics.tasks, [(None, body)])

    assert await first.wait_exit(120) == 1
    assert "the engine died 5 times without finishing a job" in first.events("worker_failed")[0]["error"]
    assert first.events("drained"), "the groups were left, not abandoned"
    committed = (await committed_offsets(bench.bootstrap_servers, bench.group))[bench.topics.tasks, partition]
    [entry] = decode_ledger(committed.metadata).values()
    assert (committed.offset, entry.task, entry.released) == (offset, "unlucky", True)
    assert entry.crashes >= 4
    second = await bench.start_ready(max_crashes=10)
    [result] = await bench.wait_results(1)
    assert (result["status"], result["attempt"]) == ("success", 1)
    assert second.events("crash_counted") == []


async def test_an_engine_that_hangs_is_killed_at_the_hard_limit(quick_bench: WorkerBench) -> None:
    bench = quick_bench
    worker = await bench.start_ready(max_crashes=2, step_soft_limit_seconds=1.0, step_hard_limit_seconds=4.0 * PATIENCE)
    await produce(
        bench.bootstrap_servers,
        bench.topics.tasks,
        [(None, task_body("hangs", "ends=hung")), (None, task_body("after"))],
        partition=0,
    )
    results = {result["request_id"]: result for result in await bench.wait_results(2)}
    assert (results["hangs"]["error"]["code"], results["after"]["status"]) == ("crash-loop", "success")
    assert len(worker.events("engine_stalled")) >= 2
    assert ["step_hard_limit_seconds" in line["reason"] for line in worker.events("engine_stuck")] == [True, True]


async def test_a_lost_device_replaces_the_engine_and_affects_no_other_task(quick_bench: WorkerBench) -> None:
    bench = quick_bench
    worker = await bench.start_ready(max_crashes=1)
    engine = worker.engine_pid()
    await produce(
        bench.bootstrap_servers,
        bench.topics.tasks,
        [(None, task_body("loses", "ends=device")), (None, task_body("after"))],
        partition=0,
    )
    results = {result["request_id"]: result for result in await bench.wait_results(2)}
    assert (results["loses"]["error"]["code"], results["after"]["status"]) == ("crash-loop", "success")
    assert "device lost on request" in results["loses"]["error"]["message"]
    # Two tasks are prepared at once, so the other one may have been generated before.
    await wait_until(lambda: worker.engine_pid() != engine, deadline_seconds=60, what="another engine")


async def test_out_of_memory_is_repeated_once_in_the_mode_that_needs_less(quick_bench: WorkerBench) -> None:
    bench = quick_bench
    worker = await bench.start_ready()
    await produce(bench.bootstrap_servers, bench.topics.tasks, [(None, task_body("large", "ends=memory"))])
    [result] = await bench.wait_results(1)
    assert (result["status"], result["attempt"]) == ("success", 1)
    assert [line["action"] for line in worker.events("generation_failed")] == ["try-low-memory"]


async def test_a_joining_worker_does_not_cost_the_running_task(quick_bench: WorkerBench) -> None:
    bench = quick_bench
    first = await bench.start_ready()
    with Gate() as gate:
        body = task_body("adopted", gate.prompt)
        [(partition, offset)] = await produce(bench.bootstrap_servers, bench.topics.tasks, [(None, body)], partition=0)
        await wait_for_step(bench, "adopted")
        second = await bench.start_ready()
        await wait_until(
            lambda: any(line["lane"] == "standard" and line["partitions"] for line in second.events("lane_assigned")),
            deadline_seconds=60,
            what="the new worker to have an assignment",
        )

    await bench.wait_results(1)
    await bench.wait_committed({partition: offset + 1})
    await assert_one_end(bench, "adopted")
    assert sum(len(worker.events("job_done")) for worker in (first, second)) == 1


async def test_a_failed_commit_task_replaces_the_consumer_of_the_lane(
    quick_bench: WorkerBench,
) -> None:
    bench = quick_bench
    worker = await bench.start_ready(environment={"FLUXPOOL_FAULT": "agent-before-commit:raise"})
    [(partition, offset)] = await produce(bench.bootstrap_servers, bench.topics.tasks, [(None, task_body("once"))])
    await bench.wait_committed({partition: offset + 1})
    await assert_one_end(bench, "once")
    assert len(worker.events("lane_failed")) == 1
    assert worker.process.poll() is None


async def test_no_process_remains_when_all_agents_are_killed(quick_bench: WorkerBench) -> None:
    bench = quick_bench
    workers = [await bench.start_ready() for _ in range(2)]
    engines = [worker.engine_pid() for worker in workers]
    for worker in workers:
        worker.signal(signal.SIGKILL)
    await wait_until(
        lambda: not any(is_engine(engine) for engine in engines), deadline_seconds=20, what="the engines to die"
    )
    for worker in workers:
        await worker.wait_exit(20)

    def remain() -> list[psutil.Process]:
        children = psutil.Process().children()
        forked = [
            program
            for child in children
            if "kit.programs.fork_server" in command_line(child)
            for program in child.children()
        ]
        executed = [
            child for child in psutil.Process().children(recursive=True) if "fluxpool_worker" in command_line(child)
        ]
        return [program for program in forked + executed if is_alive(program)]

    await wait_until(lambda: not remain(), deadline_seconds=20, what="no process to remain")
