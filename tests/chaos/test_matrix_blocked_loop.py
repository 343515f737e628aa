"""Workers with a blocked event loop end by themselves, and other workers finish their tasks once."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from fluxpool_worker.agent.loop_watchdog import EXIT_LOOP_BLOCKED
from kit.faults.chaos_invariants import MOST_BEGUN, PromiseWatch
from kit.waiting import wait_until
from kit.workers.worker import SESSION_TIMEOUT_SECONDS, WorkerBench, WorkerProcess, is_engine, worker_bench

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(420)]

EVENT_SECONDS = 120.0


@pytest.fixture
async def bench(bootstrap_servers: str, tmp_path: Path) -> AsyncIterator[WorkerBench]:
    async with worker_bench(bootstrap_servers, tmp_path, model="none", stand_in=True, partitions=4) as bench:
        yield bench


async def start_blocking(bench: WorkerBench, point: str) -> WorkerProcess:
    """A worker whose event loop is blocked for ever at the first call of that fault point."""
    return await bench.start_ready(environment={"FLUXPOOL_FAULT": f"{point}:hang"})


async def assert_ends_blocked(worker: WorkerProcess) -> None:
    """It ends, logs the reason, and its engine ends with it."""
    engine = worker.engine_pid()
    assert await worker.wait_exit(EVENT_SECONDS) == EXIT_LOOP_BLOCKED
    [line] = worker.events("event_loop_blocked")
    assert line["limit_seconds"] <= line["blocked_seconds"] < SESSION_TIMEOUT_SECONDS
    assert "faults.py" in line["stack"], "where it is blocked"
    await wait_until(lambda: not is_engine(engine), deadline_seconds=EVENT_SECONDS, what="the engine to end too")


async def test_tasks_of_a_blocked_worker_are_done_by_the_other_one(bench: WorkerBench) -> None:
    blocked, other = await asyncio.gather(start_blocking(bench, "agent-after-generate"), bench.start_ready())
    async with PromiseWatch(bench) as watch:
        for partition in range(4):
            await watch.submit(2, "seconds=1", steps=10, partition=partition)
        await assert_ends_blocked(blocked)
        # It ended none of its tasks, and its engine continued until the end.
        repeated = len(blocked.events("job_done"))
        assert 1 <= repeated <= MOST_BEGUN
        await watch.assert_kept(repeated_generations=repeated)
    assert other.process.poll() is None


@pytest.mark.parametrize(("point", "repeated_generations"), [("agent-after-generate", 1), ("agent-after-result", 0)])
async def test_a_restarted_worker_continues_after_a_blocked_loop(
    bench: WorkerBench, point: str, repeated_generations: int
) -> None:
    blocked = await start_blocking(bench, point)
    async with PromiseWatch(bench) as watch:
        await watch.submit(1, "seconds=1", steps=10)
        await assert_ends_blocked(blocked)
        await bench.start_ready()
        await watch.assert_kept(repeated_generations=repeated_generations)
