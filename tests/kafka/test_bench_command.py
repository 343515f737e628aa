"""`fluxpool bench` against a real gateway: what it says it does to the tasks is what Kafka has then."""

import json
from pathlib import Path

import pytest

from fluxpool_cli.exit_codes import ExitCode
from kit.brokers.kafka import create_topics, read_topic, unique_name
from kit.commands.command import fluxpool
from kit.gateways.gateway_process import gateway_settings, gateway_topics, running_gateway

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(300)]


async def test_every_task_of_a_run_is_small_expires_and_is_canceled(bootstrap_servers: str, tmp_path: Path) -> None:
    control = unique_name("control")
    await create_topics(bootstrap_servers, {control: 1})
    topics = (await gateway_topics(bootstrap_servers)).model_copy(update={"control": control})
    with running_gateway(gateway_settings(bootstrap_servers, tmp_path / "gateway", topics)) as gateway:
        gateway.wait_ready()
        ended = await fluxpool(
            *("bench", "--rps", "40", "--duration", "0.5", "--yes", "--json"),
            folder=tmp_path,
            environment={"FLUXPOOL_URL": gateway.url},
        )
    assert ended.code == ExitCode.OK, ended.complaints
    document = ended.document
    assert (document["requests"], document["sent"], document["accepted"], document["canceled"]) == (20, 20, 20, 21)
    assert (document["refused"], document["unanswered"]) == ({}, {})
    latency = document["latency_ms"]
    assert 0 < latency["p50"] <= latency["p90"] <= latency["p99"] <= latency["max"]

    tasks = [json.loads(record.value or b"") for record in await read_topic(bootstrap_servers, topics.tasks)]
    assert {(task["width"], task["height"], task["steps"]) for task in tasks} == {(256, 256, 1)}
    assert {task["group_id"] for task in tasks} == {document["group"]}
    assert await read_topic(bootstrap_servers, topics.tasks_vip) == []
    commands = {record.key for record in await read_topic(bootstrap_servers, control)}
    assert commands == {task["request_id"].encode() for task in tasks}
    assert len(commands) == 21
    headers = [dict(record.headers) for record in await read_topic(bootstrap_servers, topics.tasks)]
    assert all("fluxpool-deadline" in of_one for of_one in headers)
