"""The states of pools that the operator writes and the gateway reads, on a real broker."""

import asyncio
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from typing import Any

import pytest
import structlog
from aiokafka import AIOKafkaConsumer

from fluxpool_contract.kafka.connection import KafkaConnection
from fluxpool_contract.kafka.topics import TopicNames
from fluxpool_contract.messages import PoolLane, PoolState
from fluxpool_gateway.queue.lanes import ServedLane, served_lanes
from fluxpool_gateway.queue.pool_state_reader import PoolStateReader
from fluxpool_gateway.queue.pool_states import PoolStates
from fluxpool_operator.backlog import BacklogHub, LaneTarget
from fluxpool_transport.kafka.metadata import KafkaMetadata, TopicMetadata
from kit.brokers.kafka import TopicReader, create_topics, produce, unique_name
from kit.waiting import wait_until

pytestmark = pytest.mark.kafka

DEADLINE_SECONDS = 60.0


class Counts:
    """What the hub told of its states."""

    def __init__(self) -> None:
        self.written = 0
        self.failed = 0

    def add(self, written: int, failed: int) -> None:
        self.written += written
        self.failed += failed


def connection(bootstrap_servers: str) -> KafkaConnection:
    return KafkaConnection(bootstrap_servers=tuple(bootstrap_servers.split(",")))


async def test_states_are_written_in_order_and_a_deleted_pool_has_none(bootstrap_servers: str) -> None:
    topic, counts = unique_name("pools"), Counts()
    await create_topics(bootstrap_servers, {topic: 1})
    kafka = connection(bootstrap_servers)
    async with BacklogHub(count_states=counts.add) as hub:
        hub.publish(kafka, topic, key="images/a", value=b"1")
        hub.publish(kafka, topic, key="images/b", value=b"2")

        async def both() -> bool:
            return counts.written == 2

        await wait_until(both, deadline_seconds=DEADLINE_SECONDS, what="both states")
        # Of two that are not sent yet the later one is enough.
        hub.publish(kafka, topic, key="images/a", value=b"3")
        hub.publish(kafka, topic, key="images/a", value=None)

        async def withdrawn() -> bool:
            return counts.written >= 3

        await wait_until(withdrawn, deadline_seconds=DEADLINE_SECONDS, what="the end of a pool")
    reader = TopicReader(bootstrap_servers)
    records = await reader.records(topic)
    reader.close()
    assert [(record.key, record.value) for record in records] == [
        (b"images/a", b"1"),
        (b"images/b", b"2"),
        (b"images/a", None),
    ]
    assert dict(records[0].headers)["ce_type"] == b"dev.fluxpool.pool.state.v1"
    assert counts.failed == 0


async def test_a_missing_topic_is_not_created_and_readings_go_on(bootstrap_servers: str) -> None:
    counts, tasks = Counts(), unique_name("tasks")
    await create_topics(bootstrap_servers, {tasks: 1})
    kafka, missing = connection(bootstrap_servers), unique_name("pools")
    target = LaneTarget(name="standard", topic=tasks, consumer_group=unique_name("group"))
    with structlog.testing.capture_logs() as logs:
        async with BacklogHub(count_states=counts.add) as hub:
            hub.publish(kafka, missing, key="images/a", value=b"1")
            [reading] = await hub.read(kafka, [target])
            assert reading.problem is None

            async def failed() -> bool:
                return counts.failed == 1

            await wait_until(failed, deadline_seconds=DEADLINE_SECONDS, what="the record to be given up")
            await create_topics(bootstrap_servers, {missing: 1})
            hub.publish(kafka, missing, key="images/a", value=b"2")

            async def written() -> bool:
                # A broker may learn of the topic later than another.
                if counts.written == 0 and counts.failed > 1:
                    hub.publish(kafka, missing, key="images/a", value=b"2")
                return counts.written > 0

            await wait_until(written, deadline_seconds=DEADLINE_SECONDS, what="the state on the new topic")
    assert events(logs)[:1] == ["pool_states_not_written"]
    assert events(logs)[-1] == "pool_states_written"


async def test_a_missing_topic_of_one_pool_does_not_keep_back_the_others(bootstrap_servers: str) -> None:
    topic, missing, counts = unique_name("pools"), unique_name("missing"), Counts()
    await create_topics(bootstrap_servers, {topic: 1})
    kafka = connection(bootstrap_servers)
    async with BacklogHub(count_states=counts.add) as hub:
        # From the second record on the client itself refuses the topic.
        for number in (1, 2):
            hub.publish(kafka, missing, key="images/a", value=b"1")
            hub.publish(kafka, topic, key="images/b", value=b"1")

            async def both(number: int = number) -> bool:
                return (counts.written, counts.failed) == (number, number)

            await wait_until(both, deadline_seconds=DEADLINE_SECONDS, what="one record written, and one given up")


def state_of(lane: ServedLane, desired: int) -> PoolState:
    return PoolState(
        namespace="images",
        pool="standard",
        lanes=(PoolLane(name="standard", topic=lane.topic, consumer_group=lane.group),),
        desired_replicas=desired,
        ready_replicas=0,
        min_replicas=0,
        max_replicas=6,
        constraint="lag",
        reason="The lag is 5.",
        decided_at=datetime.now(UTC),
    )


async def test_a_state_that_is_written_while_a_gateway_starts_to_read_is_read(
    bootstrap_servers: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    topic, kafka = unique_name("pools"), connection(bootstrap_servers)
    await create_topics(bootstrap_servers, {topic: 1})
    lanes = served_lanes(unique_name("group"), (), TopicNames())
    states = PoolStates(lanes, wall_clock=time.time)
    asked = AIOKafkaConsumer.offsets_for_times

    async def then_written(consumer: AIOKafkaConsumer, times: Mapping[Any, int]) -> Any:
        found = await asked(consumer, times)
        told = state_of(lanes[0], 3)
        await produce(bootstrap_servers, topic, [(told.key.encode(), told.to_json())])
        return found

    monkeypatch.setattr(AIOKafkaConsumer, "offsets_for_times", then_written)
    reader = PoolStateReader(kafka, topic, metadata=KafkaMetadata(kafka, client_id="test"), states=states)
    running = asyncio.create_task(reader.run())
    try:
        await wait_until(lambda: states.of_lane(lanes[0]), deadline_seconds=DEADLINE_SECONDS, what="the state")
    finally:
        running.cancel()
        await asyncio.wait({running})


async def test_a_gateway_reads_what_an_operator_writes_before_and_after_it_starts(bootstrap_servers: str) -> None:
    topic, kafka = unique_name("pools"), connection(bootstrap_servers)
    lanes = served_lanes(unique_name("group"), (), TopicNames())
    states = PoolStates(lanes, wall_clock=time.time)
    state = partial(state_of, lanes[0])

    def desired() -> int | None:
        found = states.of_lane(lanes[0])
        return None if found is None else found.state.desired_replicas

    async def until(expected: int | None) -> None:
        async def reached() -> bool:
            return desired() == expected

        await wait_until(reached, deadline_seconds=DEADLINE_SECONDS, what=f"{expected} desired workers")

    metadata = KafkaMetadata(kafka, client_id="test")
    reader = PoolStateReader(kafka, topic, metadata=metadata, states=states)
    async with BacklogHub() as hub, asyncio.TaskGroup() as group:
        # Before the topic exists: it is not created by the question.
        running = group.create_task(reader.run())
        assert not isinstance((await metadata.topics((topic,)))[topic], TopicMetadata)
        await create_topics(bootstrap_servers, {topic: 1}, config={"cleanup.policy": "compact,delete"})
        for count in (1, 2):
            hub.publish(kafka, topic, key=state(count).key, value=state(count).to_json())
            await until(count)
        running.cancel()
        # Another process of the gateway, which starts later.
        states = PoolStates(lanes, wall_clock=time.time)
        later = PoolStateReader(kafka, topic, metadata=metadata, states=states)
        running = group.create_task(later.run())
        await until(2)
        hub.publish(kafka, topic, key=state(2).key, value=None)
        await until(None)
        running.cancel()


def events(logs: Sequence[object]) -> list[str]:
    return [str(entry["event"]) for entry in logs if isinstance(entry, dict) and "pool_states" in str(entry["event"])]
