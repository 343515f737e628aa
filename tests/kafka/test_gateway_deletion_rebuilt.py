"""A task that is deleted through a real gateway, from its store, from a rebuild of it, and from the object store."""

import sqlite3
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest

from fluxpool_contract.messages.result import GenerationResult, ResultStatus
from fluxpool_gateway.settings import GatewaySettings
from fluxpool_transport.storage.object_store import open_object_store
from fluxpool_transport.storage.task_objects import claim_task, store_image
from kit.brokers.kafka import produce
from kit.brokers.kafka_cluster import KafkaCluster
from kit.gateways.gateway_process import gateway_settings, gateway_topics, running_gateway, told
from kit.waiting import wait_until

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(300)]

PROMPT = "the secret fox"


def rows(settings: GatewaySettings) -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect(settings.task_store_file())) as connection:
        # The last column is the number of the change, which depends on the batches.
        return [row[:-1] for row in connection.execute("SELECT * FROM task ORDER BY request_id")]


def lose_store(settings: GatewaySettings) -> None:
    """Delete its file and what SQLite and the gateway keep beside it."""
    for file in settings.task_store_file().parent.glob(f"{settings.task_store_file().name}*"):
        file.unlink()


async def has_status(client: httpx.AsyncClient, request_id: str, status: int | str) -> None:
    """Return once the state is answered with this code, or says this."""

    async def reached() -> bool:
        answer = await client.get(f"v1/generations/{request_id}")
        return status in {answer.status_code, answer.json().get("status")}

    await wait_until(reached, deadline_seconds=60, what=f"{request_id} {status}")


async def all_tasks_projected(client: httpx.AsyncClient) -> None:
    """Return once the store has every task: a result is projected apart from its task, maybe before it."""
    assert (await told(lambda: client.get("v1/generations/none"))).status_code == 404


async def test_a_deleted_task_stays_deleted_in_a_rebuild_of_the_store(kafka: KafkaCluster, tmp_path: Path) -> None:
    topics = await gateway_topics(kafka.bootstrap_servers)
    settings = gateway_settings(kafka.bootstrap_servers, tmp_path, topics)
    objects = open_object_store(settings.storage)
    with running_gateway(settings) as gateway:
        async with httpx.AsyncClient(base_url=gateway.url, timeout=60) as client:
            ids = []
            for _ in range(2):
                submitted = await client.post("v1/generations", json={"prompt": PROMPT})
                request_id = submitted.json()["request_id"]
                now = datetime.now(UTC)
                claimed = await claim_task(
                    objects, tenant="default", request_id=request_id, epoch=0, digest="d", first_seen=now
                )
                await store_image(
                    objects, claimed.claim, index=0, extension="png", payload=b"PNG", content_type="image/png"
                )
                ended = GenerationResult(request_id=request_id, image_url=None, status=ResultStatus.SUCCESS)
                await produce(kafka.bootstrap_servers, topics.results, [(request_id.encode(), ended.to_json())])
                await has_status(client, request_id, "succeeded")
                ids.append(request_id)
            deleted, kept = ids
            answer = await client.delete(f"v1/generations/{deleted}")
            assert answer.status_code == 204, answer.text
            assert (await client.get(f"v1/generations/{deleted}")).status_code == 410
            assert (await client.get(f"v1/generations/{kept}")).status_code == 200
            images = [file.parent.name for file in (tmp_path / "images").rglob("*.png")]
            assert images == [kept]
            await all_tasks_projected(client)
    before = rows(settings)
    assert len(before) == 2
    assert sum(PROMPT in str(row) for row in before) == 1

    lose_store(settings)
    with running_gateway(settings) as gateway:
        async with httpx.AsyncClient(base_url=gateway.url, timeout=60) as client:
            await has_status(client, kept, "succeeded")
            await has_status(client, deleted, 410)
            assert (await client.delete(f"v1/generations/{deleted}")).status_code == 204
            await all_tasks_projected(client)

    assert rows(settings) == before
