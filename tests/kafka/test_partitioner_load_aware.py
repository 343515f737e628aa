"""Partitions chosen by loads read from a real broker: owners, lag, and round robin while the broker is down."""

import asyncio
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager

import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.structs import OffsetAndMetadata

from fluxpool_contract.kafka.connection import KafkaConnection
from fluxpool_transport.kafka.clients import aiokafka_options
from fluxpool_transport.lag.lag_reader import LagReader
from fluxpool_transport.partitioner.load_aware import LoadAwarePartitioner
from fluxpool_transport.partitioner.topic_partitioner import SETTLING_SECONDS
from kit.brokers.kafka import KafkaFactory, create_topics, produce, unique_name
from kit.waiting import PATIENCE, wait_until

pytestmark = pytest.mark.kafka

PARTITIONS = 4


def _connection(bootstrap_servers: str) -> KafkaConnection:
    return KafkaConnection(bootstrap_servers=tuple(bootstrap_servers.split(",")))


@asynccontextmanager
async def _member(bootstrap_servers: str, *, topic: str, group: str) -> AsyncIterator[AIOKafkaConsumer]:
    """A worker as the broker sees it: it joins, keeps its partitions, and commits what the test commits."""
    consumer = AIOKafkaConsumer(
        topic,
        group_id=group,
        enable_auto_commit=False,
        auto_offset_reset="earliest",
        **aiokafka_options(_connection(bootstrap_servers), client_id="test"),
    )
    await consumer.start()
    polling = asyncio.create_task(_poll(consumer))
    try:
        yield consumer
    finally:
        polling.cancel()
        await asyncio.gather(polling, return_exceptions=True)
        await consumer.stop()


async def _poll(consumer: AIOKafkaConsumer) -> None:
    while True:
        await consumer.getmany(timeout_ms=100)


@asynccontextmanager
async def _running(partitioner: LoadAwarePartitioner) -> AsyncIterator[LoadAwarePartitioner]:
    reading = asyncio.create_task(partitioner.run())
    try:
        yield partitioner
    finally:
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)


def _partitioner(
    bootstrap_servers: str, groups: dict[str, str], *, clock: Callable[[], float] = time.monotonic
) -> LoadAwarePartitioner:
    source = random.Random(3)  # noqa: S311 - no secret
    return LoadAwarePartitioner(_connection(bootstrap_servers), groups, source=source, clock=clock)


async def _by_load(partitioner: LoadAwarePartitioner, topic: str) -> None:
    await wait_until(
        lambda: partitioner.round_robin_reason(topic, partitions=PARTITIONS) is None,
        deadline_seconds=30,
        what=f"loads that are known ({partitioner.round_robin_reason(topic, partitions=PARTITIONS)})",
    )


async def _all_assigned(members: list[AIOKafkaConsumer]) -> None:
    def dealt() -> bool:
        owned = [member.assignment() for member in members]
        return all(owned) and sum(map(len, owned)) == PARTITIONS

    await wait_until(dealt, deadline_seconds=30, what="a partition for every member")


def _owned(member: AIOKafkaConsumer) -> set[int]:
    return {partition.partition for partition in member.assignment()}


def _choose(partitioner: LoadAwarePartitioner, topic: str, count: int) -> list[int]:
    return [partitioner.choose(topic, partitions=PARTITIONS) for _ in range(count)]


async def test_tasks_are_sent_to_the_idle_member_until_work_is_level(bootstrap_servers: str) -> None:
    topic, group = unique_name("tasks"), unique_name("group")
    await create_topics(bootstrap_servers, {topic: PARTITIONS})
    async with AsyncExitStack() as stack:
        members = [
            await stack.enter_async_context(_member(bootstrap_servers, topic=topic, group=group)) for _ in range(2)
        ]
        await _all_assigned(members)
        busy, idle = map(_owned, members)
        await produce(bootstrap_servers, topic, [(None, b"x")] * 6, partition=min(busy))
        now = 100.0
        partitioner = _partitioner(bootstrap_servers, {group: topic}, clock=lambda: now)
        async with partitioner.reader() as reader:
            await _refreshed(partitioner, reader, topic)
            chosen = _choose(partitioner, topic, 6)
            assert set(chosen) == idle
            assert set(Counter(chosen).values()) == {3}
            # Work is level now; the busy member's other partition is the emptier one.
            assert set(_choose(partitioner, topic, 2)) & busy == busy - {min(busy)}
            # The chosen tasks were never sent: the next reading drops them, and the idle member is idle again.
            now += 2 * SETTLING_SECONDS
            await partitioner.refresh(reader)
            assert partitioner.choose(topic, partitions=PARTITIONS) in idle


async def _refreshed(partitioner: LoadAwarePartitioner, reader: LagReader, topic: str) -> None:
    async def known() -> bool:
        await partitioner.refresh(reader)
        return partitioner.round_robin_reason(topic, partitions=PARTITIONS) is None

    await wait_until(known, deadline_seconds=30, what="loads that are known")


async def test_what_a_member_committed_is_no_longer_its_work(bootstrap_servers: str) -> None:
    topic, group = unique_name("tasks"), unique_name("group")
    await create_topics(bootstrap_servers, {topic: PARTITIONS})
    async with AsyncExitStack() as stack:
        first, second = [
            await stack.enter_async_context(_member(bootstrap_servers, topic=topic, group=group)) for _ in range(2)
        ]
        await _all_assigned([first, second])
        on_first, on_second = min(_owned(first)), min(_owned(second))
        await produce(bootstrap_servers, topic, [(None, b"x")] * 8, partition=on_first)
        await produce(bootstrap_servers, topic, [(None, b"x")] * 4, partition=on_second)
        partitioner = _partitioner(bootstrap_servers, {group: topic})
        async with partitioner.reader() as reader:
            await _refreshed(partitioner, reader, topic)
            assert partitioner.choose(topic, partitions=PARTITIONS) in _owned(second)
            await first.commit({TopicPartition(topic, on_first): OffsetAndMetadata(8, "")})
            await partitioner.refresh(reader)
            assert partitioner.choose(topic, partitions=PARTITIONS) in _owned(first)


async def test_partitions_follow_their_owner_when_a_member_joins(bootstrap_servers: str) -> None:
    topic, group = unique_name("tasks"), unique_name("group")
    await create_topics(bootstrap_servers, {topic: PARTITIONS})
    async with AsyncExitStack() as stack:
        first = await stack.enter_async_context(_member(bootstrap_servers, topic=topic, group=group))
        await _all_assigned([first])
        await produce(bootstrap_servers, topic, [(None, b"x")] * 20, partition=0)
        partitioner = await stack.enter_async_context(_running(_partitioner(bootstrap_servers, {group: topic})))
        await _by_load(partitioner, topic)
        # One owner has all partitions: its emptiest ones are chosen.
        assert 0 not in _choose(partitioner, topic, 12)
        second = await stack.enter_async_context(_member(bootstrap_servers, topic=topic, group=group))
        await _all_assigned([first, second])
        busy, idle = sorted((_owned(first), _owned(second)), key=lambda owned: 0 not in owned)

        async def to_the_idle_one() -> bool:
            await _by_load(partitioner, topic)
            return set(_choose(partitioner, topic, 4)) == idle

        # The busy member's second partition is as empty as the idle member's, but is not chosen.
        await wait_until(to_the_idle_one, deadline_seconds=30, what=f"tasks on {idle} only, none on {busy}")


async def test_without_members_the_choice_is_round_robin(bootstrap_servers: str) -> None:
    topic, group = unique_name("tasks"), unique_name("group")
    await create_topics(bootstrap_servers, {topic: PARTITIONS})
    await produce(bootstrap_servers, topic, [(None, b"x")] * 9, partition=2)
    partitioner = _partitioner(bootstrap_servers, {group: topic})

    def why() -> str:
        return partitioner.round_robin_reason(topic, partitions=PARTITIONS) or ""

    async with _running(partitioner):
        await wait_until(lambda: "no member" in why(), deadline_seconds=30, what="an empty group, noticed")
        assert group in why()
        assert set(Counter(_choose(partitioner, topic, 2 * PARTITIONS)).values()) == {2}
        async with _member(bootstrap_servers, topic=topic, group=group):
            await _by_load(partitioner, topic)
            assert 2 not in _choose(partitioner, topic, 9)
        await wait_until(lambda: "no member" in why(), deadline_seconds=30, what="the member's leaving, noticed")
        assert set(Counter(_choose(partitioner, topic, 2 * PARTITIONS)).values()) == {2}


async def test_topics_without_a_known_group_are_chosen_round_robin(bootstrap_servers: str) -> None:
    partitioner = _partitioner(bootstrap_servers, {})
    assert set(_choose(partitioner, "other", PARTITIONS)) == set(range(PARTITIONS))
    assert "no consumer group" in (partitioner.round_robin_reason("other", partitions=PARTITIONS) or "")
    async with _running(partitioner):
        assert set(_choose(partitioner, "other", PARTITIONS)) == set(range(PARTITIONS))


async def test_an_unavailable_broker_never_delays_a_choice(kafka_factory: KafkaFactory) -> None:
    cluster = await kafka_factory()
    topic, group = unique_name("tasks"), unique_name("group")
    await create_topics(cluster.bootstrap_servers, {topic: PARTITIONS})
    async with _member(cluster.bootstrap_servers, topic=topic, group=group) as member:
        await _all_assigned([member])
        async with _running(_partitioner(cluster.bootstrap_servers, {group: topic})) as partitioner:
            await _by_load(partitioner, topic)
            longest_seconds = 0.0

            def stale() -> bool:
                nonlocal longest_seconds
                began = time.perf_counter()
                _choose(partitioner, topic, 1)
                longest_seconds = max(longest_seconds, time.perf_counter() - began)
                return partitioner.round_robin_reason(topic, partitions=PARTITIONS) is not None

            cluster.brokers[0].pause()
            try:
                await wait_until(stale, deadline_seconds=20, what="loads too old to choose by")
                assert set(Counter(_choose(partitioner, topic, 3 * PARTITIONS)).values()) == {3}
            finally:
                cluster.brokers[0].resume()
            # A reading takes up to 3 s; a choice in memory takes microseconds, on a busy machine some ms.
            assert longest_seconds < 0.5 * PATIENCE
            await _by_load(partitioner, topic)


async def test_without_any_broker_the_choice_is_round_robin_and_the_reason_is_known() -> None:
    partitioner = _partitioner("127.0.0.1:1", {"group": "tasks"})
    async with _running(partitioner):
        await wait_until(
            lambda: "127.0.0.1:1" in (partitioner.round_robin_reason("tasks", partitions=PARTITIONS) or ""),
            deadline_seconds=30,
            what="the broker's absence, noticed",
        )
        assert set(_choose(partitioner, "tasks", PARTITIONS)) == set(range(PARTITIONS))
