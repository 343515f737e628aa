"""Records that no client library decodes, on a real broker: consumers skip them and continue."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from aiokafka import AIOKafkaConsumer
from aiokafka.structs import ConsumerRecord, TopicPartition
from confluent_kafka import Producer

from fluxpool_contract.kafka.connection import KafkaConnection
from fluxpool_operator.backlog.probe import HeadProbe, HeadQuestion
from fluxpool_operator.backlog.reading import Head
from fluxpool_transport.dlq.reading import read_dead_letters
from fluxpool_transport.kafka import fetch_responses
from fluxpool_transport.kafka.batch_decompression import MAX_BATCH_BYTES
from fluxpool_transport.kafka.clients import aiokafka_options
from fluxpool_transport.kafka.undecodable_records import UndecodableRecord
from kit.brokers.kafka import create_topics, produce, unique_name
from kit.brokers.kafka_cluster import KafkaCluster
from kit.brokers.odd_batches import RawName, damage_on_disk
from kit.waiting import wait_until

pytestmark = pytest.mark.kafka

END_OF_FIRST = b"first\0"
SECOND_BATCH = END_OF_FIRST + (1).to_bytes(8, "big")
"""The bytes of `topic_of_three` up to the length of its second batch."""


@asynccontextmanager
async def reader(bootstrap_servers: str, topic: str) -> AsyncIterator[AIOKafkaConsumer]:
    options = aiokafka_options(KafkaConnection(bootstrap_servers=(bootstrap_servers,)), client_id="odd")
    consumer = AIOKafkaConsumer(topic, **options, auto_offset_reset="earliest", isolation_level="read_committed")
    await consumer.start()
    try:
        yield consumer
    finally:
        await consumer.stop()


async def read(consumer: AIOKafkaConsumer, *, values: Sequence[bytes]) -> list[ConsumerRecord]:
    """All records up to those with these values."""
    records: list[ConsumerRecord] = []
    async with asyncio.timeout(30):
        while not set(values) <= {record.value for record in records}:
            records.append(await consumer.getone())
    return records


def outline(records: Sequence[ConsumerRecord], *, partition: int = 0) -> list[tuple[int, object]]:
    return [
        (record.offset, record.problem if isinstance(record, UndecodableRecord) else record.value)
        for record in records
        if record.partition == partition
    ]


async def test_an_undecodable_header_name_affects_no_other_record(bootstrap_servers: str) -> None:
    topic = unique_name("odd-name")
    await create_topics(bootstrap_servers, {topic: 2})
    await produce(bootstrap_servers, topic, [(b"\xe9", b"odd")], partition=0, headers=[(RawName(b"caf\xe9"), b"1")])
    await produce(bootstrap_servers, topic, [(None, b"behind")], partition=0)
    await produce(bootstrap_servers, topic, [(None, b"beside")], partition=1)

    async with reader(bootstrap_servers, topic) as consumer:
        records = await read(consumer, values=[b"behind", b"beside"])

    assert outline(records) == [(0, "the name of a header is not UTF-8"), (1, b"behind")]
    assert outline(records, partition=1) == [(0, b"beside")]
    (odd,) = (record for record in records if isinstance(record, UndecodableRecord))
    assert (odd.key, odd.value, odd.headers) == (b"\xe9", b"odd", ((r"caf\xe9", b"1"),))


@pytest.mark.parametrize("codec", ["gzip", "lz4", "zstd"])
async def test_a_batch_that_would_become_too_large_is_passed(bootstrap_servers: str, codec: str) -> None:
    topic = unique_name("bomb")
    await create_topics(bootstrap_servers, {topic: 1})
    limits = {"message.max.bytes": 2 * MAX_BATCH_BYTES, "queue.buffering.max.kbytes": 2 * MAX_BATCH_BYTES // 1024}
    producer = Producer({"bootstrap.servers": bootstrap_servers, "compression.type": codec, **limits})
    producer.produce(topic, b"0" * (MAX_BATCH_BYTES + 1), partition=0)
    assert await asyncio.to_thread(producer.flush, 30) == 0
    await produce(bootstrap_servers, topic, [(None, b"behind")])

    async with reader(bootstrap_servers, topic) as consumer:
        records = await read(consumer, values=[b"behind"])

    assert outline(records) == [
        (0, f"{codec}: the batch would become larger than {MAX_BATCH_BYTES} bytes"),
        (1, b"behind"),
    ]
    assert len(records[0].value or b"") < 1024 * 1024


async def topic_of_three(bootstrap_servers: str) -> str:
    """Three records, each in its batch."""
    topic = unique_name("damaged")
    await create_topics(bootstrap_servers, {topic: 1})
    for value in (b"first", b"second", b"third"):
        await produce(bootstrap_servers, topic, [(None, value)])
    return topic


def log_of(kafka: KafkaCluster, topic: str) -> Path:
    return kafka.data_dir / "broker-1" / "log" / f"{topic}-0" / f"{0:020}.log"


async def topic_with_damage(kafka: KafkaCluster) -> str:
    """`topic_of_three` with the second record damaged."""
    topic = await topic_of_three(kafka.bootstrap_servers)
    damage_on_disk(log_of(kafka, topic), b"second", by=b"2econd")
    return topic


async def test_a_batch_that_the_disk_damaged_is_passed(kafka: KafkaCluster) -> None:
    topic = await topic_with_damage(kafka)

    async with reader(kafka.bootstrap_servers, topic) as consumer:
        records = await read(consumer, values=[b"third"])
        assert await consumer.position(TopicPartition(topic, 0)) == 3

    assert outline(records) == [(0, b"first"), (1, "its CRC is wrong"), (2, b"third")]
    assert b"2econd" in (records[1].value or b"")


async def test_a_batch_whose_offset_the_disk_damaged_is_passed(kafka: KafkaCluster) -> None:
    topic = await topic_of_three(kafka.bootstrap_servers)
    damage_on_disk(log_of(kafka, topic), SECOND_BATCH, by=END_OF_FIRST + (10**9).to_bytes(8, "big"))

    async with reader(kafka.bootstrap_servers, topic) as consumer:
        records = await read(consumer, values=[b"third"])

    assert outline(records) == [(0, b"first"), (1, "its offsets lie beyond the end of the log"), (2, b"third")]


async def test_offsets_that_the_broker_cannot_read_are_passed_one_by_one(
    kafka: KafkaCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetch_responses, "CORRUPT_PATIENCE_SECONDS", 0.5)
    topic = await topic_of_three(kafka.bootstrap_servers)
    # Neither this length nor the start of the next batch can be determined.
    damage_on_disk(log_of(kafka, topic), SECOND_BATCH, by=SECOND_BATCH + b"\xff\xff\xff\xff")

    async with reader(kafka.bootstrap_servers, topic) as consumer, asyncio.timeout(30):
        records = [await consumer.getone() for _ in range(3)]

    assert outline(records) == [
        (0, b"first"),
        (1, "its length is wrong"),
        (2, "the broker cannot read it from its log"),
    ]
    assert records[2].value is None


async def test_the_dead_letters_around_a_damaged_one_are_listed(kafka: KafkaCluster) -> None:
    topic = await topic_with_damage(kafka)
    connection = KafkaConnection(bootstrap_servers=(kafka.bootstrap_servers,))

    entries = await read_dead_letters(connection, topic)

    assert [entry.ref.offset for entry in entries] == [0, 1, 2]
    assert entries[1].problem == "the record cannot be decoded: its CRC is wrong"


async def test_a_damaged_record_at_the_head_of_a_partition_is_pending_like_any_other(kafka: KafkaCluster) -> None:
    topic = await topic_with_damage(kafka)
    question = HeadQuestion(topic, 0, offset=1, end_offset=3)
    async with asyncio.TaskGroup() as tasks:
        probe = HeadProbe(KafkaConnection(bootstrap_servers=(kafka.bootstrap_servers,)), tasks)

        async def found() -> Head | None:
            return (await probe.look_up([question])).get(question)

        head = await wait_until(found, deadline_seconds=30, what="the head")
        await probe.close()

    assert head is not None
    assert (head.record_offset, head.timestamp_ms) == (1, None)
