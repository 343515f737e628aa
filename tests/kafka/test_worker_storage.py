"""Workers whose store is an S3 service, is unavailable for a while, or cannot be used at all."""

import hashlib
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio

from fluxpool_contract.messages.derived import claim_key, manifest_key
from fluxpool_contract.settings.worker import StorageSettings
from fluxpool_transport.storage.object_store import PROBE_KEY
from fluxpool_worker.image_parameters import read_parameters
from kit.brokers.kafka import produce, unique_name
from kit.stores.s3 import S3Service, running_s3
from kit.waiting import wait_until
from kit.workers.gate import Gate
from kit.workers.worker import UNHURRIED, WorkerBench, WorkerProcess, task_body, wait_for_step, worker_bench

pytestmark = [pytest.mark.kafka, pytest.mark.asyncio(loop_scope="module")]

PREFIX = "pool-a/"
AUTHORIZATION = {"Authorization": "AWS testing:unchecked"}
PUBLIC_URL = "https://images.example.com/gallery/"


@dataclass(frozen=True)
class Bucket:
    """A bucket and its service; all S3 services of a test run share their contents."""

    service: S3Service
    name: str

    @property
    def settings(self) -> StorageSettings:
        return self.service.settings(self.name, prefix=PREFIX)

    def read(self, key: str) -> httpx.Response:
        return self.service.read(self.name, PREFIX + key)

    def read_json(self, key: str) -> dict[str, Any]:
        answer = self.read(key)
        assert (answer.status_code, answer.headers["content-type"]) == (200, "application/json")
        body: dict[str, Any] = answer.json()
        return body

    def write(self, key: str, payload: bytes) -> None:
        url = f"{self.service.endpoint_url}/{self.name}/{PREFIX}{key}"
        httpx.put(url, content=payload, headers=AUTHORIZATION, timeout=60).raise_for_status()

    def keys(self) -> list[str]:
        query = {"list-type": "2"}
        answer = httpx.get(f"{self.service.endpoint_url}/{self.name}", params=query, headers=AUTHORIZATION, timeout=60)
        answer.raise_for_status()
        return sorted(re.findall(f"<Key>{PREFIX}([^<]*)</Key>", answer.text))


@contextmanager
def new_bucket() -> Iterator[Bucket]:
    with running_s3() as service:
        bucket = Bucket(service, unique_name("pictures"))
        service.create_bucket(bucket.name)
        yield bucket


@pytest.fixture(scope="module")
def bucket() -> Iterator[Bucket]:
    """The bucket of the worker of `bench`."""
    with new_bucket() as bucket:
        yield bucket


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def bench(
    bootstrap_servers: str, tmp_path_factory: pytest.TempPathFactory, bucket: Bucket
) -> AsyncIterator[WorkerBench]:
    """One worker for the tests that need no other settings."""
    folder = tmp_path_factory.mktemp("bench")
    async with worker_bench(bootstrap_servers, folder, model="stand-in", partitions=1, stand_in=True) as bench:
        await bench.start_ready(storage=bucket.settings, **UNHURRIED)
        yield bench


@pytest.fixture
def own_bucket() -> Iterator[Bucket]:
    with new_bucket() as bucket:
        yield bucket


@pytest_asyncio.fixture(loop_scope="module")
async def own_bench(bootstrap_servers: str, tmp_path: Path) -> AsyncIterator[WorkerBench]:
    async with worker_bench(bootstrap_servers, tmp_path, model="stand-in", partitions=1, stand_in=True) as bench:
        yield bench


async def send(bench: WorkerBench, *bodies: bytes) -> int:
    """Send tasks; returns the offset behind them."""
    places = await produce(bench.bootstrap_servers, bench.topics.tasks, [(None, body) for body in bodies])
    return places[-1][1] + 1


async def next_hold(worker: WorkerProcess, *, after: int) -> dict[str, Any]:
    """The log line of the worker's next hold after the first ones."""
    held = await wait_until(
        lambda: worker.events("operation_held")[after:], deadline_seconds=60, what="the worker to report a hold"
    )
    return held[0]


def public(storage: StorageSettings) -> StorageSettings:
    return storage.model_copy(update={"public_base_url": PUBLIC_URL})


async def test_image_claim_and_manifest_are_in_the_bucket_and_the_result_has_the_public_address(
    own_bench: WorkerBench, own_bucket: Bucket
) -> None:
    bench, bucket = own_bench, own_bucket
    await bench.start_ready(storage=public(bucket.settings))
    await send(bench, task_body("kept", seed=5))
    [result] = await bench.wait_results(1)

    [image] = result["images"]
    assert image["object"] == f"default/{datetime.now(UTC):%Y/%m/%d}/kept/0.png"
    assert result["image_url"] == image["url"] == PUBLIC_URL + image["object"]
    stored = bucket.read(image["object"])
    assert (stored.status_code, stored.headers["content-type"]) == (200, "image/png")
    assert (hashlib.sha256(stored.content).hexdigest(), len(stored.content)) == (image["sha256"], image["bytes"])
    assert read_parameters(stored.content)["seed"] == 5
    folder = image["object"].removesuffix("/0.png")
    claim = bucket.read_json(claim_key("default", "kept"))
    assert (claim["request_id"], claim["prefix"].rstrip("/")) == ("kept", folder)
    manifest = bucket.read_json(manifest_key(folder))
    assert manifest["digest"] == claim["digest"]
    assert manifest["result"] == result


async def test_a_task_sent_twice_has_one_object_and_one_result(bench: WorkerBench, bucket: Bucket) -> None:
    others = bucket.keys()
    assert PROBE_KEY in others
    body = task_body("twice")
    await send(bench, body)
    first = (await bench.wait_answers("twice"))["twice"]
    keys = bucket.keys()
    known = len(await bench.results())
    await send(bench, body)
    second = (await bench.wait_results(known + 1))[-1]

    assert second == first
    image = first["images"][0]["object"]
    assert first["image_url"] == f"{bucket.settings.url}{image}"
    own = [claim_key("default", "twice"), image, manifest_key(image.removesuffix("/0.png"))]
    assert keys == sorted([*others, *own])
    assert bucket.keys() == keys


async def test_an_existing_image_under_the_tasks_key_is_kept_and_described(bench: WorkerBench, bucket: Bucket) -> None:
    foreign = b"stored by a worker that died before its manifest"
    key = f"default/{datetime.now(UTC):%Y/%m/%d}/found/0.png"
    bucket.write(key, foreign)
    await send(bench, task_body("found"))
    result = (await bench.wait_answers("found"))["found"]

    [image] = result["images"]
    assert (image["object"], image["bytes"]) == (key, len(foreign))
    assert image["sha256"] == hashlib.sha256(foreign).hexdigest()
    assert bucket.read(key).content == foreign


async def test_while_the_store_is_unavailable_tasks_wait_and_use_up_no_attempt(
    bench: WorkerBench, bucket: Bucket
) -> None:
    [worker] = bench.workers
    holds, outages = len(worker.events("operation_held")), len(worker.events("outage_ended"))
    known = await bench.results()
    bucket.service.stop()
    ids = [f"waits-{number}" for number in range(3)]
    end = await send(bench, *map(task_body, ids))
    held = await next_hold(worker, after=holds)
    assert held["operation"] == "object-store"
    assert bucket.service.endpoint_url in held["error"]
    assert "storage.endpoint_url" in held["error"]
    assert await bench.results() == known
    assert (await bench.committed()).get(0, 0) <= end - len(ids)
    async with httpx.AsyncClient(base_url=worker.health_url, timeout=60) as client:
        assert (await client.get("/readyz")).status_code == 200, "pods that are not ready would be removed first"
        assert 'fluxpool_held{cause="object-store"} 1.0' in (await client.get("/metrics")).text

    bucket.service.start()
    results = await bench.wait_answers(*ids, deadline_seconds=90)
    await bench.wait_committed({0: end})
    assert len(await bench.results()) == len(known) + len(ids)
    assert {(result["status"], result["attempt"]) for result in results.values()} == {("success", 1)}
    assert await bench.records(bench.topics.dead_letters) == []
    assert worker.events("generation_failed") == []
    [ended] = worker.events("outage_ended")[outages:]
    assert (ended["cause"], ended["seconds"] > 0) == ("object-store", True)


async def test_a_store_outage_past_the_hold_limit_releases_the_tasks(
    own_bench: WorkerBench, own_bucket: Bucket
) -> None:
    bench, bucket = own_bench, own_bucket
    first = await bench.start_ready(storage=bucket.settings, infra_hold_limit_seconds=3.0)
    bucket.service.stop()
    await send(bench, task_body("patient"))
    assert await first.wait_exit(90) == 1
    assert "infra_hold_limit_seconds" in first.events("worker_failed")[0]["error"]
    assert (await bench.committed()).get(0, 0) == 0

    bucket.service.start()
    second = await bench.start_ready(storage=bucket.settings)
    [result] = await bench.wait_results(1)
    assert (result["status"], result["attempt"]) == ("success", 1)
    assert second.events("crash_counted") == []


async def test_a_store_outage_after_the_generation_costs_no_second_generation(
    bench: WorkerBench, bucket: Bucket
) -> None:
    [worker] = bench.workers
    holds, generated = len(worker.events("operation_held")), len(worker.events("job_done"))
    with Gate() as gate:
        await send(bench, task_body("generated", gate.prompt))
        await wait_for_step(bench, "generated")
        bucket.service.stop()
    await next_hold(worker, after=holds)
    bucket.service.start()
    result = (await bench.wait_answers("generated", deadline_seconds=90))["generated"]

    assert (result["status"], result["attempt"]) == ("success", 1)
    assert len(worker.events("job_done")) == generated + 1
    assert bucket.read(result["images"][0]["object"]).status_code == 200


async def test_a_folder_that_cannot_be_created_ends_the_worker_with_the_remedy(
    own_bench: WorkerBench, tmp_path: Path
) -> None:
    (tmp_path / "occupied").write_text("a file, not a folder")
    folder = tmp_path / "occupied" / "images"
    worker = own_bench.start(storage=StorageSettings(url=folder.as_uri()))

    assert await worker.wait_exit(60) == 1
    [line] = worker.events("worker_failed")
    assert str(folder) in line["error"]
    assert "choose a storage.url that can be written to" in line["error"]
    assert "Traceback" not in worker.log_file.read_text()
