"""Compares a topic on the brokers with the layout that the product needs; pure.

Owns what a difference costs and the command that ends it. `fluxpool topics` and `fluxpool doctor` show them.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Final

from fluxpool_cli.kafka.target import KafkaTarget
from fluxpool_contract.kafka import LOG_APPEND_TIME, MAX_DEAD_LETTER_BYTES, TIMESTAMP_TYPE, TopicSpec, topic_specs
from fluxpool_transport.kafka import TopicLayout

_HOUR_MS: Final = 3_600_000
_DAY_MS: Final = 24 * _HOUR_MS
_DELETES: Final = "delete"


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """One thing about a topic that is not as the product needs it."""

    setting: str
    """`partitions`, `replicas`, `leaders`, or the name of the topic's setting."""
    found: str
    """What it is and what that costs, in words."""
    remedy: str
    """A command of Kafka, or a sentence where none does it."""
    loses_records: bool = False
    """Whether records are lost or refused by it, rather than worked on more slowly or kept less safely."""


def wanted_topics(
    target: KafkaTarget, *, task_partitions: int = 6, event_partitions: int = 3, replication_factor: int = 3
) -> tuple[TopicSpec, ...]:
    """The layout of every topic of a target; those of further lanes are laid out as the one of the tasks."""
    specs = topic_specs(
        target.topics,
        task_partitions=task_partitions,
        event_partitions=event_partitions,
        replication_factor=replication_factor,
    )
    of_tasks = next(spec for spec in specs if spec.name == target.topics.tasks)
    known = {spec.name for spec in specs}
    return (*specs, *(replace(of_tasks, name=lane.topic) for lane in target.lanes if lane.topic not in known))


def differences(
    spec: TopicSpec, layout: TopicLayout, *, brokers: int, servers: str, is_lane: bool
) -> Iterator[Difference]:
    """What is different; the gravest first. `servers` are the brokers' addresses, for commands.

    More partitions, more replicas, and what is kept for longer are no difference.
    """
    name = f"--bootstrap-server {servers} --topic {spec.name}"
    configure = f"kafka-configs.sh {name} --alter --add-config"
    if layout.leaderless:
        yield Difference(
            setting="leaders",
            found=f"partitions without a leader: {', '.join(map(str, layout.leaderless))}",
            remedy="start the brokers that hold them",
            loses_records=True,
        )
    if layout.settings_problem is None:
        yield from _of_settings(spec, layout, command=configure)
    else:
        yield Difference(
            setting="settings",
            found=f"its settings cannot be read ({layout.settings_problem})",
            remedy="grant the Kafka user DESCRIBE_CONFIGS",
        )
    # The records of one key would be on two partitions of a compacted topic, and both kept: it is never widened.
    if layout.partitions < spec.partitions and "compact" not in _policies(spec.config.get("cleanup.policy", _DELETES)):
        cost = ": more workers than partitions are idle" if is_lane else ""
        yield Difference(
            setting="partitions",
            found=f"fewer than the usual {_count(spec.partitions, 'partition')}{cost}",
            remedy=f"kafka-topics.sh {name} --alter --partitions {spec.partitions}",
        )
    yield from _of_replicas(spec, layout, brokers=brokers, command=configure)


def _of_settings(spec: TopicSpec, layout: TopicLayout, *, command: str) -> Iterator[Difference]:
    def lossy(setting: str, found: str, value: str) -> Difference:
        return Difference(setting=setting, found=found, remedy=f"{command} {setting}={value}", loses_records=True)

    wanted = _policies(spec.config.get("cleanup.policy", _DELETES))
    policies = _policies(layout.settings.get("cleanup.policy", _DELETES))
    if policies != wanted:
        text = spec.config.get("cleanup.policy", _DELETES)
        found = f"cleanup.policy is {','.join(sorted(policies))}, not {text}"
        yield lossy("cleanup.policy", found, f"[{text}]" if "," in text else text)
    kept_ms, wanted_ms = (_number(config, "retention.ms") for config in (layout.settings, spec.config))
    if 0 <= kept_ms < wanted_ms:
        found = f"kept for {_duration(kept_ms)}, usually {_duration(wanted_ms)}: what is older is lost"
        yield lossy("retention.ms", found, str(wanted_ms))
    kept_bytes = _number(layout.settings, "retention.bytes")
    if kept_bytes >= 0 and _DELETES in wanted:
        found = f"retention.bytes is {kept_bytes}: what is over that size in a partition is lost, whatever its age"
        yield lossy("retention.bytes", found, "-1")
    largest, wanted_bytes = (_number(config, "max.message.bytes") for config in (layout.settings, spec.config))
    if 0 <= largest < wanted_bytes:
        # Nothing else is as large as a dead letter that holds its task.
        refused = (
            "a dead letter with a large task in it is refused, and the task is kept in the object store alone"
            if wanted_bytes == MAX_DEAD_LETTER_BYTES
            else "larger records are refused"
        )
        found = f"max.message.bytes is {largest}, usually {wanted_bytes}: {refused}"
        yield lossy("max.message.bytes", found, str(wanted_bytes))
    if layout.settings.get(TIMESTAMP_TYPE) != LOG_APPEND_TIME:
        yield lossy(
            TIMESTAMP_TYPE,
            f"{TIMESTAMP_TYPE}={layout.settings.get(TIMESTAMP_TYPE, 'unknown')}: a producer with a wrong clock can "
            "have its records deleted before their time",
            LOG_APPEND_TIME,
        )


def _of_replicas(spec: TopicSpec, layout: TopicLayout, *, brokers: int, command: str) -> Iterator[Difference]:
    replicas = layout.replication_factor
    in_sync = _number(layout.settings, "min.insync.replicas")
    if in_sync > replicas:
        yield Difference(
            setting="min.insync.replicas",
            found=f"min.insync.replicas is {in_sync}, of {_count(replicas, 'replica')}: every record is refused",
            remedy=f"{command} min.insync.replicas={max(1, replicas - 1)}",
            loses_records=True,
        )
    elif in_sync == replicas > 1:
        yield Difference(
            setting="min.insync.replicas",
            found=f"min.insync.replicas is {in_sync}, of {replicas} replicas: while a broker restarts, every record is "
            "refused",
            remedy=f"{command} min.insync.replicas={replicas - 1}",
        )
    wanted = min(spec.replication_factor, brokers)
    if replicas < wanted:
        yield Difference(
            setting="replicas",
            found=f"{_count(replicas, 'replica')}, usually {wanted}: the loss of {_count(replicas, 'broker')} loses "
            "its records",
            remedy="add replicas by kafka-reassign-partitions.sh",
        )


def _policies(text: str) -> frozenset[str]:
    return frozenset(text.split(","))


def _number(config: Mapping[str, str], name: str) -> int:
    """The number of a setting; -1, as Kafka says "no limit", where there is none."""
    text = config.get(name, "")
    return int(text) if text.lstrip("-").isdigit() else -1


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _duration(milliseconds: int) -> str:
    days, rest = divmod(milliseconds, _DAY_MS)
    return f"{days} d" if days and not rest else f"{milliseconds / _HOUR_MS:.3g} h"
