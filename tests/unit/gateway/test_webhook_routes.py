"""The routes of webhooks: endpoints with secrets that are shown once, tests, logs, and tenants that are apart."""

import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
from standardwebhooks import Webhook

from fluxpool_gateway.settings import WebhookSettings
from fluxpool_gateway.stores import open_webhooks
from fluxpool_gateway.webhooks.database import WebhookDatabase
from fluxpool_gateway.webhooks.deliveries import Claim, Settlement, claim, enqueue, settle
from fluxpool_gateway.webhooks.dispatch.sending import Attempt, AttemptError
from fluxpool_gateway.webhooks.endpoints import MAX_ENDPOINTS, lock_enabled
from fluxpool_gateway.webhooks.event import Event
from fluxpool_gateway.webhooks.signing import sign
from kit.gateways.keyed_gateway import Gateway, keyed_gateway, keyed_settings

HOOKS = "/v1/webhooks"
BODY = {"name": "page", "url": "https://example.com/hooks?a=b"}


@pytest.fixture
async def gateway(tmp_path: Path) -> AsyncIterator[Gateway]:
    async with keyed_gateway(keyed_settings(tmp_path)) as running:
        yield running


async def created(gateway: Gateway, key: str, **fields: Any) -> dict[str, Any]:
    answer = await gateway.one.ask("POST", HOOKS, key, json={**BODY, **fields})
    assert answer.status_code == 201, answer.text
    return dict(answer.json())


def database(gateway: Gateway) -> WebhookDatabase:
    return WebhookDatabase(gateway.settings.webhook_store_file())


def happened(gateway: Gateway, *names: str, tenant: str = "acme") -> None:
    """Events, queued as the dispatcher does it."""
    now_ms = gateway.clock.now_ms
    found = [
        Event(event_id=f"evt_{name}", tenant=tenant, type="generation.succeeded", at_ms=now_ms, body='{"type":"x"}')
        for name in names
    ]
    opened = database(gateway)
    opened.write(lambda connection: enqueue(connection, found, lock_enabled(connection, [tenant]), now_ms=now_ms))
    opened.close()


def attempted(gateway: Gateway, error: AttemptError | None = None) -> list[Claim]:
    """Every delivery that is due was attempted once."""
    opened, now_ms = database(gateway), gateway.clock.now_ms
    made: list[Claim] = []
    for suspects in (False, True):
        made += opened.write(lambda connection: claim(connection, suspects=suspects, limit=99, now_ms=now_ms))  # noqa: B023
    attempt = Attempt(
        at_ms=now_ms,
        latency_ms=12,
        status=None if error else 200,
        error=error,
        reason="it closed" if error else None,
        answer="thanks",
    )
    settlements = [Settlement(claim=each, attempt=attempt, now_ms=now_ms, draw=0.5, keeps_lease=False) for each in made]
    opened.write(lambda connection: settle(connection, settlements))
    opened.close()
    return made


async def test_an_endpoint_is_created_shown_changed_and_deleted(gateway: Gateway) -> None:
    key = await gateway.create("submit", "read", tenant="acme")
    made = await created(gateway, key, event_types=["group.completed", "generation.failed"])
    assert made["secret"].startswith("whsec_")
    assert made["event_types"] == ["generation.failed", "group.completed"]
    path = f"{HOOKS}/{made['id']}"
    shown = (await gateway.two.ask("GET", path, key)).json()
    assert shown == {name: value for name, value in made.items() if name != "secret"}
    assert (await gateway.two.ask("GET", HOOKS, key)).json() == {"data": [shown]}
    patch = {"name": "other", "url": "https://example.org/", "event_types": [], "enabled": False}
    changed = await gateway.two.ask("PATCH", path, key, json=patch)
    assert changed.json() == shown | patch
    assert (await gateway.one.ask("PATCH", path, key, json={"enabled": True})).json() == shown | patch | {
        "enabled": True
    }
    assert (await gateway.one.ask("DELETE", path, key)).status_code == 204
    for method in ("GET", "DELETE"):
        assert (await gateway.two.ask(method, path, key)).status_code == 404


async def test_the_secret_is_in_no_other_response_or_log(gateway: Gateway, capsys: pytest.CaptureFixture[str]) -> None:
    key = await gateway.create("submit", "read", tenant="acme")
    made = await created(gateway, key)
    secret = made["secret"].removeprefix("whsec_")
    happened(gateway, "a")
    for path in (HOOKS, f"{HOOKS}/{made['id']}", f"{HOOKS}/{made['id']}/deliveries"):
        assert secret not in (await gateway.one.ask("GET", path, key)).text
    assert secret not in "".join(capsys.readouterr())


async def test_a_rotated_secret_and_the_former_one_verify_until_the_overlap_ends(gateway: Gateway) -> None:
    key = await gateway.create("submit", "read", tenant="acme")
    made = await created(gateway, key)
    path = f"{HOOKS}/{made['id']}/rotate-secret"
    rotated = (await gateway.one.ask("POST", path, key, json={"overlap_seconds": 60})).json()
    assert rotated["secrets"] == 2
    assert rotated["secret"] != made["secret"]
    happened(gateway, "a")
    (claimed,) = attempted(gateway)
    secrets = claimed.endpoint.valid_secrets(gateway.clock.now_ms)
    assert secrets == (rotated["secret"], made["secret"])
    gateway.clock.pass_seconds(60)
    assert claimed.endpoint.valid_secrets(gateway.clock.now_ms) == (rotated["secret"],)
    at_once = (await gateway.one.ask("POST", path, key, json={"overlap_seconds": 0})).json()
    assert at_once["secrets"] == 1


def test_a_signature_is_that_of_the_standards_own_library() -> None:
    secret, body = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD", '{"type":"ping"}'
    signature = sign([secret], message_id="msg_1", timestamp_seconds=1_700_000_000, body=body.encode())
    at = datetime.fromtimestamp(1_700_000_000, UTC)
    assert signature == Webhook(secret).sign("msg_1", at, body)


NEVER_SENT_TO = (
    "http://example.com/",
    "ftp://example.com/",
    "example.com",
    "https://",
    "https://user:password@example.com/",
    "https://user@example.com/",
    "https://example.com/#fragment",
    "https://example.com/a b",
    "https://exämple.com/",
    "https://example.com:0/",
    "https://example.com:99999/",
    "https://[::1",
    "https://[fe80::1%25eth0]/",
    "https://./",
    "https://a..example.com/",
    "https://" + "a" * 64 + ".example.com/",
    "https://" + "a." * 126 + "example.com/",
    "https://127.0.0.1/",
    "https://[::1]/",
    "https://[::ffff:10.0.0.1]/",
    "https://169.254.169.254/latest/meta-data",
    "https://exa\tmple.com/",
    "https://example.com\\@127.0.0.1/",
    "https://" + "a" * 3000 + ".example/",
)


async def test_a_url_that_is_never_sent_to_is_refused_with_its_field(gateway: Gateway) -> None:
    made = await created(gateway, gateway.admin)
    for url in NEVER_SENT_TO:
        for answer in (
            await gateway.one.ask("POST", HOOKS, gateway.admin, json={**BODY, "url": url}),
            await gateway.one.ask("PATCH", f"{HOOKS}/{made['id']}", gateway.admin, json={"url": url}),
        ):
            assert answer.status_code == 422, url
            assert [error["pointer"] for error in answer.json()["errors"]] == ["#/url"], url


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ({"name": "\x1b[31m"}, "#/name"),
        ({"event_types": ["generation.started"]}, "#/event_types/0"),
        ({"enabled": "yes"}, "#/enabled"),
        ({"secret": "whsec_mine"}, "#/secret"),
    ],
)
async def test_another_value_is_refused_with_its_field(gateway: Gateway, body: dict[str, Any], pointer: str) -> None:
    answer = await gateway.one.ask("POST", HOOKS, gateway.admin, json={**BODY, **body})
    assert answer.status_code in {400, 422}, answer.text
    assert pointer in [error["pointer"] for error in answer.json()["errors"]]


async def test_a_change_of_nothing_is_refused(gateway: Gateway) -> None:
    made = await created(gateway, gateway.admin)
    assert (await gateway.one.ask("PATCH", f"{HOOKS}/{made['id']}", gateway.admin, json={})).status_code == 422


async def test_networks_and_http_that_the_settings_allow_are_taken(tmp_path: Path) -> None:
    settings = keyed_settings(tmp_path).model_copy(
        update={"webhooks": WebhookSettings(allow_http=True, allowed_networks=("10.20.0.0/16",))}
    )
    async with keyed_gateway(settings) as gateway:
        await created(gateway, gateway.admin, url="http://10.20.1.1:8080/hook")
        refused = await gateway.one.ask("POST", HOOKS, gateway.admin, json={**BODY, "url": "http://10.21.1.1/"})
        assert refused.status_code == 422


async def test_a_tenant_has_twenty_endpoints_at_most(gateway: Gateway) -> None:
    key = await gateway.create("submit", tenant="acme")
    for _ in range(MAX_ENDPOINTS):
        await created(gateway, key)
    refused = await gateway.one.ask("POST", HOOKS, key, json=BODY)
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "too_many_webhooks")
    await created(gateway, gateway.admin)


async def test_the_log_tells_what_was_sent_and_what_came_back_page_by_page(gateway: Gateway) -> None:
    key = await gateway.create("submit", "read", tenant="acme")
    made = await created(gateway, key)
    for name in "abc":
        happened(gateway, name)
        attempted(gateway)
        gateway.clock.pass_seconds(1)
    happened(gateway, "d")
    attempted(gateway, AttemptError.CLOSED)
    path = f"{HOOKS}/{made['id']}/deliveries?limit=2"
    first = (await gateway.one.ask("GET", path, key)).json()
    second = (await gateway.two.ask("GET", f"{path}&cursor={first['next_cursor']}", key)).json()
    told = [delivery["webhook_id"] for page in (first, second) for delivery in page["data"]]
    assert told == ["evt_d", "evt_c", "evt_b", "evt_a"]
    assert (first["has_more"], second["has_more"], second["next_cursor"]) == (True, False, None)
    failed, succeeded = first["data"]
    assert (failed["state"], failed["error"], failed["attempts"]) == ("pending", "closed", 1)
    assert failed["next_attempt_at"] is not None
    assert (succeeded["state"], succeeded["next_attempt_at"]) == ("succeeded", None)
    one = (await gateway.one.ask("GET", f"{HOOKS}/deliveries/{failed['id']}", key)).json()
    assert json.loads(one["body"]) == {"type": "x"}
    (attempt,) = one["log"]
    assert (attempt["error"], attempt["reason"], attempt["latency_ms"]) == ("closed", "it closed", 12)
    assert (await gateway.one.ask("GET", f"{HOOKS}/{made['id']}", key)).json()["failures"] == 1


async def test_a_delivery_is_made_again_by_hand(gateway: Gateway) -> None:
    key = await gateway.create("submit", "read", tenant="acme")
    made = await created(gateway, key)
    happened(gateway, "a")
    (claimed,) = attempted(gateway)
    path = f"{HOOKS}/deliveries/{claimed.delivery_id}"
    again = await gateway.one.ask("POST", f"{path}/redeliver", key)
    assert (again.status_code, again.json()["state"]) == (202, "pending")
    assert [each.event_id for each in attempted(gateway)] == ["evt_a"]
    assert len((await gateway.one.ask("GET", path, key)).json()["log"]) == 2
    await gateway.one.ask("PATCH", f"{HOOKS}/{made['id']}", key, json={"enabled": False})
    refused = await gateway.one.ask("POST", f"{path}/redeliver", key)
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "webhook_disabled")


async def test_a_test_is_sent_whatever_the_event_types_but_not_to_a_disabled_endpoint(gateway: Gateway) -> None:
    key = await gateway.create("submit", "read", tenant="acme")
    made = await created(gateway, key, event_types=["generation.failed"])
    path = f"{HOOKS}/{made['id']}"
    sent = await gateway.one.ask("POST", f"{path}/test", key)
    assert (sent.status_code, sent.json()["type"]) == (202, "webhook.test")
    (claimed,) = attempted(gateway)
    assert json.loads(claimed.body)["data"] == {"endpoint_id": made["id"]}
    told = (await gateway.one.ask("GET", f"{HOOKS}/deliveries/{sent.json()['id']}", key)).json()
    assert (told["state"], told["log"][0]["status"], told["log"][0]["response"]) == ("succeeded", 200, "thanks")
    await gateway.one.ask("PATCH", path, key, json={"enabled": False})
    assert (await gateway.one.ask("POST", f"{path}/test", key)).status_code == 409


async def test_another_tenant_finds_and_changes_nothing(gateway: Gateway) -> None:
    acme = await gateway.create("submit", "read", tenant="acme")
    other = await gateway.create("submit", "read", tenant="other")
    made = await created(gateway, acme)
    happened(gateway, "a")
    (claimed,) = attempted(gateway)
    endpoint, delivery = f"{HOOKS}/{made['id']}", f"{HOOKS}/deliveries/{claimed.delivery_id}"
    seen = (await gateway.one.ask("GET", endpoint, acme)).json(), (await gateway.one.ask("GET", delivery, acme)).json()
    questions: list[tuple[str, str, dict[str, Any] | None]] = [
        ("GET", endpoint, None),
        ("PATCH", endpoint, {"name": "mine"}),
        ("POST", f"{endpoint}/rotate-secret", {}),
        ("POST", f"{endpoint}/test", None),
        ("GET", f"{endpoint}/deliveries", None),
        ("GET", delivery, None),
        ("POST", f"{delivery}/redeliver", None),
        ("DELETE", endpoint, None),
    ]
    for method, path, body in questions:
        answer = await gateway.one.ask(method, path, other, **({} if body is None else {"json": body}))
        assert answer.status_code == 404, (method, path, answer.text)
    assert (await gateway.one.ask("GET", HOOKS, other)).json() == {"data": []}
    assert seen == (
        (await gateway.one.ask("GET", endpoint, acme)).json(),
        (await gateway.one.ask("GET", delivery, acme)).json(),
    )


async def test_managing_needs_the_scope_submit_and_reading_needs_read(gateway: Gateway) -> None:
    reader, submitter = await gateway.create("read"), await gateway.create("submit")
    made = await created(gateway, submitter)
    path = f"{HOOKS}/{made['id']}"
    assert (await gateway.one.ask("GET", path, reader)).status_code == 200
    refused = [
        await gateway.one.ask("POST", HOOKS, reader, json=BODY),
        await gateway.one.ask("PATCH", path, reader, json={"name": "x"}),
        await gateway.one.ask("POST", f"{path}/rotate-secret", reader, json={}),
        await gateway.one.ask("POST", f"{path}/test", reader),
        await gateway.one.ask("DELETE", path, reader),
        await gateway.one.ask("GET", HOOKS, submitter),
        await gateway.one.ask("GET", path, submitter),
    ]
    assert {answer.status_code for answer in refused} == {httpx.codes.FORBIDDEN}


async def test_a_store_that_is_gone_is_answered_503_and_the_rest_works(gateway: Gateway) -> None:
    key = await gateway.create("submit", "read", tenant="acme")
    gateway.settings.webhook_store_file().unlink()
    answer = await gateway.one.ask("GET", HOOKS, key)
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "webhooks_unavailable")
    assert (await gateway.one.submit(key)).status_code == 202


async def test_metrics_tell_of_deliveries_of_all_tenants(gateway: Gateway) -> None:
    key = await gateway.create("submit", "read", tenant="acme")
    await created(gateway, key)
    happened(gateway, "a")
    attempted(gateway)
    happened(gateway, "b")
    attempted(gateway, AttemptError.TIMEOUT)
    store = open_webhooks(gateway.settings)
    numbers = await store.numbers()
    assert (dict(numbers.ended), numbers.pending) == ({"succeeded": 1, "retried": 1}, 1)
    store.close()
    text = (await gateway.one.http.get("/metrics")).text
    assert 'fluxpool_webhook_attempts_total{outcome="succeeded"} 1.0' in text
    assert 'fluxpool_webhook_attempts_total{outcome="retried"} 1.0' in text
    assert "fluxpool_webhook_pending_deliveries 1.0" in text
    assert "fluxpool_webhook_oldest_pending_seconds " in text
    assert "acme" not in text
