"""The topic reader of the tests returns all records at each call and fetches no record twice."""

import asyncio

import pytest
from aiokafka import AIOKafkaProducer
from confluent_kafka import TopicPartition
from confluent_kafka.admin import AdminClient

from kit.brokers.kafka import KafkaFactory, TopicReader, create_topics, produce, unique_name
from kit.waiting import wait_until

pytestmark = [pytest.mark.kafka, pytest.mark.on_change]


async def test_each_call_returns_all_records_up_to_the_end(bootstrap_servers: str) -> None:
    topic = unique_name("read-on")
    await create_topics(bootstrap_servers, {topic: 2})
    reader = TopicReader(bootstrap_servers)
    assert await reader.records(topic) == []
    sent: list[tuple[int, bytes]] = []
    for partition, value in ((1, b"first"), (0, b"second"), (1, b"third")):
        await produce(bootstrap_servers, topic, [(None, value)], partition=partition)
        sent.append((partition, value))
        found = await reader.records(topic)
        assert [(record.partition, record.value) for record in found] == sorted(sent, key=lambda item: item[0])
        assert await reader.records(topic) == found
    reader.close()


async def test_deleted_records_are_no_longer_returned(bootstrap_servers: str) -> None:
    topic = unique_name("deleted")
    await create_topics(bootstrap_servers, {topic: 1})
    await produce(bootstrap_servers, topic, [(None, b"0"), (None, b"1"), (None, b"2")])
    reader = TopicReader(bootstrap_servers)
    assert len(await reader.records(topic)) == 3
    place = TopicPartition(topic, 0, 2)
    # A garbage-collected client leaves its futures unresolved.
    admin = AdminClient({"bootstrap.servers": bootstrap_servers})
    await asyncio.wrap_future(admin.delete_records([place])[place])
    assert [record.value for record in await reader.records(topic)] == [b"2"]
    reader.close()


async def test_records_of_a_transaction_are_returned_once_it_is_committed(bootstrap_servers: str) -> None:
    topic = unique_name("transaction")
    await create_topics(bootstrap_servers, {topic: 1})
    reader = TopicReader(bootstrap_servers, isolation_level="read_committed")
    async with AIOKafkaProducer(bootstrap_servers=bootstrap_servers, transactional_id=unique_name("tx")) as producer:
        await producer.begin_transaction()
        await producer.send_and_wait(topic, b"held", partition=0)
        assert await reader.records(topic) == []
        await producer.commit_transaction()
        # The coordinator responds before its marker is in the log.
        found = await wait_until(lambda: reader.records(topic), deadline_seconds=20, what="the committed record")
        assert [record.value for record in found] == [b"held"]
        await producer.begin_transaction()
        await producer.send_and_wait(topic, b"never", partition=0)
        await producer.abort_transaction()
        assert [record.value for record in await reader.records(topic)] == [b"held"]
    reader.close()


async def test_reading_continues_after_a_restart_of_the_broker(kafka_factory: KafkaFactory) -> None:
    cluster = await kafka_factory()
    topic = unique_name("outage")
    await create_topics(cluster.bootstrap_servers, {topic: 1})
    await produce(cluster.bootstrap_servers, topic, [(None, b"before")])
    reader = TopicReader(cluster.bootstrap_servers)
    assert len(await reader.records(topic)) == 1
    await cluster.brokers[0].kill()
    await cluster.brokers[0].start()
    await cluster.wait_ready()
    await produce(cluster.bootstrap_servers, topic, [(None, b"after")])
    assert [record.value for record in await reader.records(topic)] == [b"before", b"after"]
    reader.close()
