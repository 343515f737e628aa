"""Partitions chosen by the loads that a real broker tells: who owns them, what lies on them, and what if it is away."""

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
from fluxpool_transport.lag.backlog import BacklogReader
from fluxpool_transport.partitioner.choice import SETTLING_SECONDS
from fluxpool_transport.partitioner.load_aware import PartitionChooser
from kit.kafka import KafkaFactory, create_topics, produce, unique_name
from kit.waiting import wait_until

pytestmark = pytest.mark.kafka

PARTITIONS = 4


def _connection(bootstrap_servers: str) -> KafkaConnection:
    return KafkaConnection(bootstrap_servers=tuple(bootstrap_servers.split(",")))


@asynccontextmanager
async def _member(bootstrap_servers: str, *, topic: str, group: str) -> AsyncIterator[AIOKafkaConsumer]:
    """A worker as the broker sees it: it joins and keeps its partitions, and commits only what a test commits."""
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
async def _running(chooser: PartitionChooser) -> AsyncIterator[PartitionChooser]:
    reading = asyncio.create_task(chooser.run())
    try:
        yield chooser
    finally:
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)


def _chooser(
    bootstrap_servers: str, groups: dict[str, str], *, clock: Callable[[], float] = time.monotonic
) -> PartitionChooser:
    source = random.Random(3)  # noqa: S311 - no secret
    return PartitionChooser(_connection(bootstrap_servers), groups, source=source, clock=clock)


async def _by_load(chooser: PartitionChooser, topic: str) -> None:
    await wait_until(
        lambda: chooser.why_turns(topic, partitions=PARTITIONS) is None,
        deadline_seconds=30,
        what=f"loads that are known ({chooser.why_turns(topic, partitions=PARTITIONS)})",
    )


async def _settled(members: list[AIOKafkaConsumer]) -> None:
    def dealt() -> bool:
        owned = [member.assignment() for member in members]
        return all(owned) and sum(map(len, owned)) == PARTITIONS

    await wait_until(dealt, deadline_seconds=30, what="a partition for every member")


def _owned(member: AIOKafkaConsumer) -> set[int]:
    return {partition.partition for partition in member.assignment()}


def _draw(chooser: PartitionChooser, topic: str, count: int) -> list[int]:
    return [chooser.choose(topic, partitions=PARTITIONS) for _ in range(count)]


async def test_tasks_go_to_the_member_with_nothing_to_do_until_work_is_level(bootstrap_servers: str) -> None:
    topic, group = unique_name("tasks"), unique_name("group")
    await create_topics(bootstrap_servers, {topic: PARTITIONS})
    async with AsyncExitStack() as stack:
        members = [
            await stack.enter_async_context(_member(bootstrap_servers, topic=topic, group=group)) for _ in range(2)
        ]
        await _settled(members)
        busy, idle = map(_owned, members)
        await produce(bootstrap_servers, topic, [(None, b"x")] * 6, partition=min(busy))
        now = 100.0
        chooser = _chooser(bootstrap_servers, {group: topic}, clock=lambda: now)
        async with chooser.reader() as reader:
            await _refreshed(chooser, reader, topic)
            drawn = _draw(chooser, topic, 6)
            assert set(drawn) == idle
            assert set(Counter(drawn).values()) == {3}
            # Level now; the busy member's other partition is the emptier one.
            assert set(_draw(chooser, topic, 2)) & busy == busy - {min(busy)}
            # What was drawn was never sent: with the next reading it is forgotten, and the idle member is idle again.
            now += 2 * SETTLING_SECONDS
            await chooser.refresh(reader)
            assert chooser.choose(topic, partitions=PARTITIONS) in idle


async def _refreshed(chooser: PartitionChooser, reader: BacklogReader, topic: str) -> None:
    async def known() -> bool:
        await chooser.refresh(reader)
        return chooser.why_turns(topic, partitions=PARTITIONS) is None

    await wait_until(known, deadline_seconds=30, what="loads that are known")


async def test_what_a_member_committed_is_no_longer_its_work(bootstrap_servers: str) -> None:
    topic, group = unique_name("tasks"), unique_name("group")
    await create_topics(bootstrap_servers, {topic: PARTITIONS})
    async with AsyncExitStack() as stack:
        first, second = [
            await stack.enter_async_context(_member(bootstrap_servers, topic=topic, group=group)) for _ in range(2)
        ]
        await _settled([first, second])
        on_first, on_second = min(_owned(first)), min(_owned(second))
        await produce(bootstrap_servers, topic, [(None, b"x")] * 8, partition=on_first)
        await produce(bootstrap_servers, topic, [(None, b"x")] * 4, partition=on_second)
        chooser = _chooser(bootstrap_servers, {group: topic})
        async with chooser.reader() as reader:
            await _refreshed(chooser, reader, topic)
            assert chooser.choose(topic, partitions=PARTITIONS) in _owned(second)
            await first.commit({TopicPartition(topic, on_first): OffsetAndMetadata(8, "")})
            await chooser.refresh(reader)
            assert chooser.choose(topic, partitions=PARTITIONS) in _owned(first)


async def test_partitions_follow_their_owner_when_a_member_joins(bootstrap_servers: str) -> None:
    topic, group = unique_name("tasks"), unique_name("group")
    await create_topics(bootstrap_servers, {topic: PARTITIONS})
    async with AsyncExitStack() as stack:
        first = await stack.enter_async_context(_member(bootstrap_servers, topic=topic, group=group))
        await _settled([first])
        await produce(bootstrap_servers, topic, [(None, b"x")] * 20, partition=0)
        chooser = await stack.enter_async_context(_running(_chooser(bootstrap_servers, {group: topic})))
        await _by_load(chooser, topic)
        # One owner has everything: its emptiest partitions.
        assert 0 not in _draw(chooser, topic, 12)
        second = await stack.enter_async_context(_member(bootstrap_servers, topic=topic, group=group))
        await _settled([first, second])
        busy, idle = sorted((_owned(first), _owned(second)), key=lambda owned: 0 not in owned)

        async def to_the_idle_one() -> bool:
            await _by_load(chooser, topic)
            return set(_draw(chooser, topic, 4)) == idle

        # The busy member's second partition is as empty as the idle one's, and yet not chosen.
        await wait_until(to_the_idle_one, deadline_seconds=30, what=f"tasks on {idle} only, none on {busy}")


async def test_a_group_without_members_leaves_turns(bootstrap_servers: str) -> None:
    topic, group = unique_name("tasks"), unique_name("group")
    await create_topics(bootstrap_servers, {topic: PARTITIONS})
    await produce(bootstrap_servers, topic, [(None, b"x")] * 9, partition=2)
    chooser = _chooser(bootstrap_servers, {group: topic})

    def why() -> str:
        return chooser.why_turns(topic, partitions=PARTITIONS) or ""

    async with _running(chooser):
        await wait_until(lambda: "no member" in why(), deadline_seconds=30, what="an empty group, noticed")
        assert group in why()
        assert set(Counter(_draw(chooser, topic, 2 * PARTITIONS)).values()) == {2}
        async with _member(bootstrap_servers, topic=topic, group=group):
            await _by_load(chooser, topic)
            assert 2 not in _draw(chooser, topic, 9)
        await wait_until(lambda: "no member" in why(), deadline_seconds=30, what="the member's leaving, noticed")
        assert set(Counter(_draw(chooser, topic, 2 * PARTITIONS)).values()) == {2}


async def test_topics_without_a_known_group_take_turns(bootstrap_servers: str) -> None:
    chooser = _chooser(bootstrap_servers, {})
    assert set(_draw(chooser, "other", PARTITIONS)) == set(range(PARTITIONS))
    assert "no consumer group" in (chooser.why_turns("other", partitions=PARTITIONS) or "")
    async with _running(chooser):
        assert set(_draw(chooser, "other", PARTITIONS)) == set(range(PARTITIONS))


async def test_a_broker_that_is_away_never_delays_a_choice_and_leaves_turns(kafka_factory: KafkaFactory) -> None:
    cluster = await kafka_factory()
    topic, group = unique_name("tasks"), unique_name("group")
    await create_topics(cluster.bootstrap_servers, {topic: PARTITIONS})
    async with _member(cluster.bootstrap_servers, topic=topic, group=group) as member:
        await _settled([member])
        async with _running(_chooser(cluster.bootstrap_servers, {group: topic})) as chooser:
            await _by_load(chooser, topic)
            longest_seconds = 0.0

            def stale() -> bool:
                nonlocal longest_seconds
                began = time.perf_counter()
                _draw(chooser, topic, 1)
                longest_seconds = max(longest_seconds, time.perf_counter() - began)
                return chooser.why_turns(topic, partitions=PARTITIONS) is not None

            cluster.brokers[0].pause()
            try:
                await wait_until(stale, deadline_seconds=20, what="loads too old to choose by")
                assert set(Counter(_draw(chooser, topic, 3 * PARTITIONS)).values()) == {3}
            finally:
                cluster.brokers[0].resume()
            # A reading under its deadline takes 3 s; a choice in memory takes microseconds, on a busy machine some ms.
            assert longest_seconds < 0.5
            await _by_load(chooser, topic)


async def test_without_any_broker_the_partitions_take_turns_and_the_reason_is_known() -> None:
    chooser = _chooser("127.0.0.1:1", {"group": "tasks"})
    async with _running(chooser):
        await wait_until(
            lambda: "127.0.0.1:1" in (chooser.why_turns("tasks", partitions=PARTITIONS) or ""),
            deadline_seconds=30,
            what="the broker's absence, noticed",
        )
        assert set(_draw(chooser, "tasks", PARTITIONS)) == set(range(PARTITIONS))
