"""Tenants at a real worker: what a gateway proves has its folder, what another Kafka client claims has not."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio

from fluxpool_contract.header_names import TENANT, TENANT_PROOF
from fluxpool_contract.tenants import prove_tenant
from fluxpool_gateway.identity import new_key
from fluxpool_transport.tenant_secret import LOOK_SECONDS
from kit.brokers.kafka import produce
from kit.gateways.gateway_process import GatewayProcess, gateway_settings, running_gateway, told
from kit.waiting import wait_until
from kit.workers.worker import UNHURRIED, WorkerBench, task_body, worker_bench

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(300), pytest.mark.asyncio(loop_scope="module")]

OLD, NEW = "old" * 16, "new" * 16
PICTURE = "_inputs/acme/cat.png"


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """A gateway and a worker that share a file of keys, and a caller of the tenant acme."""

    bench: WorkerBench
    gateway: GatewayProcess
    admin: httpx.AsyncClient
    acme: httpx.AsyncClient
    keys: Path

    def write_keys(self, *keys: str) -> None:
        fresh = self.keys.with_name("fresh")
        fresh.write_text("\n".join(keys))
        fresh.replace(self.keys)

    async def ended(self, request_id: str) -> dict[str, Any]:
        """The task of acme once it has ended."""
        ended: dict[str, Any] = {}

        async def has_ended() -> bool:
            answer = await told(lambda: self.acme.get(f"v1/generations/{request_id}", headers={"prefer": "wait=10"}))
            ended.update(answer.raise_for_status().json())
            return ended["status"] not in {"queued", "running"}

        await wait_until(has_ended, deadline_seconds=120, what=f"the end of {request_id}")
        return ended

    async def submit(self, **fields: Any) -> dict[str, Any]:
        body = {"prompt": "a fox", "width": 64, "height": 64, "steps": 2, **fields}
        accepted = (await self.acme.post("v1/generations", json=body)).raise_for_status().json()
        return await self.ended(accepted["request_id"])

    async def forge(self, request_id: str, *headers: tuple[str, bytes], **fields: Any) -> dict[str, Any]:
        """The result of a task that another Kafka client writes."""
        value = task_body(request_id, **fields)
        topic = self.bench.topics.tasks
        await produce(self.bench.bootstrap_servers, topic, [(None, value)], headers=[(TENANT, b"acme"), *headers])
        return (await self.bench.wait_answers(request_id))[request_id]

    def files_of(self, request_id: str) -> set[str]:
        """The first folders in which there is anything of the task."""
        found = [path.relative_to(self.bench.images) for path in self.bench.images.rglob(f"*{request_id}*")]
        return {"/".join(path.parts[: 2 if path.parts[0].startswith("_") else 1]) for path in found}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world(bootstrap_servers: str, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    folder = tmp_path_factory.mktemp("tenants")
    keys, key_file = folder / "keys", folder / "key"
    keys.write_text(OLD)
    first_key = new_key()
    key_file.write_text(first_key)
    async with worker_bench(bootstrap_servers, folder, model="none", stand_in=True) as bench:
        worker = bench.start(**UNHURRIED, tenant_secret_file=keys)
        settings = gateway_settings(
            bootstrap_servers, folder, bench.topics, bootstrap_key_file=key_file, tenant_secret_file=keys
        )
        with running_gateway(settings.model_copy(update={"storage": worker_storage(bench)})) as gateway:
            gateway.wait_ready()
            options: dict[str, Any] = {"base_url": gateway.url, "timeout": 60, "trust_env": False}
            bearer = {"authorization": f"Bearer {first_key}"}
            async with httpx.AsyncClient(**options, headers=bearer) as admin:
                body = {"name": "acme", "tenant": "acme", "scopes": ["submit", "read", "cancel"]}
                key = (await admin.post("v1/keys", json=body)).raise_for_status().json()["key"]
                async with httpx.AsyncClient(**options, headers={"authorization": f"Bearer {key}"}) as acme:
                    await worker.wait_ready()
                    picture = bench.images / PICTURE
                    picture.parent.mkdir(parents=True)
                    picture.write_bytes(b"a picture of acme")
                    yield World(bench=bench, gateway=gateway, admin=admin, acme=acme, keys=keys)


def worker_storage(bench: WorkerBench) -> Any:
    return bench.settings("storage").storage


async def test_a_task_of_the_gateway_has_the_folder_and_the_pictures_of_its_tenant(world: World) -> None:
    ended = await world.submit(image=PICTURE)
    assert ended["status"] == "succeeded", ended
    assert world.files_of(ended["request_id"]) == {"acme", "_claims/acme"}
    image = await world.acme.get(f"v1/generations/{ended['request_id']}/images/0")
    assert image.status_code == 200


async def test_a_claim_writes_into_no_folder_and_reads_no_picture_of_the_tenant(world: World) -> None:
    assert (await world.forge("claim-1"))["status"] == "success"
    assert world.files_of("claim-1") == {"default", "_claims/default"}
    refused = await world.forge("claim-2", image=PICTURE)
    assert (refused["status"], refused["error"]["field"]) == ("failed", "image")
    assert world.files_of("claim-2") <= {"default", "_claims/default"}


async def test_a_forged_proof_ends_without_any_object(world: World) -> None:
    # A reader of the topic knows proofs of other tasks.
    stolen = prove_tenant(OLD.encode(), tenant="acme", request_id="another").encode()
    result = await world.forge("forged", (TENANT_PROOF, stolen), image=PICTURE)
    assert (result["status"], result["error"]["code"]) == ("failed", "tenant-unproven")
    assert world.files_of("forged") == set()


async def test_a_dead_letter_that_is_replayed_under_another_id_stays_its_tenants(world: World) -> None:
    failed = await world.submit(image="_inputs/acme/none.png")
    request_id = failed["request_id"]
    assert failed["status"] == "failed"

    async def letters() -> list[str]:
        page = (await world.admin.get("v1/dlq", params={"request_id": request_id})).raise_for_status().json()
        return [letter["id"] for letter in page["data"]]

    ids = await wait_until(letters, deadline_seconds=60, what="the dead letter")
    body = {"ids": ids, "patch": {"request_id": "again", "image": PICTURE}}
    created = (await world.admin.post("v1/dlq/replay", json=body)).raise_for_status().json()

    async def is_there() -> bool:
        return (await world.acme.get("v1/generations/again")).is_success

    await wait_until(is_there, deadline_seconds=60, what=f"the replayed task as one of acme ({created})")
    assert (await world.ended("again"))["status"] == "succeeded"
    assert world.files_of("again") == {"acme", "_claims/acme"}


async def test_a_rotation_with_overlap_loses_no_task(world: World) -> None:
    endings = []
    for keys in ([OLD, NEW], [NEW, OLD], [NEW]):
        world.write_keys(*keys)
        # In flight while the file is replaced, by both at different moments.
        endings += await asyncio.gather(*(world.submit() for _ in range(3)))
        # The overlap: the gateway may sign with its former key for so long.
        await asyncio.sleep(LOOK_SECONDS)
    assert [ended["status"] for ended in endings] == ["succeeded"] * 9
    assert {folder for ended in endings for folder in world.files_of(ended["request_id"])} == {"acme", "_claims/acme"}
