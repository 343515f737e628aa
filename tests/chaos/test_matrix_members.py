"""Workers that join, leave, or continue after their session has expired."""

import asyncio
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from confluent_kafka.admin import AdminClient, NewPartitions

from kit.faults.chaos_invariants import MOST_BEGUN, PromiseWatch
from kit.waiting import wait_until
from kit.workers.worker import UNHURRIED, UNHURRIED_REBALANCE, WorkerBench, WorkerProcess, wait_for_step, worker_bench

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(420)]

PARTITIONS = 6
EVENT_SECONDS = 120.0
"""For a rebalance, or for metadata to be a minute old, on a busy machine."""


@pytest.fixture
async def bench(bootstrap_servers: str, tmp_path: Path) -> AsyncIterator[WorkerBench]:
    async with worker_bench(bootstrap_servers, tmp_path, model="none", stand_in=True, partitions=PARTITIONS) as bench:
        yield bench


def assigned_counts(worker: WorkerProcess) -> list[int]:
    """The number of partitions of the standard lane in each assignment so far."""
    return [len(line["partitions"]) for line in worker.events("lane_assigned") if line["lane"] == "standard"]


async def wait_assigned(worker: WorkerProcess, count: int, *, after: int) -> None:
    """Wait for an assignment of that many partitions after the first `after` assignments."""
    await wait_until(
        lambda: count in assigned_counts(worker)[after:],
        deadline_seconds=EVENT_SECONDS,
        what=f"{worker.name} to be given {count} partitions",
    )


async def wait_group_empty(bench: WorkerBench) -> None:
    """Wait until the group has no members: it now accepts a commit of any client."""
    admin = AdminClient({"bootstrap.servers": bench.bootstrap_servers})

    async def empty() -> bool:
        described = admin.describe_consumer_groups([bench.group])[bench.group]
        return not (await asyncio.wrap_future(described)).members

    await wait_until(empty, deadline_seconds=EVENT_SECONDS, what="the group to be empty")


async def test_a_worker_that_continues_after_its_session_does_not_disturb_the_new_owner(
    bench: WorkerBench,
) -> None:
    sleeper, other = await asyncio.gather(
        bench.start_ready(**UNHURRIED_REBALANCE), bench.start_ready(**UNHURRIED_REBALANCE)
    )
    async with PromiseWatch(bench) as watch:
        await watch.submit(10, "seconds=3", steps=30)
        await wait_for_step(bench, "task-000")
        known = len(assigned_counts(other))
        sleeper.signal(signal.SIGSTOP)
        await wait_assigned(other, PARTITIONS, after=known)
        # While it was stopped, the other worker started its task again.
        await bench.wait_results(4)
        given = len(assigned_counts(sleeper))
        sleeper.signal(signal.SIGCONT)
        # Its engine continued meanwhile.
        await watch.assert_kept(repeated_generations=MOST_BEGUN)
        await wait_assigned(sleeper, PARTITIONS // 2, after=given)
    assert [worker.process.poll() for worker in (sleeper, other)] == [None, None]


async def test_a_single_worker_that_continues_after_its_session_lowers_no_offset(bench: WorkerBench) -> None:
    sleeper = await bench.start_ready()
    async with PromiseWatch(bench) as watch:
        await watch.submit(6, "seconds=1", steps=10)
        await bench.wait_results(2)
        given = len(assigned_counts(sleeper))
        sleeper.signal(signal.SIGSTOP)
        await wait_group_empty(bench)
        sleeper.signal(signal.SIGCONT)
        await wait_assigned(sleeper, PARTITIONS, after=given)
        await watch.assert_kept()
    assert sleeper.process.poll() is None


async def test_a_worker_that_continues_after_others_did_its_tasks_and_left_lowers_no_offset(
    bench: WorkerBench,
) -> None:
    sleeper, other = await asyncio.gather(
        bench.start_ready(**UNHURRIED_REBALANCE), bench.start_ready(**UNHURRIED_REBALANCE)
    )
    async with PromiseWatch(bench) as watch:
        await watch.submit(8, "seconds=2", steps=20)
        await wait_for_step(bench, "task-000")
        known = len(assigned_counts(other))
        sleeper.signal(signal.SIGSTOP)
        await wait_assigned(other, PARTITIONS, after=known)
        await bench.wait_results(8)
        other.signal(signal.SIGTERM)
        assert await other.wait_exit(EVENT_SECONDS) == 0
        await wait_group_empty(bench)
        given = len(assigned_counts(sleeper))
        sleeper.signal(signal.SIGCONT)
        await wait_assigned(sleeper, PARTITIONS, after=given)
        await watch.submit(2, "seconds=0.2")
        await watch.assert_kept(repeated_generations=MOST_BEGUN)
    assert sleeper.process.poll() is None


async def test_partitions_added_while_running_are_read_from_their_first_record(bench: WorkerBench) -> None:
    workers = await asyncio.gather(
        *(bench.start_ready(module="kit.workers.eager_worker", **UNHURRIED) for _ in range(2))
    )
    async with PromiseWatch(bench) as watch:
        await watch.submit(8, "seconds=1", steps=10)
        await bench.wait_results(2)
        admin = AdminClient({"bootstrap.servers": bench.bootstrap_servers})
        grown = admin.create_partitions([NewPartitions(bench.topics.tasks, 2 * PARTITIONS)])
        await asyncio.wrap_future(grown[bench.topics.tasks])
        # Before any worker knows of them.
        for partition in range(PARTITIONS, 2 * PARTITIONS):
            await watch.submit(1, "seconds=0.2", partition=partition)
        for worker in workers:
            await wait_assigned(worker, PARTITIONS, after=0)
        await watch.assert_kept()
    assert [worker.process.poll() for worker in workers] == [None, None]


async def test_workers_replaced_one_by_one_under_load_generate_nothing_twice(bench: WorkerBench) -> None:
    old = await asyncio.gather(bench.start_ready(**UNHURRIED), bench.start_ready(**UNHURRIED))
    async with PromiseWatch(bench) as watch:
        await watch.submit(24, "seconds=1", steps=10)
        await bench.wait_results(2)
        for worker in old:
            await bench.start_ready(**UNHURRIED)
            worker.signal(signal.SIGTERM)
            assert await worker.wait_exit(EVENT_SECONDS) == 0
        await watch.assert_kept()
