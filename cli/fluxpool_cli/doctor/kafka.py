"""Checks of Kafka: brokers, topics with partitions and retention, and the rights that brokers show."""

import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from confluent_kafka import KafkaException, TopicCollection
from confluent_kafka.admin import AdminClient, ConfigResource, ResourceType

from fluxpool_cli.doctor.checking import Finding, State
from fluxpool_cli.exit_codes import CommandError, ExitCode
from fluxpool_cli.kafka.target import KafkaTarget, find_target
from fluxpool_contract.kafka import TIMESTAMP_TYPE, TopicSpec, explain_create_time, topic_specs
from fluxpool_transport.kafka import explain, librdkafka_options

_SECONDS: Final = 8.0
_HOUR_MS: Final = 3_600_000
_DAY_MS: Final = 24 * _HOUR_MS


def check_kafka(bootstrap_servers: str | None, data_dir: Path) -> Iterator[Finding]:
    """Findings about the cluster that the commands on Kafka use."""
    try:
        target = find_target(bootstrap_servers, data_dir, os.environ)
    except CommandError as error:
        if error.code is ExitCode.UNREACHABLE:
            yield Finding(State.SKIPPED, "no Kafka is named here", str(error))
            return
        raise
    # librdkafka prints what it cannot reach.
    options = librdkafka_options(target.kafka, client_id="fluxpool-doctor") | {"log_level": 0}
    admin = AdminClient(options, logger=logging.getLogger("fluxpool.doctor"))
    try:
        cluster = admin.describe_cluster(request_timeout=_SECONDS).result(_SECONDS)
    except (KafkaException, TimeoutError) as error:
        yield Finding(
            State.FAILED,
            f"{target.servers} does not answer: {_reason(error)}",
            "check the addresses, the listener's security protocol and the credentials (FLUXPOOL_KAFKA_*)",
        )
        return
    yield Finding(State.OK, f"{len(cluster.nodes)} broker{'' if len(cluster.nodes) == 1 else 's'} at {target.servers}")
    yield from _topics(admin, target)


def _topics(admin: AdminClient, target: KafkaTarget) -> Iterator[Finding]:
    specs = topic_specs(target.topics)
    names = [spec.name for spec in specs]
    described = admin.describe_topics(
        TopicCollection(names), include_authorized_operations=True, request_timeout=_SECONDS
    )
    configs = admin.describe_configs(
        [ConfigResource(ResourceType.TOPIC, name) for name in names], request_timeout=_SECONDS
    )
    settings = {resource.name: future for resource, future in configs.items()}
    missing = []
    for spec in specs:
        try:
            topic = described[spec.name].result(_SECONDS)
        except (KafkaException, TimeoutError) as error:
            missing.append(f"{spec.name} ({_reason(error)})")
            continue
        yield _topic(spec, topic, settings[spec.name])
    if missing:
        yield Finding(
            State.FAILED,
            f"topics that cannot be described: {', '.join(missing)}",
            "create them as the reference of messages says, let a pool with manageTopics do it, or check DESCRIBE",
        )


def _topic(spec: TopicSpec, topic: Any, config: Any) -> Finding:
    partitions = len(topic.partitions)
    problems = []
    leaderless = [part.id for part in topic.partitions if part.leader is None or part.leader.id < 0]
    if leaderless:
        problems.append(f"partitions without a leader: {leaderless}")
    if partitions < spec.partitions:
        problems.append(f"usually {spec.partitions}: more workers than partitions are idle")
    try:
        values = {name: entry.value for name, entry in config.result(_SECONDS).items()}
        problems += _layout(spec, values)
    except (KafkaException, TimeoutError) as error:
        problems.append(f"its settings cannot be read ({_reason(error)})")
    words = [f"{spec.name}: {partitions} partition{'' if partitions == 1 else 's'}", *problems]
    if rights := ", ".join(sorted(operation.name for operation in topic.authorized_operations or ())):
        words.append(f"this user may {rights}")
    if not problems:
        return Finding(State.OK, "; ".join(words))
    state = State.FAILED if leaderless else State.WARNING
    return Finding(state, "; ".join(words), "change it with kafka-topics.sh or kafka-configs.sh")


def _layout(spec: TopicSpec, values: dict[str, str]) -> Iterator[str]:
    wanted = int(spec.config.get("retention.ms", 0))
    kept = int(values.get("retention.ms") or -1)
    if wanted and 0 <= kept < wanted:
        yield f"kept for {_duration(kept)}, usually {_duration(wanted)}: what is older is lost"
    policy = spec.config.get("cleanup.policy", "delete")
    if set(values.get("cleanup.policy", policy).split(",")) != set(policy.split(",")):
        yield f"cleanup.policy is {values['cleanup.policy']}, not {policy}"
    if values.get(TIMESTAMP_TYPE) != spec.config[TIMESTAMP_TYPE]:
        yield explain_create_time(spec.name)


def _duration(milliseconds: int) -> str:
    days, rest = divmod(milliseconds, _DAY_MS)
    return f"{days} d" if days and not rest else f"{milliseconds / _HOUR_MS:.3g} h"


def _reason(error: Exception) -> str:
    return explain(error) if isinstance(error, KafkaException) else "no answer in time"
