"""Internals of aiokafka that the worker depends on, on a real broker."""

import asyncio
import gc
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import CommitFailedError
from aiokafka.protocol.commit import OffsetCommitRequest
from aiokafka.structs import OffsetAndMetadata

from fluxpool_transport.kafka.client_stop import stop_consumer
from fluxpool_worker.agent.consumer.membership import (
    has_generation,
    keep_offsets_for,
    own_sticky_assignor,
    refuse_commits_without_generation,
)
from kit.brokers.kafka import KafkaFactory, committed_offsets, create_topics, produce, unique_name
from kit.faults.chaos_kafka import proxied_kafka
from kit.faults.tcp_proxy import Direction
from kit.waiting import wait_until

pytestmark = pytest.mark.kafka


@asynccontextmanager
async def member(bootstrap_servers: str, topic: str, group: str) -> AsyncIterator[AIOKafkaConsumer]:
    consumer = AIOKafkaConsumer(
        topic,
        bootstrap_servers=bootstrap_servers,
        group_id=group,
        enable_auto_commit=False,
        auto_offset_reset="earliest",
        partition_assignment_strategy=[own_sticky_assignor()],
    )
    await consumer.start()
    refuse_commits_without_generation(consumer)
    try:
        yield consumer
    finally:
        await stop_consumer(consumer)


async def test_a_member_without_generation_cannot_lower_an_empty_groups_offset(bootstrap_servers: str) -> None:
    topic, group = unique_name("topic"), unique_name("group")
    await create_topics(bootstrap_servers, {topic: 1})
    await produce(bootstrap_servers, topic, [(None, b"x")] * 6)
    partition = TopicPartition(topic, 0)
    async with member(bootstrap_servers, topic, group) as consumer:
        assert has_generation(consumer)
        await consumer.commit({partition: OffsetAndMetadata(5, "ledger")})
        # An expired session does this to a member; its assignment still has the partition.
        await consumer._coordinator._maybe_leave_group()  # noqa: SLF001 - there is no public way to be fenced
        assert partition in consumer.assignment()
        with pytest.raises(CommitFailedError):
            await consumer.commit({partition: OffsetAndMetadata(1, "")})

    committed = (await committed_offsets(bootstrap_servers, group))[topic, 0]
    assert (committed.offset, committed.metadata) == (5, "ledger")


async def test_a_commit_requests_a_retention_time(bootstrap_servers: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(OffsetCommitRequest, "DEFAULT_RETENTION_TIME", OffsetCommitRequest.DEFAULT_RETENTION_TIME)
    keep_offsets_for(timedelta(days=365))
    topic, group = unique_name("topic"), unique_name("group")
    await create_topics(bootstrap_servers, {topic: 1})
    await produce(bootstrap_servers, topic, [(None, b"x")])
    sent: list[Any] = []
    async with member(bootstrap_servers, topic, group) as consumer:
        send: Callable[[Any], Any] = consumer._coordinator._send_req  # noqa: SLF001 - to see the request on the wire

        async def spy(request: Any) -> Any:
            sent.append(request)
            return await send(request)

        monkeypatch.setattr(consumer._coordinator, "_send_req", spy)  # noqa: SLF001
        await consumer.commit({TopicPartition(topic, 0): OffsetAndMetadata(1, "")})

    [commit] = [request for request in sent if isinstance(request, OffsetCommitRequest)]
    assert commit._retention_time == 365 * 86_400_000  # noqa: SLF001
    assert (await committed_offsets(bootstrap_servers, group))[topic, 0].offset == 1


async def test_an_abandoned_commit_fails_without_a_log_line(kafka_factory: KafkaFactory) -> None:
    topic, group = unique_name("topic"), unique_name("group")
    partition = TopicPartition(topic, 0)
    heard: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: heard.append(context))
    async with proxied_kafka(kafka_factory) as proxied:
        await create_topics(proxied.cluster.bootstrap_servers, {topic: 1})
        [line] = proxied.lines
        async with member(proxied.bootstrap_servers, topic, group) as consumer:
            await consumer.commit({partition: OffsetAndMetadata(1, "")})
            await line.black_hole(Direction.TO_SERVER)
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(consumer.commit({partition: OffsetAndMetadata(2, "")}), 1)
            await line.drop()
            await wait_until(lambda: line.connections == 0, deadline_seconds=30, what="the connections to end")
            await line.pass_all()
            async with asyncio.timeout(60):
                await consumer.commit({partition: OffsetAndMetadata(3, "")})
    gc.collect()  # asyncio logs a task's error when the task is garbage-collected
    assert heard == []


async def test_each_consumer_has_its_own_sticky_state_and_keeps_most_partitions(bootstrap_servers: str) -> None:
    topic, group = unique_name("topic"), unique_name("group")
    await create_topics(bootstrap_servers, {topic: 6})
    async with member(bootstrap_servers, topic, group) as first:
        await wait_until(lambda: len(first.assignment()) == 6, deadline_seconds=20, what="all partitions")
        async with member(bootstrap_servers, topic, group) as second:
            await wait_until(
                lambda: len(first.assignment()) == 3 and len(second.assignment()) == 3,
                deadline_seconds=20,
                what="an even split",
            )
            kept = first.assignment()
            async with member(bootstrap_servers, topic, group) as third:
                # Each member gets its assignment separately: the new one possibly before those that lost partitions.
                await wait_until(
                    lambda: [len(consumer.assignment()) for consumer in (first, second, third)] == [2, 2, 2],
                    deadline_seconds=20,
                    what="an even split among three",
                )
                assert first.assignment() < kept
    assert own_sticky_assignor() is not own_sticky_assignor()
