"""`fluxpool topics` on a real broker: two that create at once, what is different, and that each remedy ends it."""

import asyncio
import re
from pathlib import Path

import pytest
from confluent_kafka.admin import (
    AdminClient,
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    NewPartitions,
    ResourceType,
)

from fluxpool_cli.exit_codes import ExitCode
from fluxpool_contract.kafka.topics import TopicNames, topic_specs
from kit.brokers.kafka import create_topics, unique_name
from kit.commands.command import Ended, fluxpool
from kit.commands.every_form import WIDTH, Case, assert_every_form

pytestmark = pytest.mark.kafka


def names_of_their_own(prefix: str) -> TopicNames:
    return TopicNames.model_validate(
        {
            role: f"{prefix}-{topics}" if isinstance(topics, str) else tuple(f"{prefix}-{topic}" for topic in topics)
            for role, topics in TopicNames()
        }
    )


def variables(names: TopicNames) -> dict[str, str]:
    return {
        f"FLUXPOOL_TOPICS_{role.upper()}": topics if isinstance(topics, str) else ",".join(topics)
        for role, topics in names
    }


async def follow(remedy: str, bootstrap_servers: str) -> None:
    """Do what a command of Kafka's scripts would; they are not among the jars of the tests."""
    admin = AdminClient({"bootstrap.servers": bootstrap_servers})
    found = re.fullmatch(
        rf"kafka-\w+\.sh --bootstrap-server {re.escape(bootstrap_servers)} --topic (\S+) --alter "
        r"--(?:partitions (\d+)|add-config ([a-z.]+)=\[?([^]]+)]?)",
        remedy,
    )
    assert found, remedy
    topic, partitions, name, value = found.groups()
    if partitions:
        futures = admin.create_partitions([NewPartitions(topic, int(partitions))])
    else:
        entry = ConfigEntry(name, value, incremental_operation=AlterConfigOpType.SET)
        futures = admin.incremental_alter_configs(
            [ConfigResource(ResourceType.TOPIC, topic, incremental_configs=[entry])]
        )
    for future in futures.values():
        await asyncio.to_thread(future.result, 30)


async def test_topics_are_created_once_compared_and_each_remedy_ends_its_difference(
    bootstrap_servers: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = names_of_their_own(unique_name("t"))
    specs = {spec.name: spec for spec in topic_specs(names)}

    async def topics(*arguments: str) -> Ended:
        return await fluxpool(
            "topics",
            *arguments,
            "--bootstrap-servers",
            bootstrap_servers,
            "--json",
            folder=tmp_path,
            environment=variables(names),
        )

    missing = await topics("check")
    assert missing.code == ExitCode.FAILED, missing.complaints
    assert {item["state"] for item in missing.document["topics"]} == {"failed"}

    # A topic of an operator who did not read the reference.
    worst = {"retention.ms": "3600000", "max.message.bytes": "65536", "cleanup.policy": "compact,delete"}
    await create_topics(bootstrap_servers, {names.dead_letters: 1, names.tasks: 2}, config=worst)
    few = await topics("init")
    assert (few.code, "3 replicas need as many brokers, and 1 runs" in few.complaints) == (ExitCode.USAGE, True)
    single = ("init", "--replication-factor", "1")
    both = await asyncio.gather(topics(*single), topics(*single))
    assert [ended.code for ended in both] == [ExitCode.OK, ExitCode.OK], [ended.complaints for ended in both]
    created = [[item["name"] for item in ended.document["topics"] if item["created"]] for ended in both]
    assert sorted(created[0] + created[1]) == sorted(specs.keys() - {names.dead_letters, names.tasks})
    for ended in both:
        differing = [item["name"] for item in ended.document["topics"] if item["differences"]]
        assert differing == [names.tasks, names.dead_letters]

    checked = await topics("check")
    assert checked.code == ExitCode.FAILED
    assert f"records may be lost or refused by: {names.tasks}, {names.dead_letters}" in checked.complaints
    assert checked.document["brokers"] == 1
    states = {item["name"]: item["state"] for item in checked.document["topics"]}
    assert states == {name: "failed" if name in {names.tasks, names.dead_letters} else "ok" for name in specs}
    remedies = [found["remedy"] for item in checked.document["topics"] for found in item["differences"]]
    assert len(remedies) == 10
    for remedy in remedies:
        await follow(remedy, bootstrap_servers)
    mended = await topics("check")
    assert (mended.code, mended.complaints) == (ExitCode.OK, ""), mended.document
    sizes = {item["name"]: item["partitions"] for item in mended.document["topics"]}
    assert sizes == {name: spec.partitions for name, spec in specs.items()}

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", str(WIDTH))
    for name, value in variables(names).items():
        monkeypatch.setenv(name, value)

    async def filled(line: str) -> list[str]:
        return [*line.split(), "--bootstrap-servers", bootstrap_servers]

    await assert_every_form(Case("topics init --replication-factor 1", "exists", ".+"), filled)
    await assert_every_form(Case("topics check", "ok", ".+"), filled)
    await assert_every_form(Case("topics check --event-partitions 4", "--partitions 4", ".+", prose=True), filled)
