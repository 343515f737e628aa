"""`fluxpool dlq --url` and `client.dead_letters` before a gateway over a real task store, without Kafka."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from fluxpool_client import AsyncClient, Client, PermissionDeniedError
from kit.commands.command_line import Command, command_line, served
from kit.gateways.dead_letter_topic import letter_at
from kit.gateways.keyed_gateway import Gateway, keyed_gateway, keyed_settings
from kit.waiting import wait_until


@pytest.fixture
async def gateway(tmp_path: Path) -> AsyncIterator[Gateway]:
    async with keyed_gateway(keyed_settings(tmp_path)) as running:
        running.dead_letters.add(
            letter_at(0),
            letter_at(1, stack="at line 1"),
            letter_at(2, b"\xff", error_code="undecodable", request_id=None),
        )
        working = asyncio.create_task(running.one.dead_letters.runner.run())
        yield running
        working.cancel()
        await asyncio.wait({working})


@pytest.fixture
async def url(gateway: Gateway) -> AsyncIterator[str]:
    async with served(gateway.one.app) as address:
        yield address


@pytest.fixture
def dlq(gateway: Gateway, url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    monkeypatch.setenv("FLUXPOOL_API_KEY", gateway.admin)
    fluxpool = command_line(monkeypatch, capsys, key=gateway.admin)

    async def command(*arguments: str, key: str = gateway.admin) -> tuple[int, str, str]:
        return await fluxpool("dlq", *arguments, "--url", url, key=key)

    return command


async def test_the_commands_show_what_the_gateway_has(dlq: Command, url: str) -> None:
    code, out, _ = await dlq("summary", "--json")
    causes = json.loads(out)["causes"]
    assert (code, [(cause["error_code"], cause["open"], cause["example"]) for cause in causes]) == (
        0,
        [("invalid-field", 2, "0/1"), ("undecodable", 1, "0/2")],
    )
    code, out, _ = await dlq("list", "--code", "invalid-field", "--limit", "1", "--json")
    listed = json.loads(out)
    assert (code, listed["topic"], listed["matching"]) == (0, url, 2)
    assert [(item["record"], item["state"], item["request_id"]) for item in listed["dead_letters"]] == [
        ("0/1", "open", "wide-1")
    ]
    code, out, _ = await dlq("show", "wide-1")
    assert code == 0
    assert "at line 1" in out
    assert f"replay it with: fluxpool dlq replay 0/1 --url {url} --yes" in out
    lines = [line.strip() for line in (await dlq("show", "0/2"))[1].splitlines()]
    assert lines[lines.index("value, 1 bytes (hex)") + 1] == "ff"
    assert (await dlq("show", "0/9"))[0] == 1


def names_in(folder: Path) -> set[str]:
    return {found.name for found in folder.iterdir() if "dead" in found.name}


async def test_an_export_through_the_gateway_is_its_own(dlq: Command, gateway: Gateway, tmp_path: Path) -> None:
    file = tmp_path / "dead.jsonl"
    code, out, _ = await dlq("export", str(file), "--code", "undecodable", "--records", "--json")
    assert (code, json.loads(out)["bytes"], json.loads(out)["format"]) == (0, file.stat().st_size, "jsonl")
    path = "/v1/dlq/export?error_code=undecodable&state=open&records=true"
    assert file.read_bytes() == (await gateway.one.ask("GET", path, gateway.admin)).content
    assert json.loads(file.read_text())["record"]["value_base64"] == "/w=="
    assert (await dlq("export", str(tmp_path / "dead.csv")))[0] == 0
    assert len((tmp_path / "dead.csv").read_text().splitlines()) == 4
    before = file.read_bytes()
    assert (await dlq("export", str(file), key=await gateway.create("submit")))[0] == 4
    assert file.read_bytes() == before, "a command that fails leaves the file"
    assert names_in(tmp_path) == {"dead.csv", "dead.jsonl"}


async def test_a_replay_through_the_gateway_is_a_dry_run_until_it_is_confirmed(dlq: Command, gateway: Gateway) -> None:
    patch = ("--patch", json.dumps({"width": 96}), "--rate", "1000")
    code, out, err = await dlq("replay", *patch)
    assert (code, out.strip()) == (0, "2 to flux-generation-tasks would be sent, 1 refused")
    assert "not sent: 0/2 -: " in err
    assert gateway.dead_letters.sent == []
    code, out, _ = await dlq("replay", *patch, "--yes", "--json")
    told = json.loads(out)
    assert (code, [item["record"] for item in told["sent"]]) == (1, ["0/0", "0/1"])
    assert told["sent"][0]["request_id"] == "wide-0"
    assert [item["record"] for item in told["refused"]] == ["0/2"]
    assert told["refused"][0]["problems"]
    assert (await dlq("replay", *patch, "--yes"))[1].strip() == "nothing sent, 1 refused"
    code, out, _ = await dlq("discard", "0/2", "--reason", "a client under test", "--yes")
    assert (code, out.strip()) == (0, "1 dead letter discarded")
    assert gateway.dead_letters.resolutions()[-1].reason == "a client under test"
    assert json.loads((await dlq("list", "--json"))[1])["matching"] == 0


async def test_what_does_not_go_with_a_gateway_is_refused(dlq: Command, gateway: Gateway) -> None:
    for arguments in (("list", "--topic", "other"), ("list", "--bootstrap-servers", "kafka:9092")):
        code, _, err = await dlq(*arguments)
        assert code == 2
        assert "is not used with --url" in err
    assert (await dlq("replay", "--to-topic", "other"))[0] == 2
    reader = await gateway.create("read")
    code, _, err = await dlq("replay", "0/0", "--yes", key=reader)
    assert code == 4
    assert "admin" in err
    assert (await dlq("list", key=reader))[0] == 0


async def test_both_clients_have_the_same_calls(gateway: Gateway, url: str) -> None:
    def blocking() -> list[Any]:
        with Client(url, api_key=gateway.admin) as client:
            calls = client.dead_letters
            return [
                [item.id for item in calls.all(error_code=["invalid-field"])],
                calls.page(limit=1).matching,
                [cause.open for cause in calls.summary(["hour"]).data],
                calls.show("0/0").value,
                len(calls.export("csv").splitlines()),
                b"".join(calls.export_pieces(records=True)) == calls.export(records=True),
                calls.preview(filter={}, patch={"width": 96}).to_send,
            ]

    async with AsyncClient(url, api_key=gateway.admin) as client:
        calls = client.dead_letters
        found = [
            [item.id async for item in calls.all(error_code=["invalid-field"])],
            (await calls.page(limit=1)).matching,
            [cause.open for cause in (await calls.summary(["hour"])).data],
            (await calls.show("0/0")).value,
            len((await calls.export("csv")).splitlines()),
            b"".join([piece async for piece in calls.export_pieces(records=True)]) == await calls.export(records=True),
            (await calls.preview(filter={}, patch={"width": 96})).to_send,
        ]
        assert found == await asyncio.to_thread(blocking)
        assert (*found[:3], *found[4:]) == (["0/0", "0/1"], 3, [3], 4, True, 2)
        job = await calls.replay(ids=["0/0"], patch={"width": 96}, rate_per_second=1000)

        async def has_ended() -> bool:
            return (await calls.job(job.job_id)).state == "ended"

        await wait_until(has_ended, deadline_seconds=60, what="the job to end")
        assert [(item.id, item.outcome) for item in await calls.items(job.job_id)] == [("0/0", "sent")]
        assert (await calls.cancel(job.job_id)).state == "ended"
        discarded = await calls.discard("0/2", reason="a test")
        assert (discarded.state, discarded.resolution and discarded.resolution.reason) == ("discarded", "a test")
    async with AsyncClient(url, api_key=await gateway.create("read")) as client:
        with pytest.raises(PermissionDeniedError):
            await client.dead_letters.discard("0/1", reason="a test")
