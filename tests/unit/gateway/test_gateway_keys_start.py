"""The start of a gateway with API keys: its first key, its settings, and the form of keys."""

import os
import re
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path

import httpx
import pytest

from fluxpool_contract.kafka.connection import KafkaConnection
from fluxpool_gateway.http.app import build_application
from fluxpool_gateway.identity.api_key import new_key, parse_key
from fluxpool_gateway.identity.bootstrap import prepare_keys
from fluxpool_gateway.identity.key_store import KeysError, KeyStore
from fluxpool_gateway.settings import GatewaySettings
from kit.gateways.keyed_gateway import KAFKA, NOW_MS, Gateway, key_id, keyed_gateway, keyed_settings, prepare
from kit.waiting import PATIENCE

ALL_ADDRESSES = "0.0.0.0"  # noqa: S104 - that is what is tested


@pytest.fixture
def settings(tmp_path: Path) -> GatewaySettings:
    return keyed_settings(tmp_path)


@pytest.fixture
async def gateway(tmp_path: Path) -> AsyncIterator[Gateway]:
    async with keyed_gateway(keyed_settings(tmp_path)) as running:
        yield running


# Start


async def test_the_bootstrap_key_is_added_once_and_a_revoked_one_stays_revoked(gateway: Gateway) -> None:
    other = await gateway.create("admin")
    prepare(gateway.settings)
    listed = (await gateway.one.ask("GET", "/v1/keys", gateway.admin)).json()["keys"]
    assert sorted(item["name"] for item in listed) == ["bootstrap", "test"]
    await gateway.one.ask("DELETE", f"/v1/keys/{key_id(gateway.admin)}", other)
    prepare(gateway.settings)
    assert (await gateway.one.ask("GET", "/v1/keys", gateway.admin)).status_code == 401


def test_without_any_accepted_key_the_gateway_does_not_start(settings: GatewaySettings) -> None:
    file = settings.key_store_file()
    for _ in range(2):
        with pytest.raises(KeysError, match=r"FLUXPOOL_BOOTSTRAP_KEY_FILE.*none-for-anyone-who-can-connect"):
            prepare_keys(file, bootstrap_key_file=None, now_ms=NOW_MS)
    prepare(settings)
    # Another start needs the file no longer.
    prepare_keys(file, bootstrap_key_file=None, now_ms=NOW_MS)
    assert file.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("text", ["", "password", "fp_abc", "\udcff"])
def test_a_bootstrap_file_without_a_key_is_refused(settings: GatewaySettings, text: str) -> None:
    assert settings.bootstrap_key_file is not None
    settings.bootstrap_key_file.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(KeysError, match="does not hold one API key"):
        prepare(settings)
    settings.bootstrap_key_file.unlink()
    with pytest.raises(KeysError, match="cannot be read"):
        prepare(settings)


def test_keys_of_a_newer_release_or_a_damaged_file_are_refused_and_not_replaced(settings: GatewaySettings) -> None:
    prepare(settings)
    file = settings.key_store_file()
    with closing(sqlite3.connect(file)) as connection, connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(KeysError, match="run that release"):
        prepare(settings)
    file.write_bytes(b"no database at all, but long enough to look like one" * 100)
    with pytest.raises(KeysError, match="restore it"):
        prepare(settings)
    assert file.read_bytes().startswith(b"no database")


@pytest.mark.parametrize(
    ("host", "given", "needs"),
    [
        ("127.0.0.1", {}, False),
        ("127.8.8.8", {}, False),
        ("::1", {}, False),
        ("localhost", {}, False),
        (ALL_ADDRESSES, {}, True),
        ("::", {}, True),
        ("10.0.0.7", {}, True),
        ("gateway.example", {}, True),
        ("127.0.0.1", {"authentication": "keys"}, True),
        ("127.0.0.1", {"bootstrap_key_file": "key"}, True),
        (ALL_ADDRESSES, {"authentication": "none-for-anyone-who-can-connect"}, False),
        ("127.0.0.1", {"authentication": "none-on-loopback"}, False),
        (ALL_ADDRESSES, {"authentication": "none-on-loopback"}, None),
        ("127.0.0.1", {"authentication": "none-on-loopback", "bootstrap_key_file": "key"}, None),
    ],
)
def test_only_on_loopback_or_in_words_there_are_no_keys(
    tmp_path: Path, host: str, given: dict[str, str], needs: bool | None
) -> None:
    storage = {"url": (tmp_path / "images").as_uri()}
    values = {"kafka": KAFKA, "storage": storage, "database_file": tmp_path / "db", "listen_host": host, **given}
    if needs is None:
        with pytest.raises(ValueError, match="authentication"):
            GatewaySettings.model_validate(values)
    else:
        assert GatewaySettings.model_validate(values).needs_keys() is needs


# The form


def test_keys_differ_and_name_themselves() -> None:
    made = {new_key() for _ in range(200)}
    assert len({key_id(key) for key in made}) == 200
    for key in made:
        assert re.fullmatch(r"fp_[0-9A-Za-z]{12}_[0-9A-Za-z]{49}", key)
        presented = parse_key(key)
        assert presented is not None
        assert presented.key_id == key_id(key)
        assert key.split("_")[2] not in repr(presented)


def test_one_changed_character_makes_it_no_key() -> None:
    key = new_key()
    for place in range(3, len(key)):
        other = "a" if key[place] != "a" else "b"
        assert parse_key(key[:place] + other + key[place + 1 :]) is None


# The program


@pytest.mark.parametrize(
    ("environment", "named"),
    [
        ({"FLUXPOOL_LISTEN_HOST": ALL_ADDRESSES}, "FLUXPOOL_BOOTSTRAP_KEY_FILE"),
        ({"FLUXPOOL_AUTHENTICATION": "keys"}, "FLUXPOOL_BOOTSTRAP_KEY_FILE"),
        ({"FLUXPOOL_AUTHENTICATION": "none"}, "FLUXPOOL_AUTHENTICATION"),
        ({"FLUXPOOL_BOOTSTRAP_KEY_FILE": "/no/such/file"}, "bootstrap_key_file: /no/such/file cannot be read"),
    ],
)
def test_the_server_without_keys_ends_with_2_and_the_remedy(
    tmp_path: Path, environment: dict[str, str], named: str
) -> None:
    settings = GatewaySettings.model_validate(
        {"kafka": KAFKA, "storage": {"url": (tmp_path / "images").as_uri()}, "database_file": tmp_path / "tasks.sqlite"}
    )
    ended = subprocess.run(
        [sys.executable, "-m", "fluxpool_gateway"],
        env={**os.environ, **settings.to_environment(), "FLUXPOOL_LISTEN_PORT": "0", **environment},
        capture_output=True,
        text=True,
        timeout=120 * PATIENCE,
        check=False,
    )
    assert (ended.returncode, named in ended.stderr) == (2, True), ended.stderr
    assert "Traceback" not in ended.stderr


async def test_the_application_as_it_runs_takes_keys_and_saves_their_use_when_it_stops(tmp_path: Path) -> None:
    # Nothing listens there: keys do not depend on Kafka.
    kafka = KafkaConnection(bootstrap_servers=("127.0.0.1:1",))
    settings = keyed_settings(tmp_path).model_copy(update={"kafka": kafka})
    prepare(settings)
    assert settings.bootstrap_key_file is not None
    key = settings.bootstrap_key_file.read_text().strip()
    app = build_application(settings, on_failure=lambda: None)
    transport = httpx.ASGITransport(app=app)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://gateway") as http,
    ):
        refused = await http.post("/v1/generations", json={"prompt": "a fox"})
        listed = await http.get("/v1/keys", headers={"authorization": f"Bearer {key}"})
    assert (refused.status_code, listed.status_code) == (401, 200)
    assert listed.json()["keys"][0]["last_used_at"] is None
    store = KeyStore(settings.key_store_file())
    record = await store.find(key_id(key))
    store.close()
    assert record is not None
    assert record.last_used_at_ms is not None
