"""Tenants are apart on every route of the application: nothing tells a caller whether another tenant's task exists."""

import re
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from fastapi.routing import APIRoute, iter_route_contexts

from fluxpool_gateway.http.app import OPEN_PATHS, GatewayApplication
from fluxpool_gateway.page.door import is_page
from fluxpool_gateway.store.task_state import TaskSeen
from kit.gateways.keyed_gateway import IMAGE, NOW_MS, Gateway, keyed_gateway, keyed_settings, succeeded
from kit.http.event_streams import first_event
from kit.http.page_visitor import Visitor

PROMPT = "the secret of acme"
DONE, QUEUED = "acme-done", "acme-queued"
OBJECT = f"acme/2026/04/05/{DONE}/0.png"
PATH_VALUES: dict[str, tuple[str, ...]] = {
    "request_id": (DONE, QUEUED),
    "group_id": ("acme-group",),
    "index": ("0",),
    "key_id": ("000000000000",),
    "model": ("FLUX.1-dev",),
    "digest": ("0123456789abcdef",),
    "asset": ("page.css",),
    "dead_letter_id": ("0/0",),
    "job_id": ("none",),
    # Those that there are have a test of their own (`test_webhook_routes`): what deletes them would change the rest.
    "endpoint_id": ("whe_of_acme",),
    "delivery_id": ("dlv_of_acme",),
}
"""A route with another parameter fails the test: name values of acme's for it."""
BODIES: dict[tuple[str, str], Any] = {
    ("POST", "/v1/generations"): {"prompt": "a fox"},
    ("POST", "/v1/generations/batch"): {"requests": [{"prompt": "a fox"}]},
    ("PUT", "/v1/generations/{request_id}"): {"prompt": "a fox"},
    ("POST", "/v1/images/generations"): {"prompt": "a fox"},
    ("POST", "/v1/generations/cancel"): {"request_ids": [DONE, QUEUED]},
    ("POST", "/v1/generations/{request_id}/cancel"): {"waiting_only": True},
    ("PUT", "/v1/generations/{request_id}/rating"): {"score": 5},
    ("POST", "/v1/comparisons"): {"a": {"request_id": DONE}, "b": {"request_id": QUEUED}, "preferred": "a"},
    ("POST", "/v1/keys"): {"name": "more", "scopes": ["admin"], "tenant": "acme"},
    ("POST", "/v1/keys/{key_id}/rotate"): {},
    ("POST", "/v1/dlq/replay"): {"ids": ["0/0"]},
    ("POST", "/v1/dlq/{dead_letter_id:path}/discard"): {"reason": "a test"},
    ("POST", "/v1/webhooks"): {"name": "refused", "url": "ftp://example.com/"},
    ("PATCH", "/v1/webhooks/{endpoint_id}"): {"name": "more"},
    ("POST", "/v1/webhooks/{endpoint_id}/rotate-secret"): {},
    ("POST", "/v1/webhooks/requests/rotate-secret"): {"overlap_seconds": -1},
}
"""Of every route that has one; with ids and groups of acme's where a body can name any."""
FORM = {"id": [DONE, QUEUED], "action": "cancel", "prompt": "a fox", "key": "k"}
"""Of every form of the page."""
QUERIES = ("", "?group_id=acme-group", "?status=queued", "?limit=1", "?thumb=256")
"""Parameters that a route does not know are refused or ignored alike; only the first two go with a change."""


@dataclass(frozen=True, slots=True)
class Question:
    """A request to a route."""

    method: str
    path: str
    body: Any = field(compare=False)


def questions(app: GatewayApplication) -> Iterator[Question]:
    """Requests to every route that needs a key, which name what is acme's."""
    for route in iter_route_contexts(app.routes):
        original, template = route.original_route, route.path
        assert template is not None
        assert route.methods is not None
        if template in OPEN_PATHS:
            continue
        assert isinstance(original, APIRoute), f"{original}: what is that, and whose tasks does it show?"
        for method in sorted(route.methods):
            if original.body_field is not None:
                assert (method, template) in BODIES, f"{method} {template} has a body: add it to BODIES"
            for path in _filled(template):
                for query in QUERIES if method == "GET" else QUERIES[:2]:
                    yield Question(method, path + query, BODIES.get((method, template)))


def _filled(template: str) -> Iterator[str]:
    name = re.search(r"{(\w+)(?::path)?}", template)
    if name is None:
        yield template
        return
    for value in PATH_VALUES[name[1]]:
        yield from _filled(template.replace(name[0], value, 1))


def add_tasks_of_acme(gateway: Gateway, folder: Path) -> None:
    stored = folder / "images" / OBJECT
    stored.parent.mkdir(parents=True)
    stored.write_bytes(IMAGE)
    tasks = [
        TaskSeen(
            request_id=request_id,
            body=f'{{"request_id":"{request_id}","prompt":"{PROMPT}","group_id":"acme-group"}}',
            priority="standard",
            tenant="acme",
            created_at_ms=1,
            group_id="acme-group",
        )
        for request_id in (DONE, QUEUED)
    ]
    # Lately, so that it is part of the usage that is shown.
    gateway.project(*tasks, replace(succeeded(DONE, "acme", object_key=OBJECT), completed_at_ms=NOW_MS - 1))


async def answers(gateway: Gateway, key: str) -> dict[Question, tuple[int, str, str]]:
    """Status, body and `ETag` of every response, without the ids that are new in each."""
    seen = {}
    # The page is asked by a browser with a session of the same key.
    visitor = Visitor(gateway.one.app)
    await visitor.log_in(key)
    cookie = "; ".join(f"{name}={value}" for name, value in visitor.cookies.items())
    form = FORM | {"form_token": await visitor.token()}
    for question in questions(gateway.one.app):
        headers = {"x-request-id": "same", "x-stainless-read-timeout": "0.1"}
        body = {} if question.body is None else {"json": question.body}
        if is_page({"path": question.path, "headers": []}):
            headers["cookie"] = cookie
            body = {} if question.method == "GET" else {"data": form}
        else:
            headers["authorization"] = f"Bearer {key}"
        if question.path.partition("?")[0].endswith("/events"):
            answer = await first_event(gateway.one.app, question.path, headers)
        else:
            answer = await gateway.one.ask(question.method, question.path, headers=headers, **body)
        text = re.sub(
            r"[0-9a-f]{64}|[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f-]{22}|fp_\w+|\d{16}\.\d{16}|[0-9A-Za-z]{12}",
            "<new>",
            answer.text,
        )
        seen[question] = (answer.status_code, text, answer.headers.get("etag", ""))
    return seen


@pytest.fixture
async def with_acme(tmp_path: Path) -> AsyncIterator[Gateway]:
    folder = tmp_path / "with"
    folder.mkdir()
    async with keyed_gateway(keyed_settings(folder)) as gateway:
        add_tasks_of_acme(gateway, folder)
        yield gateway


@pytest.fixture
async def without_acme(tmp_path: Path) -> AsyncIterator[Gateway]:
    folder = tmp_path / "without"
    folder.mkdir()
    async with keyed_gateway(keyed_settings(folder)) as gateway:
        yield gateway


async def test_every_route_answers_as_if_another_tenants_tasks_were_not_there(
    with_acme: Gateway, without_acme: Gateway
) -> None:
    # The projection of its own tasks is what a submission here does not do: both have none.
    scopes = ("submit", "read", "cancel", "rate")
    owner = await with_acme.create(*scopes, tenant="acme")
    before = await answers(with_acme, owner)
    assert any(PROMPT in text or DONE in text for _, text, _ in before.values()), "the owner sees the tasks"
    assert '"images":1' in before[Question("GET", "/v1/usage", None)][1], "the owner sees what they used"
    there = await answers(with_acme, await with_acme.create(*scopes, tenant="other"))
    not_there = await answers(without_acme, await without_acme.create(*scopes, tenant="other"))
    assert there == not_there
    for question, (status, text, _) in there.items():
        assert PROMPT not in text, question
        assert IMAGE.decode("latin-1") not in text, question
        if any(name in question.path.partition("?")[0] for name in (DONE, QUEUED)):
            # An id that is chosen is a UUID, whichever tenant has tasks.
            judged = question.path.partition("?")[0].endswith(("/rating", "/star"))
            is_chosen = question.method == "PUT" and not judged
            assert status == (422 if is_chosen else 404), question
    # Nor did they change anything.
    assert await answers(with_acme, owner) == before
