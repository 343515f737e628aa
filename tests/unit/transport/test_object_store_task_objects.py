"""The objects of tasks in the store, on a real S3 API and on real folders."""

import asyncio
import hashlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fluxpool_contract.bounds import MAX_COUNT
from fluxpool_contract.messages.derived import claim_key
from fluxpool_contract.messages.result import GenerationResult, ImageDescription, ResultStatus
from fluxpool_contract.messages.task import REQUEST_ID
from fluxpool_contract.problems import ErrorCode, InvalidTaskError
from fluxpool_contract.settings.worker import StorageSettings
from fluxpool_transport.storage.object_store import ObjectStore, StorageUnavailableError, open_object_store
from fluxpool_transport.storage.task_objects import (
    Claim,
    Claimed,
    CorruptObjectError,
    IdConflictError,
    Manifest,
    claim_task,
    delete_task_objects,
    is_deleted,
    read_manifest,
    store_image,
    store_manifest,
)
from kit.stores.s3 import S3Service, running_s3

DAY = datetime(2026, 4, 5, 23, 59, tzinfo=UTC)
NEXT_DAY = datetime(2026, 4, 6, 0, 1, tzinfo=UTC)


@pytest.fixture(scope="module")
def s3() -> Iterator[S3Service]:
    with running_s3() as service:
        service.create_bucket("images")
        yield service


@pytest.fixture(params=["folder", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path, s3: S3Service) -> ObjectStore:
    if request.param == "folder":
        return open_object_store(StorageSettings(url=f"file://{tmp_path}"))
    return open_object_store(s3.settings("images", prefix=tmp_path.name))


async def _claim(store: ObjectStore, *, digest: str = "d1", epoch: int = 0, first_seen: datetime = DAY) -> Claimed:
    return await claim_task(
        store, tenant="default", request_id="req-1", epoch=epoch, digest=digest, first_seen=first_seen
    )


def _manifest(claim: Claim, *, worker: str = "w1", status: ResultStatus = ResultStatus.SUCCESS) -> Manifest:
    result = GenerationResult(
        request_id=claim.request_id, image_url=None, status=status, worker=worker, completed_at=DAY, seed=5
    )
    return Manifest(
        request_id=claim.request_id,
        tenant=claim.tenant,
        epoch=claim.epoch,
        digest=claim.digest,
        event_id="event",
        result=result,
    )


async def test_the_first_claim_is_fresh_and_has_the_folder(store: ObjectStore) -> None:
    claimed = await _claim(store)
    assert claimed == Claimed(
        Claim(request_id="req-1", tenant="default", epoch=0, digest="d1", prefix="default/2026/04/05/req-1"), fresh=True
    )


async def test_a_copy_from_the_next_day_keeps_the_first_folder(store: ObjectStore) -> None:
    first = await _claim(store)
    again = await _claim(store, first_seen=NEXT_DAY)
    assert again == Claimed(first.claim, fresh=False)


async def test_another_body_under_a_used_id_is_a_conflict(store: ObjectStore) -> None:
    await _claim(store)
    with pytest.raises(IdConflictError, match=r"req-1 .*choose a new request_id") as caught:
        await _claim(store, digest="d2")
    assert isinstance(caught.value, InvalidTaskError)
    assert (caught.value.code, caught.value.request_id) == (ErrorCode.ID_CONFLICT, "req-1")
    assert (await _claim(store)).claim.digest == "d1"


async def test_a_replay_has_a_claim_and_a_folder_of_its_own(store: ObjectStore) -> None:
    await _claim(store)
    replay = await _claim(store, digest="d2", epoch=1)
    assert replay.fresh
    assert replay.claim.prefix == "default/2026/04/05/req-1~1"


async def test_of_many_claims_at_once_one_is_fresh_and_all_agree(store: ObjectStore) -> None:
    claims = await asyncio.gather(*(_claim(store, first_seen=day) for day in [DAY, NEXT_DAY] * 6))
    assert [claim.fresh for claim in claims].count(True) == 1
    assert len({claim.claim for claim in claims}) == 1


async def test_the_image_of_the_first_writer_is_kept(store: ObjectStore) -> None:
    claim = (await _claim(store)).claim
    first = await store_image(store, claim, index=0, extension="png", payload=b"one", content_type="image/png")
    second = await store_image(store, claim, index=0, extension="png", payload=b"three", content_type="image/png")
    assert (first.key, len(first.payload), first.created) == ("default/2026/04/05/req-1/0.png", 3, True)
    assert first.sha256 == hashlib.sha256(b"one").hexdigest()
    assert (len(second.payload), second.sha256, second.created) == (3, first.sha256, False)
    assert await store.get(first.key) == b"one"


async def test_the_first_manifest_decides_the_outcome(store: ObjectStore) -> None:
    claim = (await _claim(store)).claim
    assert await read_manifest(store, claim) is None
    failed = _manifest(claim, worker="w1", status=ResultStatus.FAILED)
    assert await store_manifest(store, claim, failed) == failed
    winner = await store_manifest(store, claim, _manifest(claim, worker="w2"))
    assert winner == failed
    assert await read_manifest(store, claim) == failed
    assert winner.result.to_json() == failed.result.to_json()


async def test_the_objects_of_a_task_are_deleted_but_its_claim(store: ObjectStore) -> None:
    claim, replayed = (await _claim(store)).claim, (await _claim(store, epoch=1)).claim
    for held in (claim, replayed):
        await store_image(store, held, index=0, extension="png", payload=b"x", content_type="image/png")
        await store_manifest(store, held, _manifest(held))
    for _ in range(2):
        await delete_task_objects(store, tenant="default", request_id="req-1", epoch=0)
    await delete_task_objects(store, tenant="default", request_id="never-was", epoch=0)
    assert await read_manifest(store, claim) is None
    assert await store.get(f"{claim.prefix}/0.png") is None
    assert await read_manifest(store, replayed) is not None
    assert (await is_deleted(store, claim), await is_deleted(store, replayed)) == (True, False)
    with pytest.raises(IdConflictError):
        await _claim(store, digest="d2")


async def test_a_claim_that_leads_to_another_task_deletes_nothing(store: ObjectStore) -> None:
    other = (await _claim(store)).claim
    await store_image(store, other, index=0, extension="png", payload=b"x", content_type="image/png")
    forged = other.model_copy(update={"request_id": "req-2"})
    await store.put_if_absent(claim_key("default", "req-2"), forged.to_json(), content_type="application/json")
    with pytest.raises(CorruptObjectError):
        await delete_task_objects(store, tenant="default", request_id="req-2", epoch=0)
    assert await store.get(f"{other.prefix}/0.png") == b"x"


async def test_the_error_of_a_damaged_claim_or_manifest_names_the_object(store: ObjectStore) -> None:
    claim = (await _claim(store)).claim
    await store.put_if_absent("_claims/default/bad.json", b"[]", content_type="application/json")
    with pytest.raises(CorruptObjectError, match=r"_claims/default/bad\.json is not a claim"):
        await claim_task(store, tenant="default", request_id="bad", epoch=0, digest="d", first_seen=DAY)
    await store.put_if_absent(f"{claim.prefix}/manifest.json", b"{", content_type="application/json")
    with pytest.raises(CorruptObjectError, match="is not a manifest"):
        await read_manifest(store, claim)


async def test_fields_of_a_later_release_survive_in_claims_and_results(store: ObjectStore) -> None:
    later = (
        b'{"request_id":"req-1","tenant":"default","epoch":0,"digest":"d1","prefix":"default/p/req-1","value_digest":null,'
        b'"a_later_field":"m"}'
    )
    await store.put_if_absent("_claims/default/req-1.json", later, content_type="application/json")
    claim = (await _claim(store)).claim
    assert claim.prefix == "default/p/req-1"
    assert claim.to_json() == later


async def test_a_claim_matches_its_task_by_values_or_by_bytes(store: ObjectStore) -> None:
    async def claim(digest: str, value_digest: str) -> bool:
        claimed = await claim_task(
            store,
            tenant="default",
            request_id="req-1",
            epoch=0,
            digest=digest,
            value_digest=value_digest,
            first_seen=DAY,
        )
        return claimed.fresh

    assert await claim("written as 4", "four")
    assert not await claim("written as 4.0", "four")
    assert not await claim("written as 4", "by a release that knows no value")
    with pytest.raises(IdConflictError):
        await claim("written as 5", "five")


async def test_a_claim_of_an_earlier_release_matches_by_bytes_only(store: ObjectStore) -> None:
    earlier = b'{"request_id":"req-1","tenant":"default","epoch":0,"digest":"d1","prefix":"default/p/req-1"}'
    await store.put_if_absent("_claims/default/req-1.json", earlier, content_type="application/json")
    assert not (await _claim(store)).fresh
    with pytest.raises(IdConflictError):
        await _claim(store, digest="d2")


async def test_an_outage_is_distinguished_from_a_response() -> None:
    with running_s3() as service:
        service.create_bucket("gone")
        store = open_object_store(service.settings("gone"))
        claim = (await _claim(store)).claim
        service.stop()
        with pytest.raises(StorageUnavailableError):
            await _claim(store, digest="d2")
        with pytest.raises(StorageUnavailableError):
            await read_manifest(store, claim)


_text = st.text(st.characters(codec="utf-8"), max_size=30)
_count = st.integers(0, MAX_COUNT)
_results = st.builds(
    GenerationResult,
    request_id=st.none() | st.from_regex(REQUEST_ID, fullmatch=True),
    image_url=st.none() | _text,
    status=st.sampled_from(ResultStatus),
    seed=st.none() | st.integers(0, 2**32),
    timings=st.dictionaries(_text, st.floats(allow_nan=False, allow_infinity=False), max_size=4),
    metadata=st.dictionaries(_text, _text, max_size=4),
    warnings=st.lists(_text, max_size=3).map(tuple),
    completed_at=st.none() | st.datetimes(timezones=st.just(UTC)),
    images=st.lists(
        st.builds(
            ImageDescription,
            index=_count,
            url=_text,
            object=st.just("default/2026/04/05/r/0.png"),
            width=_count,
            height=_count,
            seed=_count,
            format=_text,
            content_type=st.just("image/png"),
            bytes=_count,
            sha256=_text,
        ),
        max_size=2,
    ).map(tuple),
)


@given(_results)
def test_a_stored_result_is_published_with_the_same_bytes_again(result: GenerationResult) -> None:
    manifest = Manifest(request_id="r", tenant="t", epoch=0, digest="d", event_id="e", result=result)
    stored = Manifest.model_validate_json(manifest.to_json())
    assert stored.result.to_json() == result.to_json()
    assert stored.to_json() == manifest.to_json()


_PROGRAM = """
import asyncio, os, sys
from datetime import UTC, datetime
from fluxpool_contract.messages.result import GenerationResult
from fluxpool_contract.settings.worker import StorageSettings
from fluxpool_transport.storage.object_store import open_object_store
from fluxpool_transport.storage.task_objects import Manifest, claim_task, store_image, store_manifest

async def main():
    store = open_object_store(StorageSettings(url=f"file://{sys.argv[1]}"))
    claimed = await claim_task(store, tenant="default", request_id="req-1", epoch=0, digest="d1",
                               first_seen=datetime(2026, 4, 5, tzinfo=UTC))
    claim = claimed.claim
    image = await store_image(store, claim, index=0, extension="png", payload=b"one", content_type="image/png")
    result = GenerationResult(request_id="req-1", image_url=image.key, status="success")
    await store_manifest(store, claim, Manifest(request_id="req-1", tenant="default", epoch=0, digest="d1",
                                                event_id="e", result=result))

asyncio.run(main())
# At once: the store's threads, still active, may abort an interpreter that ends normally.
os._exit(0)
"""


@pytest.mark.parametrize(
    ("point", "left_behind"),
    [
        ("store-after-claim", {"_claims/default/req-1.json"}),
        ("store-after-image", {"_claims/default/req-1.json", "default/2026/04/05/req-1/0.png"}),
        (
            "store-after-manifest",
            {
                "_claims/default/req-1.json",
                "default/2026/04/05/req-1/0.png",
                "default/2026/04/05/req-1/manifest.json",
            },
        ),
    ],
)
def test_a_worker_killed_between_two_objects_is_finished_by_the_next(
    tmp_path: Path, point: str, left_behind: set[str]
) -> None:
    command = [sys.executable, "-c", _PROGRAM, str(tmp_path)]
    killed = subprocess.run(command, env={**os.environ, "FLUXPOOL_FAULT": f"{point}:kill"}, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()} == left_behind
    subprocess.run(command, check=True)
    assert (tmp_path / "default/2026/04/05/req-1/manifest.json").is_file()
