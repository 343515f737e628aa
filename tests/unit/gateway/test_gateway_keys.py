"""API keys and tenants over the real application and real key and task stores: who is admitted, and to what."""

import asyncio
import dataclasses
import hashlib
import re
import sqlite3
import string
import zlib
from collections.abc import AsyncIterator, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from fastapi.routing import APIRoute, iter_route_contexts
from starlette.routing import Route

from fluxpool_contract.header_names import TENANT
from fluxpool_contract.kafka.topics import TopicNames
from fluxpool_contract.messages.derived import idempotent_request_id
from fluxpool_gateway.http.app import OPEN_PATHS, GatewayApplication
from fluxpool_gateway.identity.api_key import KeyScope, new_key, parse_key
from fluxpool_gateway.identity.gate import CACHED_SECONDS
from fluxpool_gateway.page.door import PREFIX
from fluxpool_gateway.store.task_state import TaskSeen
from kit.gateways.keyed_gateway import IMAGE, Gateway, key_id, keyed_gateway, keyed_settings, prepare, succeeded


@pytest.fixture
async def gateway(tmp_path: Path) -> AsyncIterator[Gateway]:
    async with keyed_gateway(keyed_settings(tmp_path)) as running:
        yield running


PATH_VALUES = {"index": "0", "key_id": "000000000000", "dead_letter_id": "0/0"}


def requests_of_every_route(app: GatewayApplication) -> Iterator[tuple[str, str, list[str]]]:
    """Method, path and scopes of each route of the API that is not open; those of the page need a session."""
    for route in iter_route_contexts(app.routes):
        assert isinstance(route.original_route, Route), f"{route.original_route}: what is that, and does it need a key?"
        assert route.path is not None
        assert route.methods is not None
        if route.path in OPEN_PATHS or route.path.startswith(PREFIX):
            continue
        assert isinstance(route.original_route, APIRoute)
        (names,) = (route.original_route.openapi_extra or {})["security"]
        path = re.sub(r"{(\w+)(?::path)?}", lambda name: PATH_VALUES.get(name[1], "r-1"), route.path)
        for method in sorted(route.methods):
            yield method, path, names["apiKey"]


def task(request_id: str, tenant: str) -> TaskSeen:
    return TaskSeen(request_id=request_id, body="{}", priority="standard", tenant=tenant, created_at_ms=1)


# Every route


async def test_every_route_but_the_open_ones_needs_a_key(gateway: Gateway) -> None:
    assert {"/healthz", "/readyz", "/metrics", "/openapi.json", "/asyncapi.json"} == OPEN_PATHS
    asked = list(requests_of_every_route(gateway.one.app))
    kinds = {
        "comparisons",
        "dlq",
        "events",
        "feedback",
        "generations",
        "groups",
        "images",
        "keys",
        "models",
        "pools",
        "queue",
        "usage",
        "webhooks",
    }
    assert {path.split("/")[2] for _, path, _ in asked} == kinds
    for method, path, _ in [*asked, ("GET", "/nowhere", []), ("PUT", "/v1/generations", []), ("GET", "/healthz/", [])]:
        answer = await gateway.one.ask(method, path)
        assert (answer.status_code, answer.json()["error"]["code"]) == (401, "unauthorized"), path
        assert answer.headers["www-authenticate"] == 'Bearer realm="fluxpool"'
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.headers.get_list("x-request-id") == [answer.json()["correlation_id"]]


@pytest.mark.parametrize("path", sorted(OPEN_PATHS))
async def test_probes_metrics_and_the_openapi_document_need_no_key(gateway: Gateway, path: str) -> None:
    assert (await gateway.one.ask("GET", path)).status_code in {200, 503}
    assert (await gateway.one.ask("GET", path, "nonsense")).status_code in {200, 503}


async def test_every_route_needs_its_scope(gateway: Gateway) -> None:
    # Ends streams of events as soon as they begin.
    gateway.one.app.state.services.stopping.set()
    for method, path, scopes in requests_of_every_route(gateway.one.app):
        for scope in scopes:
            others = await gateway.create(*(set(KeyScope) - {scope}))
            answer = await gateway.one.ask(method, path, others)
            assert (answer.status_code, answer.json()["error"]["code"]) == (403, "insufficient_scope"), path
            assert f'error="insufficient_scope", scope="{scope}"' in answer.headers["www-authenticate"]
        its = await gateway.create(*scopes)
        assert (await gateway.one.ask(method, path, its)).status_code not in {401, 403}, path
    assert len(gateway.records.headers) == 0  # a submission without a body is no request


async def test_the_openapi_document_names_the_scope_of_every_route(gateway: Gateway) -> None:
    document = (await gateway.one.ask("GET", "/openapi.json")).json()
    assert document["components"]["securitySchemes"]["apiKey"]["scheme"] == "bearer"
    operations = [(path, operation) for path, item in document["paths"].items() for operation in item.values()]
    for path, operation in operations:
        assert ("security" in operation) == (path not in OPEN_PATHS), path
        assert ({"401", "403"} <= operation["responses"].keys()) == (path not in OPEN_PATHS), path


# Tenants


async def test_the_tenant_of_a_task_is_that_of_its_key(gateway: Gateway) -> None:
    key = await gateway.create("submit", "read", tenant="acme")
    accepted = await gateway.one.submit(key, headers={"fluxpool-tenant": "other", "idempotency-key": "k"})
    assert (accepted.status_code, accepted.json()["request_id"]) == (202, idempotent_request_id("acme", "k"))
    assert [headers[TENANT] for headers in gateway.records.headers] == [b"acme"]
    named = await gateway.one.ask("POST", "/v1/generations", key, json={"prompt": "a fox", "tenant": "other"})
    assert (named.status_code, named.json()["error"]["param"]) == (400, "tenant")


async def test_the_same_idempotency_key_of_two_tenants_makes_two_tasks(gateway: Gateway) -> None:
    keys = [await gateway.create("submit", tenant=tenant) for tenant in ("acme", "other")]
    answers = [await gateway.one.submit(key, headers={"idempotency-key": "k"}) for key in keys]
    assert len({answer.json()["request_id"] for answer in answers}) == 2


async def test_a_task_that_was_just_accepted_is_not_shown_to_another_tenant(gateway: Gateway) -> None:
    owner, stranger = await gateway.create(tenant="acme"), await gateway.create(tenant="other")
    path = f"/v1/generations/{(await gateway.one.submit(owner)).json()['request_id']}"
    assert [(await gateway.one.ask("GET", path, key)).status_code for key in (owner, stranger)] == [200, 404]


async def test_a_result_without_its_task_is_shown_to_its_tenant_alone(gateway: Gateway) -> None:
    gateway.project(succeeded("r-1", "acme"))
    keys = [await gateway.create(tenant=tenant) for tenant in ("acme", "other")]
    assert [(await gateway.one.ask("GET", "/v1/generations/r-1", key)).status_code for key in keys] == [200, 404]


async def test_a_false_result_does_not_lead_to_an_image_of_another_tenant(gateway: Gateway, tmp_path: Path) -> None:
    image = tmp_path / "images" / "other/2026/04/05/r-9/0.png"
    image.parent.mkdir(parents=True)
    image.write_bytes(IMAGE)
    gateway.project(task("r-1", "acme"), succeeded("r-1", "acme", object_key="other/2026/04/05/r-9/0.png"))
    answer = await gateway.one.ask("GET", "/v1/generations/r-1/images/0", await gateway.create(tenant="acme"))
    assert answer.status_code == 404


# Keys


@pytest.mark.parametrize(
    "authorization",
    ["", "Bearer", "Bearer ", "Basic Zm9vOmJhcg==", "Bearer fp_", "Bearer \xff", "fp_x", "Bearer " + "a" * 5000],
)
async def test_what_is_no_key_is_refused_without_reading_the_store(gateway: Gateway, authorization: str) -> None:
    gateway.settings.key_store_file().unlink()
    answer = await gateway.one.ask("GET", "/v1/keys", headers={"authorization": authorization.encode("latin-1")})
    assert (answer.status_code, answer.json()["error"]["code"]) == (401, "unauthorized")
    assert 'error="invalid_token"' in answer.headers["www-authenticate"]


@pytest.mark.parametrize("form", ["Bearer {}", "bearer {}", "BEARER   {}", "  Bearer {}  ", "Bearer {}\t"])
async def test_the_scheme_is_read_in_any_case_and_with_more_blanks(gateway: Gateway, form: str) -> None:
    for _ in range(2):
        answer = await gateway.one.ask("GET", "/v1/keys", headers={"authorization": form.format(gateway.admin)})
        assert answer.status_code == 200
    changed = form.format(gateway.admin.swapcase())
    assert (await gateway.one.ask("GET", "/v1/keys", headers={"authorization": changed})).status_code == 401


async def test_two_authorizations_are_refused_as_two_readers_may_differ(gateway: Gateway) -> None:
    twice = [("authorization", f"Bearer {gateway.admin}"), ("Authorization", f"Bearer {new_key()}")]
    for method, path in (("GET", "/v1/keys"), ("POST", "/v1/generations")):
        answer = await gateway.one.http.request(method, path, headers=twice)
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "Authorization")


async def test_keys_are_changed_while_another_process_writes_the_file(gateway: Gateway) -> None:
    with closing(sqlite3.connect(gateway.settings.key_store_file(), isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        # Readers go on, and a writer waits for its turn.
        key = asyncio.ensure_future(gateway.create("submit"))
        assert (await gateway.two.ask("GET", "/v1/keys", gateway.admin)).status_code == 200
        assert not key.done()
        other.execute("COMMIT")
        assert (await gateway.one.submit(await key)).status_code == 202


async def test_an_unknown_key_and_a_wrong_secret_look_alike(gateway: Gateway) -> None:
    forged = f"fp_{key_id(gateway.admin)}_{new_key().split('_')[2][:43]}"
    alphabet = string.digits + string.ascii_uppercase + string.ascii_lowercase
    number, digits = zlib.crc32(forged.encode()), ""
    for _ in range(6):
        number, digit = divmod(number, 62)
        digits = alphabet[digit] + digits
    assert parse_key(forged + digits) is not None
    answers = [await gateway.one.ask("GET", "/v1/keys", key) for key in (forged + digits, new_key())]
    assert {answer.status_code for answer in answers} == {401}
    assert len({answer.json()["detail"] for answer in answers}) == 1


async def test_two_authorization_headers_are_refused(gateway: Gateway) -> None:
    for method, path in (("GET", "/v1/keys"), ("POST", "/v1/generations")):
        headers = [("authorization", f"Bearer {gateway.admin}")] * 2
        answer = await gateway.one.http.request(method, path, headers=headers)
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "Authorization")


async def test_a_key_is_shown_once_and_stored_as_its_hash_alone(gateway: Gateway) -> None:
    key = await gateway.create("read")
    listed = await gateway.one.ask("GET", "/v1/keys", gateway.admin)
    assert key_id(key) in listed.text
    assert key not in listed.text
    folder = gateway.settings.key_store_file().parent
    stored = b"".join(path.read_bytes() for path in folder.iterdir() if path.name.startswith("api-keys.db"))
    assert hashlib.sha256(key.encode()).digest() in stored
    assert key.split("_")[2][:20].encode() not in stored


async def test_a_revoked_key_is_refused_here_at_once_and_by_another_replica_within_seconds(gateway: Gateway) -> None:
    key = await gateway.create("submit")
    assert [(await replica.submit(key)).status_code for replica in (gateway.one, gateway.two)] == [202, 202]
    revoked = await gateway.one.ask("DELETE", f"/v1/keys/{key_id(key)}", gateway.admin)
    assert (revoked.status_code, revoked.json()["state"]) == (200, "revoked")
    refused = await gateway.one.submit(key)
    assert (refused.status_code, "was revoked" in refused.json()["detail"]) == (401, True)
    gateway.clock.pass_seconds(CACHED_SECONDS)
    assert (await gateway.two.submit(key)).status_code == 401
    again = await gateway.two.ask("DELETE", f"/v1/keys/{key_id(key)}", gateway.admin)
    assert (again.status_code, again.json()["revoked_at"]) == (200, revoked.json()["revoked_at"])


async def test_an_expired_key_is_refused_at_its_time(gateway: Gateway) -> None:
    key = await gateway.create("submit", expires_in_seconds=1)
    assert (await gateway.one.submit(key)).status_code == 202
    gateway.clock.pass_seconds(1)
    refused = await gateway.one.submit(key)
    assert (refused.status_code, "has expired" in refused.json()["detail"]) == (401, True)


async def test_a_rotated_key_is_accepted_until_the_overlap_ends(gateway: Gateway) -> None:
    old = await gateway.create("submit", tenant="acme", expires_in_seconds=86_400)
    path = f"/v1/keys/{key_id(old)}/rotate"
    rotated = await gateway.one.ask("POST", path, gateway.admin, json={"overlap_seconds": 60})
    assert rotated.status_code == 201
    new = rotated.json()
    assert (new["tenant"], new["scopes"], new["state"]) == ("acme", ["submit"], "active")
    gateway.clock.pass_seconds(59)
    assert [(await gateway.two.submit(key)).status_code for key in (old, new["key"])] == [202, 202]
    gateway.clock.pass_seconds(1)
    assert [(await gateway.two.submit(key)).status_code for key in (old, new["key"])] == [401, 202]
    again = await gateway.one.ask("POST", path, gateway.admin, json={})
    assert (again.status_code, again.json()["error"]["code"]) == (409, "key_not_active")
    listed = (await gateway.one.ask("GET", "/v1/keys", gateway.admin)).json()["keys"]
    assert {item["id"]: item["replaced_by"] for item in listed}[key_id(old)] == key_id(new["key"])


async def test_two_rotations_at_once_make_one_successor(gateway: Gateway) -> None:
    old = await gateway.create("submit")
    path = f"/v1/keys/{key_id(old)}/rotate"
    answers = await asyncio.gather(
        *(replica.ask("POST", path, gateway.admin, json={}) for replica in (gateway.one, gateway.two))
    )
    assert sorted(answer.status_code for answer in answers) == [201, 409]


async def test_the_list_is_read_page_by_page(gateway: Gateway) -> None:
    made = {key_id(await gateway.create("read")) for _ in range(4)} | {key_id(gateway.admin)}
    after: str | None = ""
    seen: list[str] = []
    while after is not None:
        page = (await gateway.one.ask("GET", "/v1/keys", gateway.admin, params={"after": after, "limit": 2})).json()
        seen += [item["id"] for item in page["keys"]]
        after = page["next"]
    assert (len(seen), set(seen)) == (5, made)


@pytest.mark.parametrize(
    ("body", "status", "named"),
    [
        ({"scopes": ["read"]}, 422, "name"),
        ({"name": "a\nb", "scopes": ["read"]}, 422, "name"),
        ({"name": "a", "scopes": []}, 422, "scopes"),
        ({"name": "a", "scopes": ["all"]}, 422, "scopes"),
        ({"name": "a", "scopes": ["read"], "tenant": "../up"}, 422, "tenant"),
        ({"name": "a", "scopes": ["read"], "expires_in_seconds": 0}, 422, "expires_in_seconds"),
        ({"name": "a", "scopes": ["read"], "expires_in_seconds": 10**30}, 422, "expires_in_seconds"),
        ({"name": "a", "scopes": ["read"], "digest": "00"}, 422, "digest"),
        ([], 422, None),
    ],
)
async def test_a_request_for_a_key_is_refused_with_the_field(
    gateway: Gateway, body: Any, status: int, named: str | None
) -> None:
    answer = await gateway.one.ask("POST", "/v1/keys", gateway.admin, json=body)
    assert (answer.status_code, answer.headers["content-type"]) == (status, "application/problem+json")
    param = answer.json()["error"]["param"]
    assert (param or "").split(".")[0] == (named or "")


async def test_a_body_that_is_no_json_is_refused(gateway: Gateway) -> None:
    headers = {"content-type": "application/json"}
    for body in (b"{", b"[" * 50_000, b"\xff"):
        answer = await gateway.one.ask("POST", "/v1/keys", gateway.admin, content=body, headers=headers)
        assert (answer.status_code, answer.headers["content-type"]) == (400, "application/problem+json"), body[:9]


async def test_the_last_use_of_keys_is_stored_together_and_never_moves_back(gateway: Gateway) -> None:
    key = await gateway.create("submit")
    await gateway.two.submit(key)
    gateway.clock.pass_seconds(100)
    await gateway.one.submit(key)
    await gateway.one.gate.save_used()
    await gateway.two.gate.save_used()
    record = await gateway.one.gate.store.find(key_id(key))
    assert record is not None
    assert record.last_used_at_ms == gateway.clock.now_ms


async def test_nobody_is_admitted_while_the_keys_cannot_be_read(gateway: Gateway) -> None:
    key = await gateway.create("submit")
    assert (await gateway.one.submit(key)).status_code == 202
    file = gateway.settings.key_store_file()
    aside = file.rename(file.with_name("aside"))
    gateway.clock.pass_seconds(CACHED_SECONDS)
    answer = await gateway.one.submit(key)
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "identity_unavailable")
    assert "retry-after" in answer.headers
    aside.rename(file)
    assert (await gateway.one.submit(key)).status_code == 202


async def test_many_requests_at_once_share_one_read_of_their_key(gateway: Gateway) -> None:
    key = await gateway.create("submit")
    answers = [asyncio.ensure_future(gateway.two.submit(key)) for _ in range(50)]
    await asyncio.sleep(0)
    answers[0].cancel()
    assert {(await answer).status_code for answer in answers[1:]} == {202}


# Rights


async def test_a_key_allows_the_standard_priority_alone_unless_it_says_more(gateway: Gateway) -> None:
    plain = await gateway.create("submit")
    important = await gateway.create("submit", priorities=["standard", "vip"])
    body = {"prompt": "a fox", "priority": "vip"}
    refused = await gateway.one.ask("POST", "/v1/generations", plain, json=body)
    problem = refused.json()
    assert (refused.status_code, problem["error"]["code"], problem["error"]["param"]) == (
        403,
        "not_entitled",
        "priority",
    )
    assert "does not allow vip; use standard" in problem["detail"]
    assert (await gateway.one.submit(plain)).status_code == 202
    for key in (important, gateway.admin):
        assert (await gateway.one.ask("POST", "/v1/generations", key, json=body)).status_code == 202


@pytest.mark.parametrize(
    ("rights", "more", "refused"),
    [
        ({"qualities": ["fast"]}, {"quality": "fast"}, None),
        ({"qualities": ["fast"]}, {"quality": "exact"}, "quality"),
        ({"qualities": ["fast"]}, {}, "quality"),
        ({"loras": ["ink"]}, {"loras": [{"name": "ink"}]}, None),
        ({"loras": ["ink"]}, {"loras": [{"name": "ink"}, {"name": "oil"}]}, "loras"),
        ({"loras": []}, {"loras": [{"name": "ink"}]}, "loras"),
        ({"loras": []}, {}, None),
        ({"priorities": ["vip"]}, {}, "priority"),
        ({}, {"quality": "exact", "loras": [{"name": "ink"}]}, None),
    ],
)
async def test_a_submission_holds_what_its_key_allows(
    gateway: Gateway, rights: dict[str, Any], more: dict[str, Any], refused: str | None
) -> None:
    key = await gateway.create("submit", **rights)
    answer = await gateway.one.ask("POST", "/v1/generations", key, json={"prompt": "a fox", **more})
    assert (answer.status_code, answer.json().get("error", {}).get("param")) == (403 if refused else 202, refused)


async def test_a_rotated_key_keeps_its_rights(gateway: Gateway) -> None:
    rights: dict[str, Any] = {"priorities": ["standard", "vip"], "qualities": ["exact"], "loras": ["ink", "oil"]}
    rights |= {"presets": ["draft", "ink"], "models": ["FLUX.1-dev", "tiny"]}
    old = await gateway.create("submit", **rights)
    path = f"/v1/keys/{key_id(old)}/rotate"
    new = (await gateway.one.ask("POST", path, gateway.admin, json={})).json()
    assert {name: new[name] for name in rights} == rights
    listed = (await gateway.two.ask("GET", "/v1/keys", gateway.admin)).json()["keys"]
    assert [item["loras"] for item in listed if item["name"] == "test"] == [["ink", "oil"], ["ink", "oil"]]


async def test_a_key_of_a_model_reaches_only_pools_of_it(gateway: Gateway) -> None:
    key = await gateway.create("submit", models=["FLUX.1-dev"], priorities=["standard", "vip"])
    served: dict[str, list[frozenset[str]]] = {}
    app = gateway.one.app
    assert app.submission is not None
    app.submission = dataclasses.replace(app.submission, models_of=lambda topic: served.get(topic, []))

    async def submit(priority: str = "standard", key: str = key) -> tuple[int, str]:
        body = {"prompt": "a fox", "priority": priority}
        answer = await gateway.one.ask("POST", "/v1/generations", key, json=body)
        found = answer.json()
        assert found.get("error", {}).get("param") == ("model" if answer.status_code == 403 else None)
        return answer.status_code, found.get("detail", "")

    status, why = await submit()
    assert (status, "the model of tasks of priority standard is not known here" in why) == (403, True)
    topics = TopicNames()
    served |= {
        topics.tasks: [frozenset({"me/checkpoint", "FLUX.1-dev"})],
        topics.tasks_vip: [frozenset({"FLUX.1-dev"}), frozenset({"FLUX.1-schnell"})],
    }
    assert (await submit())[0] == 202
    status, why = await submit("vip")
    assert status == 403
    assert "does not allow FLUX.1-schnell (the model of tasks of this priority); use FLUX.1-dev" in why
    assert (await submit("vip", gateway.admin))[0] == 202


def test_keys_from_before_rights_keep_what_they_could(tmp_path: Path) -> None:
    settings = keyed_settings(tmp_path)
    prepare(settings)
    file = settings.key_store_file()
    with closing(sqlite3.connect(file)) as connection, connection:
        for column in ("priorities", "qualities", "loras", "presets", "models", "submit_limit", "bucket"):
            connection.execute(f"ALTER TABLE api_key DROP COLUMN {column}")
        connection.execute("DROP TABLE secret")
        connection.execute("UPDATE alembic_version SET version_num = '0001'")
    prepare(settings)
    with closing(sqlite3.connect(file)) as connection:
        rows = connection.execute("SELECT priorities, qualities, loras FROM api_key").fetchall()
    assert rows == [("standard vip", None, None)]
