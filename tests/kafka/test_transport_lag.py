"""Reading lags from a real broker."""

import asyncio
import socket
from collections.abc import AsyncIterator

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.structs import OffsetAndMetadata
from confluent_kafka import TopicPartition as AdminPartition
from confluent_kafka.admin import AdminClient

from fluxpool_contract.kafka.connection import KafkaConnection
from fluxpool_contract.kafka.ledger import LedgerEntry, encode_ledger
from fluxpool_transport.kafka.admin import KafkaUnavailableError
from fluxpool_transport.kafka.clients import aiokafka_options
from fluxpool_transport.lag.lag_reader import GroupLag, LagReader, PartitionLag, StalePartition
from kit.brokers.kafka import KafkaFactory, create_topics, produce, unique_name
from kit.brokers.kafka_cluster import KafkaCluster
from kit.waiting import wait_until

pytestmark = pytest.mark.kafka


def _connection(bootstrap_servers: str) -> KafkaConnection:
    return KafkaConnection(bootstrap_servers=tuple(bootstrap_servers.split(",")))


@pytest.fixture
async def reader(kafka: KafkaCluster) -> AsyncIterator[LagReader]:
    async with LagReader(_connection(kafka.bootstrap_servers)) as opened:
        yield opened


async def _commit(bootstrap_servers: str, *, group: str, topic: str, offsets: dict[int, tuple[int, str]]) -> None:
    consumer = AIOKafkaConsumer(
        group_id=group, enable_auto_commit=False, **aiokafka_options(_connection(bootstrap_servers), client_id="test")
    )
    await consumer.start()
    try:
        consumer.assign([TopicPartition(topic, number) for number in offsets])
        await consumer.commit(
            {TopicPartition(topic, number): OffsetAndMetadata(*entry) for number, entry in offsets.items()}
        )
    finally:
        await consumer.stop()


async def _topic(bootstrap_servers: str, *, records: dict[int, int], partitions: int = 2) -> str:
    topic = unique_name("lag")
    await create_topics(bootstrap_servers, {topic: partitions})
    for number, count in records.items():
        await produce(bootstrap_servers, topic, [(None, b"x")] * count, partition=number)
    return topic


def _offsets(lag: GroupLag) -> list[tuple[int | None, int, int, int]]:
    return [
        (item.committed_offset, item.log_start_offset, item.log_end_offset, item.lag_records)
        for item in lag.readable_partitions
    ]


async def _readable(reader: LagReader, *, group: str, topic: str) -> GroupLag:
    """The lag once nothing is stale; partitions of a new topic may be at first."""

    async def read() -> list[GroupLag]:
        lag = (await reader.read({group: topic}))[group]
        return [] if lag.is_stale else [lag]

    return (await wait_until(read, deadline_seconds=15, what=f"a readable lag of {topic}"))[0]


async def test_records_after_the_commit_are_pending(reader: LagReader, bootstrap_servers: str) -> None:
    topic, group = await _topic(bootstrap_servers, records={0: 5, 1: 3}), unique_name("group")
    await _commit(bootstrap_servers, group=group, topic=topic, offsets={0: (2, '{"ledger": 1}'), 1: (3, "")})
    lag = await _readable(reader, group=group, topic=topic)
    assert _offsets(lag) == [(2, 0, 5, 3), (3, 0, 3, 0)]
    assert (lag.lag_records, lag.is_stale, lag.problem) == (3, False, None)
    assert [item.metadata for item in lag.readable_partitions] == ['{"ledger": 1}', ""]
    assert (lag.member_count, lag.state) == (0, "Empty")


async def test_tasks_in_a_ledger_are_in_flight_and_not_pending(reader: LagReader, bootstrap_servers: str) -> None:
    topic, group = await _topic(bootstrap_servers, records={0: 5}), unique_name("group")

    def entry(*, released: bool = False) -> LedgerEntry:
        return LedgerEntry(task="t", worker="pod-1", started_at=1_700_000_000, released=released)

    # Offset 1 is below the commit, 3 was released, 9 does not exist.
    ledger = encode_ledger({1: entry(), 2: entry(), 3: entry(released=True), 9: entry()})
    await _commit(bootstrap_servers, group=group, topic=topic, offsets={0: (2, ledger)})
    lag = await _readable(reader, group=group, topic=topic)
    partition = lag.readable_partitions[0]
    assert partition.in_flight == {2: entry()}
    assert (partition.lag_records, partition.pending_records) == (3, 2)


async def test_all_records_of_an_unknown_group_are_pending(reader: LagReader, bootstrap_servers: str) -> None:
    topic, group = await _topic(bootstrap_servers, records={0: 4}), unique_name("group")
    lag = await _readable(reader, group=group, topic=topic)
    assert _offsets(lag) == [(None, 0, 4, 4), (None, 0, 0, 0)]
    assert (lag.lag_records, lag.member_count, lag.state) == (4, 0, "Dead")


async def test_a_closed_reader_connects_again(reader: LagReader, bootstrap_servers: str) -> None:
    topic, group = unique_name("tasks"), unique_name("group")
    await create_topics(bootstrap_servers, {topic: 1})
    await produce(bootstrap_servers, topic, [(None, b"task")] * 2)
    for _ in range(2):
        assert (await _readable(reader, group=group, topic=topic)).lag_records == 2
        await reader.close()


async def test_an_empty_topic_has_an_empty_backlog(reader: LagReader, bootstrap_servers: str) -> None:
    topic, group = await _topic(bootstrap_servers, records={}, partitions=3), unique_name("group")
    lag = await _readable(reader, group=group, topic=topic)
    assert (lag.problem, lag.lag_records, len(lag.partitions)) == (None, 0, 3), lag.partitions


async def test_an_unknown_topic_is_a_problem_and_not_an_empty_one(reader: LagReader, bootstrap_servers: str) -> None:
    topic, group, lost = await _topic(bootstrap_servers, records={0: 1}), unique_name("group"), unique_name("group")
    await _readable(reader, group=group, topic=topic)
    lags = await reader.read({lost: "no-such-topic", group: topic})
    assert (lags[lost].lag_records, lags[lost].is_stale) == (None, True)
    assert "no-such-topic" in (lags[lost].problem or "")
    assert lags[group].lag_records == 1


async def test_members_are_counted(reader: LagReader, bootstrap_servers: str) -> None:
    topic, group = await _topic(bootstrap_servers, records={}), unique_name("group")
    consumer = AIOKafkaConsumer(
        topic, group_id=group, **aiokafka_options(_connection(bootstrap_servers), client_id="test")
    )
    await consumer.start()
    try:

        async def stable() -> bool:
            lag = (await reader.read({group: topic}))[group]
            return (lag.member_count, lag.state) == (1, "Stable")

        await wait_until(stable, deadline_seconds=20, what="one member of a stable group")
    finally:
        await consumer.stop()


async def test_deleted_records_have_expired_and_are_not_pending(reader: LagReader, bootstrap_servers: str) -> None:
    topic, group = await _topic(bootstrap_servers, records={0: 9}), unique_name("group")
    await _commit(bootstrap_servers, group=group, topic=topic, offsets={0: (2, "")})
    admin = AdminClient({"bootstrap.servers": bootstrap_servers})
    for future in admin.delete_records([AdminPartition(topic, 0, 6)]).values():
        await asyncio.wrap_future(future)
    (first, _) = (await _readable(reader, group=group, topic=topic)).readable_partitions
    assert (first.lag_records, first.expired_records, first.next_offset) == (3, 4, 6)


async def test_a_recreated_topic_is_read_from_its_start(reader: LagReader, bootstrap_servers: str) -> None:
    topic, group = await _topic(bootstrap_servers, records={0: 3}), unique_name("group")
    await _commit(bootstrap_servers, group=group, topic=topic, offsets={0: (70, "")})
    (first, _) = (await _readable(reader, group=group, topic=topic)).readable_partitions
    assert (first.is_recreated, first.lag_records, first.expired_records) == (True, 3, 0)


async def test_records_of_an_open_transaction_are_not_pending_yet(reader: LagReader, bootstrap_servers: str) -> None:
    topic, group = await _topic(bootstrap_servers, records={0: 1}), unique_name("group")
    producer = AIOKafkaProducer(
        transactional_id=unique_name("transaction"),
        **aiokafka_options(_connection(bootstrap_servers), client_id="test"),
    )
    await producer.start()
    try:
        async with producer.transaction():
            await producer.send_and_wait(topic, b"y", partition=0)
            assert (await _readable(reader, group=group, topic=topic)).lag_records == 1
    finally:
        await producer.stop()

    async def committed() -> bool:
        # The commit marker has an offset of its own and is written a moment later.
        return (await reader.read({group: topic}))[group].lag_records == 3

    await wait_until(committed, deadline_seconds=15, what="the committed record and its marker")


async def test_many_groups_are_read_at_once(reader: LagReader, bootstrap_servers: str) -> None:
    topic = await _topic(bootstrap_servers, records={0: 2, 1: 2})
    groups = [unique_name("group") for _ in range(60)]
    await _readable(reader, group=groups[0], topic=topic)
    lags = await reader.read(dict.fromkeys(groups, topic))
    assert {lags[group].lag_records for group in groups} == {4}


async def test_no_groups_send_no_request(reader: LagReader) -> None:
    assert await reader.read({}) == {}


async def test_no_broker_is_an_error_and_never_an_empty_backlog() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    async with LagReader(_connection(f"127.0.0.1:{port}"), deadline_seconds=1) as reader:
        with pytest.raises(KafkaUnavailableError, match=rf"127\.0\.0\.1:{port}"):
            await reader.read({"group": "topic"})


async def test_a_broker_that_dies_is_an_error_and_its_return_is_noticed(kafka_factory: KafkaFactory) -> None:
    cluster = await kafka_factory()
    topic, group = await _topic(cluster.bootstrap_servers, records={0: 2}), unique_name("group")
    (broker,) = cluster.brokers
    async with LagReader(_connection(cluster.bootstrap_servers), deadline_seconds=3) as reader:
        assert (await _readable(reader, group=group, topic=topic)).lag_records == 2
        broker.pause()
        try:
            with pytest.raises(KafkaUnavailableError):
                await reader.read({group: topic})
        finally:
            broker.resume()

        async def back() -> bool:
            try:
                return (await reader.read({group: topic}))[group].lag_records == 2
            except KafkaUnavailableError:
                return False

        await wait_until(back, deadline_seconds=30, what="the lag after the broker's return")


async def test_partitions_of_a_dead_broker_are_stale_and_the_others_are_read(kafka_factory: KafkaFactory) -> None:
    cluster = await kafka_factory(brokers=3)
    topic, group = unique_name("lag"), unique_name("group")
    await create_topics(cluster.bootstrap_servers, {topic: 6}, replication_factor=1)
    await produce(cluster.bootstrap_servers, topic, [(None, b"x")] * 60)
    seen: list[GroupLag] = []

    async with LagReader(_connection(cluster.bootstrap_servers), deadline_seconds=4) as reader:

        async def read() -> GroupLag | None:
            try:
                seen.append((await reader.read({group: topic}))[group])
            except KafkaUnavailableError:
                return None
            return seen[-1]

        async def whole() -> bool:
            lag = await read()
            return lag is not None and lag.lag_records == 60

        async def partly() -> bool:
            lag = await read()
            stale = [] if lag is None else [p for p in lag.partitions if isinstance(p, StalePartition)]
            return lag is not None and lag.problem is None and 0 < len(stale) < 6

        await wait_until(whole, deadline_seconds=30, what="the whole lag")
        broker = cluster.brokers[2]
        await broker.kill()
        await wait_until(partly, deadline_seconds=60, what="a lag without the dead broker's partitions")
        await broker.start()
        await wait_until(whole, deadline_seconds=60, what="the whole lag again")
    # Readings in between may be incomplete, but are never wrong.
    assert {lag.lag_records for lag in seen} == {None, 60}


def test_one_unreadable_partition_makes_the_sum_unknown() -> None:
    lag = GroupLag(
        group="g",
        topic="t",
        partitions=(
            PartitionLag(partition=0, committed_offset=1, log_start_offset=0, log_end_offset=4, metadata=""),
            StalePartition(partition=1, reason="leader moves"),
        ),
        member_count=1,
        state="Stable",
    )
    assert (lag.lag_records, lag.lag_records_at_least, lag.is_stale) == (None, 3, True)
