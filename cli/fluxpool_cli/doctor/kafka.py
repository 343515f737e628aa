"""Checks of Kafka: brokers, topics with partitions and settings, and the rights that brokers show."""

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path

from fluxpool_cli.doctor.checking import Finding, State
from fluxpool_cli.exit_codes import CommandError, ExitCode
from fluxpool_cli.kafka.target import KafkaTarget, find_target
from fluxpool_cli.kafka.topic_comparison import differences, wanted_topics
from fluxpool_contract.kafka import TopicSpec
from fluxpool_transport.kafka import ClusterLayout, KafkaUnavailableError, TopicLayout, explain, read_layout


def check_kafka(bootstrap_servers: str | None, data_dir: Path) -> Iterator[Finding]:
    """Findings about the cluster that the commands on Kafka use."""
    try:
        target = find_target(bootstrap_servers, data_dir, os.environ)
    except CommandError as error:
        if error.code is ExitCode.UNREACHABLE:
            yield Finding(State.SKIPPED, "no Kafka is named here", str(error))
            return
        raise
    specs = wanted_topics(target)
    try:
        layout = asyncio.run(read_layout(target.kafka, [spec.name for spec in specs]))
    except KafkaUnavailableError as error:
        yield Finding(
            State.FAILED,
            str(error),
            "check the addresses, the listener's security protocol and the credentials (FLUXPOOL_KAFKA_*)",
        )
        return
    yield Finding(State.OK, f"{layout.brokers} broker{'' if layout.brokers == 1 else 's'} at {target.servers}")
    yield from _topics(target, specs, layout)


def _topics(target: KafkaTarget, specs: tuple[TopicSpec, ...], layout: ClusterLayout) -> Iterator[Finding]:
    missing = []
    for spec in specs:
        topic = layout.topics[spec.name]
        if isinstance(topic, TopicLayout):
            yield _topic(spec, topic, target, brokers=layout.brokers)
        else:
            missing.append(f"{spec.name} ({explain(topic)})")
    if missing:
        yield Finding(
            State.FAILED,
            f"topics that cannot be described: {', '.join(missing)}",
            "create them with `fluxpool topics init`, let a pool with manageTopics do it, or check DESCRIBE",
        )


def _topic(spec: TopicSpec, layout: TopicLayout, target: KafkaTarget, *, brokers: int) -> Finding:
    is_lane = spec.name in {topic for _, topic in target.lane_groups().values()}
    found = list(differences(spec, layout, brokers=brokers, servers=target.servers, is_lane=is_lane))
    words = [
        f"{spec.name}: {layout.partitions} partition{'' if layout.partitions == 1 else 's'}",
        *(difference.found for difference in found),
    ]
    if rights := ", ".join(layout.rights):
        words.append(f"this user may {rights}")
    if not found:
        return Finding(State.OK, "; ".join(words))
    state = State.FAILED if layout.leaderless else State.WARNING
    remedy = found[0].remedy if len(found) == 1 else "`fluxpool topics check` has the command for each"
    return Finding(state, "; ".join(words), remedy)
