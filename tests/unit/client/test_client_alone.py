"""Both clients without a gateway, and their models beside the gateway's own."""

import asyncio
import gzip
import http.server
import inspect
import json
import threading
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import get_args, get_type_hints

import httpx
import pytest
from pydantic import BaseModel

import fluxpool_client
from fluxpool_client import (
    AsyncClient,
    Client,
    FluxpoolError,
    GatewayFailedError,
    NotFoundError,
    RefusedError,
    UnreachableError,
    request_fields,
    service_models,
)
from fluxpool_client import models as client_models
from fluxpool_client import webhooks as client_webhooks
from fluxpool_contract.messages.task import EmbedParameters, OutputFormat, Quality, TaskLora
from fluxpool_gateway.http import change_routes, key_routes, problem, routes, task_routes
from fluxpool_gateway.http.batch import batch_route
from fluxpool_gateway.http.generation_request import GenerationRequest, Priority
from fluxpool_gateway.models import routes as model_routes
from fluxpool_gateway.queue import routes as queue_routes
from fluxpool_gateway.store import task_state
from fluxpool_gateway.tasks import canceling, view
from fluxpool_gateway.usage import routes as usage_routes
from fluxpool_gateway.webhooks import views as webhook_views
from kit.gateways.client_world import ID


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


class Dripping(httpx.SyncByteStream, httpx.AsyncByteStream):
    """A body without an end."""

    def __iter__(self) -> Iterator[bytes]:
        while True:
            time.sleep(0.01)
            yield b" "

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while True:
            await asyncio.sleep(0.01)
            yield b" "


async def test_a_response_that_comes_byte_by_byte_has_an_end() -> None:
    transport = httpx.MockTransport(lambda _request: httpx.Response(200, stream=Dripping()))
    with httpx.Client(transport=transport) as pool, pytest.raises(UnreachableError, match="takes too long"):
        Client(http=pool, timeout_seconds=0.1, max_attempts=1).get(ID)
    async with httpx.AsyncClient(transport=transport) as connections:
        client = AsyncClient(http=connections, timeout_seconds=0.1, max_attempts=1)
        with pytest.raises(UnreachableError, match="takes too long"):
            await client.get(ID)


def test_no_proxy_is_asked_for_an_address_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    server = http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler)
    threading.Thread(target=server.handle_request, daemon=True).start()
    with Client(f"http://127.0.0.1:{server.server_port}", max_attempts=1) as client, pytest.raises(GatewayFailedError):
        client.get(ID)
    server.server_close()


# The models of the client, and the gateway's own


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
        if name not in {"close", "tasks", "events", "changes", "export_feedback"}:
            assert asynchronous[name] == signature


def test_both_clients_have_the_same_calls_about_webhooks() -> None:
    assert public(client_webhooks.Webhooks) == public(client_webhooks.AsyncWebhooks)


PAIRS: list[tuple[type[BaseModel], type[BaseModel]]] = [
    (client_webhooks.WebhookEndpoint, webhook_views.EndpointView),
    (client_webhooks.NewWebhookEndpoint, webhook_views.NewEndpointView),
    (client_webhooks.WebhookAttempt, webhook_views.AttemptView),
    (client_webhooks.WebhookDelivery, webhook_views.DeliveryLogView),
    (client_webhooks.WebhookDeliveryPage, webhook_views.DeliveryPageView),
    (client_models.Task, view.TaskView),
    (client_models.Image, view.ImageView),
    (client_models.Progress, view.ProgressView),
    (client_models.QueuePlace, view.QueueView),
    (client_models.TaskFailure, view.ErrorView),
    (client_models.TaskPage, view.TaskPageView),
    (client_models.Group, view.GroupView),
    (client_models.AcceptedTask, routes.AcceptedGeneration),
    (client_models.ApiKey, key_routes.KeyView),
    (client_models.NewApiKey, key_routes.NewKeyView),
    (client_models.ApiKeyPage, key_routes.KeyPage),
    (client_models.CanceledTask, change_routes.CanceledTask),
    (client_models.CanceledTasks, change_routes.CanceledTasks),
    (client_models.BatchItem, batch_route.BatchItem),
    (client_models.BatchOutcome, batch_route.BatchOutcome),
    (client_models.ProblemDocument, problem.ProblemDocument),
    (client_models.ErrorMember, problem.OpenAIError),
    (client_models.RefusedWait, problem.RefusedWait),
    (service_models.Queue, queue_routes.QueueStateView),
    (service_models.QueueLane, queue_routes.LaneView),
    (service_models.Pools, queue_routes.PoolsView),
    (service_models.Pool, queue_routes.PoolView),
    (service_models.ModelList, model_routes.ModelListView),
    (service_models.Model, model_routes.ModelView),
    (service_models.ModelLicense, model_routes.LicenceView),
    (service_models.ModelDefaults, model_routes.DefaultsView),
    (service_models.ModelLimits, model_routes.LimitsView),
    (service_models.UsageReport, usage_routes.UsageReportView),
    (service_models.PeriodUsage, usage_routes.PeriodUsageView),
    (service_models.Usage, usage_routes.UsageView),
    (service_models.OutcomeCounts, usage_routes.OutcomeCounts),
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
    assert (
        get_type_hints(request_fields.KeyFields).keys() | {"name", "scopes"}
        == key_routes.KeyRequest.model_fields.keys()
    )
    assert get_type_hints(request_fields.CancelFields).keys() == change_routes.CancelManyRequest.model_fields.keys() - {
        "cursor"
    }
    changes = webhook_views.EndpointPatch.model_fields.keys()
    assert get_type_hints(client_webhooks.WebhookChanges).keys() == changes
    assert get_type_hints(client_webhooks.WebhookFields).keys() | {"name", "url"} == changes
    assert {*client_models.TaskStatus} == {*map(str, task_state.SHOWN_STATUSES)}
    assert {str(status) for status in task_state.SHOWN_STATUSES if status.terminal} == {
        str(status)
        for status in client_models.TaskStatus
        if client_models.Task(request_id="a", status=status, status_url="/").ended
    }
    assert {*client_models.CancelOutcome} == {*map(str, canceling.CancelOutcome)}


def test_every_error_is_one_that_callers_can_import() -> None:
    page = (Path(__file__).parents[3] / "docs" / "how-to" / "client.md").read_text()
    for kind in RefusedError.__subclasses__():
        assert kind.__name__ in fluxpool_client.__all__
        assert f"`{kind.__name__}`" in page
