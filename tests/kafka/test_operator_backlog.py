"""The backlogs that the operator reads on a real broker."""

import asyncio
import math
import time
from collections.abc import AsyncIterator, Callable

import pytest
import structlog
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.structs import OffsetAndMetadata
from confluent_kafka import TopicPartition as AdminPartition
from confluent_kafka.admin import AdminClient

from fluxpool_contract.header_names import ORIGIN_TOPIC
from fluxpool_contract.kafka.connection import KafkaConnection
from fluxpool_contract.kafka.ledger import LedgerEntry, encode_ledger
from fluxpool_contract.kafka.retries import former_scheduler_group, retry_offset_text
from fluxpool_operator.backlog import BacklogHub, LaneObservation, LaneTarget, PoolBacklog
from fluxpool_operator.backlog.memory import CONFIRMING_SECONDS
from fluxpool_operator.backlog.observation import RetryTier
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


class _Pool:
    """A pool with one lane, read on demand, with its own clock."""

    def __init__(self, hub: BacklogHub, bootstrap_servers: str, target: LaneTarget) -> None:
        self.target = target
        self._hub = hub
        self._connection = _connection(bootstrap_servers)
        self._backlog = PoolBacklog([target], {})
        self.now_seconds = 0.0

    async def read(self) -> LaneObservation:
        self._backlog.update(await self._hub.read(self._connection, [self.target]), self.now_seconds)
        return self.observe()

    def observe(self) -> LaneObservation:
        (lane,) = self._backlog.observe(self.now_seconds, time.time())
        return lane

    async def read_until(self, is_so: Callable[[LaneObservation], bool], *, what: str) -> LaneObservation:
        """Read until the condition is true: brokers learn of a new topic or marker at different times."""

        async def read() -> list[LaneObservation]:
            lane = await self.read()
            return [lane] if is_so(lane) else []

        return (await wait_until(read, deadline_seconds=DEADLINE_SECONDS, what=f"{what}: {self.observe()}"))[0]

    async def read_whole(self) -> LaneObservation:
        return await self.read_until(_is_whole, what="a whole reading")


def _is_whole(lane: LaneObservation) -> bool:
    return lane.problem is None and lane.age_seconds == 0


async def _pool(
    hub: BacklogHub, bootstrap_servers: str, *, records: dict[int, int], partitions: int = 2, **fields: object
) -> _Pool:
    topic = unique_name("lane")
    await create_topics(bootstrap_servers, {topic: partitions})
    for number, count in records.items():
        await produce(bootstrap_servers, topic, [(None, b"x")] * count, partition=number)
    target = LaneTarget(name="standard", topic=topic, consumer_group=unique_name("group"), **fields)  # type: ignore[arg-type]
    return _Pool(hub, bootstrap_servers, target)


async def _commit(bootstrap_servers: str, target: LaneTarget, offsets: dict[int, tuple[int, str]]) -> None:
    connection = _connection(bootstrap_servers)
    consumer = AIOKafkaConsumer(
        group_id=target.consumer_group, enable_auto_commit=False, **aiokafka_options(connection, client_id="test")
    )
    await consumer.start()
    try:
        consumer.assign([TopicPartition(target.topic, number) for number in offsets])
        await consumer.commit(
            {TopicPartition(target.topic, number): OffsetAndMetadata(*entry) for number, entry in offsets.items()}
        )
    finally:
        await consumer.stop()


async def _delete_records(bootstrap_servers: str, topic: str, *, before: int) -> None:
    admin = AdminClient({"bootstrap.servers": bootstrap_servers})
    for future in admin.delete_records([AdminPartition(topic, 0, before)]).values():
        await asyncio.wrap_future(future)


async def _produce_in_transaction(bootstrap_servers: str, topic: str, *, count: int) -> None:
    producer = AIOKafkaProducer(
        transactional_id=unique_name("transaction"),
        **aiokafka_options(_connection(bootstrap_servers), client_id="test"),
    )
    await producer.start()
    try:
        async with producer.transaction():
            for _ in range(count):
                await producer.send_and_wait(topic, b"y", partition=0)
    finally:
        await producer.stop()


async def _produce_at(bootstrap_servers: str, topic: str, ages_seconds: list[float]) -> None:
    """Records on partition 0 with timestamps this long ago."""
    producer = AIOKafkaProducer(**aiokafka_options(_connection(bootstrap_servers), client_id="test"))
    await producer.start()
    try:
        for age in ages_seconds:
            stamp = int((time.time() - age) * 1000)
            await producer.send_and_wait(topic, b"x", partition=0, timestamp_ms=stamp)
    finally:
        await producer.stop()


async def test_tasks_are_pending_unless_the_ledger_has_them(hub: BacklogHub, bootstrap_servers: str) -> None:
    pool = await _pool(hub, bootstrap_servers, records={0: 5, 1: 3})
    ledger = encode_ledger({2: LedgerEntry(task="t-2", worker="pod-a", started_at=1_700_000_000)})
    await _commit(bootstrap_servers, pool.target, {0: (2, ledger), 1: (3, "")})
    lane = await pool.read_whole()
    assert [item.pending_records for item in lane.partitions] == [2, 0]
    in_flight = [(item.partition, offset) for item in lane.partitions for offset in item.in_flight]
    assert (in_flight, [entry.worker for entry in lane.in_flight]) == ([(0, 2)], ["pod-a"])


async def test_all_retained_records_of_a_group_without_commits_are_pending(
    hub: BacklogHub, bootstrap_servers: str
) -> None:
    pool = await _pool(hub, bootstrap_servers, records={0: 5})
    await _delete_records(bootstrap_servers, pool.target.topic, before=2)
    lane = await pool.read_until(lambda lane: _is_whole(lane) and lane.pending_records == 3, what="three records")
    assert (lane.expired_records_total, lane.member_count) == (0, 0)


async def test_records_deleted_by_retention_are_counted_once(hub: BacklogHub, bootstrap_servers: str) -> None:
    pool = await _pool(hub, bootstrap_servers, records={0: 9})
    await _commit(bootstrap_servers, pool.target, {0: (2, "")})
    assert (await pool.read_whole()).pending_records == 7
    await _delete_records(bootstrap_servers, pool.target.topic, before=6)
    # Log start offsets are read again after some seconds.
    lane = await pool.read_until(lambda lane: lane.expired_records_total > 0, what="the loss")
    assert (lane.expired_records_total, lane.pending_records) == (4, 3)
    assert (await pool.read_whole()).expired_records_total == 4


async def test_a_recreated_topic_keeps_its_last_values_and_is_then_counted_from_its_start(
    hub: BacklogHub, bootstrap_servers: str
) -> None:
    pool = await _pool(hub, bootstrap_servers, records={0: 9}, partitions=1)
    await _commit(bootstrap_servers, pool.target, {0: (9, "")})
    assert (await pool.read_whole()).pending_records == 0
    admin = AdminClient({"bootstrap.servers": bootstrap_servers})
    await asyncio.wrap_future(admin.delete_topics([pool.target.topic])[pool.target.topic])

    async def made_again() -> bool:
        described = await asyncio.to_thread(admin.list_topics, timeout=10)
        return pool.target.topic not in described.topics

    await wait_until(made_again, deadline_seconds=DEADLINE_SECONDS, what="the end of the topic")
    await create_topics(bootstrap_servers, {pool.target.topic: 1})
    await produce(bootstrap_servers, pool.target.topic, [(None, b"x")] * 3, partition=0)
    # A broker deletes the offsets of a deleted topic; a mirrored or restored cluster may still have them.
    await _commit(bootstrap_servers, pool.target, {0: (9, "")})
    held = await pool.read_until(lambda lane: "past the log end" in (lane.problem or ""), what="a commit past the end")
    assert held.pending_records == 0
    pool.now_seconds = CONFIRMING_SECONDS + 1
    lane = await pool.read_until(_is_whole, what="the confirmation")
    assert (lane.pending_records, lane.expired_records_total) == (3, 0)


async def test_transaction_markers_at_the_tail_are_not_pending(hub: BacklogHub, bootstrap_servers: str) -> None:
    pool = await _pool(hub, bootstrap_servers, records={0: 1}, partitions=1)
    await _produce_in_transaction(bootstrap_servers, pool.target.topic, count=2)
    # Three records at 0-2, the marker at 3: the consumer of the last record commits 3, and the end is 4.
    await pool.read_until(lambda lane: _is_whole(lane) and lane.pending_records == 4, what="the marker")
    await _commit(bootstrap_servers, pool.target, {0: (3, "")})
    await pool.read_until(lambda lane: _is_whole(lane) and lane.pending_records == 0, what="an empty lane")
    await produce(bootstrap_servers, pool.target.topic, [(None, b"x")], partition=0)
    lane = await pool.read_until(lambda lane: lane.oldest_age_seconds is not None, what="the next record")
    assert lane.pending_records == 1


async def test_the_oldest_age_is_that_of_the_first_pending_record(hub: BacklogHub, bootstrap_servers: str) -> None:
    pool = await _pool(hub, bootstrap_servers, records={}, partitions=1)
    await _produce_at(bootstrap_servers, pool.target.topic, [900, 600, 300])
    ledger = encode_ledger({1: LedgerEntry(task="t-1", worker="pod-a", started_at=1_700_000_000)})
    await _commit(bootstrap_servers, pool.target, {0: (1, ledger)})
    lane = await pool.read_until(lambda lane: lane.oldest_age_seconds is not None, what="an age")
    assert lane.oldest_age_seconds is not None
    assert 300 <= lane.oldest_age_seconds < 500
    assert lane.pending_records == 1


async def _retry_at(bootstrap_servers: str, topic: str, records: list[tuple[str | None, float]]) -> None:
    """Records on partition 0 of a retry topic, by origin, with timestamps this long ago."""
    producer = AIOKafkaProducer(**aiokafka_options(_connection(bootstrap_servers), client_id="test"))
    await producer.start()
    try:
        for origin, age in records:
            headers = [] if origin is None else [(ORIGIN_TOPIC, origin.encode())]
            stamp = int((time.time() - age) * 1000)
            await producer.send_and_wait(topic, b"x", partition=0, timestamp_ms=stamp, headers=headers)
    finally:
        await producer.stop()


def _tier(topic: str, *origins: str, group: str) -> RetryTier:
    return RetryTier(topic=topic, group=group, delay_seconds=60, origins=origins)


async def test_only_own_retries_that_are_due_and_not_relayed_count(hub: BacklogHub, bootstrap_servers: str) -> None:
    first, second, empty = (unique_name("retry") for _ in range(3))
    await create_topics(bootstrap_servers, {first: 1, second: 2, empty: 1})
    ours, theirs = unique_name("group"), unique_name("group")
    pool = await _pool(
        hub,
        bootstrap_servers,
        records={},
        retry_tiers=tuple(_tier(topic, "ours", group=ours) for topic in (first, second, empty)),
    )
    other = await _pool(hub, bootstrap_servers, records={}, retry_tiers=(_tier(first, "theirs", group=theirs),))
    await _retry_at(bootstrap_servers, first, [("ours", 400), ("ours", 300), ("theirs", 200), ("ours", 100)])
    await _retry_at(bootstrap_servers, first, [("ours", 90), ("ours", 30), (None, 400), ("unknown", 400)])
    relayed = LaneTarget(name="retries", topic=first, consumer_group=ours)
    text = retry_offset_text(commit_offset=1, relayed=[3], topic_id=None)
    await _commit(bootstrap_servers, relayed, {0: (1, text)})

    lane = await pool.read_until(lambda lane: lane.due_retries == 2, what="the two that are due")
    assert (await other.read_until(lambda lane: lane.due_retries == 1, what="the other pool's")).problem is None
    await _retry_at(bootstrap_servers, second, [("ours", 90), ("theirs", 90)])
    lane = await pool.read_until(lambda lane: lane.due_retries != 2, what="more due retries")
    assert (lane.due_retries, lane.problem) == (3, None)

    await _commit(bootstrap_servers, relayed, {0: (8, "")})
    await pool.read_until(lambda lane: lane.due_retries == 1, what="the rest to be relayed")
    assert (await other.read_whole()).due_retries == 1


async def test_retries_that_earlier_versions_relayed_are_not_due(hub: BacklogHub, bootstrap_servers: str) -> None:
    topic = unique_name("retry")
    await create_topics(bootstrap_servers, {topic: 1})
    tier = _tier(topic, "ours", group=unique_name("group"))
    pool = await _pool(hub, bootstrap_servers, records={}, retry_tiers=(tier,))
    await _retry_at(bootstrap_servers, topic, [("ours", 400), ("ours", 300), ("ours", 200)])
    former = LaneTarget(name="former", topic=topic, consumer_group=former_scheduler_group(topic))
    await _commit(bootstrap_servers, former, {0: (2, "")})
    assert (await pool.read_until(lambda lane: lane.due_retries > 0, what="due retries")).due_retries == 1


async def test_an_unreadable_retry_topic_ages_the_lane_and_is_reported_as_its_problem(
    hub: BacklogHub, bootstrap_servers: str
) -> None:
    missing = _tier(unique_name("retry"), "ours", group=unique_name("group"))
    pool = await _pool(hub, bootstrap_servers, records={0: 2}, retry_tiers=(missing,))
    lane = await pool.read_until(lambda lane: lane.pending_records == 2, what="the lane")
    assert (lane.due_retries, lane.age_seconds) == (0, math.inf)
    assert missing.topic in (lane.problem or "")


async def test_retries_of_a_recreated_topic_are_counted_again(hub: BacklogHub, bootstrap_servers: str) -> None:
    topic = unique_name("retry")
    await create_topics(bootstrap_servers, {topic: 1})
    tier = _tier(topic, "ours", group=unique_name("group"))
    pool = await _pool(hub, bootstrap_servers, records={}, retry_tiers=(tier,))
    await _retry_at(bootstrap_servers, topic, [("ours", 400), ("ours", 300), ("ours", 200)])
    await pool.read_until(lambda lane: lane.due_retries == 3, what="due retries")
    admin = AdminClient({"bootstrap.servers": bootstrap_servers})
    await asyncio.wrap_future(admin.delete_topics([topic])[topic])
    await create_topics(bootstrap_servers, {topic: 1})
    await _retry_at(bootstrap_servers, topic, [("ours", 400)])
    await pool.read_until(lambda lane: lane.due_retries == 1, what="the new topic")


async def test_pools_in_one_request_get_their_own_readings_and_problems(
    hub: BacklogHub, bootstrap_servers: str
) -> None:
    pools = [await _pool(hub, bootstrap_servers, records={0: count}) for count in (1, 2, 3)]
    lost = _Pool(
        hub, bootstrap_servers, LaneTarget(name="lost", topic="no-such-topic", consumer_group=unique_name("group"))
    )
    for pool in pools:
        await pool.read_whole()
    lanes = await asyncio.gather(*(pool.read() for pool in (*pools, lost)))
    assert [lane.pending_records for lane in lanes] == [1, 2, 3, 0]
    assert [lane.problem is None for lane in lanes] == [True, True, True, False]
    assert "no-such-topic" in (lanes[3].problem or "")


async def test_a_cancelled_request_does_not_disturb_the_others(hub: BacklogHub, bootstrap_servers: str) -> None:
    pool = await _pool(hub, bootstrap_servers, records={0: 2})
    await pool.read_whole()
    gone = asyncio.create_task(pool.read())
    other = asyncio.create_task(pool.read())
    await asyncio.sleep(0)
    gone.cancel()
    assert (await other).pending_records == 2


async def test_an_unreachable_broker_ages_the_lag_until_it_returns(
    kafka_factory: KafkaFactory,
) -> None:
    cluster = await kafka_factory()
    (broker,) = cluster.brokers
    async with BacklogHub(deadline_seconds=3) as hub:
        pool = await _pool(hub, cluster.bootstrap_servers, records={0: 2})
        assert (await pool.read_whole()).pending_records == 2
        await broker.kill()
        pool.now_seconds = 10.0
        lane = await pool.read()
        assert (lane.pending_records, lane.age_seconds, lane.problem is None) == (2, 10.0, False)
        await broker.start()
        lane = await pool.read_whole()
        assert lane.pending_records == 2


async def test_an_unused_connection_is_closed_and_opened_again_when_needed(bootstrap_servers: str) -> None:
    async with BacklogHub(deadline_seconds=10, unused_seconds=0.0) as hub:
        first = await _pool(hub, bootstrap_servers, records={0: 2})
        await first.read_whole()
        with structlog.testing.capture_logs() as logs:
            # Another address of the same broker uses another connection.
            other = _Pool(hub, bootstrap_servers.replace("127.0.0.1", "localhost"), first.target)
            assert (await other.read_whole()).pending_records == 2
        assert "backlog_connection_closed" in [entry["event"] for entry in logs]
        assert (await first.read_whole()).pending_records == 2


async def test_a_cluster_with_a_new_address_is_found_again(kafka_factory: KafkaFactory) -> None:
    first, second = await kafka_factory(), await kafka_factory()
    await second.brokers[0].kill()
    both = f"{first.bootstrap_servers},{second.bootstrap_servers}"
    async with BacklogHub(deadline_seconds=3) as hub:
        before = await _pool(hub, first.bootstrap_servers, records={0: 2})
        pool = _Pool(hub, both, before.target)
        assert (await pool.read_whole()).pending_records == 2
        watching, woken = asyncio.Event(), asyncio.Event()
        hub.wake_when_grown("pool", _connection(both), {(pool.target.topic, 1): 0}, woken.set)
        hub.wake_when_grown("other", _connection(both), {(pool.target.topic, 0): 0}, watching.set)
        async with asyncio.timeout(DEADLINE_SECONDS):
            await watching.wait()
        await first.brokers[0].kill()
        await second.brokers[0].start()
        await second.wait_ready()
        await create_topics(second.bootstrap_servers, {pool.target.topic: 2})
        await produce(second.bootstrap_servers, pool.target.topic, [(None, b"x")] * 3, partition=0)
        await pool.read_until(lambda lane: _is_whole(lane) and lane.pending_records == 3, what="the other address")
        await produce(second.bootstrap_servers, pool.target.topic, [(None, b"x")], partition=1)
        async with asyncio.timeout(DEADLINE_SECONDS):
            await woken.wait()
