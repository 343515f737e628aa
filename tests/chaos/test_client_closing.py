"""Clients of a broker that does not respond can be closed: no task and no connection remains."""

import asyncio

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.errors import KafkaConnectionError

from fluxpool_transport.kafka.client_stop import stop_consumer, stop_producer
from kit.brokers.kafka import create_topics, unique_name
from kit.faults.chaos_kafka import ProxiedKafka
from kit.waiting import wait_until

pytestmark = pytest.mark.kafka

STOP_SECONDS = 0.5


async def assert_nothing_left(proxied: ProxiedKafka, before: set["asyncio.Task[object]"]) -> None:
    async def closed() -> bool:
        return asyncio.all_tasks() <= before

    [line] = proxied.lines
    await line.pass_all()  # the proxy's own tasks of each connection end with it
    await wait_until(closed, deadline_seconds=20, what="the end of the client's tasks and connections")


async def test_a_producer_with_a_pending_record(proxied: ProxiedKafka) -> None:
    topic = unique_name("closing")
    await create_topics(proxied.cluster.bootstrap_servers, {topic: 1})
    [line] = proxied.lines
    before = asyncio.all_tasks()
    producer = AIOKafkaProducer(bootstrap_servers=proxied.bootstrap_servers, enable_idempotence=True)
    await producer.start()
    await producer.send_and_wait(topic, b"before")
    await line.black_hole()
    pending = await producer.send(topic, b"pending")
    assert isinstance(await stop_producer(producer, deadline_seconds=STOP_SECONDS), TimeoutError)
    with pytest.raises(KafkaConnectionError):
        await pending
    await assert_nothing_left(proxied, before)


async def test_a_member_of_a_group(proxied: ProxiedKafka) -> None:
    topic = unique_name("closing")
    await create_topics(proxied.cluster.bootstrap_servers, {topic: 1})
    [line] = proxied.lines
    before = asyncio.all_tasks()
    consumer = AIOKafkaConsumer(topic, bootstrap_servers=proxied.bootstrap_servers, group_id=unique_name("group"))
    await consumer.start()

    async def assigned() -> bool:
        await consumer.getmany(timeout_ms=100)
        return bool(consumer.assignment())

    await wait_until(assigned, deadline_seconds=60, what="an assignment")
    await line.black_hole()
    assert isinstance(await stop_consumer(consumer, deadline_seconds=STOP_SECONDS), TimeoutError)
    await assert_nothing_left(proxied, before)
