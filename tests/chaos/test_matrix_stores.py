"""Stores that fail while workers run: nothing is lost, and nothing is generated twice."""

import asyncio
import json
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest

from fluxpool_contract.settings.worker import StorageSettings
from kit.chaos_invariants import PromiseWatch
from kit.chaos_s3 import FailingS3Service, S3Fault, running_failing_s3
from kit.disk import SmallDisk, small_disk
from kit.gate import Gate
from kit.kafka import unique_name
from kit.tcp_proxy import TcpProxy
from kit.waiting import wait_until
from kit.worker import UNHURRIED, WorkerBench, worker_bench

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(420)]

PARTITIONS = 4
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


@asynccontextmanager
async def work_under_way(bench: WorkerBench, watch: PromiseWatch) -> AsyncIterator[None]:
    """Some tasks done, one of each worker being generated until the end of the context, and others pending."""

    def assigned() -> bool:
        lanes = [
            [line for line in worker.events("lane_assigned") if line["lane"] == "standard"] for worker in bench.workers
        ]
        return all(lines and len(lines[-1]["partitions"]) == PARTITIONS // 2 for lines in lanes)

    await wait_until(assigned, deadline_seconds=EVENT_SECONDS, what="half of the partitions for each worker")
    await watch.submit(2, "seconds=0.2")
    await bench.wait_results(2)
    with Gate() as gate:
        for partition in range(PARTITIONS):
            await watch.submit(TASKS // PARTITIONS, gate.prompt, partition=partition)

        async def all_generate() -> bool:
            steps = [json.loads(record.value or b"{}") for record in await bench.records(bench.topics.progress)]
            done = {result["request_id"] for result in await bench.results()}
            busy = {step["worker"] for step in steps if step.get("step") and step["request_id"] not in done}
            return busy == {worker.name for worker in bench.workers}

        await wait_until(all_generate, deadline_seconds=EVENT_SECONDS, what="a generation of each worker")
        yield


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
        async with work_under_way(bench, watch):
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
        async with work_under_way(bench, watch):
            disk.fill()
        await wait_all_hold(bench)
        disk.free()
        await watch.assert_kept()


async def test_a_network_outage_to_the_store_costs_no_attempt_and_no_generation(
    bench: WorkerBench, bucket: Bucket
) -> None:
    async with TcpProxy(bucket.service.port) as line, PromiseWatch(bench, stored_ids=bucket.stored_ids) as watch:
        await start_two(bench, bucket.settings.model_copy(update={"endpoint_url": f"http://{line.address}"}))
        async with work_under_way(bench, watch):
            await line.black_hole()
        # There is no response, so each operation ends at its own deadline.
        await wait_all_hold(bench)
        await line.pass_all()
        await watch.assert_kept()
