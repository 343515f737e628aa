"""Looks after the topics of a pool that asks for it: which there are, and how wide each is.

Owns the list. How a topic is created and widened is the transport's, how each kind is laid out the contract's.
"""

from dataclasses import dataclass, replace
from typing import Final

from confluent_kafka import KafkaException

from fluxpool_contract.kafka_connection import KafkaConnection
from fluxpool_contract.topics import TopicSpec, topic_specs
from fluxpool_operator.api.kafka import KafkaSpec
from fluxpool_operator.children import topic_names
from fluxpool_transport.kafka_admin import KafkaUnavailableError, explain
from fluxpool_transport.kafka_clients import KafkaCredentialsError
from fluxpool_transport.topic_admin import keep_topics

_DEADLINE_SECONDS: Final = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class TopicReport:
    """What was done to a pool's topics, by name, and what stands in the way of the rest."""

    created: tuple[str, ...] = ()
    widened: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()
    """One sentence for each topic, with the remedy."""


def wanted_topics(kafka: KafkaSpec) -> tuple[TopicSpec, ...]:
    """The topics that a pool's workers read and write, as they are created; those of its lanes first."""
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
    shared = (names.results, names.progress, *names.retry, names.control, names.dead_letters)
    return lanes + tuple(specs[name] for name in shared)


async def manage_topics(
    connection: KafkaConnection, kafka: KafkaSpec, *, deadline_seconds: float = _DEADLINE_SECONDS
) -> TopicReport:
    """Create the topics that are missing and widen those that are too narrow; nothing is shrunk, altered or deleted.

    Replication, retention and other settings are given to topics that are created here, and to no other. Never raises
    for Kafka: what went wrong stands in the report.
    """
    try:
        changes = await keep_topics(connection, wanted_topics(kafka), deadline_seconds=deadline_seconds)
    except (KafkaUnavailableError, KafkaCredentialsError) as error:
        return TopicReport(problems=(f"topics could not be looked after: {error}",))
    except KafkaException as error:
        return TopicReport(problems=(f"topics could not be looked after: {explain(error)}",))
    return TopicReport(created=changes.created, widened=changes.widened, problems=changes.problems)
