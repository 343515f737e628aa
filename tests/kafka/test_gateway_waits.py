"""Requests that wait for a task, groups and retries, on a real gateway and broker."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from fluxpool_contract.kafka.topics import TopicNames
from fluxpool_contract.messages.result import GenerationResult, ResultStatus, TaskError
from kit.brokers.kafka import produce, read_topic
from kit.brokers.kafka_cluster import KafkaCluster
from kit.gateways.gateway_process import GatewayProcess, gateway_settings, gateway_topics, running_gateway, told
from kit.waiting import wait_until

pytestmark = pytest.mark.kafka

WAIT_SECONDS = 60


@pytest.fixture
async def topics(kafka: KafkaCluster) -> TopicNames:
    return await gateway_topics(kafka.bootstrap_servers)


@pytest.fixture
async def gateway(kafka: KafkaCluster, topics: TopicNames, tmp_path: Path) -> AsyncIterator[GatewayProcess]:
    with running_gateway(gateway_settings(kafka.bootstrap_servers, tmp_path, topics)) as running:
        yield running


@pytest.fixture
async def client(gateway: GatewayProcess) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=gateway.url, timeout=2 * WAIT_SECONDS) as opened:

        async def ready() -> bool:
            return (await opened.get("readyz")).status_code == 200

        await wait_until(ready, deadline_seconds=30, what="readiness")
        yield opened


def waiting_for(client: httpx.AsyncClient, address: str, **extensions: Any) -> asyncio.Task[httpx.Response]:
    headers = {"prefer": f"wait={WAIT_SECONDS}"}
    return asyncio.ensure_future(client.get(address, headers=headers, extensions=extensions))


async def test_a_wait_ends_with_the_result_and_its_group_has_ended(
    client: httpx.AsyncClient, kafka: KafkaCluster, topics: TopicNames
) -> None:
    submitted = [await client.post("v1/generations", json={"prompt": "a", "group_id": "g-1"}) for _ in range(3)]
    group = (await told(lambda: client.get("v1/groups/g-1"))).json()
    assert (group["total"], group["counts"]["queued"], group["ended"]) == (3, 3, False)
    waiting = [waiting_for(client, answer.headers["location"]) for answer in submitted]
    ids = [answer.json()["request_id"] for answer in submitted]
    results = [GenerationResult(request_id=name, image_url=None, status=ResultStatus.SUCCESS) for name in ids]
    await produce(
        kafka.bootstrap_servers,
        topics.results,
        [(name.encode(), result.to_json()) for name, result in zip(ids, results, strict=True)],
    )
    ended = await asyncio.gather(*waiting)
    assert {answer.json()["status"] for answer in ended} == {"succeeded"}
    # The barrier of groups is about tasks: a result is counted as soon as a state shows it.
    group = (await told(lambda: client.get("v1/groups/g-1"))).json()
    assert (group["counts"]["succeeded"], group["ended"]) == (3, True)
    listed = (await client.get("v1/generations", params={"group_id": "g-1", "order": "asc"})).json()
    assert {entry["request_id"] for entry in listed["data"]} == set(ids)


async def test_retries_of_one_end_that_come_at_once_are_one_record(
    client: httpx.AsyncClient, kafka: KafkaCluster, topics: TopicNames
) -> None:
    submitted = await client.post("v1/generations", json={"prompt": "a fox", "steps": 4})
    request_id = submitted.json()["request_id"]
    error = TaskError(code="out-of-memory", error_class="transient", message="too large", retryable=False)
    result = GenerationResult(request_id=request_id, image_url=None, status=ResultStatus.FAILED, error=error)
    await produce(kafka.bootstrap_servers, topics.results, [(request_id.encode(), result.to_json())])
    assert (await waiting_for(client, submitted.headers["location"])).json()["status"] == "failed"
    retries = [await client.post(f"v1/generations/{request_id}/retry")]
    retries += await asyncio.gather(*(client.post(f"v1/generations/{request_id}/retry") for _ in range(20)))
    assert {answer.status_code for answer in retries} == {202}
    (address,) = {answer.headers["location"] for answer in retries}
    state = (await told(lambda: client.get(address))).json()
    assert (state["status"], state["request_id"]) == ("queued", retries[0].json()["request_id"])
    values = [json.loads(record.value or b"") for record in await read_topic(kafka.bootstrap_servers, topics.tasks)]
    (again,) = (value for value in values if value["request_id"] != request_id)
    assert again == {"request_id": state["request_id"], "parent_id": request_id, "prompt": "a fox", "steps": 4}


async def test_sigterm_answers_those_who_wait(gateway: GatewayProcess, client: httpx.AsyncClient) -> None:
    submitted = await client.post("v1/generations", json={"prompt": "a"})
    started = time.monotonic()
    sent = asyncio.Event()

    async def trace(event: str, _info: object) -> None:
        if event == "http11.send_request_body.complete":
            sent.set()

    waiting = waiting_for(client, submitted.headers["location"], trace=trace)
    await sent.wait()
    # The one server process has read what came before a request that it answers.
    assert (await client.get("healthz")).status_code == 200
    assert not waiting.done()
    stopping = asyncio.ensure_future(asyncio.to_thread(gateway.stop))
    assert (await waiting).json()["status"] == "queued"
    assert time.monotonic() - started < WAIT_SECONDS, "it waited to its end"
    assert await stopping == (0, 0)
