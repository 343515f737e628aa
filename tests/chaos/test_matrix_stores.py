"""Stores that fail while workers run: nothing is lost, and nothing is generated twice."""

import asyncio
import re
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx
import pytest

from fluxpool_contract.settings.worker import StorageSettings
from kit.brokers.kafka import unique_name
from kit.faults.chaos_invariants import PromiseWatch
from kit.faults.chaos_s3 import FailingS3Service, S3Fault, running_failing_s3
from kit.faults.disk import SmallDisk, small_disk
from kit.faults.tcp_proxy import TcpProxy
from kit.waiting import wait_until
from kit.workers.generation_gate import PARTITIONS, each_worker_generating
from kit.workers.worker import UNHURRIED, WorkerBench, worker_bench

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(420)]

TASKS = 10
EVENT_SECONDS = 120.0
AUTHORIZATION = {"Authorization": "AWS testing:unchecked"}


class Bucket:
    """The bucket of one test on a service that fails on demand."""

    def __init__(self, service: FailingS3Service) -> None:
        self.service = service
        self.name = unique_name("pictures")
        service.create_bucket(self.name)

    @property
    def settings(self) -> StorageSettings:
        return self.service.settings(self.name)

    def stored_ids(self) -> list[str]:
        """The request id of every image."""
        answer = httpx.get(
            f"{self.service.endpoint_url}/{self.name}", params={"list-type": "2"}, headers=AUTHORIZATION, timeout=60
        )
        answer.raise_for_status()
        return re.findall(r"<Key>[^<]*/([^</]+)/\d+\.png</Key>", answer.text)


@pytest.fixture
def bucket() -> Iterator[Bucket]:
    with running_failing_s3() as service:
        yield Bucket(service)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SmallDisk]:
    with small_disk(tmp_path / "disk") as disk:
        yield disk


@pytest.fixture
async def bench(bootstrap_servers: str, tmp_path: Path) -> AsyncIterator[WorkerBench]:
    async with worker_bench(bootstrap_servers, tmp_path, model="none", stand_in=True, partitions=PARTITIONS) as bench:
        yield bench


async def start_two(bench: WorkerBench, storage: StorageSettings) -> None:
    await asyncio.gather(*(bench.start_ready(storage=storage, **UNHURRIED) for _ in range(2)))


async def wait_all_hold(bench: WorkerBench) -> None:
    """Wait until both workers report a hold for their store."""
    await wait_until(
        lambda: all(worker.events("outage_started") for worker in bench.workers),
        deadline_seconds=EVENT_SECONDS,
        what="both workers to hold",
    )


@pytest.mark.parametrize("status", [500, 503])
async def test_errors_of_the_store_cost_no_attempt_and_no_generation(
    bench: WorkerBench, bucket: Bucket, status: int
) -> None:
    await start_two(bench, bucket.settings)
    async with PromiseWatch(bench, stored_ids=bucket.stored_ids) as watch:
        async with each_worker_generating(bench, watch, tasks=TASKS):
            bucket.service.fail(S3Fault(status=status))
        await wait_all_hold(bench)
        bucket.service.heal()
        await watch.assert_kept()


async def test_a_store_whose_responses_are_lost_has_one_image_of_each_task(bench: WorkerBench, bucket: Bucket) -> None:
    await start_two(bench, bucket.settings)
    async with PromiseWatch(bench, stored_ids=bucket.stored_ids) as watch:
        # Claims, images and manifests: each request creates an object and reports a failure.
        bucket.service.fail(S3Fault(status=503, after_the_deed=True, methods=frozenset({"PUT"}), times=12))
        await watch.submit(TASKS, "seconds=0.2", steps=2)
        await watch.assert_kept()
    assert bucket.service.struck == 12


async def test_a_slow_store_is_only_slow(bench: WorkerBench, bucket: Bucket) -> None:
    await start_two(bench, bucket.settings)
    bucket.service.fail(S3Fault(wait_seconds=0.5))
    async with PromiseWatch(bench, stored_ids=bucket.stored_ids) as watch:
        await watch.submit(TASKS, "seconds=0.2", steps=2)
        await watch.assert_kept()
    assert bucket.service.struck >= 3 * TASKS


async def test_a_full_disk_costs_no_attempt_and_no_generation(bench: WorkerBench, disk: SmallDisk) -> None:
    folder = disk.folder / "images"
    await start_two(bench, StorageSettings(url=folder.as_uri()))
    async with PromiseWatch(bench, stored_ids=lambda: [path.parent.name for path in folder.rglob("*.png")]) as watch:
        async with each_worker_generating(bench, watch, tasks=TASKS):
            disk.fill()
        await wait_all_hold(bench)
        disk.free()
        await watch.assert_kept()


async def test_a_network_outage_to_the_store_costs_no_attempt_and_no_generation(
    bench: WorkerBench, bucket: Bucket
) -> None:
    async with TcpProxy(bucket.service.port) as line, PromiseWatch(bench, stored_ids=bucket.stored_ids) as watch:
        await start_two(bench, bucket.settings.model_copy(update={"endpoint_url": f"http://{line.address}"}))
        async with each_worker_generating(bench, watch, tasks=TASKS):
            await line.black_hole()
        # There is no response, so each operation ends at its own deadline.
        await wait_all_hold(bench)
        await line.pass_all()
        await watch.assert_kept()
