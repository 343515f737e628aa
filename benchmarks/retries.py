"""How late due retries are relayed to their lane while many agents of a pool join and leave.

Broker, lanes, groups, relay and producer are real; agents share one event loop and have stand-in engines that end each
task at once. `relay` is Fluxpool's way: the owner of partition 0 of the lane reads the retry topic without a group.
`group` is the simple way: every agent is a member of another group, on the retry topic. Agents leave and join all the
time; every third one that leaves is the relay. The delay is the time from when a record is due to the timestamp of its
copy on the lane's topic.
"""

import argparse
import asyncio
import contextlib
import random
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Collection, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Final

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.structs import ConsumerRecord
from report import Cell, print_report, quiet_logs

from fluxpool_cli.local.kafka.jars import provide_kafka_libs
from fluxpool_contract.header_names import NOT_BEFORE, ORIGIN_TOPIC
from fluxpool_contract.kafka.connection import KafkaConnection
from fluxpool_contract.kafka.retries import due_headers
from fluxpool_contract.kafka.topics import TopicNames, TopicSpec
from fluxpool_contract.messages.headers import format_time
from fluxpool_contract.settings.worker import Lane, ModelSettings, StorageSettings, WorkerSettings
from fluxpool_transport.kafka.topic_admin import ensure_topics
from fluxpool_transport.kafka.topic_scan import find_ranges, scan
from fluxpool_transport.lag.group_offsets import MemberlessOffsets
from fluxpool_transport.partitioner.load_aware import IdleAwarePartitioner, LoadAwarePartitioner
from fluxpool_worker.agent.connections import build_consumer, build_reliable_producer, build_retry_reader
from fluxpool_worker.agent.consumer.events import LaneEvents
from fluxpool_worker.agent.consumer.lane import LaneConsumer, PartitionLostError
from fluxpool_worker.agent.retry.relay_duty import RelayDuty
from fluxpool_worker.agent.retry.retry_relay import RetryRelay
from fluxpool_worker.agent.task.holds import Holds
from fluxpool_worker.agent.task.outgoing_records import Failure
from fluxpool_worker.agent.task.publisher import OutgoingRecord, ReliablePublisher
from kit.brokers.kafka_cluster import KafkaCluster

WAYS: Final = ("relay", "group")
DELAY_SECONDS: Final = 2.0
JVM_OPTIONS: Final = ("-Xmx1g", "-XX:+UseSerialGC")
FETCH_WAIT_MS: Final = 3000
SETTLE_SECONDS: Final = 300.0
FINISH_SECONDS: Final = 180.0


def settings_of(bootstrap_servers: str, way: str, *, folder: Path) -> WorkerSettings:
    """The settings of all agents of one way."""
    topics = TopicNames(tasks=f"{way}-tasks", retry=(f"{way}-retry-2s",))
    return WorkerSettings(
        kafka=KafkaConnection(bootstrap_servers=(bootstrap_servers,)),
        storage=StorageSettings(url=folder.as_uri()),
        model=ModelSettings(id="none"),
        topics=topics,
        consumer_group=f"{way}-group",
        lanes=(Lane(name="standard", topic=topics.tasks),),
        session_timeout_seconds=45,
        rebalance_timeout_seconds=60,
    )


def patient_consumer(settings: WorkerSettings, *, client_id: str, group: str) -> AIOKafkaConsumer:
    """Like an agent's, but with fewer fetch requests: two hundred agents share the cores of one machine."""
    consumer = build_consumer(settings, client_id=client_id, group=group)
    consumer._fetch_max_wait_ms = FETCH_WAIT_MS  # noqa: SLF001 - agents have no such option
    return consumer


async def nothing_is_undeliverable(record: ConsumerRecord, failure: Failure) -> None:
    """Fail: every record can be relayed here."""
    raise AssertionError(record, failure)


@dataclass(frozen=True, slots=True)
class _Events(LaneEvents):
    wake: asyncio.Event
    duty: RelayDuty | None

    def on_record_waiting(self) -> None:
        self.wake.set()

    def on_assigned(self, partitions: Collection[TopicPartition]) -> None:
        if self.duty is not None:
            self.duty.assigned(partitions)

    async def on_revoked(self) -> None:
        if self.duty is not None:
            await self.duty.revoked()


class Agent:
    """The parts of an agent that retries need."""

    def __init__(self, settings: WorkerSettings, *, way: str, name: str) -> None:
        self._holds = Holds(limit_seconds=3600, outage_seconds=60)
        self.duty = RelayDuty()
        self._settings, self._way, self._name = settings, way, name
        self._publisher = ReliablePublisher(
            partial(build_reliable_producer, settings, client_id=name), holds=self._holds
        )
        self._partitioner = LoadAwarePartitioner(settings.kafka, {settings.consumer_group: settings.topics.tasks})
        self._choice = IdleAwarePartitioner(self._partitioner)
        self._wake, self._retry_wake = asyncio.Event(), asyncio.Event()
        self.lane = self._member(settings.topics.tasks, settings.consumer_group, self._wake, duty=self.duty)
        self._retry_lane = self._member(settings.topics.retry[0], settings.retry_group, self._retry_wake)
        self._relay = RetryRelay(
            settings,
            duty=self.duty,
            build_reader=partial(build_retry_reader, settings, client_id=name),
            offsets=MemberlessOffsets(settings.kafka, client_id=name, retention=timedelta(days=1)),
            ask_topic_id=self._no_id,
            publisher=self._publisher,
            choice=self._choice,
            fail=nothing_is_undeliverable,
        )
        self._tasks: list[asyncio.Task[None]] = []

    @staticmethod
    async def _no_id(_topic: str = "") -> None:
        return None

    def _member(self, topic: str, group: str, wake: asyncio.Event, *, duty: RelayDuty | None = None) -> LaneConsumer:
        return LaneConsumer(
            name=topic,
            topic=topic,
            build_consumer=partial(patient_consumer, self._settings, client_id=self._name, group=group),
            ask_topic_id=self._no_id,
            events=_Events(wake, duty),
            holds=self._holds,
            revoke_wait_seconds=1,
        )

    @property
    def relays(self) -> bool:
        """Whether this agent relays, all retries or some of them."""
        return self.duty.is_held

    def start(self) -> None:
        """Join; return at once."""
        work = [self.lane.run(), self._end_tasks(), self._choice.run()]
        work += [self._relay.run()] if self._way == "relay" else [self._retry_lane.run(), self._relay_by_group()]
        self._tasks = [asyncio.create_task(item) for item in work]

    async def leave(self) -> None:
        """Leave like a draining agent."""
        self._relay.stop()
        lanes = [self.lane, self._retry_lane] if self._way == "group" else [self.lane]
        for lane in lanes:
            lane.stop_intake()
        await asyncio.gather(*(lane.leave() for lane in lanes))
        await asyncio.wait(self._tasks, timeout=5)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._publisher.stop()

    async def _end_tasks(self) -> None:
        while True:
            self._wake.clear()
            while (claimed := self.lane.claim_next()) is not None:
                with contextlib.suppress(PartitionLostError):
                    await self.lane.finish(claimed)
            await self._wake.wait()

    async def _relay_by_group(self) -> None:
        topic = self._settings.topics.tasks
        while True:
            self._retry_wake.clear()
            while (claimed := self._retry_lane.claim_next()) is not None:
                record = claimed.record
                due = datetime.fromisoformat(dict(record.headers)[NOT_BEFORE].decode()).timestamp()
                await asyncio.sleep(max(0.0, due - time.time()))
                await self._publisher.publish(
                    OutgoingRecord(topic=topic, key=record.key, value=record.value, headers=due_headers(record.headers))
                )
                with contextlib.suppress(PartitionLostError):
                    await self._retry_lane.finish(claimed)
            await self._retry_wake.wait()


async def send_retries(settings: WorkerSettings, *, count: int, per_second: float) -> dict[str, float]:
    """Put records on the retry topic at that rate; return when each is due."""
    holds = Holds(limit_seconds=3600, outage_seconds=60)
    publisher = ReliablePublisher(partial(build_reliable_producer, settings, client_id="sender"), holds=holds)
    due: dict[str, float] = {}
    begin = time.monotonic()
    for number in range(count):
        await asyncio.sleep(max(0.0, begin + number / per_second - time.monotonic()))
        key = f"task-{number}"
        due[key] = time.time() + DELAY_SECONDS * random.uniform(1, 1.2)  # noqa: S311
        moment = datetime.fromtimestamp(due[key], UTC)
        headers = [(ORIGIN_TOPIC, settings.topics.tasks.encode()), (NOT_BEFORE, format_time(moment).encode())]
        await publisher.publish(
            OutgoingRecord(topic=settings.topics.retry[0], key=key.encode(), value=b"{}", headers=headers)
        )
    await publisher.stop()
    return due


@contextlib.asynccontextmanager
async def churning(
    agents: list[Agent], settings: WorkerSettings, *, way: str, seconds: float
) -> AsyncIterator[list[int]]:
    """Repeatedly let one agent leave and another join; yield counts of [changes, changes of the relay]."""
    changes = [0, 0]

    async def churn() -> None:
        while True:
            await asyncio.sleep(seconds)
            relaying = [agent for agent in agents if agent.relays]
            is_relay = changes[0] % 3 == 2 and bool(relaying)
            leaver = relaying[0] if is_relay else random.choice(agents)  # noqa: S311
            agents.remove(leaver)
            joiner = Agent(settings, way=way, name=f"{way}-joiner-{changes[0]}")
            joiner.start()
            agents.append(joiner)
            await leaver.leave()
            changes[0] += 1
            changes[1] += is_relay

    task = asyncio.create_task(churn())
    try:
        yield changes
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def copies(settings: WorkerSettings) -> dict[str, list[float]]:
    """When each task was relayed to its lane, in seconds since 1970."""
    found: dict[str, list[float]] = {}
    ranges = (await find_ranges(settings.kafka, [settings.topics.tasks]))[settings.topics.tasks] or ()
    async for records in scan(settings.kafka, ranges):
        for record in records:
            found.setdefault(record.key.decode(), []).append(record.timestamp / 1000)
    return found


async def measure(way: str, cluster: KafkaCluster, options: argparse.Namespace, *, folder: Path) -> dict[str, Cell]:
    """One way: settle, then send under churn, then count."""
    settings = settings_of(cluster.bootstrap_servers, way, folder=folder)
    specs = [
        TopicSpec(name=settings.topics.tasks, partitions=options.agents + 8, replication_factor=1),
        TopicSpec(name=settings.topics.retry[0], partitions=3, replication_factor=1),
    ]
    await ensure_topics(settings.kafka, specs)
    agents = [Agent(settings, way=way, name=f"{way}-{number}") for number in range(options.agents)]
    began = time.monotonic()
    for agent in agents:
        agent.start()
        await asyncio.sleep(0.02)
    async with asyncio.timeout(SETTLE_SECONDS):
        while not all(agent.lane.is_joined for agent in agents):  # noqa: ASYNC110 - there is no event to wait for
            await asyncio.sleep(0.2)
    settled = time.monotonic() - began
    async with churning(agents, settings, way=way, seconds=options.churn_seconds) as changes:
        due = await send_retries(settings, count=options.tasks, per_second=options.rate)
        ends_at = time.monotonic() + FINISH_SECONDS
        while len(found := await copies(settings)) < len(due) and time.monotonic() < ends_at:  # noqa: ASYNC110 - as above
            await asyncio.sleep(1)
    await asyncio.gather(*(agent.leave() for agent in agents))
    late = sorted(min(found[key]) - at for key, at in due.items() if key in found)

    def quantile(share: float) -> float | None:
        return round(late[min(len(late) - 1, int(share * len(late)))], 2) if late else None

    return {
        "way": way,
        "agents": options.agents,
        "settled_s": round(settled, 1),
        "changes": changes[0],
        "relay_changes": changes[1],
        "tasks": len(due),
        "late_p50_s": quantile(0.5),
        "late_p95_s": quantile(0.95),
        "late_max_s": quantile(1.0),
        "doubled": sum(len(times) > 1 for times in found.values()),
        "lost": len(due) - len(found),
    }


async def run(options: argparse.Namespace) -> list[dict[str, Cell]]:
    """All ways, one after the other, each on a separate broker."""
    rows = []
    for way in options.ways:
        with tempfile.TemporaryDirectory(prefix="fluxpool-retries-") as folder:
            async with KafkaCluster(Path(folder), libs=provide_kafka_libs(), jvm_options=JVM_OPTIONS) as cluster:
                rows.append(await measure(way, cluster, options, folder=Path(folder)))
                print(rows[-1], file=sys.stderr)
    return rows


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit 1 when a retry was lost by the relay."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--agents", type=int, default=200)
    parser.add_argument("--tasks", type=int, default=600)
    parser.add_argument("--rate", type=float, default=5.0, help="retries a second")
    parser.add_argument("--churn-seconds", type=float, default=4.0, help="from one agent's leaving to the next one's")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    quiet_logs("aiokafka")
    rows = asyncio.run(run(options))
    print_report(ratios={}, rows=rows, as_json=options.json)
    return int(any(row["lost"] for row in rows if row["way"] == "relay"))


if __name__ == "__main__":
    sys.exit(main())
