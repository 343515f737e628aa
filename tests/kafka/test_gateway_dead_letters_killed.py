"""Dead letters over HTTP with real processes: a server is killed in the midst of a replay, and the next one goes on."""

import os
from pathlib import Path
from typing import Any

import httpx
import pytest

from fluxpool_contract.messages.resolution import Resolution, is_resolution
from kit.brokers.kafka import produce, read_topic
from kit.brokers.kafka_cluster import KafkaCluster
from kit.gateways.dead_letter_topic import dead_letter
from kit.gateways.gateway_process import GatewayProcess, gateway_settings, gateway_topics, start_gateway
from kit.waiting import wait_until

pytestmark = pytest.mark.kafka

LETTERS = 4
KILLED_AFTER = 2


async def wait_open(gateway: GatewayProcess, count: int) -> None:
    async def is_projected() -> bool:
        answer = await ask(gateway, "GET", "v1/dlq?state=open")
        return answer.status_code == 200 and answer.json()["matching"] == count

    await wait_until(is_projected, deadline_seconds=60, what=f"{count} open dead letters")


async def ask(gateway: GatewayProcess, method: str, path: str, body: Any = None) -> httpx.Response:
    async with httpx.AsyncClient(base_url=gateway.url, timeout=60) as client:
        return await client.request(method, path, json=body)


async def test_a_replay_whose_server_is_killed_is_finished_by_the_next_one(kafka: KafkaCluster, tmp_path: Path) -> None:
    topics = await gateway_topics(kafka.bootstrap_servers)
    settings = gateway_settings(kafka.bootstrap_servers, tmp_path, topics)
    for number in range(LETTERS):
        letter = dead_letter(number, origin_topic=topics.tasks)
        value = f'{{"request_id": "wide-{number}", "prompt": "a fox", "width": 100}}'.encode()
        await produce(kafka.bootstrap_servers, topics.dead_letters, [(None, value)], headers=letter.to_headers(()))
    fault = {**os.environ, "FLUXPOOL_FAULT": f"replay-after-send:kill:{KILLED_AFTER}"}
    killed = start_gateway(settings, environment=fault)
    try:
        killed.wait_listening()
        await wait_open(killed, LETTERS)
        contents = await ask(killed, "GET", "v1/dlq?request_id=wide-0")
        shown = await ask(killed, "GET", f"v1/dlq/{contents.json()['data'][0]['id']}")
        body = {"filter": {}, "patch": {"width": 96}, "rate_per_second": 1000}
        preview = await ask(killed, "POST", "v1/dlq/replay", {**body, "dry_run": True})
        created = await ask(killed, "POST", "v1/dlq/replay", body)
        await wait_until(lambda: killed.server.poll() is not None, deadline_seconds=60, what="the server to be killed")
    finally:
        killed.kill()

    gateway = start_gateway(settings)
    try:
        gateway.wait_listening()
        path = f"v1/dlq/replays/{created.json()['job_id']}"

        async def has_ended() -> bool:
            answer = await ask(gateway, "GET", path)
            return bool(answer.json()["state"] == "ended")

        await wait_until(has_ended, deadline_seconds=90, what="the job to end")
        job = (await ask(gateway, "GET", path)).json()
        await wait_open(gateway, 0)
    finally:
        gateway.stop()
        gateway.kill()

    assert '"width": 100' in shown.json()["value"]
    assert preview.json()["to_send"] == LETTERS
    assert (job["sent"], job["refused"], job["skipped"]) == (LETTERS, 0, 0)
    sent = [
        (record.key, record.value, record.headers) for record in await read_topic(kafka.bootstrap_servers, topics.tasks)
    ]
    assert len(set(sent)) == LETTERS
    assert len(sent) == LETTERS + 1, "the one whose resolution was not written, as the same record"
    records = await read_topic(kafka.bootstrap_servers, topics.dead_letters)
    resolutions = [Resolution.model_validate_json(item.value or b"") for item in records if is_resolution(item.headers)]
    assert {resolution.job_id for resolution in resolutions} == {job["job_id"]}
    assert len(resolutions) == LETTERS
