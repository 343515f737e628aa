"""`fluxpool webhooks` and the client's calls against a gateway, a dispatcher and a receiver, on sockets."""

import asyncio
import json
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import httpx
import pytest

from fluxpool_cli.exit_codes import ExitCode
from fluxpool_client import AsyncClient, ConflictError, NotFoundError
from kit.commands.command_line import Command, command_line, served
from kit.gateways.dispatching_gateway import dispatching_gateway
from kit.gateways.keyed_gateway import Gateway
from kit.http.webhook_receiver import Message, Receiver, answering, running_receiver
from kit.waiting import wait_until


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    async with running_receiver() as running:
        yield running


@pytest.fixture
async def gateway(tmp_path: Path) -> AsyncIterator[Gateway]:
    async with dispatching_gateway(tmp_path) as running:
        yield running


@pytest.fixture
async def fluxpool(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> AsyncIterator[Command]:
    """Runs the command line against the gateway."""
    async with served(gateway.one.app) as url:
        monkeypatch.setenv("FLUXPOOL_URL", url)
        monkeypatch.setenv("FLUXPOOL_API_KEY", gateway.admin)
        yield partial(command_line(monkeypatch, capsys, key=gateway.admin), "webhooks")


async def test_an_endpoint_is_created_tested_rotated_and_deleted(fluxpool: Command, receiver: Receiver) -> None:
    code, out, err = await fluxpool("create", "shop", f"{receiver.url}/hook", "--event", "group.completed")
    assert (code, out.startswith("whsec_"), out.strip() in err) == (0, True, False)
    code, out, _ = await fluxpool("list", "-o", "json")
    (endpoint,) = json.loads(out)["webhooks"]
    assert (endpoint["name"], endpoint["event_types"]) == ("shop", ["group.completed"])
    code, out, _ = await fluxpool("list")
    assert (code, out.splitlines()[0].split()[:3]) == (0, ["ID", "NAME", "URL"])
    assert endpoint["id"] in out

    code, out, err = await fluxpool("test", endpoint["id"])
    assert (code, "delivered (status 200" in out) == (0, True), err
    receiver.responses["/hook"] = answering(302, location="https://example.com/")
    code, out, err = await fluxpool("test", endpoint["id"])
    assert (code, "redirect: it answered 302" in out) == (ExitCode.FAILED, True), err

    code, out, _ = await fluxpool("deliveries", endpoint["id"], "--json")
    failed, succeeded = json.loads(out)["deliveries"]
    assert (failed["state"], succeeded["state"]) == ("failed", "succeeded")
    code, out, _ = await fluxpool("deliveries", endpoint["id"])
    assert (code, len(out.splitlines())) == (0, 3)
    receiver.responses.clear()
    code, out, _ = await fluxpool("redeliver", failed["id"])
    assert (code, "delivered" in out) == (0, True)
    assert len({message.event_id for message in receiver.messages}) == 2

    code, out, _ = await fluxpool("rotate", endpoint["id"], "--overlap", "1h", "--json")
    assert (code, json.loads(out)["secrets"]) == (0, 2)
    assert (await fluxpool("delete", endpoint["id"]))[:2] == (0, f"{endpoint['id']} deleted\n")
    code, _, err = await fluxpool("test", endpoint["id"])
    assert (code, "there is no endpoint" in err) == (ExitCode.USAGE, True)


async def test_a_task_is_submitted_with_a_webhook_that_a_secret_of_its_own_signs(
    fluxpool: Command,
    receiver: Receiver,
    gateway: Gateway,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    code, out, err = await fluxpool("rotate", "requests")
    assert (code, out.startswith("whsec_"), out.strip() in err) == (0, True, False)
    submit = command_line(monkeypatch, capsys, key=gateway.admin)
    assert (await submit("submit", "a fox", "--webhook", f"{receiver.url}/x"))[0] == 0
    assert gateway.records.values[0]["webhook"] == {"url": f"{receiver.url}/x"}
    code, _, err = await submit("submit", "a fox", "--webhook", "https://10.0.0.1/")
    assert (code, "webhook" in err) == (ExitCode.USAGE, True), err


async def test_an_argument_that_is_no_id_is_named(fluxpool: Command) -> None:
    code, _, err = await fluxpool("delete", "../keys")
    assert (code, "ID" in err) == (ExitCode.USAGE, True)


async def test_the_asyncio_client_has_the_same_calls(gateway: Gateway, receiver: Receiver) -> None:
    http = httpx.AsyncClient(transport=httpx.ASGITransport(app=gateway.one.app))
    async with http, AsyncClient("http://gateway", api_key=gateway.admin, http=http) as client:
        hooks = client.webhooks
        made = await hooks.create("shop", f"{receiver.url}/hook", event_types=["generation.failed"])
        assert made.secret.startswith("whsec_")
        assert made.secret not in repr(made)
        assert await hooks.list() == (await hooks.get(made.id),)
        assert (await hooks.change(made.id, name="page")).name == "page"
        sent = await hooks.test(made.id)
        await wait_until(lambda: receiver.messages, deadline_seconds=30, what="the test")

        async def is_done() -> bool:
            return (await hooks.delivery(sent.id)).state == "succeeded"

        await wait_until(is_done, deadline_seconds=30, what="the note of the test")
        page = await hooks.deliveries(made.id, limit=1)
        assert [delivery.id for delivery in page.data] == [sent.id]
        assert (await hooks.delivery(sent.id)).log[0].response == "thanks"
        assert (await hooks.rotate_secret(made.id, overlap_seconds=0)).secret != made.secret
        await hooks.change(made.id, enabled=False)
        with pytest.raises(ConflictError):
            await hooks.redeliver(sent.id)
        await hooks.delete(made.id)
        with pytest.raises(NotFoundError):
            await hooks.get(made.id)
        with pytest.raises(ValueError, match="endpoint_id"):
            await hooks.get("../keys")


async def test_a_cancel_lands_while_an_endpoint_hangs(gateway: Gateway, receiver: Receiver) -> None:
    gate = asyncio.Event()

    async def held(message: Message, writer: asyncio.StreamWriter) -> None:
        await gate.wait()
        await answering(200)(message, writer)

    receiver.responses["/hook"] = held
    body = {"name": "stuck", "url": f"{receiver.url}/hook"}
    made = (await gateway.one.ask("POST", "/v1/webhooks", gateway.admin, json=body)).json()
    await gateway.one.ask("POST", f"/v1/webhooks/{made['id']}/test", gateway.admin)
    await wait_until(lambda: receiver.messages, deadline_seconds=30, what="the endpoint to hang")
    accepted = (await gateway.one.submit(gateway.admin)).json()
    canceled = await gateway.one.ask("POST", f"/v1/generations/{accepted['request_id']}/cancel", gateway.admin)
    assert canceled.status_code == 202, canceled.text
    assert [key for key, _, _ in gateway.records.commands] == [accepted["request_id"]]
    # The owner can be rid of it meanwhile.
    assert (await gateway.one.ask("DELETE", f"/v1/webhooks/{made['id']}", gateway.admin)).status_code == 204
    assert receiver.open_connections == 1, "it still hangs"
    gate.set()
