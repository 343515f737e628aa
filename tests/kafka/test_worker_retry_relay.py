"""The relay of due retries beside its lane's group, on the real broker."""

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from datetime import timedelta
from functools import partial
from pathlib import Path

import pytest
from aiokafka import TopicPartition
from aiokafka.structs import ConsumerRecord

from fluxpool_contract.header_names import ORIGIN_TOPIC
from fluxpool_contract.kafka.connection import KafkaConnection
from fluxpool_contract.kafka.topics import TopicNames
from fluxpool_contract.settings.worker import Lane, ModelSettings, StorageSettings, WorkerSettings
from fluxpool_transport.lag.group_offsets import MemberlessOffsets
from fluxpool_transport.partitioner.load_aware import IdleAwarePartitioner, LoadAwarePartitioner
from fluxpool_worker.agent.connections import build_reliable_producer, build_retry_reader
from fluxpool_worker.agent.retry.relay_duty import RelayDuty
from fluxpool_worker.agent.retry.retry_relay import RetryRelay
from fluxpool_worker.agent.task.holds import Holds
from fluxpool_worker.agent.task.outgoing_records import Failure
from fluxpool_worker.agent.task.publisher import ReliablePublisher
from kit.brokers.kafka import create_topics, produce
from kit.waiting import PATIENCE, wait_until

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(90)]

DELAY_SECONDS = PATIENCE
OBSERVED_SECONDS = 2 * DELAY_SECONDS
BUSY_SHARE = 0.5
"""Of one core: a loop that does not wait takes all of it; a relay at rest takes next to nothing."""


async def nothing_is_undeliverable(record: ConsumerRecord, failure: Failure) -> None:
    """Fail: every record can be relayed here."""
    raise AssertionError(record, failure)


def settings_of(bootstrap_servers: str, folder: Path) -> WorkerSettings:
    name = f"relay-{uuid.uuid4().hex[:8]}"
    topics = TopicNames(tasks=f"{name}-tasks", retry=(f"{name}-retry",))
    return WorkerSettings(
        kafka=KafkaConnection(bootstrap_servers=(bootstrap_servers,)),
        storage=StorageSettings(url=folder.as_uri()),
        model=ModelSettings(id="none"),
        topics=topics,
        retry_delays=(f"{DELAY_SECONDS:g}s",),
        consumer_group=f"{name}-workers",
        lanes=(Lane(name="standard", topic=topics.tasks),),
    )


async def no_topic_id(_topic: str) -> None:
    return None


@asynccontextmanager
async def running_relay(settings: WorkerSettings, *, duty: RelayDuty) -> AsyncIterator[list[str]]:
    """A relay with real clients; the test reports assignments as its lane would. Gives what it relayed."""
    relayed, name = list[str](), settings.consumer_group
    publisher = ReliablePublisher(
        partial(build_reliable_producer, settings, client_id=name), holds=Holds(limit_seconds=60, outage_seconds=10)
    )
    choice = IdleAwarePartitioner(
        LoadAwarePartitioner(settings.kafka, {settings.consumer_group: settings.topics.tasks})
    )
    relay = RetryRelay(
        settings,
        duty=duty,
        build_reader=partial(build_retry_reader, settings, client_id=name),
        offsets=MemberlessOffsets(settings.kafka, client_id=name, retention=timedelta(days=1)),
        ask_topic_id=no_topic_id,
        publisher=publisher,
        choice=choice,
        fail=nothing_is_undeliverable,
        on_relayed=relayed.append,
    )
    choosing, relaying = asyncio.create_task(choice.run()), asyncio.create_task(relay.run())
    try:
        yield relayed
    finally:
        relay.stop()
        await relaying
        choosing.cancel()
        await asyncio.gather(choosing, return_exceptions=True)
        await publisher.stop()


async def due_retries(settings: WorkerSettings, keys: Collection[bytes]) -> None:
    headers = [(ORIGIN_TOPIC, settings.topics.tasks.encode())]
    bodies = [(key, b"{}") for key in keys]
    await produce(settings.kafka.bootstrap_servers[0], settings.topics.retry[0], bodies, headers=headers)


async def test_due_retries_wait_for_a_rebalance_and_leave_the_event_loop_to_it(
    bootstrap_servers: str, tmp_path: Path
) -> None:
    settings, duty = settings_of(bootstrap_servers, tmp_path), RelayDuty()
    await create_topics(bootstrap_servers, {settings.topics.tasks: 1, settings.topics.retry[0]: 1})
    partitions = [TopicPartition(settings.topics.tasks, 0)]
    async with running_relay(settings, duty=duty) as relayed:
        duty.assigned(partitions)
        await due_retries(settings, [b"before"])
        await wait_until(lambda: len(relayed) == 1, deadline_seconds=30, what="the first retry to be relayed")

        await due_retries(settings, [b"during"])  # due after its delay: in the middle of the rebalance
        await duty.revoked()
        began = time.process_time()
        await asyncio.sleep(OBSERVED_SECONDS)
        assert time.process_time() - began < BUSY_SHARE * OBSERVED_SECONDS, "the relay waits without taking a core"
        assert len(relayed) == 1, "nothing is relayed during a rebalance"

        duty.assigned(partitions)
        await wait_until(lambda: len(relayed) == 2, deadline_seconds=30, what="the second retry to be relayed")
