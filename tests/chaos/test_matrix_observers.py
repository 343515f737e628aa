"""Readings of a group's lag while its coordinator moves and loads: correct, or marked as unknown."""

import asyncio
import gc
from collections.abc import Awaitable, Callable, Iterator, Mapping
from pathlib import Path

import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.structs import OffsetAndMetadata
from confluent_kafka import ElectionType, KafkaException
from confluent_kafka.admin import AdminClient

from fluxpool_contract.kafka.ledger import LedgerEntry, encode_ledger
from fluxpool_operator.backlog import LaneTarget
from kit.brokers.kafka import create_topics, produce, running_kafka, unique_name
from kit.brokers.kafka_cluster import ClusterBroker, KafkaCluster
from kit.faults.backlog_watch import BacklogWatch, KnownPartition
from kit.faults.chaos_kafka import coordinator_of
from kit.waiting import wait_until

# An observer that ends before its client has its first metadata leaves aiokafka's bootstrap connection open.
LEFT_OPEN = (
    r"Exception ignored in. <(socket\.socket|function (StreamWriter|_SelectorTransport|AIOKafkaConnection)\.__del__)"
)
pytestmark = [
    pytest.mark.kafka,
    pytest.mark.timeout(420),
    pytest.mark.filterwarnings(f"ignore:{LEFT_OPEN}:pytest.PytestUnraisableExceptionWarning"),
]

EVENT_SECONDS = 120.0
RECORDS = {0: 9, 1: 5, 2: 3}
COMMITTED = {0: 4, 1: 0, 2: 3}
IN_FLIGHT = {0: (4, 5), 1: (0,), 2: ()}
TRUTH = {
    0: KnownPartition(pending_records=3, in_flight=((4, "task-4"), (5, "task-5"))),
    1: KnownPartition(pending_records=4, in_flight=((0, "task-0"),)),
    2: KnownPartition(pending_records=0, in_flight=()),
}

# So that a coordinator has much to load before it can respond.
COMMITTERS = 8
COMMITS_OF_EACH = 50
PARTITIONS_OF_A_COMMIT = 60
ONE_AT_A_TIME = {
    "group.coordinator.threads": "1",
    "group.coordinator.append.linger.ms": "0",
    "offsets.load.buffer.size": "1024",
}


@pytest.fixture(autouse=True)
def nothing_is_left_to_other_tests() -> Iterator[None]:
    yield
    gc.collect()


@pytest.fixture(scope="module")
def three_brokers(kafka_libs: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[KafkaCluster]:
    data_dir = tmp_path_factory.mktemp("three-brokers")
    with running_kafka(data_dir, libs=kafka_libs, brokers=3, extra_properties=ONE_AT_A_TIME) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def target(three_brokers: KafkaCluster) -> LaneTarget:
    """A lane with a backlog and tasks in flight, and a coordinator that has much else to load."""
    target = LaneTarget(name="standard", topic=unique_name("lane"), consumer_group=unique_name("group"))
    # A loop factory keeps the runner from replacing the thread's current loop, which is pytest-asyncio's.
    with asyncio.Runner(loop_factory=asyncio.new_event_loop) as runner:
        runner.run(fill(three_brokers.bootstrap_servers, target))
    return target


@pytest.fixture
async def lane(three_brokers: KafkaCluster, target: LaneTarget) -> LaneTarget:
    """The same with every broker running and leading its preferred partitions."""
    await three_brokers.start()
    await three_brokers.wait_ready()
    await elect_preferred_leaders(three_brokers)
    return target


async def fill(servers: str, target: LaneTarget) -> None:
    topic, other_topic, group = target.topic, unique_name("other"), target.consumer_group
    await create_topics(servers, {topic: len(RECORDS), other_topic: PARTITIONS_OF_A_COMMIT})
    for number, count in RECORDS.items():
        await produce(servers, topic, [(None, b"x")] * count, partition=number)
    await commit(servers, group, {TopicPartition(topic, number): lane_commit(number) for number in RECORDS})
    others = [TopicPartition(other_topic, number) for number in range(PARTITIONS_OF_A_COMMIT)]
    filler = dict.fromkeys(others, OffsetAndMetadata(0, "x" * 64))
    await asyncio.gather(*(commit(servers, group, filler, times=COMMITS_OF_EACH) for _ in range(COMMITTERS)))


def lane_commit(number: int) -> OffsetAndMetadata:
    ledger = {
        offset: LedgerEntry(task=f"task-{offset}", worker="pod-a", started_at=1_700_000_000)
        for offset in IN_FLIGHT[number]
    }
    return OffsetAndMetadata(COMMITTED[number], encode_ledger(ledger))


async def commit(
    bootstrap_servers: str, group: str, offsets: Mapping[TopicPartition, OffsetAndMetadata], *, times: int = 1
) -> None:
    """Commit repeatedly for a group without members: each commit is one more record to load."""
    consumer = AIOKafkaConsumer(bootstrap_servers=bootstrap_servers, group_id=group, enable_auto_commit=False)
    await consumer.start()
    try:
        consumer.assign(list(offsets))
        for _ in range(times):
            await consumer.commit(dict(offsets))
    finally:
        await consumer.stop()


async def elect_preferred_leaders(cluster: KafkaCluster) -> None:
    """Elect the preferred leader of every partition: the coordinators move with every broker alive."""
    admin = AdminClient({"bootstrap.servers": cluster.bootstrap_servers})

    async def elected() -> bool:
        try:
            outcomes = await asyncio.wrap_future(admin.elect_leaders(ElectionType.PREFERRED))
        except KafkaException:
            return False
        return all(error is None for error in outcomes.values())

    await wait_until(elected, deadline_seconds=EVENT_SECONDS, what="every preferred broker to lead")


async def kill(cluster: KafkaCluster, group: str) -> None:
    old = await coordinator_of(cluster, group)
    await old.kill()
    await cluster.wait_ready()
    assert await coordinator_of(cluster, group) is not old


async def kill_and_restart(cluster: KafkaCluster, group: str) -> None:
    old = await coordinator_of(cluster, group)
    await old.kill()
    await cluster.wait_ready()
    await old.start()
    await cluster.wait_ready()
    await elect_preferred_leaders(cluster)
    await wait_until(
        lambda: coordinates(cluster, group, old), deadline_seconds=EVENT_SECONDS, what="the coordinator to be back"
    )


async def coordinates(cluster: KafkaCluster, group: str, broker: ClusterBroker) -> bool:
    return await coordinator_of(cluster, group) is broker


async def restart(cluster: KafkaCluster, group: str) -> None:
    old = await coordinator_of(cluster, group)
    await old.stop()
    await old.start()
    await cluster.wait_ready()


async def restart_all(cluster: KafkaCluster, _group: str) -> None:
    await cluster.stop()
    await cluster.start()
    await cluster.wait_ready()


@pytest.mark.parametrize("move", [kill, kill_and_restart, restart, restart_all])
async def test_lag_read_while_the_coordinator_moves_and_loads_is_correct_or_unknown(
    three_brokers: KafkaCluster, lane: LaneTarget, move: Callable[[KafkaCluster, str], Awaitable[None]]
) -> None:
    async with BacklogWatch(three_brokers.bootstrap_servers, lane, TRUTH) as watch:
        await watch.wait_seen_whole(deadline_seconds=EVENT_SECONDS)
        await move(three_brokers, lane.consumer_group)
        await watch.wait_seen_whole(deadline_seconds=EVENT_SECONDS)
    assert watch.broken == []
    assert [observer.name for observer in watch.standing_observers if not observer.problems] == []
