"""Topics of pools whose topics the operator manages, on a real broker."""

import asyncio
import socket
from dataclasses import replace
from typing import Any

import pytest
from confluent_kafka.admin import AdminClient, ConfigResource, ResourceType

from fluxpool_contract.kafka.connection import KafkaConnection
from fluxpool_contract.kafka.topics import TopicSpec
from fluxpool_operator.api.kafka import KafkaSpec
from fluxpool_operator.backlog import TopicReport, manage_topics, observe_topics
from fluxpool_operator.backlog.topics import wanted_topics
from fluxpool_transport.kafka.topic_admin import TopicChanges, keep_topics
from kit.brokers.kafka import create_topics, unique_name
from kit.waiting import wait_until

pytestmark = pytest.mark.kafka

WEEK_MS = "604800000"


def _connection(bootstrap_servers: str) -> KafkaConnection:
    return KafkaConnection(bootstrap_servers=tuple(bootstrap_servers.split(",")))


def _spec(bootstrap_servers: str, prefix: str, **layout: int) -> KafkaSpec:
    return KafkaSpec.model_validate(
        {
            "bootstrapServers": bootstrap_servers.split(","),
            "lanes": [{"name": "standard", "topic": f"{prefix}-tasks"}, {"name": "vip", "topic": f"{prefix}-vip"}],
            "topics": {
                "results": f"{prefix}-results",
                "progress": f"{prefix}-progress",
                "retry": [f"{prefix}-retry-15s", f"{prefix}-retry-2m"],
                "control": f"{prefix}-control",
                "deadLetters": f"{prefix}-dlq",
                "pools": f"{prefix}-pools",
            },
            "manageTopics": True,
            "topicLayout": {"taskPartitions": 4, "eventPartitions": 2, "replicationFactor": 1} | layout,
        }
    )


async def _partitions(bootstrap_servers: str, prefix: str) -> dict[str, int]:
    admin = AdminClient({"bootstrap.servers": bootstrap_servers})
    topics = (await asyncio.to_thread(admin.list_topics, timeout=10)).topics
    return {name.removeprefix(f"{prefix}-"): len(found.partitions) for name, found in topics.items() if prefix in name}


async def _config(bootstrap_servers: str, topic: str) -> dict[str, Any]:
    admin = AdminClient({"bootstrap.servers": bootstrap_servers})
    (future,) = admin.describe_configs([ConfigResource(ResourceType.TOPIC, topic)]).values()
    return {name: entry.value for name, entry in (await asyncio.wrap_future(future)).items()}


async def _until_partitions(bootstrap_servers: str, prefix: str, expected: dict[str, int]) -> None:
    async def so() -> bool:
        return await _partitions(bootstrap_servers, prefix) == expected

    await wait_until(so, deadline_seconds=30, what=f"partitions {expected}")


async def _quiet(bootstrap_servers: str, spec: KafkaSpec) -> None:
    """Wait until nothing is left to do, once all parts of the broker know the changes."""

    async def so() -> bool:
        return await manage_topics(_connection(bootstrap_servers), spec) == TopicReport()

    await wait_until(so, deadline_seconds=30, what="topics with nothing to do")


LAYOUT = {
    "tasks": 4,
    "vip": 4,
    "results": 2,
    "progress": 2,
    "retry-15s": 2,
    "retry-2m": 2,
    "control": 1,
    "dlq": 2,
    "pools": 1,
}


async def test_every_topic_of_the_pool_is_created_once_with_the_layout_of_the_contract(bootstrap_servers: str) -> None:
    prefix = unique_name("managed")
    spec = _spec(bootstrap_servers, prefix)
    report = await manage_topics(_connection(bootstrap_servers), spec)
    assert (set(report.created), report.problems) == ({f"{prefix}-{name}" for name in LAYOUT}, ())
    await _until_partitions(bootstrap_servers, prefix, LAYOUT)
    assert (await _config(bootstrap_servers, f"{prefix}-vip"))["retention.ms"] == WEEK_MS
    assert (await _config(bootstrap_servers, f"{prefix}-retry-2m"))["retention.ms"] == WEEK_MS
    assert (await _config(bootstrap_servers, f"{prefix}-control"))["cleanup.policy"] == "compact"
    assert (await _config(bootstrap_servers, f"{prefix}-dlq"))["max.message.bytes"] == "1114112"
    await _quiet(bootstrap_servers, spec)


async def test_partitions_are_added_and_never_removed(bootstrap_servers: str) -> None:
    prefix = unique_name("managed")
    await manage_topics(_connection(bootstrap_servers), _spec(bootstrap_servers, prefix))
    await _until_partitions(bootstrap_servers, prefix, LAYOUT)
    await _quiet(bootstrap_servers, _spec(bootstrap_servers, prefix))
    report = await manage_topics(_connection(bootstrap_servers), _spec(bootstrap_servers, prefix, taskPartitions=7))
    assert report == TopicReport(widened=(f"{prefix}-tasks", f"{prefix}-vip"))
    await _until_partitions(bootstrap_servers, prefix, LAYOUT | {"tasks": 7, "vip": 7})
    await _quiet(bootstrap_servers, _spec(bootstrap_servers, prefix))
    assert await _partitions(bootstrap_servers, prefix) == LAYOUT | {"tasks": 7, "vip": 7}


async def test_settings_of_existing_topics_are_not_changed(bootstrap_servers: str) -> None:
    prefix = unique_name("managed")
    await create_topics(bootstrap_servers, {f"{prefix}-tasks": 9}, config={"retention.ms": "86400000"})
    spec = _spec(bootstrap_servers, prefix)
    report = await manage_topics(_connection(bootstrap_servers), spec)
    assert (len(report.created), report.widened, report.problems) == (len(LAYOUT) - 1, (), ())
    await _until_partitions(bootstrap_servers, prefix, LAYOUT | {"tasks": 9})
    assert (await _config(bootstrap_servers, f"{prefix}-tasks"))["retention.ms"] == "86400000"


async def test_a_compacted_topic_gets_no_partitions(bootstrap_servers: str) -> None:
    topic = unique_name("compacted")
    await create_topics(bootstrap_servers, {topic: 1}, config={"cleanup.policy": "compact"})
    spec = TopicSpec(name=topic, partitions=3, replication_factor=1, config={"cleanup.policy": "compact"})
    assert await keep_topics(_connection(bootstrap_servers), [spec]) == TopicChanges()


async def test_a_topic_that_cannot_be_created_is_named_with_the_remedy_and_the_others_are_created(
    bootstrap_servers: str,
) -> None:
    prefix = unique_name("managed")
    await create_topics(bootstrap_servers, {f"{prefix}-tasks": 1})
    report = await manage_topics(_connection(bootstrap_servers), _spec(bootstrap_servers, prefix, replicationFactor=3))
    assert (report.created, report.widened) == ((), (f"{prefix}-tasks",))
    assert len(report.problems) == len(LAYOUT) - 1
    assert all("smaller replication factor" in problem for problem in report.problems)
    assert report.problems[0].startswith(f"topic {prefix}-")


async def test_pools_that_share_topics_may_reconcile_them_at_once(bootstrap_servers: str) -> None:
    prefix = unique_name("managed")
    spec = _spec(bootstrap_servers, prefix)
    reports = await asyncio.gather(*(manage_topics(_connection(bootstrap_servers), spec) for _ in range(4)))
    assert [report.problems for report in reports] == [()] * 4
    assert sum(len(report.created) for report in reports) == len(LAYOUT)


async def test_a_cluster_that_does_not_answer_is_a_problem_and_no_error() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    address = f"127.0.0.1:{port}"
    report = await manage_topics(_connection(address), _spec(address, "nowhere"), deadline_seconds=1)
    (problem,) = report.problems
    assert address in problem
    assert "bootstrap_servers" in problem


def test_topics_of_lanes_have_the_layout_of_the_contract() -> None:
    spec = _spec("kafka:9092", "some")
    tasks, vip = wanted_topics(spec)[:2]
    assert (tasks.name, tasks.partitions, tasks.config["retention.ms"]) == ("some-tasks", 4, WEEK_MS)
    assert vip == replace(tasks, name="some-vip")


async def test_topics_with_create_time_are_changed_when_managed_and_only_reported_otherwise(
    bootstrap_servers: str,
) -> None:
    prefix = unique_name("managed")
    spec = _spec(bootstrap_servers, prefix)
    names = {f"{prefix}-tasks": 4, f"{prefix}-vip": 4, f"{prefix}-retry-15s": 2, f"{prefix}-dlq": 2}
    await create_topics(bootstrap_servers, names, config={"message.timestamp.type": "CreateTime"})
    connection = _connection(bootstrap_servers)
    seen = await observe_topics(connection, spec)
    assert seen.create_time == (f"{prefix}-tasks", f"{prefix}-vip", f"{prefix}-retry-15s")
    assert (await _config(bootstrap_servers, f"{prefix}-tasks"))["message.timestamp.type"] == "CreateTime"

    report = await manage_topics(connection, spec)
    assert (report.create_time, report.problems) == ((), ())
    for name in names:

        async def stamped(name: str = name) -> bool:
            return bool((await _config(bootstrap_servers, name))["message.timestamp.type"] == "LogAppendTime")

        await wait_until(stamped, deadline_seconds=30, what=f"LogAppendTime of {name}")


async def test_an_unreachable_kafka_leaves_the_topics_unknown(bootstrap_servers: str) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{unused.getsockname()[1]}"
    spec = _spec(bootstrap_servers, "nowhere")
    assert (await observe_topics(_connection(address), spec, deadline_seconds=1)).create_time is None
