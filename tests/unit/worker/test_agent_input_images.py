"""The picture that a task starts from, on its way from the store to the engine, and why there may be none."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fluxpool_contract import header_names as names
from fluxpool_contract.messages import Disposition
from fluxpool_contract.problems import ErrorCode, InvalidTaskError
from fluxpool_transport.storage import ObjectStore, read_input
from fluxpool_transport.storage.object_store import StorageUnavailableError, open_object_store
from fluxpool_worker.agent.task import task_store
from kit.stores.s3 import S3Service, running_s3
from kit.workers.task_flow import TASK, FlowBench, deadline_passed, task_record

PICTURE = b"not looked at by the agent"
PREFIX = "_inputs/default/"
MAX_BYTES = 100


def record(image: str, **fields: Any) -> Any:
    return task_record(json.dumps({**TASK, "image": image, **fields}).encode())


def bench_with_picture(folder: Path, **changes: Any) -> FlowBench:
    bench = FlowBench(folder, **changes)
    bench.engine.fails = False
    bench.store("_inputs/default/cat.png", PICTURE)
    return bench


@pytest.mark.parametrize("is_whole_address", [False, True])
async def test_the_engine_gets_the_bytes_and_the_strength(tmp_path: Path, *, is_whole_address: bool) -> None:
    bench = bench_with_picture(tmp_path)
    address = f"{bench.settings.storage.url}_inputs/default/cat.png" if is_whole_address else "_inputs/default/cat.png"
    await bench.run(record(address, strength=0.25))
    assert bench.engine.inputs is not None
    assert (bench.engine.inputs.image, bench.engine.inputs.strength) == (PICTURE, 0.25)
    assert bench.outcomes == ["success"]


async def test_a_task_without_a_picture_starts_from_noise(tmp_path: Path) -> None:
    bench = bench_with_picture(tmp_path)
    await bench.run(task_record())
    assert bench.engine.inputs is not None
    assert bench.engine.inputs.image is None


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (
            "_inputs/default/dog.png",
            "image: there is no _inputs/default/dog.png in the pool's storage; put the picture there",
        ),
        ("_inputs/default/cat.png/x", "image: there is no _inputs/default/cat.png/x in"),
        (
            "default/2026/04/05/task-9/0.png",
            "image: must be below _inputs/default/ in the pool's storage, such as _inputs/default/cat",
        ),
        ("_fluxpool/probe", "image: must be below _inputs/default/"),
        ("s3://bucket/_inputs/default/cat.png", "image: must be below _inputs/default/"),
        ("file:///etc/_inputs/default/cat.png", "image: must be below _inputs/default/"),
        ("_inputs/default-2/cat.png", "image: must be below _inputs/default/"),
        ("_inputs/default/folder", "image: _inputs/default/folder is no regular file; put the picture itself there"),
        ("_inputs/default/pipe", "image: _inputs/default/pipe is no regular file; "),
        ("_inputs/default/out", "image: _inputs/default/out is a link out of its folder; "),
        ("_inputs/default/away/secret.png", "image: _inputs/default/away/secret.png is a link out of its folder; "),
        ("_inputs/default/self", "image: _inputs/default/self is a link to itself; "),
        (f"_inputs/default/{'a' * 300}", "cannot be read (File name too long)"),
        ("_inputs/default/large.png", "image: _inputs/default/large.png has 2,000 bytes; at most 1,000 are allowed"),
    ],
)
async def test_what_cannot_be_read_ends_the_task_and_names_the_field(tmp_path: Path, image: str, message: str) -> None:
    bench = bench_with_picture(tmp_path / "store", image={"input_max_bytes": 1000})
    inputs, outside = bench.folder / "_inputs" / "default", tmp_path / "secret.png"
    outside.write_bytes(PICTURE)
    bench.store("_inputs/default/large.png", b"x" * 2000)
    (inputs / "folder").mkdir()
    os.mkfifo(inputs / "pipe")
    (inputs / "out").symlink_to(outside)
    (inputs / "away").symlink_to(tmp_path)
    (inputs / "self").symlink_to(inputs / "self")

    await bench.run(record(image))

    (result,), (letter,) = bench.results, bench.dead_letters
    assert message in result["error"]["message"]
    assert (result["status"], result["error"]["field"]) == ("failed", "image")
    assert result["error"]["code"] == ErrorCode.INVALID_FIELD
    assert not result["error"]["retryable"]
    assert letter.disposition == Disposition.INVALID
    assert bench.engine.jobs == 0
    assert bench.lane.ends == ["finished"], "its offset is committed"


@pytest.mark.parametrize(
    "image", ["/etc/passwd", "_inputs/default/../claims/x", "http://example.com/cat.png", "_inputs/default//x", ""]
)
async def test_an_address_of_no_object_is_refused_with_the_record(tmp_path: Path, image: str) -> None:
    bench = bench_with_picture(tmp_path)
    await bench.run(record(image))
    (result,) = bench.results
    assert result["error"]["field"] == "image"
    assert bench.engine.jobs == 0


async def test_a_strength_without_a_picture_is_refused(tmp_path: Path) -> None:
    bench = bench_with_picture(tmp_path)
    await bench.run(task_record(json.dumps({**TASK, "strength": 0.5}).encode()))
    (result,) = bench.results
    assert result["error"]["field"] == "strength"


async def test_a_link_within_the_folder_is_followed(tmp_path: Path) -> None:
    bench = bench_with_picture(tmp_path)
    (tmp_path / "_inputs" / "default" / "latest.png").symlink_to("cat.png")
    await bench.run(record("_inputs/default/latest.png"))
    assert bench.outcomes == ["success"]


async def test_another_prefix_and_its_limit_are_the_pools(tmp_path: Path) -> None:
    bench = bench_with_picture(tmp_path, image={"input_prefix": "_inputs/pool-a/"})
    bench.store("_inputs/pool-a/default/dog.png", b"dog")
    await bench.run(record("_inputs/pool-a/default/dog.png"))
    assert bench.engine.inputs is not None
    assert bench.engine.inputs.image == b"dog"


async def test_pictures_of_another_tenant_are_not_read(tmp_path: Path) -> None:
    bench = bench_with_picture(tmp_path, foreign_tenant_topics=["flux-generation-tasks"])
    theirs = json.dumps({**TASK, "image": "_inputs/default/cat.png"}).encode()
    await bench.run(task_record(theirs, headers=[(names.TENANT, b"acme")]))
    (result,) = bench.results
    assert "image: must be below _inputs/acme/ in the pool's storage" in result["error"]["message"]
    assert bench.engine.jobs == 0


async def test_pictures_of_a_tenant_that_is_only_claimed_are_not_read(tmp_path: Path) -> None:
    bench = bench_with_picture(tmp_path)
    bench.store("_inputs/acme/cat.png", PICTURE)
    theirs = json.dumps({**TASK, "image": "_inputs/acme/cat.png"}).encode()
    await bench.run(task_record(theirs, headers=[(names.TENANT, b"acme")]))
    (result,) = bench.results
    assert (
        "image: is in the folder of the tenant acme, which nothing proves to this worker" in result["error"]["message"]
    )
    assert bench.engine.jobs == 0


async def test_a_late_task_is_expired_rather_than_invalid(tmp_path: Path) -> None:
    bench = bench_with_picture(tmp_path)
    late = task_record(json.dumps({**TASK, "image": "_inputs/default/dog.png"}).encode(), headers=[deadline_passed()])
    await bench.run(late)
    assert bench.results[0]["status"] == "expired"


async def test_a_store_that_is_away_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = bench_with_picture(tmp_path)
    tries: list[set[str]] = []

    async def away_once(*arguments: Any, **options: Any) -> bytes:
        tries.append(bench.held_by)
        if len(tries) == 1:
            raise StorageUnavailableError("told to be away")
        return await read_input(*arguments, **options)

    monkeypatch.setattr(task_store, "read_input", away_once)
    await bench.run(record("_inputs/default/cat.png"))
    assert tries == [set(), {"disk"}]
    assert bench.outcomes == ["success"]
    assert bench.engine.inputs is not None
    assert bench.engine.inputs.image == PICTURE


@pytest.fixture(scope="module")
def s3() -> Iterator[S3Service]:
    with running_s3() as service:
        service.create_bucket("images")
        yield service


@pytest.fixture
def s3_store(s3: S3Service, tmp_path: Path) -> ObjectStore:
    return open_object_store(s3.settings("images", prefix=tmp_path.name))


async def read(store: ObjectStore, address: str, *, max_bytes: int = MAX_BYTES) -> bytes:
    return await read_input(store, address, prefix=PREFIX, max_bytes=max_bytes)


async def test_an_object_of_s3_is_read_up_to_the_limit(s3_store: ObjectStore) -> None:
    await s3_store.put_if_absent("_inputs/default/a.png", b"x" * MAX_BYTES, content_type="image/png")
    for address in ("_inputs/default/a.png", s3_store.location("_inputs/default/a.png")):
        assert await read(s3_store, address) == b"x" * MAX_BYTES
    with pytest.raises(InvalidTaskError, match=r"^image: _inputs/default/a.png has 100 bytes; at most 99 are allowed"):
        await read(s3_store, "_inputs/default/a.png", max_bytes=MAX_BYTES - 1)


@pytest.mark.parametrize(
    "address", ["_inputs/default/b.png", "other/a.png", "s3://images/_inputs/default/a.png", "_inputs/default/../a.png"]
)
async def test_another_object_of_s3_is_refused(s3_store: ObjectStore, address: str) -> None:
    with pytest.raises(InvalidTaskError, match=r"^image: "):
        await read(s3_store, address)


async def test_a_missing_bucket_is_an_outage(s3: S3Service) -> None:
    with pytest.raises(StorageUnavailableError):
        await read(open_object_store(s3.settings("no-such-bucket")), "_inputs/default/a.png")


async def test_a_missing_folder_of_the_store_is_an_outage(tmp_path: Path) -> None:
    store = open_object_store(FlowBench(tmp_path / "store").settings.storage)
    (tmp_path / "store").rmdir()
    with pytest.raises(StorageUnavailableError):
        await read(store, "_inputs/default/a.png")
