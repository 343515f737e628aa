"""Arrivals in task topics, read from a real broker as other clients write them."""

import asyncio
from collections.abc import Sequence

import pytest

from fluxpool_contract.kafka.connection import KafkaConnection
from fluxpool_contract.messages.decoding import work_of_task
from fluxpool_transport.partitioner.arrival_reader import Arrival, ArrivalReader
from kit.brokers.kafka import create_topics, produce, unique_name
from kit.waiting import wait_until

pytestmark = pytest.mark.kafka


def reader(bootstrap_servers: str, into: list[Arrival]) -> ArrivalReader:
    def observe(arrivals: Sequence[Arrival]) -> None:
        into.extend(arrivals)

    connection = KafkaConnection(bootstrap_servers=tuple(bootstrap_servers.split(",")))
    return ArrivalReader(connection, work_of=work_of_task, observe=observe)


async def test_tasks_of_other_clients_arrive_with_their_sizes(bootstrap_servers: str) -> None:
    topic = unique_name("tasks")
    await create_topics(bootstrap_servers, {topic: 3})
    await produce(bootstrap_servers, topic, [(None, b"before")], partition=0)
    arrivals: list[Arrival] = []
    async with reader(bootstrap_servers, arrivals) as following:
        assert not following.follow({(topic, 0): 1, (topic, 1): 0}, now=0)
        half = b'{"request_id": "r", "prompt": "a cat", "steps": 14}'
        await produce(bootstrap_servers, topic, [(None, half), (None, b"no task")], partition=1)
        await produce(bootstrap_servers, topic, [(None, half)], partition=0)
        await wait_until(lambda: len(arrivals) == 3, deadline_seconds=30, what="the three tasks")
        assert sorted(arrivals, key=lambda arrival: (arrival.partition, arrival.offset)) == [
            Arrival(topic, 0, 1, 0.5),
            Arrival(topic, 1, 0, 0.5),
            Arrival(topic, 1, 1, 0.0),
        ]
        assert following.follow({(topic, 0): 2, (topic, 1): 2, (topic, 2): 0}, now=1)
        await produce(bootstrap_servers, topic, [(None, half)], partition=2)
        await wait_until(lambda: arrivals[-1].partition == 2, deadline_seconds=30, what="a task on a new partition")


async def test_a_reader_stops_without_a_broker() -> None:
    async with reader("127.0.0.1:1", []) as following:
        following.follow({("tasks", 0): 0}, now=0)
        async with asyncio.timeout(30):
            await following.__aexit__()
