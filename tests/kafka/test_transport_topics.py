"""Creating topics on a real broker."""

import asyncio
import socket
import time

import pytest
import structlog
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient, ConfigResource, ResourceType

from fluxpool_contract.kafka.connection import KafkaConnection
from fluxpool_contract.kafka.topics import TopicNames, TopicSpec, topic_specs
from fluxpool_transport.kafka.admin import KafkaUnavailableError
from fluxpool_transport.kafka.metadata import KafkaMetadata, TopicError
from fluxpool_transport.kafka.topic_admin import ensure_topics, find_create_time_topics
from kit.brokers.kafka import create_topics, produce, read_topic, unique_name
from kit.brokers.kafka_cluster import KafkaCluster
from kit.waiting import wait_until

pytestmark = pytest.mark.kafka


@pytest.fixture
def connection(kafka: KafkaCluster) -> KafkaConnection:
    return KafkaConnection(bootstrap_servers=tuple(kafka.bootstrap_servers.split(",")))


def _own_names() -> TopicNames:
    prefix = unique_name("topics")
    defaults = TopicNames()
    return TopicNames(
        **{
            role: tuple(f"{prefix}-{name}" for name in value) if isinstance(value, tuple) else f"{prefix}-{value}"
            for role, value in defaults
        }
    )


async def _topic_config(connection: KafkaConnection, topic: str) -> dict[str, str]:
    admin = AdminClient({"bootstrap.servers": ",".join(connection.bootstrap_servers)})
    (future,) = admin.describe_configs([ConfigResource(ResourceType.TOPIC, topic)]).values()
    entries = await asyncio.wrap_future(future)
    return {name: entry.value for name, entry in entries.items()}


async def test_all_topics_are_created_once_with_their_layout(connection: KafkaConnection) -> None:
    names = _own_names()
    specs = topic_specs(names)
    assert set(await ensure_topics(connection, specs)) == {spec.name for spec in specs}
    assert await ensure_topics(connection, specs) == ()
    assert (await _topic_config(connection, names.tasks))["retention.ms"] == "604800000"
    assert (await _topic_config(connection, names.control))["cleanup.policy"] == "compact"
    assert (await _topic_config(connection, names.dead_letters))["max.message.bytes"] == "1114112"


async def test_only_topics_with_producer_timestamps_are_found(connection: KafkaConnection) -> None:
    names = _own_names()
    await ensure_topics(connection, topic_specs(names))
    foreign = unique_name("foreign")
    await create_topics(",".join(connection.bootstrap_servers), {foreign: 1})
    topics = [names.tasks, foreign, names.control, unique_name("missing")]
    assert await find_create_time_topics(connection, topics) == (foreign,)
    assert await find_create_time_topics(connection, []) == ()


async def test_a_record_in_a_created_topic_has_the_time_of_its_arrival(connection: KafkaConnection) -> None:
    names = _own_names()
    await ensure_topics(connection, topic_specs(names))
    (bootstrap,) = connection.bootstrap_servers
    before_ms = time.time() * 1000
    producer = Producer({"bootstrap.servers": bootstrap})
    producer.produce(names.tasks, b"{}", timestamp=int(before_ms / 1000))
    await asyncio.to_thread(producer.flush, 20)
    (record,) = await read_topic(bootstrap, names.tasks)
    assert record.timestamp_ms >= before_ms - 1000


async def test_a_created_topic_takes_records_at_once(connection: KafkaConnection) -> None:
    topic = unique_name("usable")
    await ensure_topics(connection, [TopicSpec(name=topic, partitions=12, replication_factor=1)])
    (bootstrap,) = connection.bootstrap_servers
    assert await produce(bootstrap, topic, [(None, b"x")], partition=11) == [(11, 0)]


async def test_fewer_brokers_than_replicas_are_logged_and_accepted(connection: KafkaConnection) -> None:
    topic = unique_name("replicas")
    with structlog.testing.capture_logs() as logs:
        await ensure_topics(connection, [TopicSpec(name=topic, partitions=1, replication_factor=3)])
    lowered = [entry for entry in logs if entry["event"] == "topic_replication_lowered"]
    assert [(entry["topic"], entry["wanted"], entry["live_brokers"]) for entry in lowered] == [(topic, 3, 1)]


async def test_an_existing_topic_is_not_changed(connection: KafkaConnection) -> None:
    topic = unique_name("existing")
    await create_topics(",".join(connection.bootstrap_servers), {topic: 2}, config={"retention.ms": "1000"})
    spec = TopicSpec(name=topic, partitions=6, replication_factor=1, config={"retention.ms": "604800000"})
    assert await ensure_topics(connection, [spec]) == ()
    assert (await _topic_config(connection, topic))["retention.ms"] == "1000"


async def test_concurrent_creation_is_no_error(connection: KafkaConnection) -> None:
    spec = TopicSpec(name=unique_name("race"), partitions=3, replication_factor=1)
    created = await asyncio.gather(*(ensure_topics(connection, [spec]) for _ in range(4)))
    assert sorted(created) == [(), (), (), (spec.name,)]


async def test_a_refused_layout_names_the_topic_and_the_setting(connection: KafkaConnection) -> None:
    topic = unique_name("refused")
    spec = TopicSpec(name=topic, partitions=1, replication_factor=1, config={"retention.sm": "1"})
    with pytest.raises(TopicError, match=rf"topic {topic}: .*retention\.sm.*correct its layout"):
        await ensure_topics(connection, [spec])


async def test_a_name_that_kafka_refuses_is_reported(connection: KafkaConnection) -> None:
    with pytest.raises(TopicError, match="topic a b: "):
        await ensure_topics(connection, [TopicSpec(name="a b", partitions=1, replication_factor=1)])


async def test_no_broker_is_reported_with_the_address_and_the_cause() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    nowhere = KafkaConnection(bootstrap_servers=(f"127.0.0.1:{port}",))
    with pytest.raises(KafkaUnavailableError, match=rf"127\.0\.0\.1:{port}.*refused.*bootstrap_servers"):
        await ensure_topics(nowhere, topic_specs(TopicNames()), deadline_seconds=2)


async def test_a_recreated_topic_has_another_id(kafka: KafkaCluster, connection: KafkaConnection) -> None:
    topic, metadata = unique_name("topic"), KafkaMetadata(connection, client_id="test")
    assert await metadata.topic_id(topic) is None, "there is no such topic"
    await create_topics(kafka.bootstrap_servers, {topic: 1})
    first = await metadata.topic_id(topic)
    assert first is not None
    assert await metadata.topic_id(topic) == first

    admin = AdminClient({"bootstrap.servers": kafka.bootstrap_servers})
    await asyncio.wrap_future(admin.delete_topics([topic], operation_timeout=10)[topic])

    async def is_gone() -> bool:
        return await metadata.topic_id(topic) is None

    await wait_until(is_gone, deadline_seconds=30, what="the topic to be gone")
    await create_topics(kafka.bootstrap_servers, {topic: 1})
    assert await metadata.topic_id(topic) not in (None, first)


async def test_the_id_of_a_topic_is_unknown_while_no_broker_answers() -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        away = KafkaConnection(bootstrap_servers=(f"127.0.0.1:{silent.getsockname()[1]}",))
        assert await KafkaMetadata(away, client_id="test", timeout_seconds=1.0).topic_id("tasks") is None
