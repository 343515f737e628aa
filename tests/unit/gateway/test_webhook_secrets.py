"""Secrets of webhooks at rest: encrypted, encrypted again, and refused with the remedy without their key."""

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import pytest
from cryptography.fernet import Fernet
from standardwebhooks import Webhook

from fluxpool_gateway.settings import EXIT_CONFIGURATION
from fluxpool_gateway.store.database import DatabaseUnusableError
from fluxpool_gateway.webhooks.dispatch.dispatcher import Dispatcher
from fluxpool_gateway.webhooks.dispatch.sending import Sender
from fluxpool_gateway.webhooks.endpoints import Endpoint, find_endpoint
from fluxpool_gateway.webhooks.secret_box import (
    SEALED_PREFIX,
    SealedSecretError,
    SecretBox,
    SecretKeysError,
    open_secret_box,
)
from fluxpool_gateway.webhooks.start import prepare_webhooks
from fluxpool_gateway.webhooks.store import WebhookStore
from kit.gateways.keyed_gateway import KAFKA
from kit.gateways.webhook_world import World, ended, submitted, wall_clock, webhook_world
from kit.http.webhook_receiver import LOOPBACK, Receiver
from kit.waiting import wait_until

OLD, NEW = Fernet.generate_key(), Fernet.generate_key()


def stored(world: World, endpoint: Endpoint) -> str:
    found = world.database.read(lambda connection: find_endpoint(connection, endpoint.tenant, endpoint.endpoint_id))
    assert found is not None
    return found.secrets[0].text


def test_secrets_are_encrypted_at_the_next_start_and_again_with_another_key(tmp_path: Path) -> None:
    with webhook_world(tmp_path, migrated=True) as world:
        endpoint = world.add()
        plain = endpoint.secrets[0].text
        file = tmp_path / "webhooks.db"
        prepare_webhooks(file)
        assert stored(world, endpoint) == plain, "as before without a key"
        prepare_webhooks(file, SecretBox([OLD]))
        sealed = stored(world, endpoint)
        assert (sealed.startswith(SEALED_PREFIX), plain in sealed) == (True, False)
        assert SecretBox([OLD]).open(sealed) == plain
        prepare_webhooks(file, SecretBox([OLD]))
        assert stored(world, endpoint) == sealed, "nothing is written without a need"
        prepare_webhooks(file, SecretBox([NEW, OLD]))
        assert SecretBox([NEW]).open(stored(world, endpoint)) == plain
        with pytest.raises(DatabaseUnusableError, match=r"key_file has not; add it"):
            prepare_webhooks(file, SecretBox([OLD]))
        with pytest.raises(DatabaseUnusableError, match=r"set webhooks\.key_file"):
            prepare_webhooks(file)
        assert SecretBox([NEW]).open(stored(world, endpoint)) == plain, "a refused start changes nothing"


async def test_messages_are_signed_with_the_decrypted_secret_also_of_requests(
    tmp_path: Path, receiver: Receiver
) -> None:
    box = SecretBox([NEW])
    with webhook_world(tmp_path, wall_clock(), migrated=True) as world:
        own = world.add(f"{receiver.url}/own")
        store = WebhookStore(tmp_path / "webhooks.db", box=box)
        store_secret = "whsec_" + "A" * 43 + "="
        await store.rotate_requested("default", store_secret, now_ms=world.clock(), overlap_ms=0)
        await store.use_requested("default", receiver.url, now_ms=world.clock())
        world.store.close()
        world.store = store
        prepare_webhooks(tmp_path / "webhooks.db", box)
        body = f'{{"webhook":{{"url":"{receiver.url}/request"}}}}'
        world.project(submitted("a", body=body), ended("a", at_ms=world.clock()))
        stopping = asyncio.Event()
        sender = Sender(allowed=LOOPBACK, allow_http=True)
        running = asyncio.create_task(Dispatcher(store, world.collector(), sender).run(stopping))
        await wait_until(lambda: len(receiver.messages) == 2, deadline_seconds=60, what="both messages")
        stopping.set()
        await running
    messages = {message.path: message for message in receiver.messages}
    for path, secret in (("/own", own.secrets[0].text), ("/request", store_secret)):
        assert Webhook(secret).verify(messages[path].body, messages[path].headers)["type"] == "generation.succeeded"


@pytest.mark.parametrize("content", ["", "\n \n", "too-short", "é" * 44, "\n".join(["A" * 43 + "="] * 11), "B" * 43])
def test_a_file_without_usable_keys_is_refused_with_the_way_to_make_one(tmp_path: Path, content: str) -> None:
    file = tmp_path / "keys"
    file.write_text(content)
    with pytest.raises(SecretKeysError, match=r"webhooks\.key_file: .*openssl rand -base64 32") as refused:
        open_secret_box(file)
    assert content == "" or content.strip() == "" or content.strip() not in str(refused.value)


def test_a_key_as_the_remedy_makes_it_is_taken_and_no_key_reads_nothing(tmp_path: Path) -> None:
    made = subprocess.run(  # noqa: S602 - the line of the message, in a shell as people run it
        "openssl rand -base64 32 | tr +/ -_", shell=True, check=True, capture_output=True, text=True
    )
    file = tmp_path / "keys"
    file.write_text(f"{made.stdout}{OLD.decode()}\n")
    box = open_secret_box(file)
    assert box.open(box.seal("whsec_x")) == "whsec_x"
    with pytest.raises(SealedSecretError):
        SecretBox().open(box.seal("whsec_x"))


@pytest.mark.parametrize("program", ["fluxpool_gateway", "fluxpool_gateway.dispatcher"])
def test_a_program_without_the_key_does_not_start(tmp_path: Path, program: str) -> None:
    with webhook_world(tmp_path, migrated=True) as world:
        world.add()
    prepare_webhooks(tmp_path / "webhooks.db", SecretBox([NEW]))
    environment = os.environ | {
        "FLUXPOOL_KAFKA_BOOTSTRAP_SERVERS": KAFKA.bootstrap_servers[0],
        "FLUXPOOL_STORAGE_URL": (tmp_path / "images").as_uri(),
        "FLUXPOOL_DATABASE_FILE": str(tmp_path / "gateway.db"),
    }
    ran = subprocess.run(
        [sys.executable, "-m", program], env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert ran.returncode == EXIT_CONFIGURATION, ran.stderr
    assert "set webhooks.key_file" in ran.stderr
