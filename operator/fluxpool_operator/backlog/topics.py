"""Creates and checks the topics of a pool: their list, partitions and timestamp type.

Owns which topics a pool needs. `transport.kafka` creates and expands them; `contract.kafka` defines their layout.
`reconcile.kafka` calls it.
"""

from dataclasses import dataclass, replace
from typing import Final

from confluent_kafka import KafkaException

from fluxpool_contract.kafka import LOG_APPEND_TIME, TIMESTAMP_TYPE, KafkaConnection, TopicSpec, topic_specs
from fluxpool_operator.api.kafka import KafkaSpec
from fluxpool_operator.children import topic_names
from fluxpool_transport.kafka import (
    KafkaCredentialsError,
    KafkaUnavailableError,
    explain,
    find_create_time_topics,
    keep_topics,
    set_log_append_time,
)

_DEADLINE_SECONDS: Final = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class TopicReport:
    """Changes to a pool's topics, by name, and the problems."""

    created: tuple[str, ...] = ()
    widened: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()
    """One sentence for each topic, with the remedy."""
    create_time: tuple[str, ...] | None = ()
    """Task topics with message.timestamp.type=CreateTime; None when unknown."""


def wanted_topics(kafka: KafkaSpec) -> tuple[TopicSpec, ...]:
    """The topics of a pool as they are created; those of its lanes first."""
    names, layout = topic_names(kafka), kafka.topic_layout
    specs = {
        spec.name: spec
        for spec in topic_specs(
            names,
            task_partitions=layout.task_partitions,
            event_partitions=layout.event_partitions,
            replication_factor=layout.replication_factor,
        )
    }
    lanes = tuple(replace(specs[names.tasks], name=lane.topic) for lane in kafka.lanes)
    shared = (names.results, names.progress, *names.retry, names.control, names.dead_letters, names.pools)
    return lanes + tuple(specs[name] for name in shared)


def timed_topics(kafka: KafkaSpec) -> tuple[str, ...]:
    """Topics whose timestamps determine when retention deletes tasks: those of lanes and retries."""
    return (*(lane.topic for lane in kafka.lanes), *kafka.topics.retry)


async def manage_topics(
    connection: KafkaConnection, kafka: KafkaSpec, *, deadline_seconds: float = _DEADLINE_SECONDS
) -> TopicReport:
    """Create missing topics, add partitions, and set message.timestamp.type=LogAppendTime.

    Nothing is shrunk or deleted; replication, retention and other settings apply only to topics created here. Never
    raises for Kafka: errors are in the report.
    """
    try:
        changes = await keep_topics(connection, wanted_topics(kafka), deadline_seconds=deadline_seconds)
        stamped = [spec.name for spec in wanted_topics(kafka) if spec.name not in changes.created]
        trusting = await find_create_time_topics(connection, stamped, deadline_seconds=deadline_seconds)
        refused = await set_log_append_time(connection, trusting, deadline_seconds=deadline_seconds)
    except (KafkaUnavailableError, KafkaCredentialsError) as error:
        return TopicReport(problems=(f"topics could not be reconciled: {error}",), create_time=None)
    except KafkaException as error:
        return TopicReport(problems=(f"topics could not be reconciled: {explain(error)}",), create_time=None)
    problems = (
        f"topic {topic}: {TIMESTAMP_TYPE}={LOG_APPEND_TIME} cannot be set: {reason}; grant the Kafka user ALTER_CONFIGS"
        for topic, reason in refused.items()
    )
    return TopicReport(
        created=changes.created,
        widened=changes.widened,
        problems=(*changes.problems, *problems),
        create_time=tuple(topic for topic in timed_topics(kafka) if topic in refused),
    )


async def observe_topics(
    connection: KafkaConnection, kafka: KafkaSpec, *, deadline_seconds: float = _DEADLINE_SECONDS
) -> TopicReport:
    """Read the configuration of the topics without changes. Never raises for Kafka: unknown values are None."""
    try:
        found = await find_create_time_topics(connection, timed_topics(kafka), deadline_seconds=deadline_seconds)
    except (KafkaUnavailableError, KafkaCredentialsError, KafkaException):
        return TopicReport(create_time=None)
    return TopicReport(create_time=found)
