"""Reading the present records of topics on a real broker: bounds, tails without records, times, a hanging broker."""

import asyncio
import time
from collections.abc import Sequence
from contextlib import aclosing
from datetime import UTC, datetime, timedelta

import pytest
from confluent_kafka import Producer

from fluxpool_contract.kafka.connection import KafkaConnection
from fluxpool_transport.kafka.admin import KafkaUnavailableError
from fluxpool_transport.kafka.topic_scan import ScanRange, find_ranges, scan
from kit.brokers.kafka import KafkaFactory, create_topics, produce, unique_name
from kit.waiting import wait_until

pytestmark = pytest.mark.kafka


def connection_to(bootstrap_servers: str) -> KafkaConnection:
    return KafkaConnection(bootstrap_servers=(bootstrap_servers,))


async def values(connection: KafkaConnection, ranges: Sequence[ScanRange]) -> list[bytes | None]:
    async with aclosing(scan(connection, ranges)) as batches:
        return [record.value async for records in batches for record in records]


async def test_all_partitions_of_several_topics_are_read_up_to_their_ends(bootstrap_servers: str) -> None:
    one, two = unique_name("scan"), unique_name("scan")
    await create_topics(bootstrap_servers, {one: 3, two: 1})
    for partition in (0, 2):
        await produce(bootstrap_servers, one, [(None, b"%d" % partition)] * 500, partition=partition)
    await produce(bootstrap_servers, two, [(None, b"two")])
    connection = connection_to(bootstrap_servers)
    passed: list[int] = []

    found = await find_ranges(connection, [one, two, "no-such-topic"])
    ranges = [item for parts in found.values() for item in parts or ()]
    await produce(bootstrap_servers, two, [(None, b"later")])
    async with aclosing(scan(connection, ranges, on_progress=passed.append)) as batches:
        read = [record async for records in batches for record in records]

    assert found["no-such-topic"] is None
    assert [(item.partition, item.offsets) for item in found[one] or ()] == [(0, 500), (1, 0), (2, 500)]
    assert sorted(record.value for record in read) == [b"0"] * 500 + [b"2"] * 500 + [b"two"]
    assert [record.offset for record in read if record.topic == one and record.partition == 0] == list(range(500))
    assert sum(passed) == 1001


async def test_a_tail_of_transaction_markers_and_aborted_records_ends_the_reading(bootstrap_servers: str) -> None:
    topic = unique_name("scan")
    await create_topics(bootstrap_servers, {topic: 1})
    producer = Producer({"bootstrap.servers": bootstrap_servers, "transactional.id": unique_name("transaction")})
    await asyncio.to_thread(producer.init_transactions, 30)
    for value, commit in ((b"kept", True), (b"aborted", False)):
        producer.begin_transaction()
        producer.produce(topic, value)
        await asyncio.to_thread(producer.flush, 30)
        await asyncio.to_thread(producer.commit_transaction if commit else producer.abort_transaction, 30)
    connection = connection_to(bootstrap_servers)

    async def whole() -> tuple[ScanRange, ...]:
        found = (await find_ranges(connection, [topic]))[topic] or ()
        return found if [item.offsets for item in found] == [4] else ()

    # The coordinator responds before it writes the marker; until then the last stable offset is before the transaction.
    found = await wait_until(whole, deadline_seconds=15, what="the marker of the aborted transaction")
    assert await values(connection, found) == [b"kept"]


async def test_only_records_written_since_are_read(bootstrap_servers: str) -> None:
    topic = unique_name("scan")
    await create_topics(bootstrap_servers, {topic: 2})
    await produce(bootstrap_servers, topic, [(None, b"old")], partition=0)
    written = time.time()
    await wait_until(lambda: time.time() > written + 0.01, deadline_seconds=10, what="the clock to move on")
    between = datetime.now(UTC)
    await produce(bootstrap_servers, topic, [(None, b"new")], partition=0)
    connection = connection_to(bootstrap_servers)

    since = await find_ranges(connection, [topic], since=between)
    future = await find_ranges(connection, [topic], since=between + timedelta(hours=1))

    assert await values(connection, since[topic] or ()) == [b"new"]
    assert [item.offsets for item in future[topic] or ()] == [0, 0]


async def test_two_ranges_of_one_partition_are_refused(bootstrap_servers: str) -> None:
    item = ScanRange(topic="topic", partition=0, start=0, end=1)
    with pytest.raises(ValueError, match="one range for each partition"):
        await values(connection_to(bootstrap_servers), [item, item])


async def test_a_broker_that_hangs_ends_the_reading_with_the_partition(kafka_factory: KafkaFactory) -> None:
    cluster = await kafka_factory()
    topic = unique_name("scan")
    await create_topics(cluster.bootstrap_servers, {topic: 1})
    await produce(cluster.bootstrap_servers, topic, [(None, b"x" * 1000)] * 2000)
    connection = connection_to(cluster.bootstrap_servers)
    ranges = (await find_ranges(connection, [topic]))[topic] or ()

    async with aclosing(scan(connection, ranges, stall_seconds=2)) as batches:
        await anext(batches)
        cluster.brokers[0].pause()
        try:
            with pytest.raises(KafkaUnavailableError, match=rf"sent nothing of {topic}-0 for 2 s"):
                _ = [records async for records in batches]
        finally:
            cluster.brokers[0].resume()
