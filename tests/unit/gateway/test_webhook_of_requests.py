"""Webhooks that requests name: from the submission into the log of deliveries, signed, and apart by host and tenant."""

import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import update
from standardwebhooks import Webhook

from fluxpool_gateway.store.task_state import Change, ResultSeen, TaskSeen, TaskStatus
from fluxpool_gateway.stores import open_webhooks
from fluxpool_gateway.webhooks.deliveries import purge
from fluxpool_gateway.webhooks.requested.endpoints import MAX_HOSTS, UNUSED_MS
from fluxpool_gateway.webhooks.tables import endpoints
from kit.gateways.dispatching_gateway import dispatching_gateway
from kit.gateways.keyed_gateway import Gateway
from kit.http.webhook_receiver import Receiver, answering
from kit.waiting import wait_until

HOOKS = "/v1/webhooks"
GENERATIONS = "/v1/generations"


@pytest.fixture
async def gateway(tmp_path: Path) -> AsyncIterator[Gateway]:
    async with dispatching_gateway(tmp_path) as running:
        yield running


async def submit(gateway: Gateway, key: str, url: str, *events: str, **headers: str) -> Any:
    webhook: dict[str, Any] = {"url": url} | ({"events": events} if events else {})
    return await gateway.one.ask("POST", GENERATIONS, key, json={"prompt": "fox", "webhook": webhook}, headers=headers)


def end(gateway: Gateway, request_id: str, status: TaskStatus = TaskStatus.SUCCEEDED, *, tenant: str) -> None:
    """Project the record of the task as it is in Kafka, and its end."""
    body = next(value for value in gateway.records.values if value["request_id"] == request_id)
    now_ms = gateway.clock.now_ms
    changes: list[Change] = [
        TaskSeen(
            request_id=request_id, body=json.dumps(body), priority="standard", tenant=tenant, created_at_ms=now_ms
        ),
        ResultSeen(request_id=request_id, status=status, body="{}", completed_at_ms=now_ms, tenant=tenant),
    ]
    for number, change in enumerate(changes):
        offset = 2 * gateway.records.values.index(body) + number
        gateway.tasks.apply([(("tasks", 0, offset), change)], {}, now_ms=now_ms)


async def told(receiver: Receiver, number: int) -> None:
    await wait_until(lambda: len(receiver.messages) >= number, deadline_seconds=30, what=f"{number} messages")


async def log_of(gateway: Gateway, key: str) -> list[dict[str, Any]]:
    """The deliveries of webhooks of requests, the oldest first, once none is pending."""
    listed = (await gateway.one.ask("GET", HOOKS, key)).json()["data"]
    found: list[dict[str, Any]] = []

    async def settled() -> bool:
        found.clear()
        for endpoint in listed:
            assert endpoint["kind"] == "requests"
            page = await gateway.one.ask("GET", f"{HOOKS}/{endpoint['id']}/deliveries", key)
            found.extend(reversed(page.json()["data"]))
        return all(delivery["state"] != "pending" for delivery in found)

    await wait_until(settled, deadline_seconds=30, what="the log")
    return found


async def test_the_end_is_posted_signed_logged_and_delivered_again(gateway: Gateway, receiver: Receiver) -> None:
    key = await gateway.create("submit", "read", tenant="acme")
    rotated = await gateway.one.ask("POST", f"{HOOKS}/requests/rotate-secret", key, json={})
    assert (rotated.status_code, rotated.json()["secrets"]) == (201, 1)
    accepted = await submit(gateway, key, f"{receiver.url}/done?for=7")
    assert accepted.status_code == 202, accepted.text
    request_id = accepted.json()["request_id"]
    end(gateway, request_id, tenant="acme")
    await told(receiver, 1)
    (message,) = receiver.messages
    assert message.path == "/done?for=7"
    # Its `verify` compares with the time of day.
    at = datetime.fromtimestamp(int(message.headers["webhook-timestamp"]), UTC)
    signature = Webhook(rotated.json()["secret"]).sign(message.event_id, at, message.body.decode())
    assert message.headers["webhook-signature"] == signature
    verified = json.loads(message.body)
    assert (verified["type"], verified["data"]["request_id"]) == ("generation.succeeded", request_id)
    (delivery,) = await log_of(gateway, key)
    assert (delivery["state"], delivery["url"]) == ("succeeded", f"{receiver.url}/done?for=7")
    again = await gateway.one.ask("POST", f"{HOOKS}/deliveries/{delivery['id']}/redeliver", key)
    assert again.status_code == 202
    await told(receiver, 2)
    assert {message.event_id for message in receiver.messages} == {delivery["webhook_id"]}


async def test_only_the_named_events_of_the_own_tenant_are_posted_and_410_ends_one_delivery(
    gateway: Gateway, receiver: Receiver
) -> None:
    acme, other = await gateway.create("submit", "read", tenant="acme"), await gateway.create("submit", tenant="other")
    receiver.responses["/gone"] = answering(410)
    wanted = [
        (acme, "acme", "/a", ("generation.failed",), TaskStatus.SUCCEEDED),
        (acme, "acme", "/gone", ("generation.failed",), TaskStatus.FAILED),
        (acme, "acme", "/b", (), TaskStatus.CANCELED),
        (other, "other", "/c", (), TaskStatus.EXPIRED),
    ]
    for key, tenant, path, events, status in wanted:
        accepted = await submit(gateway, key, receiver.url + path, *events)
        end(gateway, accepted.json()["request_id"], status, tenant=tenant)
    await told(receiver, 3)
    deliveries = await log_of(gateway, acme)
    assert [(each["url"].removeprefix(receiver.url), each["state"]) for each in deliveries] == [
        ("/gone", "failed"),
        ("/b", "succeeded"),
    ]
    assert sorted(message.path for message in receiver.messages) == ["/b", "/c", "/gone"]


async def test_a_repeat_with_another_url_is_another_request(gateway: Gateway) -> None:
    repeats = [
        await submit(gateway, gateway.admin, url, **{"Idempotency-Key": "k"})
        for url in ("https://a.example/", "https://a.example/", "https://b.example/")
    ]
    assert [answer.status_code for answer in repeats] == [202, 202, 422]
    assert repeats[0].json() == repeats[1].json()
    assert repeats[2].json()["error"]["code"] == "idempotency_conflict"
    assert len(gateway.records.values) == 1


@pytest.mark.parametrize(
    ("webhook", "pointer"),
    [
        ({"url": "https://169.254.169.254/latest"}, "#/webhook/url"),
        ({"url": "https://user:password@example.com/"}, "#/webhook/url"),
        ({"url": "https://a.example/", "events": ["group.completed"]}, "#/webhook/events/0"),
        ({"url": "https://a.example/", "secret": "whsec_mine"}, "#/webhook/secret"),
        ("https://a.example/", "#/webhook"),
    ],
)
async def test_what_is_never_sent_is_refused_before_anything_is_written(
    gateway: Gateway, webhook: object, pointer: str
) -> None:
    fields = {"prompt": "fox", "webhook": webhook}
    put = f"{GENERATIONS}/0190f5fe-7c00-7a00-8000-000000000001"
    for method, path in (("POST", GENERATIONS), ("PUT", put)):
        answer = await gateway.one.ask(method, path, gateway.admin, json=fields)
        assert answer.status_code in {400, 422}, answer.text
        assert [error["pointer"] for error in answer.json()["errors"]] == [pointer]
    batch = await gateway.one.ask("POST", f"{GENERATIONS}/batch", gateway.admin, json={"requests": [fields]})
    (item,) = batch.json()["items"]
    assert (item["code"] in {400, 422}, item["errors"][0]["pointer"]) == (True, pointer)
    assert gateway.records.values == []
    assert (await gateway.one.ask("GET", HOOKS, gateway.admin)).json() == {"data": []}


async def test_the_hosts_of_a_tenant_are_bounded_until_unused_ones_are_forgotten(gateway: Gateway) -> None:
    key = await gateway.create("submit", "read", tenant="acme")
    for number in range(MAX_HOSTS):
        assert (await submit(gateway, key, f"https://h{number}.example/")).status_code == 202
    assert (await submit(gateway, key, "https://h0.example/another")).status_code == 202
    refused = await submit(gateway, key, "https://more.example/")
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "too_many_webhooks")
    assert (await submit(gateway, gateway.admin, "https://more.example/")).status_code == 202
    store = open_webhooks(gateway.settings)
    try:
        now_ms = gateway.clock.now_ms
        old = update(endpoints).where(endpoints.c.url == "https://h1.example").values(used_at_ms=now_ms - UNUSED_MS - 1)
        await store.write(lambda connection: connection.execute(old))
        await store.write(lambda connection: purge(connection, now_ms=now_ms))
    finally:
        store.close()
    assert (await submit(gateway, key, "https://more.example/")).status_code == 202


async def test_an_endpoint_of_requests_is_no_endpoint_to_change(gateway: Gateway) -> None:
    await submit(gateway, gateway.admin, "https://a.example/")
    (endpoint,) = (await gateway.one.ask("GET", HOOKS, gateway.admin)).json()["data"]
    path = f"{HOOKS}/{endpoint['id']}"
    refused = [
        await gateway.one.ask("PATCH", path, gateway.admin, json={"enabled": False}),
        await gateway.one.ask("DELETE", path, gateway.admin),
        await gateway.one.ask("POST", f"{path}/rotate-secret", gateway.admin, json={}),
        await gateway.one.ask("POST", f"{path}/test", gateway.admin),
    ]
    assert [answer.json()["error"]["code"] for answer in refused] == ["webhook_of_requests"] * 4


async def test_nothing_is_accepted_while_the_webhook_cannot_be_noted(gateway: Gateway) -> None:
    gateway.settings.webhook_store_file().unlink()
    refused = await submit(gateway, gateway.admin, "https://a.example/")
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "webhooks_unavailable")
    assert gateway.records.values == []
