"""The gateway on a real broker: its tasks are sent to the idle worker."""

from contextlib import AsyncExitStack
from pathlib import Path

import httpx
import pytest
from aiokafka import AIOKafkaConsumer

from fluxpool_contract.kafka.connection import KafkaConnection
from fluxpool_transport.kafka.clients import aiokafka_options
from kit.brokers.kafka import produce, read_topic, unique_name
from kit.brokers.kafka_cluster import KafkaCluster
from kit.gateways.gateway_process import gateway_settings, gateway_topics, running_gateway, told
from kit.waiting import wait_until

pytestmark = pytest.mark.kafka

PARTITIONS = 4


async def test_submitted_tasks_are_sent_to_the_idle_worker(kafka: KafkaCluster, tmp_path: Path) -> None:
    servers, group = kafka.bootstrap_servers, unique_name("group")
    topics = await gateway_topics(servers, task_partitions=PARTITIONS)
    connection = KafkaConnection(bootstrap_servers=tuple(servers.split(",")))
    members = [
        AIOKafkaConsumer(
            topics.tasks,
            group_id=group,
            enable_auto_commit=False,
            **aiokafka_options(connection, client_id=f"member-{number}"),
        )
        for number in range(2)
    ]
    settings = gateway_settings(servers, tmp_path / "g", topics, consumer_group=group)
    async with AsyncExitStack() as stack:
        for member in members:
            stack.push_async_callback(member.stop)
            await member.start()
        await wait_until(
            lambda: [len(member.assignment()) for member in members] == [2, 2],
            deadline_seconds=30,
            what="two partitions for each member",
        )
        busy, idle = ({partition.partition for partition in member.assignment()} for member in members)
        for partition in busy:
            await produce(servers, topics.tasks, [(None, b"x")] * 100, partition=partition)
        gateway = stack.enter_context(running_gateway(settings))
        client = await stack.enter_async_context(httpx.AsyncClient(base_url=gateway.url, timeout=20))

        async def partitions_of_four() -> set[int]:
            """The partitions of four new tasks; empty while the gateway is not ready."""
            answers = [await client.post("v1/generations", json={"prompt": "a cat"}) for _ in range(4)]
            if any(answer.status_code != 202 for answer in answers):
                return set()
            ids = {answer.json()["request_id"].encode() for answer in answers}
            return {record.partition for record in await read_topic(servers, topics.tasks) if record.key in ids}

        async def on_the_idle_worker() -> bool:
            return await partitions_of_four() == idle

        # At first the gateway has no loads, and partitions are chosen round robin.
        await wait_until(on_the_idle_worker, deadline_seconds=60, what=f"tasks on {idle} and none on {busy}")
        assert '"by_load": true' in gateway.log()

        accepted = await told(lambda: client.post("v1/generations", json={"prompt": "a cat"}))

        async def shows_all() -> bool:
            """All that waits, most of it on the busy worker, which is not before the task."""
            lane = (await told(lambda: client.get("v1/queue"))).json()["lanes"][0]
            place = (await told(lambda: client.get(accepted.json()["status_url"]))).json()["queue"]["position"]
            return bool(lane["workers"] == len(members) and place is not None and place + 20 <= lane["waiting"])

        await wait_until(shows_all, deadline_seconds=60, what="the lane and the place of a task on the idle worker")
        pool = (await client.get("v1/pools")).json()["data"][0]
        assert (pool["consumer_group"], pool["ready"], pool["busy"]) == (group, 2, 2)
