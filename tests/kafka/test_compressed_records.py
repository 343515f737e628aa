"""Every codec of Kafka, written and read by the clients that the product uses, on the real broker."""

import asyncio

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from confluent_kafka import Producer

from fluxpool_contract.kafka.connection import KafkaConnection
from fluxpool_transport.kafka.clients import aiokafka_options
from kit.brokers.kafka import create_topics, read_topic, unique_name

pytestmark = pytest.mark.kafka

VALUES = [b"%d a red kite over a field " % number * 40 for number in range(20)]


def options_for(bootstrap_servers: str) -> dict[str, object]:
    return aiokafka_options(KafkaConnection(bootstrap_servers=(bootstrap_servers,)), client_id="compressed")


async def read_values(bootstrap_servers: str, topic: str) -> list[bytes]:
    consumer = AIOKafkaConsumer(topic, **options_for(bootstrap_servers), auto_offset_reset="earliest")
    await consumer.start()
    try:
        async with asyncio.timeout(20):
            return [(await consumer.getone()).value for _ in VALUES]
    finally:
        await consumer.stop()


@pytest.mark.parametrize("codec", ["none", "gzip", "snappy", "lz4", "zstd"])
async def test_batches_of_every_codec_that_librdkafka_writes_are_read(bootstrap_servers: str, codec: str) -> None:
    topic = unique_name(f"codec-{codec}")
    await create_topics(bootstrap_servers, {topic: 1})
    producer = Producer({"bootstrap.servers": bootstrap_servers, "compression.type": codec, "linger.ms": 200})
    for value in VALUES:
        producer.produce(topic, value)
    assert await asyncio.to_thread(producer.flush, 20) == 0

    assert await read_values(bootstrap_servers, topic) == VALUES


@pytest.mark.parametrize("codec", ["gzip", "snappy", "lz4", "zstd"])
async def test_batches_of_every_codec_that_aiokafka_writes_are_read(bootstrap_servers: str, codec: str) -> None:
    topic = unique_name(f"codec-{codec}")
    await create_topics(bootstrap_servers, {topic: 1})
    producer = AIOKafkaProducer(**options_for(bootstrap_servers), compression_type=codec, linger_ms=200)
    await producer.start()
    try:
        for sent in [await producer.send(topic, value) for value in VALUES]:
            await sent
    finally:
        await producer.stop()

    assert await read_values(bootstrap_servers, topic) == VALUES
    assert [record.value for record in await read_topic(bootstrap_servers, topic)] == VALUES
