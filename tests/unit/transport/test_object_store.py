"""The object store against a real S3 API and real folders."""

import asyncio
import codecs
import os
import shutil
import ssl
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest
import trustme
from aiohttp import web
from pydantic import SecretStr

from fluxpool_contract.settings.worker import StorageSettings
from fluxpool_transport.storage.object_store import (
    PROBE_KEY,
    ConditionalWritesError,
    ObjectStore,
    StorageCredentialsError,
    StorageUnavailableError,
    open_object_store,
)
from kit.stores.s3 import S3Service, running_s3, signature_of


@pytest.fixture(scope="module")
def s3() -> Iterator[S3Service]:
    with running_s3() as service:
        service.create_bucket("images")
        yield service


@pytest.fixture(params=["folder", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path, s3: S3Service) -> ObjectStore:
    if request.param == "folder":
        return open_object_store(StorageSettings(url=f"file://{tmp_path}/made/on demand"))
    return open_object_store(s3.settings("images", prefix=f"{tmp_path.name}/below"))


async def test_an_object_is_created_once_and_the_first_payload_stays(store: ObjectStore) -> None:
    assert await store.put_if_absent("a/0.png", b"first", content_type="image/png") is True
    assert await store.put_if_absent("a/0.png", b"second", content_type="image/png") is False
    assert await store.get("a/0.png") == b"first"


async def test_of_many_writers_at_once_exactly_one_creates(store: ObjectStore) -> None:
    payloads = [bytes([number]) * 50_000 for number in range(12)]
    created = await asyncio.gather(
        *(store.put_if_absent("race.bin", payload, content_type="image/png") for payload in payloads)
    )
    assert created.count(True) == 1
    assert await store.get("race.bin") == payloads[created.index(True)]


async def test_a_missing_object_is_none(store: ObjectStore) -> None:
    assert await store.get("nothing/here.json") is None


async def test_the_object_key_of_a_replay_is_unchanged(store: ObjectStore) -> None:
    await store.put_if_absent("default/2026/04/05/req~1/0.png", b"x", content_type="image/png")
    assert await store.get("default/2026/04/05/req~1/0.png") == b"x"


async def test_empty_payloads_are_objects_too(store: ObjectStore) -> None:
    assert await store.put_if_absent("empty", b"", content_type="text/plain")
    assert await store.get("empty") == b""


async def test_the_objects_below_a_folder_are_deleted_and_none_beside_it(store: ObjectStore) -> None:
    kept = ["t/req", "t/req~1/0.png", "t/req-2/0.png", "t/0.png"] if "s3" in store.url else ["t/req~1/0.png", "t/0.png"]
    for key in ("t/req/0.png", "t/req/deep/1.png", "t/req/manifest.json", *kept):
        await store.put_if_absent(key, b"x", content_type="image/png")
    await store.delete_below("t/req")
    assert [await store.get(key) for key in ("t/req/0.png", "t/req/deep/1.png", "t/req/manifest.json")] == [None] * 3
    assert [await store.get(key) for key in kept] == [b"x"] * len(kept)
    await store.delete_below("t/req")
    await store.delete_below("never/was")


async def test_a_signed_url_reads_one_object_without_credentials_for_a_time(s3: S3Service, tmp_path: Path) -> None:
    store = open_object_store(s3.settings("images", prefix=f"{tmp_path.name}/below"))
    await store.put_if_absent("t/req~1/0.png", b"picture", content_type="image/png")
    public = s3.settings("images", prefix=f"{tmp_path.name}/below").model_copy(
        update={"endpoint_url": s3.endpoint_url.replace("127.0.0.1", "localhost")}
    )
    url = await open_object_store(public).signed_url("t/req~1/0.png", valid_seconds=900)
    asked = httpx.URL(url)
    assert (asked.host, asked.params["X-Amz-Expires"]) == ("localhost", "900")
    assert asked.params["X-Amz-SignedHeaders"] == "host"
    assert asked.params["X-Amz-Signature"] == signature_of(asked, public)
    async with httpx.AsyncClient() as client:
        answer = await client.get(url)
    assert (answer.status_code, answer.content, answer.headers["content-type"]) == (200, b"picture", "image/png")


async def test_a_url_is_signed_for_one_method(s3: S3Service, tmp_path: Path) -> None:
    settings = s3.settings("images", prefix=tmp_path.name)
    asked = httpx.URL(await open_object_store(settings).signed_url("0.png", valid_seconds=900, method="HEAD"))
    assert asked.params["X-Amz-Signature"] == signature_of(asked, settings, "HEAD")
    assert asked.params["X-Amz-Signature"] != signature_of(asked, settings)


async def test_more_objects_than_one_page_of_a_list_are_deleted(store: ObjectStore) -> None:
    keys = [f"many/{number:03}.png" for number in range(60)]
    await asyncio.gather(*(store.put_if_absent(key, b"x", content_type="image/png") for key in keys))
    await store.delete_below("many")
    assert not [key for key in keys if await store.get(key)]


async def test_a_folder_in_a_bucket_that_is_missing_is_not_deleted_in_silence(s3: S3Service) -> None:
    with pytest.raises(StorageUnavailableError, match="cannot list"):
        await open_object_store(s3.settings("no-such-bucket")).delete_below("t")


@pytest.mark.parametrize("key", ["", "/a", "a//b", "a/", "../a", "a/./b", "."])
async def test_a_key_that_is_not_normalised_is_refused(store: ObjectStore, key: str) -> None:
    with pytest.raises(ValueError, match="object key"):
        await store.get(key)
    with pytest.raises(ValueError, match="object key"):
        await store.put_if_absent(key, b"", content_type="text/plain")
    with pytest.raises(ValueError, match="object key"):
        await store.delete_below(key)


async def test_a_probe_passes_again_and_again(store: ObjectStore) -> None:
    await store.probe()
    await store.probe()
    assert await store.get(PROBE_KEY) == b"fluxpool\n"


async def test_s3_objects_carry_prefix_and_media_type(s3: S3Service) -> None:
    store = open_object_store(s3.settings("images", prefix="pre/fix"))
    await store.put_if_absent("x/0.webp", b"w", content_type="image/webp")
    answer = s3.read("images", "pre/fix/x/0.webp")
    assert (answer.content, answer.headers["content-type"]) == (b"w", "image/webp")
    assert store.location("x/0.webp") == "s3://images/pre/fix/x/0.webp"


async def test_a_folder_location_is_the_path_of_the_file(tmp_path: Path) -> None:
    store = open_object_store(StorageSettings(url=f"file://{tmp_path}"))
    await store.put_if_absent("x/0.png", b"p", content_type="image/png")
    assert store.location("x/0.png") == (tmp_path / "x/0.png").as_uri()
    assert (tmp_path / "x/0.png").read_bytes() == b"p"


async def test_a_missing_bucket_is_an_outage_and_not_a_missing_object(s3: S3Service) -> None:
    store = open_object_store(s3.settings("no-such-bucket"))
    with pytest.raises(StorageUnavailableError, match="NoSuchBucket"):
        await store.get("a")
    with pytest.raises(StorageUnavailableError, match=r"storage\.url"):
        await store.put_if_absent("a", b"", content_type="text/plain")
    with pytest.raises(StorageUnavailableError):
        await store.probe()


async def test_an_outage_of_s3_is_reported_until_it_ends() -> None:
    with running_s3() as service:
        service.create_bucket("outage")
        store = open_object_store(service.settings("outage"))
        assert await store.put_if_absent("before", b"1", content_type="text/plain")
        service.stop()
        for operation in (store.get("before"), store.probe()):
            with pytest.raises(StorageUnavailableError, match="s3://outage/"):
                await operation
        with pytest.raises(StorageUnavailableError) as caught:
            await store.put_if_absent("during", b"2", content_type="text/plain")
        assert "Debug source" not in str(caught.value)
        service.start()
        assert await store.put_if_absent("during", b"2", content_type="text/plain")
        assert await store.get("before") == b"1"


async def test_wrong_keys_are_an_outage_that_names_the_rights() -> None:
    async def refuse(_: web.Request) -> web.Response:
        return web.Response(status=403, text="<Error><Code>AccessDenied</Code></Error>")

    async with _serving(refuse) as url:
        store = _open_bucket(url)
        with pytest.raises(StorageUnavailableError, match="PutObject"):
            await store.put_if_absent("a", b"", content_type="text/plain")
        with pytest.raises(StorageUnavailableError, match="AccessDenied"):
            await store.get("a")


class _Bucket:
    """A small S3 service that can ignore conditions, and whose first responses can be failures."""

    def __init__(self, *, conditional: bool = True, failures: int = 0) -> None:
        self.objects: dict[str, bytes] = {}
        self._conditional = conditional
        self._failures = failures

    async def answer(self, request: web.Request) -> web.Response:
        payload = await request.read()
        if self._failures:
            self._failures -= 1
            return web.Response(status=503)
        headers = {"ETag": '"0"', "Last-Modified": "Wed, 21 Oct 2015 07:28:00 GMT"}
        if request.method == "GET":
            found = self.objects.get(request.path)
            return web.Response(status=404) if found is None else web.Response(body=found, headers=headers)
        if self._conditional and request.headers.get("If-None-Match") == "*" and request.path in self.objects:
            return web.Response(status=412)
        self.objects[request.path] = payload
        return web.Response(headers=headers)


async def test_a_service_that_ignores_conditions_fails_every_probe() -> None:
    async with _serving(_Bucket(conditional=False).answer) as url:
        store = _open_bucket(url)
        for _ in range(2):
            with pytest.raises(ConditionalWritesError, match="If-None-Match"):
                await store.probe()


async def test_nothing_is_written_to_a_service_that_ignores_conditions() -> None:
    bucket = _Bucket(conditional=False)
    async with _serving(bucket.answer) as url:
        store = _open_bucket(url)
        for _ in range(2):
            with pytest.raises(ConditionalWritesError, match="use a service or a release that supports them"):
                await store.put_if_absent("a", b"x", content_type="text/plain")
    assert set(bucket.objects) == {f"/bucket/{PROBE_KEY}"}


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (501, "<Error><Code>NotImplemented</Code><Header>If-None-Match</Header></Error>"),
        (501, ""),
        (400, "<Error><Code>NotImplemented</Code></Error>"),
        (400, "<Error><Code>InvalidArgument</Code><ArgumentName>If-None-Match</ArgumentName></Error>"),
    ],
)
async def test_a_service_that_refuses_conditions_is_named(status: int, body: str) -> None:
    async def refuse(request: web.Request) -> web.Response:
        await request.read()
        return web.Response(status=status, text=body)

    async with _serving(refuse) as url:
        with pytest.raises(ConditionalWritesError, match="does not support conditional writes"):
            await _open_bucket(url).probe()


async def test_a_service_that_reports_an_unreadable_object_as_existing_fails_the_probe() -> None:
    async def pretend(request: web.Request) -> web.Response:
        await request.read()
        return web.Response(status=412 if request.method == "PUT" else 404)

    async with _serving(pretend) as url:
        with pytest.raises(ConditionalWritesError, match="reported to exist, but cannot be read"):
            await _open_bucket(url).probe()


async def test_a_conflict_at_reading_is_an_outage() -> None:
    async def conflict(_: web.Request) -> web.Response:
        return web.Response(status=409)

    async with _serving(conflict) as url:
        with pytest.raises(StorageUnavailableError, match="cannot read a"):
            await _open_bucket(url).get("a")


async def test_a_panic_of_the_store_library_is_reported_as_wrong_credentials() -> None:
    async with _serving(_Bucket().answer) as url:
        settings = _bucket_settings(url).model_copy(update={"access_key_id": "AKIAEXAMPLE\n"})
        store = open_object_store(settings)
        with pytest.raises(StorageCredentialsError, match=r"storage\.access_key_id.*without line ends"):
            await store.probe()
        with pytest.raises(StorageCredentialsError):
            await store.get("a")


async def test_requests_are_repeated_after_errors_of_the_service() -> None:
    bucket = _Bucket(failures=2)
    async with _serving(bucket.answer) as url:
        store = _open_bucket(url)
        assert await store.put_if_absent("a", b"x", content_type="text/plain")
    assert bucket.objects["/bucket/a"] == b"x"


@pytest.mark.parametrize("before", [b"", codecs.BOM_UTF8, "# Köln\n".encode()], ids=["", "byte order mark", "comment"])
async def test_a_service_with_a_private_authority_is_trusted_by_its_ca_file(tmp_path: Path, before: bytes) -> None:
    authority = trustme.CA()
    (tmp_path / "ca.pem").write_bytes(before + authority.cert_pem.bytes())
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    async with _serving(_Bucket().answer, context) as url:
        with pytest.raises(StorageUnavailableError):
            await _open_bucket(url).get("a")
        store = open_object_store(_bucket_settings(url).model_copy(update={"ca_file": tmp_path / "ca.pem"}))
        await store.probe()


@pytest.mark.parametrize("content", [None, "nonsense"])
def test_a_ca_file_that_cannot_be_used_is_named(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "ca.pem"
    if content is not None:
        path.write_text(content)
    settings = _bucket_settings("https://127.0.0.1:9").model_copy(update={"ca_file": path})
    with pytest.raises(StorageUnavailableError, match=r"storage\.ca_file"):
        open_object_store(settings)


async def test_a_cancelled_operation_ends_at_once() -> None:
    asked = asyncio.Event()

    async def hang(_: web.Request) -> web.Response:
        asked.set()
        await asyncio.Event().wait()
        raise AssertionError

    async with _serving(hang) as url:
        store = _open_bucket(url)
        reading = asyncio.create_task(store.get("a"))
        await asked.wait()
        reading.cancel()
        async with asyncio.timeout(30):
            with pytest.raises(asyncio.CancelledError):
                await reading


def test_a_folder_that_cannot_be_made_is_an_outage_with_a_remedy(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageUnavailableError, match="written to"):
        open_object_store(StorageSettings(url=f"file://{tmp_path}/file/images"))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    mount_point = tmp_path / "small"
    mount_point.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(mount_point)]
    if os.geteuid() != 0 or shutil.which("mount") is None or subprocess.run(command, check=False).returncode:
        pytest.skip("mounting a small disk needs root and CAP_SYS_ADMIN")
    yield mount_point
    subprocess.run(["umount", str(mount_point)], check=True)


async def test_a_full_disk_is_an_outage_and_leaves_no_half_object(small_disk: Path) -> None:
    store = open_object_store(StorageSettings(url=f"file://{small_disk}/images"))
    with pytest.raises(StorageUnavailableError, match=r"[Nn]o space"):
        await store.put_if_absent("big.png", b"x" * 500_000, content_type="image/png")
    assert await store.get("big.png") is None


def _bucket_settings(endpoint_url: str) -> StorageSettings:
    return StorageSettings(
        url="s3://bucket/",
        endpoint_url=endpoint_url,
        region="x",
        access_key_id="k",
        secret_access_key=SecretStr("s"),
    )


def _open_bucket(endpoint_url: str) -> ObjectStore:
    return open_object_store(_bucket_settings(endpoint_url))


@asynccontextmanager
async def _serving(
    handler: Callable[[web.Request], Awaitable[web.StreamResponse]], tls: ssl.SSLContext | None = None
) -> AsyncIterator[str]:
    """Answer every request on a loopback port by `handler`."""
    application = web.Application()
    application.router.add_route("*", "/{path:.*}", handler)
    # Do not wait for a handler that hangs on purpose.
    runner = web.AppRunner(application, shutdown_timeout=0.1)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls).start()
        yield f"http{'' if tls is None else 's'}://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        # A clean TLS shutdown waits for the client's close_notify, and its socket would outlive the loop.
        for connection in runner.server.connections if runner.server is not None else ():
            if connection.transport is not None:
                connection.transport.abort()
        await runner.cleanup()
