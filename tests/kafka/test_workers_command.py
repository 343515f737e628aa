"""`fluxpool workers` on a real broker: members, ledgers and states of pools as workers and operators write them."""

import time
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from pathlib import Path

import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.structs import OffsetAndMetadata

from fluxpool_cli.exit_codes import ExitCode
from fluxpool_contract.kafka.connection import KafkaConnection
from fluxpool_contract.kafka.ledger import LedgerEntry, encode_ledger
from fluxpool_contract.kafka.worker_clients import worker_client_id
from fluxpool_contract.messages.pool_state import PoolLane, PoolState
from fluxpool_transport.kafka.clients import aiokafka_options
from kit.brokers.kafka import create_topics, produce, unique_name
from kit.commands.command import fluxpool
from kit.commands.every_form import WIDTH, Case, assert_every_form
from kit.waiting import wait_until

pytestmark = pytest.mark.kafka


def pool_state(topic: str, group: str, *, pool: str = "flux", at: datetime | None = None) -> PoolState:
    return PoolState(
        namespace="images",
        pool=pool,
        lanes=(PoolLane(name="standard", topic=topic, consumer_group=group),),
        desired_replicas=2,
        ready_replicas=1,
        starting_replicas=1,
        min_replicas=0,
        max_replicas=4,
        constraint="lag",
        reason="The lag is 3.\x1b[2J",
        decided_at=at or datetime.now(UTC),
    )


async def test_a_worker_is_shown_with_its_task_its_pool_and_what_waits(
    bootstrap_servers: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    topic, pools, group = (unique_name(kind) for kind in ("tasks", "pools", "group"))
    await create_topics(bootstrap_servers, {topic: 1, pools: 1})
    await produce(bootstrap_servers, topic, [(None, b"{}")] * 3)
    deleted = pool_state(topic, unique_name("other"), pool="deleted")
    silent = pool_state(topic, unique_name("other"), pool="silent", at=datetime(2026, 4, 5, tzinfo=UTC))
    state = pool_state(topic, group)
    for told in (deleted, silent, state):
        await produce(bootstrap_servers, pools, [(told.key.encode(), told.to_json())])
    await produce(bootstrap_servers, pools, [(deleted.key.encode(), None), (b"images/odd", b"not a state")])

    environment = {
        "FLUXPOOL_KAFKA_BOOTSTRAP_SERVERS": bootstrap_servers,
        "FLUXPOOL_TOPICS_POOLS": pools,
        # Its own lanes: groups that the pool has as well, and no other.
        "FLUXPOOL_CONSUMER_GROUP": group,
        "FLUXPOOL_LANES": f'[{{"name":"standard","topic":"{topic}"}}]',
    }
    connection = KafkaConnection(bootstrap_servers=tuple(bootstrap_servers.split(",")))
    async with AsyncExitStack() as stack:
        consumer = AIOKafkaConsumer(
            topic,
            **aiokafka_options(connection, client_id=worker_client_id("worker-1")),
            group_id=group,
            enable_auto_commit=False,
        )
        await consumer.start()
        stack.push_async_callback(consumer.stop)
        await wait_until(lambda: bool(consumer.assignment()), deadline_seconds=60, what="the assignment")
        ledger = encode_ledger(
            {
                0: LedgerEntry(task="t-1", worker="worker-1", started_at=int(time.time()) - 30),
                1: LedgerEntry(task="t-2", worker="worker-0", started_at=int(time.time()) - 90, crashes=1),
            }
        )
        await consumer.commit({TopicPartition(topic, 0): OffsetAndMetadata(0, ledger)})

        found = await fluxpool("workers", "--json", folder=tmp_path, environment=environment)
        assert found.code == ExitCode.OK, found.complaints
        document = found.document
        assert [(item["name"], item["pool"], item["state"]) for item in document["workers"]] == [
            ("worker-0", "flux", "gone"),
            ("worker-1", "flux", "busy"),
        ]
        gone, busy = document["workers"]
        assert (busy["partitions"], busy["waiting"]) == ({"standard": [0]}, 1)
        assert [(task["request_id"], task["partition"], task["offset"]) for task in busy["tasks"]] == [("t-1", 0, 0)]
        assert busy["tasks"][0]["running_seconds"] >= 30
        assert gone["tasks"][0]["crashes"] == 1
        assert [(pool["name"], pool["desired"]) for pool in document["pools"]] == [("flux", 2)]
        assert document["problems"] == []

        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("COLUMNS", str(WIDTH))
        for name, value in environment.items():
            monkeypatch.setenv(name, value)

        async def filled(line: str) -> list[str]:
            return line.split()

        await assert_every_form(Case("workers", "t-1", "worker-[01]"), filled)
        await assert_every_form(Case("workers flux", "1 of 2 ready, 1 starting", "worker-[01]"), filled)
        await assert_every_form(
            Case("workers other", "no operator tells of a pool other; it may be one of: flux", code=ExitCode.USAGE),
            filled,
        )
