"""Both clients of the HTTP API with a real gateway over a real task store, without Kafka."""

import asyncio
import gzip
import inspect
import json
import threading
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, get_args, get_type_hints

import httpx
import pytest
from pydantic import BaseModel

import fluxpool_client
from fluxpool_client import (
    AsyncClient,
    AuthenticationError,
    BadRequestError,
    CancelOutcome,
    Client,
    ConflictError,
    CorruptImageError,
    FluxpoolError,
    GoneError,
    NotFoundError,
    PermissionDeniedError,
    RateLimitedError,
    RefusedError,
    TaskStatus,
    UnavailableError,
    UnexpectedResponseError,
    UnreachableError,
    WaitTimeoutError,
    request_fields,
)
from fluxpool_client import models as client_models
from fluxpool_contract.messages.task import EmbedParameters, OutputFormat, Quality, TaskLora
from fluxpool_gateway.http import change_routes, problem, routes, task_routes
from fluxpool_gateway.http.batch import batch_route
from fluxpool_gateway.http.generation_request import GenerationRequest, Priority
from fluxpool_gateway.store import task_state
from fluxpool_gateway.tasks import canceling, view
from fluxpool_gateway.tasks.producer import DeliveryError, DeliveryFailure
from kit.keyed_gateway import IMAGE, NOW_MS, Gateway, keyed_gateway, keyed_settings, succeeded

ID = "01890a5d-ac96-774b-bcce-b302099a8057"
CLIENTS = ("blocking", "asyncio")


@dataclass(slots=True)
class Wire(httpx.AsyncBaseTransport):
    """Between a client and the gateway; what stands first in `instead` is what the next request comes to."""

    gateway: httpx.AsyncBaseTransport
    instead: list[httpx.Response | httpx.RequestError] = field(default_factory=list)
    asked: list[httpx.Request] = field(default_factory=list)
    on_response: Callable[[httpx.Response], None] = lambda _response: None

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        self.asked.append(request)
        if not self.instead:
            response = await self.gateway.handle_async_request(request)
            self.on_response(response)
            return response
        outcome = self.instead.pop(0)
        if isinstance(outcome, httpx.RequestError):
            raise outcome
        return outcome


@dataclass(slots=True)
class FromThread(httpx.BaseTransport):
    """Gives the requests of another thread to a wire in the test's loop."""

    wire: Wire
    loop: asyncio.AbstractEventLoop

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        async def ask() -> httpx.Response:
            response = await self.wire.handle_async_request(
                httpx.Request(
                    request.method, request.url, headers=request.headers, content=content, extensions=request.extensions
                )
            )
            await response.aread()
            return response

        content = request.read()
        answer = asyncio.run_coroutine_threadsafe(ask(), self.loop).result(60)
        return httpx.Response(answer.status_code, headers=answer.headers, content=answer.content)


@dataclass(slots=True)
class Caller:
    """One of both clients; its calls are awaited."""

    client: Client | AsyncClient
    wire: Wire

    async def __call__(self, name: str, *arguments: Any, **options: Any) -> Any:
        call = getattr(self.client, name)
        if isinstance(self.client, AsyncClient):
            return await call(*arguments, **options)
        return await asyncio.to_thread(call, *arguments, **options)

    async def tasks(self, **fields: Any) -> list[str]:
        if isinstance(self.client, AsyncClient):
            return [task.request_id async for task in self.client.tasks(**fields)]
        client = self.client
        return await asyncio.to_thread(lambda: [task.request_id for task in client.tasks(**fields)])


@dataclass(slots=True)
class World:
    """A gateway and the client that calls it."""

    gateway: Gateway
    kind: str
    images: Path

    def caller(self, key: str | None = None, **options: Any) -> Caller:
        wire = Wire(httpx.ASGITransport(app=self.gateway.one.app))
        options = {"api_key": key or self.gateway.admin, **options}
        url = "http://gateway/"
        if self.kind == "asyncio":
            return Caller(AsyncClient(url, http=httpx.AsyncClient(transport=wire), **options), wire)
        bridge = FromThread(wire, asyncio.get_running_loop())
        return Caller(Client(url, http=httpx.Client(transport=bridge), **options), wire)

    def succeed(self, request_id: str) -> None:
        self.gateway.project(succeeded(request_id, "default"))
        folder = self.images / "default" / "2026/04/05" / request_id
        folder.mkdir(parents=True)
        (folder / "0.png").write_bytes(IMAGE)

    def project_accepted(self) -> None:
        """What the gateway wrote to Kafka, as its projector would."""
        self.gateway.project(
            *(
                queued(value["request_id"], NOW_MS + number, group_id=value.get("group_id"))
                for number, value in enumerate(self.gateway.records.values)
            )
        )


def queued(request_id: str, created_at_ms: int, *, group_id: str | None) -> task_state.TaskSeen:
    return task_state.TaskSeen(
        request_id=request_id,
        body='{"prompt": "a fox"}',
        priority="standard",
        tenant="default",
        created_at_ms=created_at_ms,
        group_id=group_id,
    )


@pytest.fixture(params=CLIENTS)
async def world(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[World]:
    async with keyed_gateway(keyed_settings(tmp_path)) as gateway:
        yield World(gateway, request.param, tmp_path / "images")


async def test_a_task_is_submitted_waited_for_and_downloaded(world: World) -> None:
    call = world.caller()
    accepted = await call("submit", "a fox", width=64, height=64, loras=[{"name": "ink", "scale": 0.5}], n=1)
    assert accepted.status is TaskStatus.QUEUED
    (value,) = world.gateway.records.values
    assert value == {
        "request_id": accepted.request_id,
        "prompt": "a fox",
        "width": 64,
        "height": 64,
        "loras": [{"name": "ink", "scale": 0.5}],
        "n": 1,
    }
    assert not (await call("get", accepted.request_id)).ended

    waiting = asyncio.ensure_future(call("wait", accepted.request_id, timeout_seconds=30))
    world.project_accepted()
    world.succeed(accepted.request_id)
    task = await waiting
    assert (task.status, task.succeeded, len(task.images)) == (TaskStatus.SUCCEEDED, True, 1)
    assert await call("download", task) == (IMAGE,)
    assert await call("image", accepted.request_id) == IMAGE
    assert call.wire.asked[2].headers["prefer"] == "wait=29"


async def test_a_repeat_with_the_same_key_or_id_is_the_same_task(world: World) -> None:
    call = world.caller()
    first = await call("submit", "a fox", idempotency_key="k")
    assert (await call("submit", "a fox", idempotency_key="k")).request_id == first.request_id
    assert [await call("submit", "a fox", request_id=ID) for _ in range(2)][1].request_id == ID
    assert (await call("submit", "a fox")).request_id != (await call("submit", "a fox")).request_id
    assert len(world.gateway.records.values) == 4
    with pytest.raises(ConflictError) as conflict:
        await call("submit", "another fox", request_id=ID)
    assert conflict.value.code == "idempotency_conflict"
    with pytest.raises(ValueError, match="either idempotency_key or request_id"):
        await call("submit", "a fox", request_id=ID, idempotency_key="k")


async def test_each_request_of_a_batch_has_an_outcome(world: World) -> None:
    call = world.caller()
    queued, refused, again = await call(
        "submit_many",
        [{"prompt": "a fox", "idempotency_key": "k"}, {"prompt": "a", "steps": 0}, {"prompt": "a fox"}],
    )
    assert queued.code == again.code == 202
    assert queued.request_id != again.request_id
    assert (refused.code, refused.error.code, refused.errors[0].pointer) == (422, "invalid_request", "#/steps")
    assert (await call("submit", "a fox", idempotency_key="k")).request_id == queued.request_id


async def test_lists_are_read_page_by_page_and_groups_are_counted(world: World) -> None:
    call = world.caller()
    ids = [(await call("submit", f"fox {number}", group_id="foxes")).request_id for number in range(5)]
    await call("submit", "a bear")
    world.project_accepted()
    assert await call.tasks(group_id="foxes", order="asc", limit=2) == ids
    assert await call.tasks(group_id="foxes", status=["failed", "expired"]) == []
    page = await call("page", group_id="foxes", limit=2)
    assert [task.request_id for task in page.data] == ids[:2:-1]
    assert (page.has_more, (await call("page", group_id="foxes", limit=9)).has_more) == (True, False)
    first = (await call("get", ids[0])).created_at
    assert isinstance(first, datetime)
    assert await call.tasks(created_after=first, created_before=first + timedelta(milliseconds=2)) == ids[1::-1]
    group = await call("group", "foxes")
    assert (group.total, group.counts["queued"], group.ended) == (5, 5, False)


async def test_tasks_are_canceled_and_retried(world: World) -> None:
    call = world.caller()
    ids = [(await call("submit", f"fox {number}", group_id="foxes")).request_id for number in range(3)]
    world.project_accepted()
    canceled = await call("cancel", ids[0], reason="wrong prompt")
    assert (canceled.request_id, canceled.outcome) == (ids[0], CancelOutcome.REQUESTED)
    assert world.gateway.records.commands[0][2]["reason"] == "wrong prompt"
    everyone = await call("cancel_many", group_id="foxes", waiting_only=True)
    assert {task.request_id for task in everyone} == set(ids)
    (unknown,) = await call("cancel_many", request_ids=["nobody"])
    assert unknown.outcome is None

    with pytest.raises(ConflictError) as early:
        await call("retry", ids[0])
    assert (early.value.code, early.value.retry_after_seconds) == ("not_finished", 1)
    world.succeed(ids[0])
    retried = await call("retry", ids[0])
    assert (await call("retry", ids[0])).request_id == retried.request_id != ids[0]


async def test_many_are_canceled_page_by_page(world: World) -> None:
    call = world.caller()
    world.gateway.project(*(queued(f"fox-{number}", NOW_MS + number, group_id="foxes") for number in range(510)))
    assert len({task.request_id for task in await call("cancel_many", group_id="foxes")}) == 510
    assert len(call.wire.asked) == 2


async def test_a_refusal_names_each_field(world: World) -> None:
    call = world.caller()
    with pytest.raises(BadRequestError) as refused:
        await call("submit", "a fox", width=100, steps=0)
    assert (refused.value.status, refused.value.code) == (422, "invalid_size")
    assert [one.pointer for one in refused.value.fields] == ["#/width", "#/steps"]
    assert refused.value.correlation_id
    assert "nearest legal sizes are 96 or 112" in str(refused.value)
    assert len(call.wire.asked) == 1


async def test_refusals_have_a_class_by_their_status(world: World) -> None:
    call = world.caller()
    with pytest.raises(NotFoundError):
        await call("get", "nobody")
    with pytest.raises(NotFoundError):
        await call("group", "nobody")
    reader = world.caller(await world.gateway.create("read"))
    with pytest.raises(PermissionDeniedError) as denied:
        await reader("submit", "a fox")
    assert denied.value.code == "insufficient_scope"
    stranger = world.caller("fp_nobody")
    with pytest.raises(AuthenticationError):
        await stranger("get", ID)


async def test_a_submission_is_repeated_with_its_key_while_the_queue_is_away(world: World) -> None:
    call = world.caller()
    world.gateway.records.failure = DeliveryError(DeliveryFailure.TIMED_OUT, "no broker")

    def come_back(_response: httpx.Response) -> None:
        if len(call.wire.asked) == 2:
            world.gateway.records.failure = None

    call.wire.on_response = come_back
    call.wire.instead = [httpx.ConnectError("refused")]
    accepted = await call("submit", "a fox")
    assert [request.method for request in call.wire.asked] == ["POST"] * 3
    assert len({request.headers["idempotency-key"] for request in call.wire.asked}) == 1
    assert [value["request_id"] for value in world.gateway.records.values] == [accepted.request_id]


async def test_a_failure_that_does_not_pass_is_raised_after_all_attempts(world: World) -> None:
    call = world.caller(max_attempts=2)
    world.gateway.records.failure = DeliveryError(DeliveryFailure.TIMED_OUT, "no broker")
    with pytest.raises(UnavailableError) as away:
        await call("submit", "a fox")
    assert (away.value.status, away.value.code, len(call.wire.asked)) == (503, "queue_unavailable", 2)
    call.wire.instead = [httpx.ReadTimeout("late"), httpx.RemoteProtocolError("cut")]
    with pytest.raises(UnreachableError, match=r"no response to GET .*: RemoteProtocolError cut"):
        await call("get", ID)


@pytest.mark.parametrize("retry_after", ["0", "Wed, 21 Oct 2099 07:28:00 GMT", "-1", "x"])
async def test_any_form_of_retry_after_is_waited_for_or_ignored(world: World, retry_after: str) -> None:
    call = world.caller()
    call.wire.instead = [httpx.Response(429, headers={"retry-after": retry_after}, content=b"<html>")]
    await call("page")
    assert len(call.wire.asked) == 2


async def test_a_long_retry_after_is_left_to_the_caller(world: World) -> None:
    call = world.caller()
    call.wire.instead = [httpx.Response(429, headers={"retry-after": "3600"}, content=b"{}")]
    with pytest.raises(RateLimitedError) as limited:
        await call("page")
    assert (limited.value.retry_after_seconds, limited.value.code, len(call.wire.asked)) == (3600, "", 1)


async def test_a_wait_outlasts_a_gateway_that_is_away(world: World) -> None:
    call = world.caller(max_attempts=1)
    accepted = await call("submit", "a fox")
    world.project_accepted()
    world.succeed(accepted.request_id)
    call.wire.instead = [httpx.Response(503, headers={"retry-after": "0"}), httpx.ConnectError("refused")]
    assert (await call("wait", accepted.request_id, timeout_seconds=30)).succeeded


async def test_a_wait_that_ends_before_the_task_has_its_state(world: World) -> None:
    call = world.caller()
    accepted = await call("submit", "a fox")
    # As from a proxy that takes the Prefer header away.
    early = (await world.gateway.one.ask("GET", f"/v1/generations/{accepted.request_id}", world.gateway.admin)).content
    call.wire.instead = [httpx.Response(200, content=early) for _ in range(20)]
    with pytest.raises(WaitTimeoutError) as late:
        await call("wait", accepted.request_id, timeout_seconds=1.5)
    assert late.value.task.status == "queued"
    assert len(call.wire.asked) <= 5


@pytest.mark.parametrize(
    ("response", "match"),
    [
        (httpx.Response(200, content=b"<html>welcome</html>"), "not a gateway's"),
        (httpx.Response(200, json={"request_id": "another", "status": "queued", "status_url": "/"}), "about another"),
        (httpx.Response(200, json=[]), "not a gateway's"),
        (httpx.Response(302, headers={"location": "https://elsewhere/"}), "HTTP 302 to https://elsewhere/"),
        (httpx.Response(200, content=b" " * (16 * 1024 * 1024 + 1)), "longer than"),
    ],
)
async def test_a_response_that_is_not_a_gateways_is_one_error(
    world: World, response: httpx.Response, match: str
) -> None:
    call = world.caller()
    call.wire.instead = [response]
    with pytest.raises(UnexpectedResponseError, match=match):
        await call("get", ID)
    assert len(call.wire.asked) == 1


async def test_a_file_that_is_not_the_stored_one_is_an_error(world: World) -> None:
    call = world.caller()
    accepted = await call("submit", "a fox")
    world.project_accepted()
    world.succeed(accepted.request_id)
    task = await call("get", accepted.request_id)
    call.wire.instead = [httpx.Response(200, content=IMAGE[:-1])]
    with pytest.raises(CorruptImageError, match="another SHA-256"):
        await call("download", task)


async def test_a_task_is_deleted_as_often_as_asked(world: World) -> None:
    call = world.caller()
    accepted = await call("submit", "a fox")
    world.project_accepted()
    with pytest.raises(ConflictError, match="not_finished"):
        await call("delete", accepted.request_id)
    world.succeed(accepted.request_id)
    world.gateway.records.on_deletion = lambda key, _: world.gateway.project(
        task_state.DeletionSeen(request_id=key.decode(), tenant="default")
    )
    for _ in range(2):
        assert await call("delete", accepted.request_id) is None
    with pytest.raises(GoneError):
        await call("get", accepted.request_id)


async def test_an_image_is_fetched_from_the_object_store_without_the_api_key(world: World) -> None:
    call = world.caller()
    url = "https://images.example/0.png?signature=secret"
    call.wire.instead = [httpx.Response(302, headers={"location": url}), httpx.Response(200, content=IMAGE)]
    assert await call("image", ID) == IMAGE
    asked, followed = call.wire.asked
    assert (str(followed.url), "authorization" in asked.headers) == (url, True)
    assert "authorization" not in followed.headers
    call.wire.instead = [httpx.Response(302, headers={"location": url}), *[httpx.ReadTimeout("late")] * 5]
    with pytest.raises(UnreachableError) as late:
        await call("image", ID)
    assert "secret" not in str(late.value)


@pytest.mark.parametrize("location", ["", "/elsewhere", "file:///etc/passwd", "http://a:99999999/"])
async def test_an_image_at_no_url_of_http_is_one_error(world: World, location: str) -> None:
    call = world.caller()
    call.wire.instead = [httpx.Response(302, headers={"location": location})]
    with pytest.raises(UnexpectedResponseError, match="no URL of HTTP"):
        await call("image", ID)


@pytest.mark.parametrize("name", ["a/b", "../healthz", "", "a b", "a?b", "é", "a\n"])
async def test_an_id_that_no_task_has_is_not_sent(world: World, name: str) -> None:
    call = world.caller()
    for method in ("get", "wait", "group", "cancel", "retry", "image"):
        with pytest.raises(ValueError, match=r"must be 1 to 128|none that a task"):
            await call(method, name)
    with pytest.raises(ValueError, match="idempotency_key"):
        await call("submit", "a fox", idempotency_key="a b")
    assert call.wire.asked == []


async def test_a_field_and_a_status_of_a_later_release_are_kept(world: World) -> None:
    call = world.caller()
    later = {"request_id": ID, "status": "paused", "status_url": "/", "priority_class": "gold"}
    call.wire.instead = [httpx.Response(200, json=later)]
    task = await call("get", ID)
    assert (task.status, task.ended, task.model_extra) == ("paused", False, {"priority_class": "gold"})


async def test_a_prompt_of_any_characters_arrives(world: World) -> None:
    call = world.caller()
    await call("submit", '狐\u2028\U0001f98a"\\')
    assert world.gateway.records.values[0]["prompt"] == '狐\u2028\U0001f98a"\\'
    with pytest.raises(BadRequestError):
        await call("submit", "\ud800")


async def test_threads_share_a_client(tmp_path: Path) -> None:
    async with keyed_gateway(keyed_settings(tmp_path)) as gateway:
        call = World(gateway, "blocking", tmp_path).caller()
        accepted = await asyncio.gather(*(call("submit", f"fox {number}") for number in range(20)))
        assert len({task.request_id for task in accepted}) == 20
        assert threading.active_count() > 1


# Without a gateway


def test_no_gateway_is_one_error() -> None:
    with Client("http://127.0.0.1:1", max_attempts=1) as client, pytest.raises(UnreachableError, match="ConnectError"):
        client.get(ID)


@pytest.mark.parametrize(
    "url", ["gateway:8000", "ftp://gateway", "http://", "http://gateway/?a=b", "http://gateway:99999999", "/v1"]
)
def test_an_address_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="url: "):
        Client(url)


@pytest.mark.parametrize("key", ["fp a", "fp\n", "schlüssel"])
def test_a_key_that_no_header_can_hold_is_refused_and_not_shown(key: str) -> None:
    with pytest.raises(ValueError, match="api_key: must be") as refused:
        Client(api_key=key)
    assert key not in str(refused.value)


def test_address_and_key_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request)
        return httpx.Response(404, content=b"")

    monkeypatch.setenv("FLUXPOOL_URL", "https://images.example/below/")
    monkeypatch.setenv("FLUXPOOL_API_KEY", "fp_1")
    with httpx.Client(transport=httpx.MockTransport(answer)) as http, pytest.raises(NotFoundError):
        Client(http=http).get(ID)
    assert str(asked[0].url) == f"https://images.example/below/v1/generations/{ID}"
    assert asked[0].headers["authorization"] == "Bearer fp_1"


async def test_more_tasks_are_waited_for_at_once_than_httpx_has_connections_by_default() -> None:
    waiting = 0
    all_wait = asyncio.Event()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal waiting
        request_id = (await reader.readuntil(b"\r\n\r\n")).split()[1].split(b"/")[-1].decode()
        waiting += 1
        if waiting == 120:
            all_wait.set()
        await all_wait.wait()
        body = json.dumps({"request_id": request_id, "status": "succeeded", "status_url": "/"}).encode()
        writer.write(b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body))
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with server, AsyncClient(f"http://127.0.0.1:{port}", max_attempts=1) as client:
        tasks = await asyncio.gather(*(client.wait(f"fox-{number}", timeout_seconds=100) for number in range(120)))
    assert {task.request_id for task in tasks} == {f"fox-{number}" for number in range(120)}


@pytest.mark.parametrize(
    ("headers", "body"),
    [
        ({"content-encoding": "gzip"}, b"no gzip"),
        ({"content-encoding": "gzip"}, gzip.compress(b" " * 30_000_000, mtime=0)),
        ({"content-length": "4000"}, b"{"),
        ({}, b"[" * 100_000),
        ({}, b'{"request_id": ' + b"9" * 5000 + b"}"),
        ({}, b"\xff\xfe\x00"),
        ({}, b""),
    ],
)
def test_any_body_is_a_task_or_one_error(headers: dict[str, str], body: bytes) -> None:
    def answer(_request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, headers=headers, stream=httpx.ByteStream(body))

    with httpx.Client(transport=httpx.MockTransport(answer)) as http, pytest.raises(FluxpoolError):
        Client(http=http, max_attempts=1).get(ID)


# The gateway's own models


def public(kind: type) -> dict[str, inspect.Signature]:
    return {
        name: inspect.signature(member)
        for name, member in vars(kind).items()
        if inspect.isfunction(member) and not name.startswith("_")
    }


def test_both_clients_have_the_same_calls() -> None:
    blocking, asynchronous = public(Client), public(AsyncClient)
    assert blocking.keys() - {"close"} == asynchronous.keys() - {"aclose"}
    for name, signature in blocking.items():
        if name not in {"close", "tasks"}:
            assert asynchronous[name] == signature


PAIRS: list[tuple[type[BaseModel], type[BaseModel]]] = [
    (client_models.Task, view.TaskView),
    (client_models.Image, view.ImageView),
    (client_models.Progress, view.ProgressView),
    (client_models.TaskFailure, view.ErrorView),
    (client_models.TaskPage, view.TaskPageView),
    (client_models.Group, view.GroupView),
    (client_models.AcceptedTask, routes.AcceptedGeneration),
    (client_models.CanceledTask, change_routes.CanceledTask),
    (client_models.CanceledTasks, change_routes.CanceledTasks),
    (client_models.BatchItem, batch_route.BatchItem),
    (client_models.BatchOutcome, batch_route.BatchOutcome),
    (client_models.ProblemDocument, problem.ProblemDocument),
    (client_models.ErrorMember, problem.OpenAIError),
    (client_models.FieldError, problem.FieldProblemDocument),
]


@pytest.mark.parametrize(("ours", "theirs"), PAIRS)
def test_a_response_has_every_field_of_the_gateways(ours: type[BaseModel], theirs: type[BaseModel]) -> None:
    assert ours.model_fields.keys() == theirs.model_fields.keys()


def test_requests_have_every_field_of_the_gateways() -> None:
    fields = get_type_hints(request_fields.OptionalFields)
    assert fields.keys() | {"prompt"} == GenerationRequest.model_fields.keys()
    assert get_type_hints(request_fields.LoraFields).keys() == TaskLora.model_fields.keys()
    enums = {
        "output_format": OutputFormat,
        "quality": Quality,
        "embed_parameters": EmbedParameters,
        "priority": Priority,
    }
    assert {name: set(get_args(fields[name])) for name in enums} == {
        name: {*map(str, kind)} for name, kind in enums.items()
    }
    assert get_type_hints(request_fields.ListFields).keys() == task_routes.ListQuery.model_fields.keys() - {"cursor"}
    assert get_type_hints(request_fields.CancelFields).keys() == change_routes.CancelManyRequest.model_fields.keys() - {
        "cursor"
    }
    assert {*client_models.TaskStatus} == {*map(str, task_state.SHOWN_STATUSES)}
    assert {str(status) for status in task_state.SHOWN_STATUSES if status.terminal} == {
        str(status)
        for status in client_models.TaskStatus
        if client_models.Task(request_id="a", status=status, status_url="/").ended
    }
    assert {*client_models.CancelOutcome} == {*map(str, canceling.CancelOutcome)}


def test_every_error_is_one_that_callers_can_import() -> None:
    page = (Path(__file__).parents[2] / "docs" / "client.md").read_text()
    for kind in RefusedError.__subclasses__():
        assert kind.__name__ in fluxpool_client.__all__
        assert f"`{kind.__name__}`" in page
