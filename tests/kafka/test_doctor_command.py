"""`fluxpool doctor` on a real broker: topics as the reference has them, absent ones, and ones that lose tasks."""

from pathlib import Path

import pytest

from fluxpool_contract.kafka.connection import KafkaConnection
from fluxpool_contract.kafka.topics import TopicNames, topic_specs
from fluxpool_transport.kafka.topic_admin import ensure_topics
from kit.brokers.kafka import create_topics, unique_name
from kit.commands.command import fluxpool

pytestmark = pytest.mark.kafka

REFUSED = "a dead letter with a large task in it is refused, and the task is kept in the object store alone"


def _variables(names: TopicNames) -> dict[str, str]:
    return {
        f"FLUXPOOL_TOPICS_{role.upper()}": topics if isinstance(topics, str) else ",".join(topics)
        for role, topics in names
    }


async def test_topics_are_found_well_absent_or_laid_out_so_that_tasks_are_lost(
    bootstrap_servers: str, tmp_path: Path
) -> None:
    prefix = unique_name("doctor")
    # None of other tests: their brokers have the usual names.
    names = TopicNames.model_validate(
        {
            role: f"{prefix}-{topics}" if isinstance(topics, str) else tuple(f"{prefix}-{topic}" for topic in topics)
            for role, topics in TopicNames()
        }
    )
    specs = topic_specs(names)
    await ensure_topics(KafkaConnection(bootstrap_servers=tuple(bootstrap_servers.split(","))), specs)

    async def findings(environment: dict[str, str]) -> list[tuple[str, str, str | None]]:
        arguments = ("doctor", "--bootstrap-servers", bootstrap_servers, "--json", "--timeout", "60")
        ended = await fluxpool(*arguments, folder=tmp_path, environment=environment)
        return [
            (item["state"], item["found"], item["remedy"])
            for item in ended.document["checks"]
            if item["part"] == "kafka"
        ]

    (broker, *topics) = await findings(_variables(names))
    assert broker == ("ok", f"1 broker at {bootstrap_servers}", None)
    assert [(state, found.partition(";")[0]) for state, found, _ in topics] == [
        ("ok", f"{spec.name}: {spec.partitions} partition{'' if spec.partitions == 1 else 's'}") for spec in specs
    ]
    assert all("this user may " in found and "READ" in found and "WRITE" in found for _, found, _ in topics)

    short, absent = f"{prefix}-short", f"{prefix}-absent"
    await create_topics(bootstrap_servers, {short: 2}, config={"retention.ms": "3600000", "cleanup.policy": "compact"})
    changed = _variables(names) | {"FLUXPOOL_TOPICS_TASKS": short, "FLUXPOOL_TOPICS_RESULTS": absent}
    (_, first, *others, missing) = await findings(changed)
    assert (first[0], missing[0], {state for state, _, _ in others}) == ("warning", "failed", {"ok"})
    assert first[1].startswith(f"{short}: 2 partitions; ")
    assert "fewer than the usual 6 partitions: more workers than partitions are idle" in first[1]
    assert "cleanup.policy is compact, not delete" in first[1]
    assert "kept for 1 h, usually 7 d" in first[1]
    assert "message.timestamp.type=CreateTime" in first[1]
    assert missing[1].startswith(f"topics that cannot be described: {absent} (")

    small = f"{prefix}-small"
    layout = {"retention.ms": str(30 * 24 * 3_600_000), "message.timestamp.type": "LogAppendTime"}
    await create_topics(bootstrap_servers, {small: 3}, config=layout)
    refusing = await findings(_variables(names) | {"FLUXPOOL_TOPICS_DEAD_LETTERS": small})
    ((state, found, remedy),) = [finding for finding in refusing if finding[1].startswith(f"{small}: ")]
    # The brokers' own default has no room for the headers that a dead letter adds to its task.
    _, problem, _ = found.split("; ", 2)
    assert (state, problem) == ("warning", f"max.message.bytes is 1048588, usually 1114112: {REFUSED}")
    change = f"--topic {small} --alter --add-config max.message.bytes=1114112"
    assert remedy == f"kafka-configs.sh --bootstrap-server {bootstrap_servers} {change}"
