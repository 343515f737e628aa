"""A Kafka behind proxies: all traffic of a client passes them, and faults of the link affect only it."""

import asyncio
from pathlib import Path

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.errors import KafkaConnectionError

from fluxpool_contract.kafka import SecurityProtocol
from kit.brokers.kafka import KafkaFactory, create_topics, read_topic, unique_name
from kit.brokers.kafka_cluster import KafkaCluster
from kit.brokers.kafka_settings import ListenerSpec
from kit.faults.chaos_kafka import ProxiedKafka, coordinator_of, leader_of, proxied_kafka, proxied_listener
from kit.faults.tcp_proxy import Direction, TcpProxy
from kit.waiting import wait_until

pytestmark = [pytest.mark.kafka, pytest.mark.on_change]

SILENCE_SECONDS = 1.0


async def values(proxied: ProxiedKafka, topic: str) -> list[bytes | None]:
    return [record.value for record in await read_topic(proxied.cluster.bootstrap_servers, topic)]


async def test_all_traffic_of_a_client_passes_the_proxy(proxied: ProxiedKafka) -> None:
    topic = unique_name("proxied")
    await create_topics(proxied.cluster.bootstrap_servers, {topic: 1})
    [line] = proxied.lines
    producer = AIOKafkaProducer(bootstrap_servers=proxied.bootstrap_servers, acks="all")
    consumer = AIOKafkaConsumer(
        topic, bootstrap_servers=proxied.bootstrap_servers, group_id=topic, auto_offset_reset="earliest"
    )
    await producer.start()
    await consumer.start()
    try:
        assert {broker.port for broker in producer.client.cluster.brokers()} == {line.port}
        async with asyncio.timeout(30):
            await producer.send_and_wait(topic, b"through")
            assert (await consumer.getone()).value == b"through"
        await line.refuse()
        await wait_until(lambda: line.connections == 0, deadline_seconds=20, what="the connections to end")
        sending = asyncio.ensure_future(producer.send_and_wait(topic, b"later"))
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.shield(sending), SILENCE_SECONDS)
        assert await values(proxied, topic) == [b"through"]
        await line.pass_all()
        async with asyncio.timeout(60):
            await sending
            assert (await consumer.getone()).value == b"later"
    finally:
        await proxied.on_every_line(TcpProxy.pass_all)
        await consumer.stop()
        await producer.stop()


async def test_no_client_passes_a_refusing_proxy(proxied: ProxiedKafka) -> None:
    await proxied.on_every_line(TcpProxy.refuse)
    producer = AIOKafkaProducer(bootstrap_servers=proxied.bootstrap_servers)
    with pytest.raises(KafkaConnectionError):
        await producer.start()
    await producer.stop()


async def test_a_record_whose_acknowledgement_is_lost_is_in_the_log(proxied: ProxiedKafka) -> None:
    topic = unique_name("unknown")
    await create_topics(proxied.cluster.bootstrap_servers, {topic: 1})
    [line] = proxied.lines
    producer = AIOKafkaProducer(bootstrap_servers=proxied.bootstrap_servers, enable_idempotence=True)
    await producer.start()
    try:
        await line.black_hole(Direction.TO_CLIENT)
        sending = asyncio.ensure_future(producer.send_and_wait(topic, b"once", partition=0))
        await wait_until(
            lambda: line.held_bytes[Direction.TO_CLIENT] > 0, deadline_seconds=30, what="a response to be held"
        )

        async def stored() -> list[bytes | None]:
            return await values(proxied, topic)

        assert await wait_until(stored, deadline_seconds=30, what="the record in the log") == [b"once"]
        assert not sending.done()
        await line.pass_all()
        async with asyncio.timeout(60):
            await sending
    finally:
        await line.pass_all()
        await producer.stop()
    assert await values(proxied, topic) == [b"once"]


async def test_three_brokers_have_a_proxy_each_and_report_their_roles(kafka_factory: KafkaFactory) -> None:
    async with proxied_kafka(kafka_factory, brokers=3) as proxied:
        topic, group = unique_name("led"), unique_name("group")
        await create_topics(proxied.cluster.bootstrap_servers, {topic: 3})
        leaders = {(await leader_of(proxied.cluster, topic, partition)).node_id for partition in range(3)}
        assert leaders == {1, 2, 3}
        producer = AIOKafkaProducer(bootstrap_servers=proxied.bootstrap_servers, acks="all")
        await producer.start()
        try:
            async with asyncio.timeout(60):
                for partition in range(3):
                    await producer.send_and_wait(topic, b"x", partition=partition)
        finally:
            await producer.stop()
        assert all(line.accepted for line in proxied.lines)
        consumer = AIOKafkaConsumer(topic, bootstrap_servers=proxied.bootstrap_servers, group_id=group)
        async with consumer:
            believed = consumer._coordinator.coordinator_id  # noqa: SLF001 - not public
            assert (await coordinator_of(proxied.cluster, group)).node_id == believed


def test_ports_that_cannot_be_advertised_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="listener PROXIED: advertised_ports: 0 of broker 1 is not between"):
        ListenerSpec(name="PROXIED", protocol=SecurityProtocol.PLAINTEXT, advertised_ports={1: 0})
    with pytest.raises(ValueError, match="listener PROXIED: advertised_ports: there is no broker 2; use 1 to 1"):
        KafkaCluster(tmp_path, libs=tmp_path, listeners=[proxied_listener(brokers=3)])
