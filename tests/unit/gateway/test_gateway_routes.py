"""The GET routes over a real task store: responses to forged records and odd requests."""

import asyncio
import hashlib
import inspect
import json
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from fastapi.dependencies.models import Dependant
from fastapi.routing import APIRoute, iter_route_contexts

from fluxpool_contract.kafka.connection import KafkaConnection
from fluxpool_contract.kafka.topics import TopicNames
from fluxpool_contract.messages.result import GenerationResult, ImageDescription, ResultStatus
from fluxpool_contract.settings.worker import StorageSettings
from fluxpool_contract.tenants import TenantTrust
from fluxpool_gateway.feedback.writing import FeedbackWriter
from fluxpool_gateway.http.app import BackgroundPartError, build_application
from fluxpool_gateway.http.readiness import BrokerWatch
from fluxpool_gateway.http.routes import Services
from fluxpool_gateway.live.readers import EventReaders
from fluxpool_gateway.projection.barrier import ProjectionBarrier
from fluxpool_gateway.queue.lane_watch import LaneWatch
from fluxpool_gateway.settings import GatewaySettings
from fluxpool_gateway.store.database import open_writer
from fluxpool_gateway.store.migration import migrate
from fluxpool_gateway.store.reading import TaskStoreReader
from fluxpool_gateway.store.task_state import Change, Position, ProgressSeen, ResultSeen, TaskSeen, TaskStatus
from fluxpool_gateway.store.task_store import LogPosition, TaskStoreWriter
from fluxpool_gateway.stores import open_webhooks
from fluxpool_gateway.tasks.canceling import Canceling
from fluxpool_gateway.tasks.deleting import Deleting
from fluxpool_gateway.tasks.lookup import RecentTasks, TaskLookup
from fluxpool_gateway.tasks.waiting import StoreWaits, TaskWaits
from fluxpool_gateway.wiring import open_dead_letters, run_or_fail
from fluxpool_transport.kafka.metadata import KafkaMetadata
from fluxpool_transport.storage.object_store import open_object_store
from kit.gateways.keyed_gateway import Records, keyed_settings

IMAGE = b"\x89PNG and so on"
KEY = "default/2026/04/05/r-1/0.png"
IMAGE_PATH = "/v1/generations/r-1/images/0"


@dataclass(slots=True)
class Gateway:
    """The routes, with a task store that the test fills."""

    client: httpx.AsyncClient
    writer: TaskStoreWriter
    app: FastAPI

    def project(self, *changes: Change) -> None:
        """Apply records."""
        self.writer.apply([(("topic", 0, offset), change) for offset, change in enumerate(changes)], {}, now_ms=1)

    def succeed(self, **image: Any) -> None:
        """Apply the result of a task with one image, as any producer could write it."""
        described: dict[str, Any] = {
            "index": 0,
            "url": "http://images/0.png",
            "object": KEY,
            "width": 64,
            "height": 64,
            "seed": 7,
            "format": "png",
            "content_type": "image/png",
            "bytes": len(IMAGE),
            "sha256": hashlib.sha256(IMAGE).hexdigest(),
        }
        result = GenerationResult(
            request_id="r-1",
            image_url=None,
            status=ResultStatus.SUCCESS,
            images=(ImageDescription.model_construct(**(described | image)),),
        )
        seen = ResultSeen(
            tenant="default",
            request_id="r-1",
            status=TaskStatus.SUCCEEDED,
            body=result.model_dump_json(warnings=False),
            completed_at_ms=1,
        )
        self.project(seen)


@pytest.fixture
async def gateway(tmp_path: Path) -> AsyncIterator[Gateway]:
    async with opened(tmp_path) as started:
        yield started


@asynccontextmanager
async def opened(folder: Path) -> AsyncIterator[Gateway]:
    storage = StorageSettings(url=(folder / "images").as_uri())
    settings = GatewaySettings(
        kafka=KafkaConnection(bootstrap_servers=("localhost:9092",)),
        storage=storage,
        database_file=folder / "tasks.sqlite",
    )
    engine = open_writer(settings.task_store_file())
    migrate(engine, settings.task_store_file())
    store = TaskStoreReader(settings.task_store_file())
    (folder / "images" / KEY).parent.mkdir(parents=True)
    (folder / "images" / KEY).write_bytes(IMAGE)
    webhooks = open_webhooks(settings)
    app = build_application(settings, on_failure=lambda: None)

    async def nothing() -> Mapping[Position, LogPosition]:
        return {}

    async with asyncio.TaskGroup() as group:
        barrier = ProjectionBarrier(group, ends=nothing, projected=nothing)
        app.state.services = Services(
            lookup=TaskLookup(store=store, recent=RecentTasks(asyncio.get_running_loop().time), barrier=barrier),
            store=store,
            watch=BrokerWatch(KafkaMetadata(settings.kafka, client_id="test"), ()),
            objects=open_object_store(storage),
            signer=None,
            public_url=None,
            waits=TaskWaits(group, versions=store.versions),
            tenant_waits=StoreWaits(group, store.latest_changes),
            canceling=Canceling(producer=Records(), topic=TopicNames().control),
            deleting=Deleting(
                producer=Records(),
                topic=TopicNames().results,
                objects=open_object_store(storage),
                trust=TenantTrust(),
            ),
            feedback=FeedbackWriter(
                producer=Records(),
                topic=TopicNames().feedback,
                trust=TenantTrust(),
                rater_secret=None,
                metrics=app.metrics,
            ),
            stopping=asyncio.Event(),
            readers=EventReaders(most=1, most_of_tenant=1, metrics=app.metrics),
            metrics=app.metrics,
            lanes=LaneWatch((), clock=time.monotonic, wall_clock=time.time),
            dead_letters=open_dead_letters(settings, store, app.metrics, TenantTrust()),
            webhooks=webhooks,
            webhook_targets=settings.webhooks,
        )
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as client:
            yield Gateway(client, TaskStoreWriter(engine), app)
    store.close()
    webhooks.close()
    engine.dispose()


def task(request_id: str) -> TaskSeen:
    return TaskSeen(request_id=request_id, body="{}", priority="standard", tenant="default", created_at_ms=1)


@pytest.mark.parametrize(
    ("path", "status"),
    [
        (IMAGE_PATH, 200),
        ("/v1/generations/r-1", 200),
        ("/healthz", 200),
        ("/readyz", 503),
        ("/openapi.json", 200),
        ("/v1/generations/unknown", 404),
        ("/v1/generations/r-1/images/1", 404),
        ("/v1/generations/waiting/images/0", 409),
        ("/nowhere", 404),
    ],
)
async def test_head_is_answered_as_get_everywhere(gateway: Gateway, path: str, status: int) -> None:
    gateway.succeed()
    gateway.project(task("waiting"))
    answers = [await gateway.client.request(method, path) for method in ("GET", "HEAD")]
    assert [answer.status_code for answer in answers] == [status, status]
    got, head = (
        {name: value for name, value in answer.headers.items() if name not in {"x-request-id", "date"}}
        for answer in answers
    )
    assert got == head


@pytest.mark.parametrize("method", ["POST", "DELETE", "OPTIONS"])
async def test_the_allowed_methods_of_a_route_are_named(gateway: Gateway, method: str) -> None:
    answer = await gateway.client.request(method, "/healthz")
    assert (answer.status_code, answer.headers["allow"]) == (405, "GET, HEAD")
    assert answer.json()["error"]["code"] == "method_not_allowed"


@pytest.mark.parametrize(
    "object_key", ["", "/etc/passwd", "../secret", "default/../../secret", "a//b", "a\x00b", "ä", "./0.png", "a" * 5000]
)
async def test_an_object_key_of_another_form_is_no_image(gateway: Gateway, object_key: str) -> None:
    gateway.succeed(object=object_key)
    answer = await gateway.client.get(IMAGE_PATH)
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_found")


async def test_an_image_is_served_with_an_image_content_type_only(gateway: Gateway) -> None:
    gateway.succeed(content_type="image/svg+xml")
    answer = await gateway.client.get(IMAGE_PATH)
    assert (answer.status_code, answer.content) == (200, IMAGE)
    assert answer.headers["content-type"] == "application/octet-stream"


@pytest.mark.parametrize("content_type", ["text/html", "image/png\r\nset-cookie: a=b", "ä", ""])
async def test_a_stored_result_that_the_contract_refuses_has_no_images(gateway: Gateway, content_type: str) -> None:
    gateway.succeed(content_type=content_type)
    answer = await gateway.client.get(IMAGE_PATH)
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_found")
    view = await gateway.client.get("/v1/generations/r-1")
    assert (view.status_code, view.json()["status"], view.json()["images"]) == (200, "succeeded", [])


@pytest.mark.parametrize("marks", [(), ("xmp",), ("xmp", "c2pa", "a-later-mark")])
async def test_a_task_tells_how_its_images_are_marked(gateway: Gateway, marks: tuple[str, ...]) -> None:
    gateway.succeed(marks=marks)
    view = await gateway.client.get("/v1/generations/r-1")
    assert [image["marks"] for image in view.json()["images"]] == [list(marks)]


@pytest.mark.parametrize("sha256", ["", 'a"b', "a\r\nset-cookie: a=b", "ä", "☃"])
async def test_an_invalid_digest_is_no_etag(gateway: Gateway, sha256: str) -> None:
    gateway.succeed(sha256=sha256)
    answer = await gateway.client.get(IMAGE_PATH)
    assert (answer.status_code, answer.content) == (200, IMAGE)
    assert "etag" not in answer.headers


@pytest.mark.parametrize("index", ["+0", "0.0", "%200", "00", "-0", "8", "99", "9" * 5000, "%D9%A0", "x"])
async def test_an_image_has_one_address(gateway: Gateway, index: str) -> None:
    gateway.succeed()
    answer = await gateway.client.get(f"/v1/generations/r-1/images/{index}")
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_found")


@pytest.mark.parametrize(("step", "total_steps"), [(1, -5), (1, 0), (-1, 5), (-1, -5)])
async def test_impossible_progress_is_not_shown(gateway: Gateway, step: int, total_steps: int) -> None:
    running = ProgressSeen(
        tenant="default",
        request_id="r-1",
        status=TaskStatus.RUNNING,
        at_ms=1,
        started=True,
        step=step,
        total_steps=total_steps,
    )
    gateway.project(task("r-1"), running)
    answer = await gateway.client.get("/v1/generations/r-1")
    assert (answer.status_code, answer.json()["progress"]) == (200, None)


async def test_images_of_a_running_task_and_of_a_task_without_images_have_different_errors(gateway: Gateway) -> None:
    failed = ResultSeen(
        tenant="default",
        request_id="failed",
        status=TaskStatus.FAILED,
        body=GenerationResult(request_id="failed", image_url=None, status=ResultStatus.FAILED).model_dump_json(),
        completed_at_ms=1,
    )
    gateway.project(task("waiting"), failed)
    waiting, without = [
        await gateway.client.get(f"/v1/generations/{request_id}/images/0") for request_id in ("waiting", "failed")
    ]
    assert (waiting.status_code, waiting.json()["error"]["code"], waiting.json()["title"]) == (
        409, "not_finished", "The task is not finished",
    )  # fmt: skip
    assert "retry-after" in waiting.headers
    assert (without.status_code, without.json()["error"]["code"]) == (409, "no_images")
    assert "retry-after" not in without.headers


@pytest.mark.parametrize("host", ["[", "[::1", "a b", "", "☃", "a" * 5000, "evil/path?x#y"])
async def test_an_invalid_host_header_does_not_change_the_response(gateway: Gateway, host: str) -> None:
    headers = [(b"host", host.encode())]
    for path, status in (("/v1/generations/r-1", 404), ("/nowhere", 404), ("/healthz", 200)):
        answer = await gateway.client.get(path, headers=headers)
        assert answer.status_code == status


async def test_an_answer_to_a_long_address_is_short(gateway: Gateway) -> None:
    answer = await gateway.client.get("/" + "%E2%98%83" * 1500)
    assert answer.status_code == 404
    assert len(answer.content) < 2500


async def test_an_internal_error_is_a_problem_document_and_the_connection_stays_open(gateway: Gateway) -> None:
    gateway.app.state.services = None
    answer = await gateway.client.get("/v1/generations/r-1", headers={"x-request-id": "mine"})
    assert (answer.status_code, answer.json()["correlation_id"]) == (500, "mine")
    assert answer.headers["x-request-id"] == "mine"
    assert "connection" not in answer.headers


async def test_the_openapi_document_declares_every_problem_as_problem_json(gateway: Gateway) -> None:
    document = (await gateway.client.get("/openapi.json")).json()
    operations = {
        (method, path): operation for path, item in document["paths"].items() for method, operation in item.items()
    }
    hot = operations["post", "/v1/generations"]
    assert set(hot["responses"]) == {
        "202", "400", "401", "403", "408", "409", "410", "413", "414", "415", "422", "429", "431", "503",
    }  # fmt: skip
    assert set(hot["responses"]["202"]["headers"]) == {
        "Fluxpool-Eta-Seconds", "Fluxpool-Queue-Position", "Location", "Retry-After",
    }  # fmt: skip
    assert {parameter["name"] for parameter in hot["parameters"]} == {"Idempotency-Key", "traceparent"}
    problems = [
        response["content"].keys()
        for (_, path), operation in operations.items()
        if path.startswith("/v1/")
        for status, response in operation["responses"].items()
        if int(status) >= 400 and "HTTPValidationError" not in str(response)
    ]
    assert len(problems) > 250
    assert all(media_types == {"application/problem+json"} for media_types in problems)
    names = set(document["components"]["schemas"])
    assert {part.split('"')[0] for part in json.dumps(document).split("#/components/schemas/")[1:]} <= names


async def test_an_application_whose_background_part_failed_ends_with_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fails(_watch: BrokerWatch) -> None:
        raise ValueError("never thought of")

    monkeypatch.setattr(BrokerWatch, "run", fails)
    settings = GatewaySettings(
        kafka=KafkaConnection(bootstrap_servers=("127.0.0.1:1",)),
        storage=StorageSettings(url=(tmp_path / "images").as_uri()),
        database_file=tmp_path / "tasks.sqlite",
    )
    failed = asyncio.Event()
    app = build_application(settings, on_failure=failed.set)
    with pytest.raises(BackgroundPartError):
        async with app.router.lifespan_context(app):
            await asyncio.wait_for(failed.wait(), 30)


@pytest.mark.parametrize("raises", [True, False])
async def test_a_background_part_that_ends_is_a_failure(raises: bool) -> None:
    failures: list[str] = []

    async def part() -> None:
        if raises:
            raise ValueError("never thought of")

    await run_or_fail(part, lambda: failures.append("failed"), name="part")
    assert failures == ["failed"]


async def test_a_background_part_that_is_cancelled_has_not_failed() -> None:
    failures: list[str] = []

    async def part() -> None:
        await asyncio.Event().wait()

    running = asyncio.create_task(run_or_fail(part, lambda: failures.append("failed"), name="part"))
    await asyncio.sleep(0)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert failures == []


def test_no_route_nor_dependency_waits_for_a_thread(tmp_path: Path) -> None:
    # FastAPI runs plain functions in a pool of threads, one after the other: each adds a third to the time of a GET.
    found = set()
    for route in iter_route_contexts(build_application(keyed_settings(tmp_path), on_failure=lambda: None).routes):
        if isinstance(route.original_route, APIRoute):
            calls = [route.original_route.endpoint, *_calls(route.original_route.dependant)]
            found |= {call for call in calls if call is not None and not inspect.iscoroutinefunction(call)}
    assert found == set()


def _calls(dependant: Dependant) -> Iterator[Callable[..., Any] | None]:
    for part in dependant.dependencies:
        yield part.call
        yield from _calls(part)
