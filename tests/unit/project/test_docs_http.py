"""The examples of docs/reference/http.md, sent to a gateway over a real task store: each answers as shown."""

import dataclasses
import json
import re
import shlex
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from fastapi.routing import iter_route_contexts
from PIL import Image
from sqlalchemy import Connection, insert
from starlette.routing import Match, Route

from fluxpool_contract.bounds import milliseconds_of, moment_at
from fluxpool_contract.messages import PoolLane, PoolState
from fluxpool_contract.messages.derived import idempotent_request_id
from fluxpool_contract.messages.result import GenerationResult, ImageDescription, ResultStatus
from fluxpool_gateway.dead_letters.jobs import Job
from fluxpool_gateway.http.key_routes import PATH as KEYS_PATH
from fluxpool_gateway.page.door import PREFIX
from fluxpool_gateway.store.task_state import Change, DeletionSeen, ProgressSeen, ResultSeen, TaskSeen, TaskStatus
from fluxpool_gateway.usage.figures import Figures
from fluxpool_gateway.webhooks.database import WebhookDatabase
from fluxpool_gateway.webhooks.dispatch.sending import Attempt, AttemptError
from fluxpool_gateway.webhooks.endpoints import Endpoint, add_endpoint
from fluxpool_gateway.webhooks.signing import new_secret
from fluxpool_gateway.webhooks.tables import attempts, deliveries, events
from kit.gateways.dead_letter_topic import letter_at
from kit.gateways.keyed_gateway import Gateway, keyed_gateway, keyed_settings, succeeded
from kit.http.event_streams import EventReader, reading, serving
from kit.scaling.lag_readings import GROUPS, VIP, lag, partition, teach_speed

PAGE = Path(__file__).parents[3] / "docs" / "reference" / "http.md"
BLOCK = re.compile(r"^```(bash|json response|event-stream response)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FOLDER = "default/2026/04/05/fox-1"
ENDPOINT, DELIVERY = "whe_6d1f0c2b9a8e7d6c5b4a3f2e", "dlv_3c5e7a9b1d2f4a6c8e0b2d4f"
VARYING = {"correlation_id", "request_id", "status_url", "id", "secret"}
"""Of a request without an id of its own."""
SECRET = "rating_id"
"""It is made with the secret of the gateway."""


def examples() -> Iterator[tuple[list[str], Any]]:
    """Each curl command as words, and the response that is shown behind it, if any."""
    waiting: list[list[str]] = []
    for kind, text in BLOCK.findall(PAGE.read_text()):
        if kind == "bash":
            yield from ((words, None) for words in waiting)
            lines = text.replace("\\\n", " ").splitlines()
            waiting = [words for words in map(shlex.split, lines) if words]
        else:
            (words,) = waiting
            yield words, json.loads(text) if kind == "json response" else text
            waiting = []
    yield from ((words, None) for words in waiting)


def request_of(words: list[str]) -> httpx.Request:
    """The request that curl would send."""
    assert words[0] == "curl"
    method, headers, body = "GET", httpx.Headers(), None
    rest = iter(words[1:])
    url = ""
    for word in rest:
        match word:
            case "-H":
                name, _, value = next(rest).partition(": ")
                headers[name] = value
            case "-d" | "--json":
                method, body = "POST" if method == "GET" else method, next(rest)
                if word == "--json":
                    headers["content-type"] = "application/json"
            case "-X":
                method = next(rest)
            case "-o":
                next(rest)
            case "-N":
                pass
            case _:
                assert word.startswith("http://127.0.0.1:8000/"), word
                url = word
    return httpx.Request(method, url, headers=headers, content=body)


def at(text: str) -> int:
    return milliseconds_of(datetime.fromisoformat(text).astimezone(UTC))


def state() -> list[Change]:
    tasks = [
        TaskSeen(
            request_id=f"fox-{number + 1}",
            body='{"prompt": "a fox"}',
            priority="standard",
            tenant="default",
            created_at_ms=at(f"2026-04-05T10:00:0{number}Z"),
            group_id="foxes",
        )
        for number in range(3)
    ]
    image = ImageDescription(
        index=0, url="http://127.0.0.1:8000/v1/generations/fox-1/images/0", object=f"{FOLDER}/0.png",
        width=64, height=64, seed=7, format="png", content_type="image/png", bytes=3, sha256="",
    )  # fmt: skip
    result = GenerationResult(request_id="fox-1", image_url=image.url, status=ResultStatus.SUCCESS, images=(image,))
    waited_id = idempotent_request_id("default", "fox-10")
    waited = result.model_copy(
        update={
            "request_id": waited_id,
            "model": "FLUX.1-dev",
            "timings": {"text_encode_ms": 31.0, "denoise_ms": 1512.4, "vae_ms": 64.2},
            "completed_at": datetime.fromisoformat("2026-04-05T10:00:09Z"),
            "images": (image.model_copy(update={"url": image.url.replace("fox-1", waited_id)}),),
        }
    )
    step = {
        "request_id": "fox-2",
        "tenant": "default",
        "status": TaskStatus.RUNNING,
        "at_ms": at("2026-04-05T10:00:03Z"),
    }
    waited_body = json.dumps({"request_id": waited_id, "prompt": "a fox", "width": 64, "height": 64})
    return [
        *tasks,
        dataclasses.replace(tasks[0], request_id=waited_id, body=waited_body, group_id=None),
        ProgressSeen(**step, started=True),  # type: ignore[arg-type]
        ProgressSeen(**step, started=False, step=14, total_steps=28),  # type: ignore[arg-type]
        ResultSeen(
            request_id="fox-1",
            status=TaskStatus.SUCCEEDED,
            body=result.model_dump_json(),
            completed_at_ms=at("2026-04-05T10:00:09Z"),
            tenant="default",
            used=Figures.of(result),
        ),
        ResultSeen(
            request_id=waited_id,
            status=TaskStatus.SUCCEEDED,
            body=waited.model_dump_json(),
            completed_at_ms=at("2026-04-05T10:00:09Z"),
            tenant="default",
            used=Figures.of(waited),
        ),
    ]


def read_queue(gateway: Gateway) -> None:
    """One worker is at fox-2, which was sent before fox-3; another one has taught how long tasks take."""
    lanes, now = gateway.one.app.state.services.lanes, gateway.clock.monotonic()
    teach_speed(lanes, seconds_per_task=4, until=now, number=1)
    begun_at = gateway.clock.now_ms // 1000 - 1
    busy = partition(0, 1, 3, begun={1: begun_at}), partition(1, 20, 23, begun={20: begun_at})
    lanes.observe(lag(*busy) | lag(partition(0, 0, 0), partition(1, 0, 0), topic=VIP), now)


def add_webhook(gateway: Gateway) -> None:
    """An endpoint with a delivery that was given up."""
    endpoint = Endpoint.new(
        "default", name="shop", url="https://shop.example.com/", event_types=(), secret=new_secret(), now_ms=0
    )
    event_id, at_ms = "evt_0123456789abcdef0123456789abcdef", at("2026-04-05T10:00:20Z")
    event = {
        "event_id": event_id,
        "tenant": "default",
        "type": "group.completed",
        "body": '{"type":"group.completed"}',
        "created_at_ms": at_ms,
    }
    delivery = {
        "delivery_id": DELIVERY,
        "endpoint_id": ENDPOINT,
        "event_id": event_id,
        "tenant": "default",
        "type": "group.completed",
        "state": "failed",
        "attempts": 1,
        "tries": 1,
        "created_at_ms": at_ms,
        "queued_at_ms": at_ms,
        "due_at_ms": at_ms,
        "ended_at_ms": at("2026-04-08T09:00:00Z"),
        "last_error": "redirect",
    }
    reason = "it answered 301, a redirect, which is not followed; change the URL"
    attempt = Attempt(
        at_ms=at_ms,
        latency_ms=41,
        status=301,
        error=AttemptError.REDIRECT,
        reason=reason,
        answer="Moved Permanently",
    )

    def write(connection: Connection) -> None:
        add_endpoint(connection, dataclasses.replace(endpoint, endpoint_id=ENDPOINT))
        connection.execute(insert(events).values(event))
        connection.execute(insert(deliveries).values(delivery))
        connection.execute(insert(attempts).values(delivery_id=DELIVERY, number=1, **attempt.row()))

    database = WebhookDatabase(gateway.settings.webhook_store_file())
    database.write(write)
    database.close()


@pytest.fixture
async def gateway(tmp_path: Path) -> Any:
    (tmp_path / "images" / FOLDER).mkdir(parents=True)
    Image.new("RGB", (64, 64)).save(tmp_path / "images" / FOLDER / "0.png")
    async with keyed_gateway(keyed_settings(tmp_path)) as running:
        running.project(*state())
        read_queue(running)
        running.dead_letters.add(letter_at(0), letter_at(1))
        job = Job(
            job_id="0190",
            created_at_ms=at("2026-04-05T10:20:00Z"),
            created_by="ops",
            plan='{"rate_per_second": 10}',
            total=1,
        )
        await running.one.dead_letters.jobs.create(job, ["0/0"])
        add_webhook(running)
        said = {"score": 4, "tags": ["hands"], "rater": "ann"}
        await running.one.ask("PUT", "/v1/generations/fox-1/rating", running.admin, json=said)
        await running.project_feedback()
        running.records.on_deletion = lambda key, _: running.project(
            DeletionSeen(request_id=key.decode(), tenant="default")
        )
        yield running


async def sent(gateway: Gateway, request: httpx.Request) -> httpx.Response:
    url = urlsplit(str(request.url))
    target = url.path + (f"?{url.query}" if url.query else "")
    headers = {name: value for name, value in request.headers.items() if name != "content-length"}
    return await gateway.one.ask(
        request.method, target, gateway.admin, headers=headers | {"host": "127.0.0.1:8000"}, content=request.content
    )


async def assert_events(gateway: Gateway, path: str, shown: str) -> None:
    """The task ends while its events are read."""
    expected = EventReader.of(shown)
    step = ProgressSeen(
        request_id="fox-2", status=TaskStatus.RUNNING, at_ms=at("2026-04-05T10:00:04Z"), started=False,
        tenant="default", step=15, total_steps=28,
    )  # fmt: skip
    changes = iter((step, succeeded("fox-2", "default")))
    async with (
        serving(gateway.one.app) as server,
        httpx.AsyncClient(base_url=server.url, timeout=60) as client,
        reading(client, path, authorization=f"Bearer {gateway.admin}") as reader,
    ):
        for wanted in expected.events:
            event = await reader.next()
            assert event is not None
            # Those of changes are of the store, which is made by the test.
            assert (event.name, event.id if wanted.id else None) == (wanted.name, wanted.id)
            assert has_all(event.data, wanted.data), event.data
            if (change := next(changes, None)) is not None:
                gateway.project(change)
        assert reader.retry == expected.retry
        if "fox-2" in path:
            assert await reader.next() is None


def has_all(found: Any, shown: Any) -> bool:
    """Whether everything shown is there."""
    if isinstance(shown, dict):
        return all(name in found and has_all(found[name], value) for name, value in shown.items())
    if isinstance(shown, list):
        return len(found) == len(shown) and all(map(has_all, found, shown))
    return bool(found == shown)


def tell_of_the_pool(gateway: Gateway) -> None:
    """What its operator would write."""
    told = PoolState(
        namespace="images",
        pool="standard",
        lanes=tuple(PoolLane(name=topic, topic=topic, consumer_group=group) for topic, group in GROUPS.items()),
        desired_replicas=5,
        ready_replicas=2,
        starting_replicas=3,
        min_replicas=0,
        max_replicas=6,
        constraint="lag",
        reason="The lag is 5; at 1 per replica it requires 5 replicas.",
        start_seconds=90,
        next_ready_at=moment_at(gateway.clock.now_ms + 40_000),
        model="black-forest-labs/FLUX.1-dev",
        model_family="FLUX.1-dev",
        license="FLUX.1 [dev] Non-Commercial License",
        decided_at=datetime(2026, 4, 5, 10, tzinfo=UTC),
    )
    pools = gateway.one.app.state.services.lanes.pools
    pools.take(told.key.encode(), told.to_json(), written_at=gateway.clock.now_ms / 1000)


def without_varying(value: Any) -> Any:
    return {name: item for name, item in value.items() if name not in VARYING} if isinstance(value, dict) else value


@pytest.mark.parametrize(("words", "shown"), [pytest.param(*example, id=example[0][-1][:60]) for example in examples()])
async def test_an_example_is_answered_as_shown(gateway: Gateway, words: list[str], shown: Any) -> None:
    if isinstance(shown, str):
        await assert_events(gateway, words[-1].removeprefix("http://127.0.0.1:8000"), shown)
        return
    if "/v1/usage" in words[-1]:
        # Usage is kept for a quarter.
        gateway.clock.now_ms = at("2026-04-05T11:30:00Z")
    if words[-1].endswith("/v1/pools"):
        tell_of_the_pool(gateway)
    answer = await sent(gateway, request_of(words))
    if shown is None:
        assert answer.status_code in {200, 201, 202, 204, 503}, answer.text
        return
    document = answer.json()
    assert answer.status_code == shown["status"] if "title" in shown else answer.is_success
    assert document.keys() == shown.keys()
    assert bool(document.pop(SECRET, "")) == bool(shown.pop(SECRET, ""))
    names_an_id = "fox-" in str(request_of(words).url)
    assert document == shown if names_an_id else without_varying(document) == without_varying(shown)


def test_every_route_has_an_example(tmp_path: Path) -> None:
    from fluxpool_gateway.http.app import build_application  # noqa: PLC0415

    routes = [
        route.original_route
        for route in iter_route_contexts(build_application(keyed_settings(tmp_path), on_failure=lambda: None).routes)
        if isinstance(route.original_route, Route) and not route.original_route.path.startswith((KEYS_PATH, PREFIX))
    ]
    asked = [request_of(words) for words, _ in examples()]
    scopes = [{"type": "http", "path": sent.url.path, "method": sent.method, "headers": []} for sent in asked]
    missing = [
        (route.path, route.methods)
        for route in routes
        if route.path != "/openapi.json" and not any(route.matches(scope)[0] is Match.FULL for scope in scopes)
    ]
    assert missing == []
