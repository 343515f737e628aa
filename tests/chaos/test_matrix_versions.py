"""Workers of two releases in one group during an upgrade.

Each release reads what the other one writes: ledgers, retry records, objects in the store. A worker that writes more
than this release knows plays the next release; see `kit.workers.releases`.
"""

import asyncio
import json
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from fluxpool_contract.kafka.ledger import decode_ledger
from fluxpool_contract.messages.headers import parse_envelope
from kit.brokers.kafka import committed_offsets, produce
from kit.faults.chaos_invariants import PromiseWatch
from kit.waiting import wait_until
from kit.workers.gate import Gate
from kit.workers.releases import Release, release_of, releases_at_work, start_ready
from kit.workers.worker import UNHURRIED, WorkerBench, WorkerProcess, task_body, wait_for_step, worker_bench

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(420)]

PARTITIONS = 6
EVENT_SECONDS = 120.0
RETRY_DELAY = "6s"
"""Long enough for the session of the failed worker to expire."""

first_release = pytest.mark.parametrize("first", [Release.THIS, Release.NEXT], ids=["upgrade", "rollback"])


@pytest.fixture
async def bench(bootstrap_servers: str, tmp_path: Path) -> AsyncIterator[WorkerBench]:
    async with worker_bench(
        bootstrap_servers, tmp_path, model="none", stand_in=True, partitions=PARTITIONS, retry_delays=(RETRY_DELAY,)
    ) as bench:
        yield bench


async def submit_everywhere(watch: PromiseWatch) -> None:
    """Two more tasks on every partition, so that every worker has some in any assignment."""
    for partition in range(PARTITIONS):
        await watch.submit(2, "seconds=1", partition=partition, steps=10)


async def wait_generated_by(worker: WorkerProcess) -> None:
    await wait_until(
        lambda: bool(worker.events("job_done")), deadline_seconds=EVENT_SECONDS, what=f"{worker.name} to draw"
    )


async def end(worker: WorkerProcess) -> None:
    worker.signal(signal.SIGTERM)
    assert await worker.wait_exit(EVENT_SECONDS) == 0


@first_release
async def test_workers_of_two_releases_replaced_under_load_generate_nothing_twice(
    bench: WorkerBench, first: Release
) -> None:
    old = await asyncio.gather(start_ready(bench, first, **UNHURRIED), start_ready(bench, first, **UNHURRIED))
    async with PromiseWatch(bench) as watch:
        await submit_everywhere(watch)
        await wait_until(
            lambda: releases_at_work(bench), deadline_seconds=EVENT_SECONDS, what="the old release's ledgers"
        )
        for worker in old:
            await submit_everywhere(watch)
            new = await start_ready(bench, first.other, **UNHURRIED)
            # However long its start took, there is work for it.
            await submit_everywhere(watch)
            await end(worker)
            await wait_generated_by(new)
        await watch.assert_kept()
    results = await bench.records(bench.topics.results)
    assert {release_of(record) for record in results} == set(Release)
    told = {Release.NEXT if "release" in json.loads(record.value or b"") else Release.THIS for record in results}
    assert told == set(Release)


@first_release
async def test_a_task_that_one_release_retries_is_generated_by_the_other(bench: WorkerBench, first: Release) -> None:
    failing = await start_ready(bench, first, fault="engine-step:raise")
    bodies = [(None, task_body("stumbles"))]
    [(partition, offset)] = await produce(bench.bootstrap_servers, bench.topics.tasks, bodies)

    await bench.wait_committed({partition: offset + 1}, deadline_seconds=EVENT_SECONDS)
    failing.signal(signal.SIGKILL)
    assert await bench.results() == []
    await start_ready(bench, first.other)
    [result] = await bench.wait_results(1, deadline_seconds=EVENT_SECONDS)

    assert (result["status"], result["attempt"]) == ("success", 2)
    assert result["worker"] != failing.name
    assert [path.parent.name for path in bench.stored_images()] == ["stumbles"]
    _, again = sorted(await bench.records(bench.topics.tasks), key=lambda record: record.timestamp_ms)
    assert parse_envelope(again.headers).attempt == 2
    assert ("fluxpool-next-release" in dict(again.headers)) is (first is Release.NEXT), "foreign headers are kept"


@first_release
async def test_a_task_that_crashed_one_release_is_generated_by_the_other_which_counts_the_crash(
    bench: WorkerBench, first: Release
) -> None:
    victim = await start_ready(bench, first)
    async with PromiseWatch(bench) as watch:
        with Gate() as gate:
            await watch.submit(1, gate.prompt, partition=0)
            await wait_for_step(bench, "task-000")
            assert await releases_at_work(bench) == {first}
            victim.signal(signal.SIGKILL)
            heir = await start_ready(bench, first.other)

            async def counted() -> bool:
                metadata = [
                    found.metadata for found in (await committed_offsets(bench.bootstrap_servers, bench.group)).values()
                ]
                entries = [entry for text in metadata for entry in decode_ledger(text).values()]
                return [(entry.worker, entry.crashes) for entry in entries] == [(heir.name, 1)]

            await wait_until(counted, deadline_seconds=EVENT_SECONDS, what="the crash in the next owner's ledger")
        await watch.assert_kept(repeated_generations=1)


@first_release
async def test_a_result_that_one_release_stored_is_published_unchanged_by_the_other(
    bench: WorkerBench, first: Release
) -> None:
    victim = await start_ready(bench, first, fault="store-after-manifest:kill")
    await produce(bench.bootstrap_servers, bench.topics.tasks, [(None, task_body("stored"))])
    assert await victim.wait_exit(EVENT_SECONDS) == -signal.SIGKILL
    [manifest] = [json.loads(path.read_bytes()) for path in bench.images.rglob("manifest.json")]
    await start_ready(bench, first.other)
    [result] = await bench.wait_results(1, deadline_seconds=EVENT_SECONDS)

    assert result == manifest["result"]
    assert (result["status"], result["worker"]) == ("success", victim.name)
    assert ("release" in result, "preview" in result["images"][0]) == (first is Release.NEXT, first is Release.NEXT)
    assert [len(worker.events("job_done")) for worker in bench.workers] == [1, 0]
