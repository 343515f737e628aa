"""What `fluxpool topics check` calls a difference, and what each costs; without a broker."""

from dataclasses import replace
from pathlib import Path

import pytest

from fluxpool_cli.exit_codes import ExitCode
from fluxpool_cli.kafka.target import KafkaTarget
from fluxpool_cli.kafka.topic_comparison import differences, wanted_topics
from fluxpool_cli.main import run
from fluxpool_contract.kafka.connection import KafkaConnection
from fluxpool_contract.kafka.topics import TopicNames, TopicSpec, topic_specs
from fluxpool_contract.settings.worker import Lane
from fluxpool_transport.kafka.topic_layout import TopicLayout

NAMES = TopicNames()
SPECS = {spec.name: spec for spec in topic_specs(NAMES)}
TASKS, CONTROL, POOLS = (SPECS[name] for name in (NAMES.tasks, NAMES.control, NAMES.pools))
DEFAULTS = {
    "cleanup.policy": "delete",
    "max.message.bytes": "1048588",
    "min.insync.replicas": "1",
    "retention.bytes": "-1",
}
"""Of a broker."""


def made(spec: TopicSpec, **settings: str) -> TopicLayout:
    """A topic that was created from its layout; underlines of a setting's name are dots."""
    changed = {name.replace("_", "."): value for name, value in settings.items()}
    return TopicLayout(
        partitions=spec.partitions,
        replication_factor=spec.replication_factor,
        settings=DEFAULTS | spec.config | changed,
    )


def found(spec: TopicSpec, layout: TopicLayout, *, brokers: int = 3) -> list[tuple[str, bool, str]]:
    return [
        (item.setting, item.loses_records, item.remedy)
        for item in differences(spec, layout, brokers=brokers, servers="kafka:9092", is_lane=spec is TASKS)
    ]


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_a_topic_as_it_is_created_has_no_difference_nor_has_one_with_more_of_everything(spec: TopicSpec) -> None:
    assert found(spec, made(spec)) == []
    more = made(spec, retention_ms="-1", max_message_bytes="99999999")
    assert found(spec, replace(more, partitions=99, replication_factor=5)) == []


@pytest.mark.parametrize(
    ("setting", "value", "remedy"),
    [
        ("retention.ms", "3600000", "retention.ms=604800000"),
        ("retention.bytes", "1073741824", "retention.bytes=-1"),
        ("max.message.bytes", "65536", "max.message.bytes=1048576"),
        ("cleanup.policy", "compact", "cleanup.policy=delete"),
        ("message.timestamp.type", "CreateTime", "message.timestamp.type=LogAppendTime"),
    ],
)
def test_a_setting_by_which_tasks_are_lost_has_the_command_that_ends_it(setting: str, value: str, remedy: str) -> None:
    [(name, loses, command)] = found(TASKS, made(TASKS, **{setting: value}))
    assert (name, loses) == (setting, True)
    assert command == (
        f"kafka-configs.sh --bootstrap-server kafka:9092 --topic {TASKS.name} --alter --add-config {remedy}"
    )


def test_a_list_in_a_setting_is_in_brackets_as_kafkas_script_reads_it() -> None:
    [(_, _, command)] = found(POOLS, made(POOLS, cleanup_policy="delete"))
    assert command.endswith("--add-config cleanup.policy=[compact,delete]")


def test_fewer_partitions_cost_speed_and_none_of_a_compacted_topic_are_added() -> None:
    [(name, loses, command)] = found(TASKS, replace(made(TASKS), partitions=2))
    assert (name, loses) == ("partitions", False)
    assert (
        command == "kafka-topics.sh --bootstrap-server kafka:9092 --topic flux-generation-tasks --alter --partitions 6"
    )
    assert found(CONTROL, replace(made(CONTROL), partitions=0)) == []


def test_fewer_replicas_are_a_difference_only_where_brokers_could_hold_more() -> None:
    single = replace(made(TASKS), replication_factor=1)
    assert found(TASKS, single, brokers=1) == []
    assert [(name, loses) for name, loses, _ in found(TASKS, single, brokers=3)] == [("replicas", False)]


@pytest.mark.parametrize(
    ("in_sync", "replicas", "loses", "value"),
    [("2", 1, True, "1"), ("3", 2, True, "1"), ("2", 2, False, "1"), ("3", 3, False, "2")],
)
def test_more_replicas_in_sync_than_may_be_missing_stop_all_writes(
    in_sync: str, replicas: int, loses: bool, value: str
) -> None:
    layout = replace(made(TASKS, min_insync_replicas=in_sync), replication_factor=replicas)
    [(name, loss, command)] = found(TASKS, layout, brokers=replicas)
    assert (name, loss, command.rpartition(" ")[2]) == ("min.insync.replicas", loses, f"min.insync.replicas={value}")
    assert found(TASKS, replace(made(TASKS, min_insync_replicas="1"), replication_factor=replicas), brokers=1) == []


def test_what_cannot_be_read_is_not_taken_for_wrong() -> None:
    unread = TopicLayout(partitions=6, replication_factor=3, settings_problem="TOPIC_AUTHORIZATION_FAILED")
    assert found(TASKS, unread) == [("settings", False, "grant the Kafka user DESCRIBE_CONFIGS")]


def test_topics_of_further_lanes_are_laid_out_as_those_of_tasks() -> None:
    lanes = (Lane(name="bulk", topic="bulk-tasks"), Lane(name="vip", topic=NAMES.tasks_vip))
    target = KafkaTarget(kafka=KafkaConnection(bootstrap_servers=("kafka:9092",)), lanes=lanes)
    *usual, bulk = wanted_topics(target, task_partitions=12)
    assert [spec.name for spec in usual] == list(SPECS)
    assert (bulk.name, bulk.partitions, bulk.config) == ("bulk-tasks", 12, TASKS.config)


@pytest.mark.parametrize("verb", ["init", "check"])
def test_without_kafka_the_verbs_end_with_3_and_say_what_to_do(
    verb: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FLUXPOOL_KAFKA_BOOTSTRAP_SERVERS", raising=False)
    assert run(["topics", verb, "--json"]) == ExitCode.UNREACHABLE
    assert "--bootstrap-servers" in capsys.readouterr().err
    assert run(["topics", verb, "--bootstrap-servers", "127.0.0.1:1", "--timeout", "1"]) == ExitCode.UNREACHABLE
    assert "127.0.0.1:1" in capsys.readouterr().err
    assert run(["topics", verb, "--task-partitions", "0"]) == ExitCode.USAGE
