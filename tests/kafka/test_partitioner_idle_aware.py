"""Loads are read only while records are being sent."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from aiokafka import AIOKafkaConsumer

from fluxpool_contract.kafka.connection import KafkaConnection
from fluxpool_transport.kafka.clients import aiokafka_options
from fluxpool_transport.partitioner.load_aware import READ_DEADLINE_SECONDS, IdleAwarePartitioner, LoadAwarePartitioner
from kit.brokers.kafka import create_topics, unique_name
from kit.waiting import wait_until

pytestmark = pytest.mark.kafka

PARTITIONS = 2


@asynccontextmanager
async def _running(
    servers: str, groups: dict[str, str], *, linger_seconds: float
) -> AsyncIterator[IdleAwarePartitioner]:
    connection = KafkaConnection(bootstrap_servers=(servers,))
    choice = IdleAwarePartitioner(LoadAwarePartitioner(connection, groups), linger_seconds=linger_seconds)
    running = asyncio.create_task(choice.run())
    try:
        yield choice
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        assert not choice.partitioner.has_read.is_set()


@asynccontextmanager
async def _member(servers: str, *, topic: str, group: str) -> AsyncIterator[None]:
    options = aiokafka_options(KafkaConnection(bootstrap_servers=(servers,)), client_id="test")
    consumer = AIOKafkaConsumer(topic, group_id=group, enable_auto_commit=False, **options)
    await consumer.start()
    try:
        await wait_until(consumer.assignment, deadline_seconds=30, what="the member's partitions")
        yield
    finally:
        await consumer.stop()


async def test_loads_are_read_when_a_record_is_expected_and_no_longer_when_none_is(bootstrap_servers: str) -> None:
    topic, group = unique_name("tasks"), unique_name("group")
    await create_topics(bootstrap_servers, {topic: PARTITIONS})
    async with (
        _member(bootstrap_servers, topic=topic, group=group),
        _running(bootstrap_servers, {group: topic}, linger_seconds=1.5) as choice,
    ):
        assert choice.partitioner.round_robin_reason(topic, partitions=PARTITIONS) == "not read yet"

        async def by_load() -> bool:
            await choice.ready()
            return choice.partitioner.round_robin_reason(topic, partitions=PARTITIONS) is None

        for _ in range(2):
            assert not choice.partitioner.has_read.is_set()
            await wait_until(by_load, deadline_seconds=30, what="loads to choose by")
            await wait_until(lambda: not choice.partitioner.has_read.is_set(), deadline_seconds=30, what="the rest")


async def test_a_record_waits_for_the_first_reading_and_uses_it(bootstrap_servers: str) -> None:
    topic, group = unique_name("tasks"), unique_name("group")
    await create_topics(bootstrap_servers, {topic: PARTITIONS})
    async with (
        _member(bootstrap_servers, topic=topic, group=group),
        _running(bootstrap_servers, {group: topic}, linger_seconds=60) as choice,
    ):

        async def ready() -> bool:
            began = time.monotonic()
            await asyncio.gather(choice.ready(), choice.ready())
            # Without a reading it does not return before its time is over.
            assert choice.partitioner.has_read.is_set() or time.monotonic() - began >= READ_DEADLINE_SECONDS
            return choice.partitioner.has_read.is_set()

        await wait_until(ready, deadline_seconds=30, what="the first reading")
        assert choice.partitioner.round_robin_reason(topic, partitions=PARTITIONS) != "not read yet"


async def test_without_brokers_the_wait_is_short_and_the_choice_round_robin() -> None:
    async with _running("127.0.0.1:1", {"group": "tasks"}, linger_seconds=60) as choice:
        async with asyncio.timeout(30):
            for _ in range(20):
                await choice.ready()
        chosen = [choice.partitioner.choose("tasks", partitions=PARTITIONS) for _ in range(PARTITIONS)]
        assert set(chosen) == set(range(PARTITIONS))
