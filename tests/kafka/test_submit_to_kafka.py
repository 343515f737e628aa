"""`fluxpool submit --bootstrap-servers` as a process: a task in its topic, without a gateway."""

import asyncio
import socket
from collections.abc import Mapping
from pathlib import Path

import pytest
from aiokafka import AIOKafkaConsumer

from fluxpool_contract.kafka.connection import KafkaConnection
from fluxpool_contract.messages.decoding import decode_task
from fluxpool_contract.messages.derived import idempotent_request_id
from fluxpool_transport.kafka.clients import aiokafka_options
from kit.brokers.kafka import create_topics, produce, read_topic, unique_name
from kit.commands.command import fluxpool
from kit.waiting import wait_until

pytestmark = pytest.mark.kafka

PARTITIONS = 4


async def _environment(bootstrap_servers: str) -> dict[str, str]:
    """Topics and a group that no other test uses."""
    tasks, vip = unique_name("tasks"), unique_name("vip")
    await create_topics(bootstrap_servers, {tasks: PARTITIONS, vip: 1})
    return {
        "FLUXPOOL_TOPICS_TASKS": tasks,
        "FLUXPOOL_TOPICS_TASKS_VIP": vip,
        "FLUXPOOL_CONSUMER_GROUP": unique_name("group"),
    }


async def test_a_task_is_the_record_that_a_gateway_would_write(bootstrap_servers: str, tmp_path: Path) -> None:
    environment = await _environment(bootstrap_servers)
    arguments = ("submit", "a fox", "--steps", "4", "--size", "512x256", "--idempotency-key", "k", "--json")
    first, ended = [
        await fluxpool(*arguments, "--bootstrap-servers", bootstrap_servers, folder=tmp_path, environment=environment)
        for _ in range(2)
    ]
    assert (first.code, ended.code) == (0, 0), first.complaints + ended.complaints
    request_id = idempotent_request_id("default", "k")
    records = await read_topic(bootstrap_servers, environment["FLUXPOOL_TOPICS_TASKS"])
    assert {record.value for record in records} == {
        f'{{"request_id":"{request_id}","prompt":"a fox","width":512,"height":256,"steps":4}}'.encode()
    }
    assert {record.key for record in records} == {request_id.encode()}
    document = ended.document
    assert (document["request_id"], document["status"]) == (request_id, "queued")
    assert (document["partition"], document["offset"]) in {(record.partition, record.offset) for record in records}
    envelope = decode_task(records[0].value, records[0].headers).envelope
    assert (envelope.priority, envelope.ce_source) == ("standard", "/fluxpool/submit")
    assert envelope.first_seen == envelope.ce_time is not None


async def test_a_vip_task_goes_to_the_vip_topic(bootstrap_servers: str, tmp_path: Path) -> None:
    environment = await _environment(bootstrap_servers)
    ended = await fluxpool(
        *("submit", "a fox", "--priority", "vip", "--bootstrap-servers", bootstrap_servers),
        folder=tmp_path,
        environment=environment,
    )
    assert ended.code == 0, ended.complaints
    (record,) = await read_topic(bootstrap_servers, environment["FLUXPOOL_TOPICS_TASKS_VIP"])
    assert ended.output == f"{(record.key or b'').decode()} queued\n"


async def test_a_task_is_sent_to_the_idle_worker(bootstrap_servers: str, tmp_path: Path) -> None:
    environment = await _environment(bootstrap_servers)
    topic, group = environment["FLUXPOOL_TOPICS_TASKS"], environment["FLUXPOOL_CONSUMER_GROUP"]
    connection = KafkaConnection(bootstrap_servers=(bootstrap_servers,))
    members = [
        AIOKafkaConsumer(
            topic,
            group_id=group,
            enable_auto_commit=False,
            **aiokafka_options(connection, client_id=f"member-{number}"),
        )
        for number in range(2)
    ]
    try:
        for member in members:
            await member.start()

        def dealt() -> bool:
            return [len(member.assignment()) for member in members] == [2, 2]

        await wait_until(dealt, deadline_seconds=30, what="two partitions for each member")
        busy, idle = ({partition.partition for partition in member.assignment()} for member in members)
        for partition in busy:
            await produce(bootstrap_servers, topic, [(None, b"x")] * 3, partition=partition)
        ended = await asyncio.gather(*(_submit_one(bootstrap_servers, tmp_path, environment) for _ in range(2)))
        assert set(ended) <= idle
    finally:
        for member in members:
            await member.stop()


async def _submit_one(bootstrap_servers: str, folder: Path, environment: Mapping[str, str]) -> int:
    ended = await fluxpool(
        *("submit", "a fox", "--json", "--bootstrap-servers", bootstrap_servers), folder=folder, environment=environment
    )
    assert ended.code == 0, ended.complaints
    return int(ended.document["partition"])


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        pytest.param(("a fox", "--size", "1000x512"), 2, "width", id="a bad size"),
        pytest.param(("a fox", "--idempotency-key", "a b"), 2, "Idempotency-Key", id="a bad key"),
        pytest.param(("a fox", "--wait"), 2, "gateway", id="waiting needs a gateway"),
        pytest.param(("a fox",), 3, "no-such-topic", id="no such topic"),
    ],
)
async def test_an_impossible_command_is_refused_with_its_reason(
    bootstrap_servers: str, tmp_path: Path, arguments: tuple[str, ...], code: int, words: str
) -> None:
    ended = await fluxpool(
        *("submit", *arguments, "--bootstrap-servers", bootstrap_servers),
        folder=tmp_path,
        environment={"FLUXPOOL_TOPICS_TASKS": "no-such-topic"},
    )
    assert (ended.code, ended.output) == (code, "")
    assert words in ended.complaints


async def test_no_broker_is_exit_code_3(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    ended = await fluxpool(
        "submit", "a fox", "--bootstrap-servers", f"127.0.0.1:{port}", folder=tmp_path, environment={}
    )
    assert (ended.code, ended.output) == (3, "")
    assert f"127.0.0.1:{port}" in ended.complaints
