"""Pools are woken when an idle topic gets a record, on a real broker."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from aiokafka import AIOKafkaProducer
from confluent_kafka.admin import AdminClient

from fluxpool_contract.kafka.connection import KafkaConnection
from fluxpool_operator.backlog import BacklogHub, LaneTarget, PoolBacklog
from fluxpool_transport.kafka.clients import aiokafka_options
from kit.brokers.kafka import KafkaFactory, create_topics, produce, unique_name
from kit.waiting import wait_until

pytestmark = pytest.mark.kafka

DEADLINE_SECONDS = 60.0


def _connection(bootstrap_servers: str) -> KafkaConnection:
    return KafkaConnection(bootstrap_servers=tuple(bootstrap_servers.split(",")))


@pytest.fixture
async def hub() -> AsyncIterator[BacklogHub]:
    async with BacklogHub(deadline_seconds=10) as opened:
        yield opened


class _Sleeper:
    """A watcher that counts how often it is woken."""

    def __init__(self, hub: BacklogHub, bootstrap_servers: str, topic: str) -> None:
        self.key = unique_name("pool")
        self.times_woken = 0
        self._hub = hub
        self._connection = _connection(bootstrap_servers)
        self._topic = topic

    def watch(self, ends: dict[int, int]) -> None:
        by_partition = {(self._topic, number): end for number, end in ends.items()}
        self._hub.wake_when_grown(self.key, self._connection, by_partition, self._woken)

    async def woken(self, times: int = 1) -> None:
        await wait_until(
            lambda: self.times_woken == times, deadline_seconds=DEADLINE_SECONDS, what=f"{times} time(s) woken"
        )

    def _woken(self) -> None:
        self.times_woken += 1


async def _topic(bootstrap_servers: str, *, partitions: int = 2) -> str:
    topic = unique_name("idle")
    await create_topics(bootstrap_servers, {topic: partitions})
    return topic


async def _until_earlier_watches_are_served(hub: BacklogHub, bootstrap_servers: str) -> None:
    """Return when a later watch has been woken; by then earlier watches have been served, too."""
    topic = await _topic(bootstrap_servers)
    for _ in range(2):
        other = _Sleeper(hub, bootstrap_servers, topic)
        ((_, offset),) = await produce(bootstrap_servers, topic, [(None, b"x")], partition=0)
        other.watch({0: offset})
        await other.woken()


async def test_a_record_in_an_idle_topic_wakes_once(hub: BacklogHub, bootstrap_servers: str) -> None:
    topic = await _topic(bootstrap_servers)
    sleeper = _Sleeper(hub, bootstrap_servers, topic)
    sleeper.watch({0: 0, 1: 0})
    await _until_earlier_watches_are_served(hub, bootstrap_servers)
    assert sleeper.times_woken == 0
    await produce(bootstrap_servers, topic, [(None, b"x")] * 3, partition=1)
    await sleeper.woken()
    await produce(bootstrap_servers, topic, [(None, b"x")] * 3, partition=0)
    await _until_earlier_watches_are_served(hub, bootstrap_servers)
    assert sleeper.times_woken == 1


async def test_a_record_from_before_the_watch_wakes_too(hub: BacklogHub, bootstrap_servers: str) -> None:
    topic = await _topic(bootstrap_servers)
    await produce(bootstrap_servers, topic, [(None, b"x")] * 5, partition=0)
    early, late = _Sleeper(hub, bootstrap_servers, topic), _Sleeper(hub, bootstrap_servers, topic)
    late.watch({0: 5})
    early.watch({0: 4})
    await early.woken()
    await _until_earlier_watches_are_served(hub, bootstrap_servers)
    assert late.times_woken == 0
    await produce(bootstrap_servers, topic, [(None, b"x")], partition=0)
    await late.woken()


async def test_a_woken_pool_can_watch_again_from_what_it_observed(hub: BacklogHub, bootstrap_servers: str) -> None:
    topic = await _topic(bootstrap_servers)
    sleeper = _Sleeper(hub, bootstrap_servers, topic)
    for times in (1, 2, 3):
        sleeper.watch({0: times - 1, 1: 0})
        await produce(bootstrap_servers, topic, [(None, b"x")], partition=0)
        await sleeper.woken(times)


async def test_a_pool_is_woken_once_for_a_record_that_it_has_not_observed(
    hub: BacklogHub, bootstrap_servers: str
) -> None:
    topic = await _topic(bootstrap_servers)
    sleeper = _Sleeper(hub, bootstrap_servers, topic)
    sleeper.watch({0: 0})
    await produce(bootstrap_servers, topic, [(None, b"x")], partition=0)
    await sleeper.woken()
    sleeper.watch({0: 0})
    await _until_earlier_watches_are_served(hub, bootstrap_servers)
    assert sleeper.times_woken == 1


async def test_an_unwatched_pool_is_not_woken(hub: BacklogHub, bootstrap_servers: str) -> None:
    topic = await _topic(bootstrap_servers)
    forgotten, other = _Sleeper(hub, bootstrap_servers, topic), _Sleeper(hub, bootstrap_servers, topic)
    forgotten.watch({0: 0})
    other.watch({0: 0})
    hub.unwatch(forgotten.key)
    hub.unwatch("never-seen")
    await produce(bootstrap_servers, topic, [(None, b"x")], partition=0)
    await other.woken()
    assert forgotten.times_woken == 0


async def test_a_transaction_wakes_when_it_is_committed_and_never_when_it_is_aborted(
    hub: BacklogHub, bootstrap_servers: str
) -> None:
    topic = await _topic(bootstrap_servers)
    sleeper = _Sleeper(hub, bootstrap_servers, topic)
    sleeper.watch({0: 0})
    producer = AIOKafkaProducer(
        transactional_id=unique_name("transaction"),
        **aiokafka_options(_connection(bootstrap_servers), client_id="test"),
    )
    await producer.start()
    try:
        await producer.begin_transaction()
        await producer.send_and_wait(topic, b"y", partition=0)
        await _until_earlier_watches_are_served(hub, bootstrap_servers)
        await producer.abort_transaction()
        await _until_earlier_watches_are_served(hub, bootstrap_servers)
        assert sleeper.times_woken == 0
        async with producer.transaction():
            await producer.send_and_wait(topic, b"y", partition=0)
    finally:
        await producer.stop()
    await sleeper.woken()


async def test_the_first_record_of_a_recreated_topic_wakes(hub: BacklogHub, bootstrap_servers: str) -> None:
    topic = await _topic(bootstrap_servers)
    await produce(bootstrap_servers, topic, [(None, b"x")] * 9, partition=0)
    sleeper = _Sleeper(hub, bootstrap_servers, topic)
    sleeper.watch({0: 9})
    await _until_earlier_watches_are_served(hub, bootstrap_servers)
    admin = AdminClient({"bootstrap.servers": bootstrap_servers})
    await asyncio.wrap_future(admin.delete_topics([topic])[topic])

    async def is_gone() -> bool:
        return topic not in (await asyncio.to_thread(admin.list_topics, timeout=10)).topics

    await wait_until(is_gone, deadline_seconds=DEADLINE_SECONDS, what="the end of the topic")
    await create_topics(bootstrap_servers, {topic: 2})
    await produce(bootstrap_servers, topic, [(None, b"x")], partition=0)
    await sleeper.woken()


async def test_a_pool_that_read_its_backlog_is_woken_from_there(hub: BacklogHub, bootstrap_servers: str) -> None:
    topic = await _topic(bootstrap_servers)
    target = LaneTarget(name="standard", topic=topic, consumer_group=unique_name("group"))
    backlog = PoolBacklog([target], {})

    async def is_read() -> bool:
        backlog.update(await hub.read(_connection(bootstrap_servers), [target]), 0.0)
        return len(backlog.idle_ends()) == 2

    await wait_until(is_read, deadline_seconds=DEADLINE_SECONDS, what="the ends of an idle topic")
    woken = asyncio.Event()
    hub.wake_when_grown("pool", _connection(bootstrap_servers), backlog.idle_ends(), woken.set)
    await produce(bootstrap_servers, topic, [(None, b"x")], partition=1)
    async with asyncio.timeout(DEADLINE_SECONDS):
        await woken.wait()
    assert not await is_read()


async def test_watching_continues_after_an_outage_of_the_broker(kafka_factory: KafkaFactory) -> None:
    cluster = await kafka_factory()
    (broker,) = cluster.brokers
    async with BacklogHub(deadline_seconds=3) as hub:
        topic = await _topic(cluster.bootstrap_servers)
        sleeper = _Sleeper(hub, cluster.bootstrap_servers, topic)
        sleeper.watch({0: 0})
        await _until_earlier_watches_are_served(hub, cluster.bootstrap_servers)
        await broker.kill()
        await broker.start()
        await cluster.wait_ready()
        await produce(cluster.bootstrap_servers, topic, [(None, b"x")], partition=0)
        await sleeper.woken()


async def test_a_broker_that_is_down_at_first_is_waited_for(kafka_factory: KafkaFactory) -> None:
    cluster = await kafka_factory()
    (broker,) = cluster.brokers
    topic = await _topic(cluster.bootstrap_servers)
    await broker.kill()
    async with BacklogHub(deadline_seconds=3) as hub:
        sleeper = _Sleeper(hub, cluster.bootstrap_servers, topic)
        sleeper.watch({0: 0})
        await broker.start()
        await cluster.wait_ready()
        await produce(cluster.bootstrap_servers, topic, [(None, b"x")], partition=0)
        await sleeper.woken()
