"""`fluxpool keys` and FLUXPOOL_API_KEY against a gateway with keys, on a socket."""

import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from fluxpool_cli.exit_codes import ExitCode
from fluxpool_cli.main import run
from fluxpool_gateway.identity.api_key import new_key, parse_key
from kit.commands.command_line import Command, command_line, served
from kit.gateways.keyed_gateway import Gateway, key_id, keyed_gateway, keyed_settings


@pytest.fixture
async def gateway(tmp_path: Path) -> AsyncIterator[Gateway]:
    async with keyed_gateway(keyed_settings(tmp_path)) as running:
        yield running


@pytest.fixture
async def fluxpool(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> AsyncIterator[Command]:
    """Runs the command line with the admin's key, or another one, against the gateway."""
    async with served(gateway.one.app) as url:
        monkeypatch.setenv("FLUXPOOL_URL", url)
        yield command_line(monkeypatch, capsys, key=gateway.admin)


async def test_a_key_is_created_used_rotated_and_revoked(gateway: Gateway, fluxpool: Command) -> None:
    code, out, err = await fluxpool("keys", "create", "CI of acme", "--tenant", "acme", "--expires", "90d")
    key = out.strip()
    assert (code, parse_key(key) is None, key in err) == (0, False, False)
    code, out, _ = await fluxpool("submit", "a fox", key=key)
    assert (code, len(gateway.records.headers), out.split()[1]) == (0, 1, "queued")

    code, out, _ = await fluxpool("keys", "rotate", key_id(key), "--overlap", "1h", "--json")
    assert code == 0
    successor = json.loads(out)["key"]
    assert (await fluxpool("submit", "a fox", key=successor))[0] == 0
    # Of a leaked key the whole text is at hand.
    assert await fluxpool("keys", "revoke", key) == (0, f"{key_id(key)} revoked\n", "")
    code, _, err = await fluxpool("submit", "a fox", key=key)
    assert (code, f"{key_id(key)} was revoked" in err) == (ExitCode.UNAUTHORIZED, True)

    code, out, _ = await fluxpool("keys", "list", "--json")
    listed = {item["id"]: item for item in json.loads(out)["keys"]}
    assert {name: item["state"] for name, item in listed.items()} == {
        key_id(gateway.admin): "active",
        key_id(key): "revoked",
        key_id(successor): "active",
    }
    assert "admin" not in listed[key_id(successor)]["scopes"]
    code, out, _ = await fluxpool("keys", "list")
    assert (code, out.splitlines()[0].split()[:4]) == (0, ["ID", "NAME", "TENANT", "STATE"])
    assert not any(secret in out for secret in (key, successor, gateway.admin))


async def test_the_list_shows_what_a_key_is_bound_to(fluxpool: Command) -> None:
    bound = ("--priority", "vip", "--quality", "exact", "--lora", "wash", "--lora", "ink")
    assert (await fluxpool("keys", "create", "shop", *bound))[0] == 0
    assert (await fluxpool("keys", "create", "any"))[0] == 0
    code, out, _ = await fluxpool("keys", "list")
    assert code == 0
    rows = [line for line in out.splitlines() if " shop " in line or " any " in line]
    assert [" vip quality=exact lora=ink,wash " in row for row in rows] == [" shop " in row for row in rows]
    (unbound,) = (row for row in rows if " any " in row)
    assert " standard " in unbound
    assert "=" not in unbound


async def test_without_a_key_or_its_scope_a_command_ends_with_4(gateway: Gateway, fluxpool: Command) -> None:
    code, _, err = await fluxpool("submit", "a fox", key=None)
    assert (code, "FLUXPOOL_API_KEY" in err) == (ExitCode.UNAUTHORIZED, True)
    code, _, err = await fluxpool("keys", "list", key=await gateway.create("submit"))
    assert (code, "scope admin" in err) == (ExitCode.UNAUTHORIZED, True)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("create", "a", "--scope", "everything"), "--scope"),
        (("create", "a", "--expires", "soon"), "--expires"),
        (("create", "a", "--tenant", "../up"), "tenant"),
        (("create", "a\tb"), "name"),
        (("rotate", "x"), "ID"),
        (("revoke", "../keys"), "ID"),
        (("rotate", "000000000000", "--overlap", "31d"), "overlap_seconds"),
        (("revoke", "000000000000"), "there is no key"),
    ],
)
async def test_a_wrong_argument_ends_with_2_and_its_name(
    fluxpool: Command, arguments: tuple[str, ...], named: str
) -> None:
    code, out, err = await fluxpool("keys", *arguments)
    assert (code, out, named in err) == (ExitCode.USAGE, "", True), err


async def test_a_key_is_generated_without_a_gateway(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["keys", "generate"]) == 0
    made = capsys.readouterr().out.strip()
    assert parse_key(made) is not None
    assert made != new_key()
