"""Webhooks and API keys on the page: secrets shown once, deliveries with their answers, and who may do what."""

import re
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from standardwebhooks import Webhook

from fluxpool_gateway.webhooks.deliveries import Settlement
from fluxpool_gateway.webhooks.dispatch.sending import Attempt, AttemptError
from kit.gateways.keyed_gateway import Gateway, key_id, keyed_gateway, keyed_settings
from kit.http.page_visitor import Visitor, text_of

HOOKS = "/ui/webhooks"
KEYS = "/ui/keys"
HOOK = {"name": "page", "url": "https://example.com/hooks"}
KEY = re.compile(r"fp_\w{12}_\w{49}")
SECRET = re.compile(r"whsec_[A-Za-z0-9+/=]+")


@pytest.fixture
async def gateway(tmp_path: Path) -> AsyncIterator[Gateway]:
    async with keyed_gateway(keyed_settings(tmp_path)) as made:
        yield made


async def visitor_of(gateway: Gateway, key: str) -> Visitor:
    visitor = Visitor(gateway.one.app)
    await visitor.log_in(key)
    return visitor


def shown_once(answer: httpx.Response, pattern: re.Pattern[str]) -> str:
    (found,) = {*pattern.findall(answer.text)}
    return str(found)


async def created(visitor: Visitor) -> tuple[str, str]:
    """Address and secret of a new endpoint."""
    secret = shown_once(await visitor.post(HOOKS, **HOOK), SECRET)
    found = re.search(rf'href="({HOOKS}/whe_\w+)"', (await visitor.get(HOOKS)).text)
    assert found is not None
    return found[1], secret


async def attempt_all(gateway: Gateway, *, error: AttemptError | None, answer: str) -> None:
    """As the dispatcher does it."""
    webhooks, now_ms = gateway.one.app.state.services.webhooks, gateway.clock.now_ms
    made = Attempt(
        at_ms=now_ms, latency_ms=12, status=None if error else 200, error=error,
        reason="it closed the connection" if error else None, answer=answer,
    )  # fmt: skip
    claims = await webhooks.claim(suspects=False, limit=9, now_ms=now_ms)
    assert claims
    webhooks.settle([Settlement(claim=one, attempt=made, now_ms=now_ms, draw=0.5, keeps_lease=False) for one in claims])


async def test_the_secret_of_an_endpoint_is_shown_once_and_rotated_by_another(gateway: Gateway) -> None:
    visitor = await visitor_of(gateway, await gateway.create("submit", "read", tenant="acme"))
    address, secret = await created(visitor)
    Webhook(secret)
    for path in (HOOKS, address):
        assert not SECRET.search((await visitor.get(path)).text)
    other = shown_once(await visitor.post(f"{address}/rotate", overlap_seconds="3600"), SECRET)
    assert other != secret
    assert "2 secrets sign" in text_of(await visitor.get(address))
    refused = await visitor.post(HOOKS, name="x", url="http://user@example.com/")
    assert refused.status_code == 422
    assert re.search(
        r'id="url"[^>]*value="http://user@example.com/"[^>]* aria-invalid="true"', refused.text.replace("\n", "")
    )
    await visitor.post(address, name="other", url="https://example.org/", event_types=["generation.failed"])
    text = text_of(await visitor.get(HOOKS))
    assert "other https://example.org/ generation.failed Enabled" in text
    await visitor.post(address, enabled="0")
    assert "Disabled" in text_of(await visitor.get(address))
    assert (await visitor.post(f"{address}/test")).status_code == 409
    assert "Delete other?" in text_of(await visitor.get(f"{address}/delete"))
    await visitor.post(f"{address}/delete")
    assert "No endpoints yet" in text_of(await visitor.get(HOOKS))


async def test_the_secret_of_webhooks_that_requests_name_is_made_and_shown_once(gateway: Gateway) -> None:
    visitor = await visitor_of(gateway, await gateway.create("submit", "read", tenant="acme"))
    first = shown_once(await visitor.post(f"{HOOKS}/requests/rotate", overlap_seconds="0"), SECRET)
    other = shown_once(await visitor.post(f"{HOOKS}/requests/rotate", overlap_seconds="0"), SECRET)
    assert first != other
    assert not SECRET.search((await visitor.get(HOOKS)).text)


async def test_a_delivery_has_its_request_and_its_answers_and_is_sent_again(gateway: Gateway) -> None:
    visitor = await visitor_of(gateway, await gateway.create("submit", "read", tenant="acme"))
    address, _ = await created(visitor)
    delivery = (await visitor.post(f"{address}/test")).headers["location"]
    assert "Not attempted yet" in text_of(await visitor.get(delivery))
    hostile = "<script>alert(1)</script>"
    await attempt_all(gateway, error=None, answer=hostile)
    answer = await visitor.get(delivery)
    assert hostile not in answer.text
    for words in ("webhook.test", "Succeeded", "1 attempt", "12 ms", hostile, '"type"'):
        assert words in text_of(answer), words
    await visitor.post(f"{delivery}/resend")
    assert "Pending" in text_of(await visitor.get(delivery))
    await attempt_all(gateway, error=AttemptError.CLOSED, answer="")
    assert "it closed the connection" in text_of(await visitor.get(delivery))
    assert "Failing" in text_of(await visitor.get(HOOKS))


async def test_endpoints_of_other_tenants_are_not_found_and_readers_change_none(gateway: Gateway) -> None:
    owner = await visitor_of(gateway, await gateway.create("submit", "read", tenant="acme"))
    address, _ = await created(owner)
    stranger = await visitor_of(gateway, await gateway.create("submit", "read", tenant="other"))
    assert (await stranger.get(address)).status_code == 404
    assert (await stranger.post(address, enabled="0")).status_code == 404
    reader = await visitor_of(gateway, await gateway.create("read", tenant="acme"))
    shown = (await reader.get(address)).text
    assert f'action="{address}' not in shown
    for path in ("", "/rotate", "/test", "/delete"):
        assert (await reader.post(address + path, enabled="0", overlap_seconds="0")).status_code == 403, path
    assert "Enabled" in text_of(await owner.get(address))


async def test_a_key_is_shown_once_works_is_rotated_with_an_overlap_and_revoked(gateway: Gateway) -> None:
    admin = await visitor_of(gateway, gateway.admin)
    answer = await admin.post(
        KEYS, name="ci", tenant="acme", scopes=["submit", "read"], priorities="standard", expires_in_seconds="86400"
    )
    assert answer.status_code == 201
    key = shown_once(answer, KEY)
    assert (await gateway.one.submit(key)).status_code == 202
    listed = await admin.get(KEYS)
    assert not KEY.search(listed.text)
    assert "ci fp_" in text_of(listed)
    assert "acme submit, read Active" in text_of(listed)
    address = f"{KEYS}/{key_id(key)}"
    other = shown_once(await admin.post(f"{address}/rotate", overlap_seconds="3600"), KEY)
    assert [(await gateway.one.submit(each)).status_code for each in (key, other)] == [202, 202]
    assert f"replaced by {key_id(other)}" in text_of(await admin.get(address))
    assert (await admin.post(f"{address}/rotate", overlap_seconds="0")).status_code == 409
    await admin.post(f"{KEYS}/{key_id(other)}/revoke")
    assert [(await gateway.one.submit(each)).status_code for each in (key, other)] == [202, 401]
    gateway.clock.pass_seconds(3601)
    assert (await gateway.one.submit(key)).status_code == 401
    refused = await admin.post(KEYS, name="ci", tenant="acme", priorities="standard")
    assert refused.status_code == 422
    assert "scopes" in text_of(refused).lower()


async def test_a_key_has_a_limit_presets_and_models_and_each_mistake_is_named_beside_its_field(
    gateway: Gateway,
) -> None:
    admin = await visitor_of(gateway, gateway.admin)
    fields = {"name": "ci", "tenant": "acme", "scopes": "submit", "priorities": "standard"}
    wrong = {"submit_limit": "often", "presets": "Draft!", "models": "FLUX.1-dev, a?"}
    refused = await admin.post(KEYS, **fields, **wrong)
    assert refused.status_code == 422
    for name, text in wrong.items():
        assert re.search(
            rf'id="{name}"[^>]* value="{re.escape(text)}"[^>]* aria-describedby="{name}-problem"', refused.text
        )
        assert f'id="{name}-problem"' in refused.text
    limits = {
        "submit_limit": "5/second",
        "presets": "draft, final",
        "models": "FLUX.1-dev black-forest-labs/FLUX.1-dev",
    }
    key = shown_once(await admin.post(KEYS, **fields, **limits), KEY)
    text = text_of(await admin.get(f"{KEYS}/{key_id(key)}"))
    assert "Presets draft, final Models FLUX.1-dev, black-forest-labs/FLUX.1-dev Tasks at most 5/second" in text
    bound = await gateway.one.submit(key)
    assert bound.status_code == 403
    assert "preset: the key or token does not allow a task without preset" in bound.json()["detail"]


async def test_the_key_of_a_session_is_named_and_ends_it(gateway: Gateway) -> None:
    admin = await visitor_of(gateway, gateway.admin)
    assert "this session" in text_of(await admin.get(KEYS))
    address = f"{KEYS}/{key_id(gateway.admin)}"
    assert "It is the key of this session" in text_of(await admin.get(address))
    await admin.post(f"{address}/revoke")
    assert (await admin.get(KEYS)).headers["location"].startswith("/ui/login")


async def test_keys_are_for_the_scope_admin_alone(gateway: Gateway) -> None:
    visitor = await visitor_of(gateway, await gateway.create("submit", "read", "cancel", tenant="acme"))
    assert KEYS not in (await visitor.get(HOOKS)).text
    for path in ("", "/any"):
        assert (await visitor.get(KEYS + path)).status_code == 403
    for path in ("", "/any/rotate", "/any/revoke"):
        answer = await visitor.post(KEYS + path, name="x", tenant="acme", scopes="admin", overlap_seconds="0")
        assert answer.status_code == 403
