"""Behaviour of a real broker and the client library in failures on which the worker's design depends.

Each test pins one surprising behaviour. If a new release of either side changes it, the test fails, and the rule in the
worker that follows from it can be dropped or must be reconsidered.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.errors import CommitFailedError, IllegalStateError, MessageSizeTooLargeError, OutOfOrderSequenceNumber
from aiokafka.protocol.commit import OffsetCommitRequest
from aiokafka.structs import OffsetAndMetadata
from kafka import KafkaAdminClient

from fluxpool_transport.kafka.client_stop import stop_consumer
from fluxpool_worker.agent.consumer.membership import (
    committed_with_metadata,
    has_generation,
    keep_offsets_for,
    own_sticky_assignor,
)
from kit.brokers.commit_log import CommitLog
from kit.brokers.kafka import (
    CommittedOffset,
    KafkaFactory,
    ScriptClientError,
    committed_offsets,
    create_topics,
    produce,
    read_topic,
    unique_name,
)
from kit.brokers.kafka_cluster import KafkaCluster
from kit.faults.chaos_kafka import ProxiedKafka, coordinator_of
from kit.faults.tcp_proxy import Direction
from kit.waiting import WaitExpiredError, wait_until

pytestmark = [pytest.mark.kafka, pytest.mark.on_change]

DEADLINE_SECONDS = 60.0
"""For operations that take milliseconds on an idle machine."""
SESSION_TIMEOUT_MS = 6000
"""The broker's own minimum."""
GIVE_UP_SECONDS = 1.0
COMMITS = 50
TAKE_OVERS = 6
"""The window is a third of a second, and a request may miss it."""
ROUND_SECONDS = 30.0

log = logging.getLogger(__name__)


@asynccontextmanager
async def member(bootstrap_servers: str, topic: str, group: str, **options: Any) -> AsyncIterator[AIOKafkaConsumer]:
    """A group member of plain aiokafka, without the product's guards."""
    settings: dict[str, Any] = {
        "enable_auto_commit": False,
        "auto_offset_reset": "earliest",
        "session_timeout_ms": SESSION_TIMEOUT_MS,
        "heartbeat_interval_ms": 300,
        "partition_assignment_strategy": [own_sticky_assignor()],
    }
    consumer = AIOKafkaConsumer(topic, bootstrap_servers=bootstrap_servers, group_id=group, **(settings | options))
    await consumer.start()
    try:
        yield consumer
    finally:
        if error := await stop_consumer(consumer, deadline_seconds=DEADLINE_SECONDS):
            raise error


@asynccontextmanager
async def idempotent_producer(bootstrap_servers: str, **options: Any) -> AsyncIterator[AIOKafkaProducer]:
    producer = AIOKafkaProducer(bootstrap_servers=bootstrap_servers, enable_idempotence=True, **options)
    await producer.start()
    try:
        yield producer
    finally:
        async with asyncio.timeout(DEADLINE_SECONDS):
            await producer.stop()


@pytest.fixture(scope="module")
def broker_properties() -> dict[str, str]:
    """Offsets of empty groups expire quickly."""
    return {"offsets.retention.minutes": "1", "offsets.retention.check.interval.ms": "1000"}


async def make_topic(bootstrap_servers: str, *, partitions: int = 1, records: int = 0, **config: str) -> str:
    topic = unique_name("topic")
    await create_topics(
        bootstrap_servers,
        {topic: partitions},
        config={name.replace("_", "."): value for name, value in config.items()},
    )
    for partition in range(partitions if records else 0):
        await produce(bootstrap_servers, topic, [(None, b"x")] * records, partition=partition)
    return topic


async def wait_assigned(consumer: AIOKafkaConsumer, count: int) -> None:
    await wait_until(
        lambda: len(consumer.assignment()) == count, deadline_seconds=DEADLINE_SECONDS, what=f"{count} partitions"
    )


async def wait_fenced(consumer: AIOKafkaConsumer) -> None:
    await wait_until(
        lambda: not has_generation(consumer), deadline_seconds=DEADLINE_SECONDS, what="the member to be fenced"
    )


async def poll(consumer: AIOKafkaConsumer, *partitions: TopicPartition, count: int = 1) -> list[Any]:
    """The next records; a poll is never cancelled, see below."""
    found: list[Any] = []

    async def enough() -> bool:
        for records in (await consumer.getmany(*partitions, timeout_ms=200)).values():
            found.extend(records)
        return len(found) >= count

    await wait_until(enough, deadline_seconds=DEADLINE_SECONDS, what=f"{count} records")
    return found


# Producers


async def test_after_a_rejected_batch_every_later_record_of_that_partition_fails_until_the_producer_is_replaced(
    bootstrap_servers: str,
) -> None:
    topic = await make_topic(bootstrap_servers, partitions=2, max_message_bytes="2000")
    async with asyncio.timeout(DEADLINE_SECONDS):
        async with idempotent_producer(bootstrap_servers) as broken:
            await broken.send_and_wait(topic, b"first", partition=0)
            with pytest.raises(MessageSizeTooLargeError):
                await broken.send_and_wait(topic, b"x" * 5000, partition=0)
            for _ in range(2):
                with pytest.raises(OutOfOrderSequenceNumber):
                    await broken.send_and_wait(topic, b"innocent", partition=0)
            await broken.send_and_wait(topic, b"elsewhere", partition=1)
        async with idempotent_producer(bootstrap_servers) as new:
            await new.send_and_wait(topic, b"second", partition=0)

    values = [(record.partition, record.value) for record in await read_topic(bootstrap_servers, topic)]
    assert values == [(0, b"first"), (0, b"second"), (1, b"elsewhere")]


async def test_an_abandoned_record_is_delivered_when_the_broker_is_back(proxied: ProxiedKafka) -> None:
    topic = await make_topic(proxied.cluster.bootstrap_servers)
    [line] = proxied.lines
    async with idempotent_producer(proxied.bootstrap_servers) as producer:
        await producer.send_and_wait(topic, b"before", partition=0)
        await line.black_hole()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(producer.send_and_wait(topic, b"given up", partition=0), GIVE_UP_SECONDS)
        await line.pass_all()

        async def delivered() -> bool:
            records = await read_topic(proxied.cluster.bootstrap_servers, topic)
            return [record.value for record in records] == [b"before", b"given up"]

        await wait_until(delivered, deadline_seconds=DEADLINE_SECONDS, what="the abandoned record")


async def test_a_producer_with_a_pending_record_cannot_be_stopped_while_the_broker_is_gone(
    proxied: ProxiedKafka,
) -> None:
    topic = await make_topic(proxied.cluster.bootstrap_servers)
    [line] = proxied.lines
    async with idempotent_producer(proxied.bootstrap_servers) as producer:
        await producer.send_and_wait(topic, b"before", partition=0)
        await line.refuse()
        pending = await producer.send(topic, b"pending", partition=0)
        stopping = asyncio.ensure_future(producer.stop())
        assert await asyncio.wait({stopping}, timeout=2 * GIVE_UP_SECONDS) == (set(), {stopping})
        await line.pass_all()
        async with asyncio.timeout(DEADLINE_SECONDS):
            await stopping
            await pending


# Membership


async def test_a_member_that_keeps_its_partition_in_a_rebalance_can_commit_earlier_records(
    bootstrap_servers: str,
) -> None:
    topic, group = await make_topic(bootstrap_servers, partitions=4, records=2), unique_name("group")
    async with member(bootstrap_servers, topic, group) as first:
        await wait_assigned(first, 4)
        first_records = await poll(first, count=8)
        assert {record.offset for record in first_records} == {0, 1}
        first.pause(*first.assignment())
        async with member(bootstrap_servers, topic, group) as second:
            await wait_assigned(first, 2)
            await wait_assigned(second, 2)
            [kept, also_kept] = sorted(first.assignment())
            moved = min(second.assignment())
            await first.commit({kept: OffsetAndMetadata(1, "adopted")})
            with pytest.raises(IllegalStateError):
                await first.commit({moved: OffsetAndMetadata(1, "not mine")})

            assert first.paused() == frozenset(), "a rebalance resets every pause"
            # The position is back at the committed offset: records in flight are delivered again.
            assert [record.offset for record in await poll(first, also_kept, count=2)] == [0, 1]
            assert [record.offset for record in await poll(second, moved, count=2)] == [0, 1]
    committed = await committed_offsets(bootstrap_servers, group)
    assert committed == {(topic, kept.partition): CommittedOffset(offset=1, metadata="adopted")}


async def test_a_member_that_stopped_polling_keeps_its_assignment_and_can_lower_an_empty_groups_offset(
    bootstrap_servers: str,
) -> None:
    topic, group = await make_topic(bootstrap_servers, records=6), unique_name("group")
    partition = TopicPartition(topic, 0)
    async with member(bootstrap_servers, topic, group, max_poll_interval_ms=1500) as thrown_out:
        await poll(thrown_out)
        await wait_fenced(thrown_out)
        assert thrown_out.assignment() == {partition}
        async with member(bootstrap_servers, topic, group) as other:
            await wait_assigned(other, 1)
            await other.commit({partition: 5})
            with pytest.raises(CommitFailedError):
                await thrown_out.commit({partition: 1})
            assert (await committed_offsets(bootstrap_servers, group))[topic, 0].offset == 5

        assert not has_generation(thrown_out)
        await thrown_out.commit({partition: 1})
        assert (await committed_offsets(bootstrap_servers, group))[topic, 0].offset == 1


async def test_a_commit_after_the_session_is_refused_while_another_member_has_the_partition(
    proxied: ProxiedKafka,
) -> None:
    direct = proxied.cluster.bootstrap_servers
    topic, group = await make_topic(direct, records=6), unique_name("group")
    partition = TopicPartition(topic, 0)
    [line] = proxied.lines
    async with member(proxied.bootstrap_servers, topic, group) as zombie:
        await poll(zombie)
        await zombie.commit({partition: 1})
        await line.black_hole()
        # With its former member id and generation.
        late = asyncio.ensure_future(zombie.commit({partition: 2}))
        async with member(direct, topic, group) as heir:
            await wait_assigned(heir, 1)
            await heir.commit({partition: 5})
            assert has_generation(zombie)
            await line.pass_all()
            with pytest.raises(CommitFailedError):
                await asyncio.wait_for(late, DEADLINE_SECONDS)
            assert (await committed_offsets(direct, group))[topic, 0].offset == 5


async def test_an_abandoned_commit_is_applied_later(proxied: ProxiedKafka) -> None:
    direct = proxied.cluster.bootstrap_servers
    topic, group = await make_topic(direct, records=6), unique_name("group")
    partition = TopicPartition(topic, 0)
    [line] = proxied.lines
    async with member(proxied.bootstrap_servers, topic, group) as consumer:
        await poll(consumer)
        await consumer.commit({partition: 1})
        await line.black_hole(Direction.TO_SERVER)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(consumer.commit({partition: 3}), GIVE_UP_SECONDS)
        assert (await committed_offsets(direct, group))[topic, 0].offset == 1
        await line.pass_all()

        async def landed() -> bool:
            return (await committed_offsets(direct, group))[topic, 0].offset == 3

        await wait_until(landed, deadline_seconds=DEADLINE_SECONDS, what="the abandoned commit")


async def test_one_cancelled_poll_disables_the_poll_interval_for_good(bootstrap_servers: str) -> None:
    topic = await make_topic(bootstrap_servers)
    interval: dict[str, Any] = {"max_poll_interval_ms": 1500}
    async with (
        member(bootstrap_servers, topic, unique_name("group"), **interval) as cancelled,
        member(bootstrap_servers, topic, unique_name("group"), **interval) as control,
    ):
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(cancelled.getone(), 0.1)
        await control.getmany(timeout_ms=100)  # later than the cancelled one, and so fenced later
        await wait_fenced(control)
        assert has_generation(cancelled)


# Offsets


async def test_offsets_and_their_ledger_are_kept_when_the_coordinator_moves(kafka_factory: KafkaFactory) -> None:
    cluster = await kafka_factory(brokers=3)
    topic, group = await make_topic(cluster.bootstrap_servers, records=6), unique_name("group")
    partition = TopicPartition(topic, 0)
    ledger = '{"v":1,"tasks":{"2":{"task":"a","crashes":1}}}'
    async with member(cluster.bootstrap_servers, topic, group) as consumer:
        await consumer.commit({partition: OffsetAndMetadata(2, ledger)})
        assert await consumer.committed(partition) == 2, "the public method returns the bare offset"
        old = await coordinator_of(cluster, group)
        await old.kill()
        await cluster.wait_ready()
        assert (await coordinator_of(cluster, group)).node_id != old.node_id

        survivors = ",".join(broker.address for broker in cluster.brokers if broker is not old)
        expected = {(topic, 0): CommittedOffset(offset=2, metadata=ledger)}

        async def offsets_returned() -> bool:
            # For a moment it returns no commit: see the next test.
            return await committed_offsets(survivors, group) == expected

        await wait_until(
            offsets_returned, deadline_seconds=DEADLINE_SECONDS, what="the new coordinator to return the offsets"
        )
        async with asyncio.timeout(DEADLINE_SECONDS):
            read = await committed_with_metadata(consumer, [partition])
        assert (read[partition].offset, read[partition].metadata) == (2, ledger)
        # The new coordinator knows the member, or the member joins again by itself.
        async with asyncio.timeout(DEADLINE_SECONDS):
            await consumer.commit({partition: OffsetAndMetadata(3, "")})
    assert await committed_offsets(survivors, group) == {(topic, 0): CommittedOffset(offset=3, metadata="")}


@pytest.mark.timeout(420)
async def test_a_new_coordinator_returns_older_offsets_for_a_moment(
    kafka_factory: KafkaFactory,
) -> None:
    # It has every commit, but returns only those that it knows to be on the other replicas, too.
    cluster = await kafka_factory(brokers=3)
    topic, group = await make_topic(cluster.bootstrap_servers), unique_name("group")
    partition = TopicPartition(topic, 0)
    offsets_returned: list[int] = []
    last = 0
    async with member(cluster.bootstrap_servers, topic, group) as consumer:
        await wait_assigned(consumer, 1)
        for _round in range(TAKE_OVERS):
            for _ in range(COMMITS):
                last += 1
                await consumer.commit({partition: last})
            old = await coordinator_of(cluster, group)
            await old.kill()
            survivors = ",".join(broker.address for broker in cluster.brokers if broker is not old)
            offsets_returned = await offsets_read_until(survivors, group, last)
            await old.start()
            await cluster.wait_ready()
            # Two busy brokers may not agree on a controller or a coordinator for long; with the third they do.
            await wait_committed(cluster, group, (topic, 0), last)
            if any(offset < last for offset in offsets_returned):
                break
    assert any(offset < last for offset in offsets_returned), "every coordinator returned the last offset at once"
    log = CommitLog(cluster.bootstrap_servers, group)
    try:
        committed = [commit.offset for commit in await asyncio.to_thread(lambda: list(log.read_to_end()))]
    finally:
        await asyncio.to_thread(log.close)
    assert committed == list(range(1, last + 1)), "the coordinator has lost nothing"


async def wait_committed(cluster: KafkaCluster, group: str, partition: tuple[str, int], offset: int) -> None:
    async def is_returned() -> bool:
        found = (await committed_offsets(cluster.bootstrap_servers, group)).get(partition)
        return found is not None and found.offset == offset

    await wait_until(is_returned, deadline_seconds=DEADLINE_SECONDS, what=f"offset {offset} of {group}")


async def offsets_read_until(bootstrap_servers: str, group: str, last: int) -> list[int]:
    """Read as fast as possible until the last offset is returned or the time is over; return every offset read, 0 for
    none.
    """
    offsets_returned: list[int] = []
    refusals: Counter[str] = Counter()

    def ask() -> None:
        admin = KafkaAdminClient(bootstrap_servers=bootstrap_servers)
        try:
            found = admin.list_group_offsets(group)[group]
            offsets_returned.append(max((offset.offset for offset in found.values()), default=0))
        finally:
            admin.close()

    async def is_last() -> bool:
        try:
            await asyncio.to_thread(ask)
        except ScriptClientError as error:  # no other broker is the coordinator yet
            refusals[repr(error)] += 1
        return offsets_returned[-1:] == [last]

    try:
        await wait_until(is_last, deadline_seconds=ROUND_SECONDS, what="the last offset")
    except WaitExpiredError:
        log.warning("two brokers have not returned offset %d but %s; refusals: %s", last, offsets_returned, refusals)
    return offsets_returned


async def test_a_transaction_marker_at_the_tail_is_a_lag_until_the_position_is_committed(
    bootstrap_servers: str,
) -> None:
    topic, group = await make_topic(bootstrap_servers), unique_name("group")
    partition = TopicPartition(topic, 0)
    async with (
        idempotent_producer(bootstrap_servers, transactional_id=unique_name("tx")) as producer,
        producer.transaction(),
    ):
        for _ in range(3):
            await producer.send_and_wait(topic, b"x", partition=0)
    async with member(bootstrap_servers, topic, group, isolation_level="read_committed") as consumer:
        last = (await poll(consumer, count=3))[-1]
        await consumer.commit({partition: last.offset + 1})
        assert await consumer.committed(partition) == 3
        assert await consumer.end_offsets([partition]) == {partition: 4}

        async def past_the_marker() -> bool:
            assert await consumer.getmany(timeout_ms=100) == {}
            return bool(await consumer.position(partition) == 4)

        await wait_until(past_the_marker, deadline_seconds=DEADLINE_SECONDS, what="the position to pass the marker")
        await consumer.commit({partition: await consumer.position(partition)})
        assert await consumer.committed(partition) == 4


async def test_offsets_with_a_retention_time_of_their_own_outlive_the_brokers(
    own_kafka: KafkaCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = own_kafka.bootstrap_servers
    topic = await make_topic(address, records=2)
    kept, expired = unique_name("kept"), unique_name("expired")

    async def commit_and_leave(group: str) -> None:
        async with member(address, topic, group) as consumer:
            await consumer.commit({TopicPartition(topic, 0): 1})

    with monkeypatch.context() as patch:
        patch.setattr(OffsetCommitRequest, "DEFAULT_RETENTION_TIME", OffsetCommitRequest.DEFAULT_RETENTION_TIME)
        keep_offsets_for(timedelta(days=1))
        await commit_and_leave(kept)
    await commit_and_leave(expired)

    async def gone() -> bool:
        return await committed_offsets(address, expired) == {}

    # This group has been empty for less time than the other one.
    await wait_until(gone, deadline_seconds=150, what="the other group's offset to expire")
    assert (await committed_offsets(address, kept))[topic, 0].offset == 1
