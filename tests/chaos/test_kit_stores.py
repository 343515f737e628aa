"""The disk and the S3 service of the chaos tests fail on demand, and the product's store reports an outage."""

import errno
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from fluxpool_contract.settings.worker import StorageSettings
from fluxpool_transport.storage.object_store import StorageUnavailableError, open_object_store
from kit.brokers.kafka import unique_name
from kit.faults.chaos_s3 import FailingS3Service, S3Fault, running_failing_s3
from kit.faults.disk import SmallDisk, small_disk

pytestmark = pytest.mark.on_change

CONTENT_TYPE = "text/plain"


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SmallDisk]:
    with small_disk(tmp_path / "disk") as disk:
        yield disk


@pytest.fixture
def s3() -> Iterator[FailingS3Service]:
    with running_failing_s3() as service:
        yield service


@pytest.fixture
def bucket(s3: FailingS3Service) -> str:
    name = unique_name("bucket")
    s3.create_bucket(name)
    return name


def test_a_full_disk_refuses_writes_until_space_is_freed(disk: SmallDisk) -> None:
    assert disk.free_bytes > 4 * 1024 * 1024
    disk.fill()
    assert disk.free_bytes == 0
    with pytest.raises(OSError, match="No space left") as refused:
        (disk.folder / "one").write_bytes(b"x" * 4096)
    assert refused.value.errno == errno.ENOSPC
    disk.free()
    (disk.folder / "two").write_bytes(b"x" * 4096)


async def test_a_full_disk_is_an_outage_that_names_the_remedy_and_leaves_no_partial_object(
    disk: SmallDisk,
) -> None:
    store = open_object_store(StorageSettings(url=(disk.folder / "images").as_uri()))
    disk.fill()
    with pytest.raises(StorageUnavailableError, match="free space"):
        await store.put_if_absent("a/0.png", b"x" * 100_000, content_type=CONTENT_TYPE)
    disk.free()
    assert await store.get("a/0.png") is None
    assert await store.put_if_absent("a/0.png", b"x" * 100_000, content_type=CONTENT_TYPE)
    assert await store.get("a/0.png") == b"x" * 100_000


@pytest.mark.parametrize("status", [500, 503])
def test_an_injected_error_is_returned_until_it_is_cleared(s3: FailingS3Service, bucket: str, status: int) -> None:
    url = f"{s3.endpoint_url}/{bucket}/key"
    s3.fail(S3Fault(status=status))
    answers = [httpx.put(url, content=b"x" * 200_000), httpx.head(url)]
    s3.heal()
    assert [answer.status_code for answer in answers] == [status, status]
    assert s3.struck == 2
    assert s3.read(bucket, "key").status_code == 404
    assert httpx.put(url, content=b"x").status_code == 200


def test_a_fault_affects_the_chosen_requests_and_number_of_them(s3: FailingS3Service, bucket: str) -> None:
    s3.fail(S3Fault(status=503, methods=frozenset({"PUT"}), key_part="image", times=1))
    address = f"{s3.endpoint_url}/{bucket}"
    statuses = [
        httpx.request(method, f"{address}/{key}").status_code
        for method, key in [("PUT", "claim"), ("GET", "image"), ("PUT", "image"), ("PUT", "image")]
    ]
    assert statuses[0] == 200
    assert statuses[1] != 503
    assert statuses[2:] == [503, 200]
    assert s3.struck == 1
    assert s3.requests[-1] == ("PUT", f"/{bucket}/image")


def test_a_response_can_be_delayed_or_lost(s3: FailingS3Service, bucket: str) -> None:
    address = f"{s3.endpoint_url}/{bucket}"
    s3.fail(S3Fault(wait_seconds=0.3))
    began = time.monotonic()
    assert httpx.put(f"{address}/late", content=b"late").status_code == 200
    assert time.monotonic() - began >= 0.3
    s3.fail(S3Fault(status=500, after_the_deed=True))
    assert httpx.put(f"{address}/lost", content=b"lost").status_code == 500
    s3.heal()
    assert s3.read(bucket, "lost").content == b"lost"


async def test_a_created_object_whose_response_was_lost_exists(s3: FailingS3Service, bucket: str) -> None:
    store = open_object_store(s3.settings(bucket))
    s3.fail(S3Fault(status=503, key_part="0.png", after_the_deed=True, times=1))
    assert await store.put_if_absent("a/0.png", b"once", content_type=CONTENT_TYPE) is False
    assert s3.struck == 1
    assert await store.get("a/0.png") == b"once"


async def test_errors_that_last_are_an_outage_of_the_store(s3: FailingS3Service, bucket: str) -> None:
    store = open_object_store(s3.settings(bucket))
    s3.fail(S3Fault(status=503))
    with pytest.raises(StorageUnavailableError, match="SlowDown"):
        await store.put_if_absent("a/0.png", b"x", content_type=CONTENT_TYPE)
    assert s3.struck >= 2
    s3.heal()
    assert await store.put_if_absent("a/0.png", b"x", content_type=CONTENT_TYPE)


def test_buckets_are_kept_across_a_restart_at_the_same_address(s3: FailingS3Service, bucket: str) -> None:
    address = s3.endpoint_url
    httpx.put(f"{address}/{bucket}/kept", content=b"kept").raise_for_status()
    s3.stop()
    with pytest.raises(httpx.ConnectError):
        httpx.get(address)
    s3.start()
    assert s3.endpoint_url == address
    assert s3.read(bucket, "kept").content == b"kept"
