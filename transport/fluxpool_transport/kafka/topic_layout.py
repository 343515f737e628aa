"""How topics are laid out on the brokers: partitions, replicas, settings, and the rights of the Kafka user.

Reads alone. Knows nothing of how a topic should be: that is the caller's.
"""

import asyncio
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from confluent_kafka import KafkaException, TopicCollection
from confluent_kafka.admin import ConfigResource, ResourceType

from fluxpool_contract.kafka import KafkaConnection
from fluxpool_transport.kafka.admin import KafkaAdmin, explain
from fluxpool_transport.kafka.metadata import TopicError

_CLIENT_ID: Final = "fluxpool-topic-layout"
_DEADLINE_SECONDS: Final = 8.0


@dataclass(frozen=True, slots=True, kw_only=True)
class TopicLayout:
    """One topic as the brokers describe it."""

    partitions: int
    replication_factor: int
    """That of the partition with the fewest replicas."""
    leaderless: tuple[int, ...] = ()
    """Partitions without a leader."""
    rights: tuple[str, ...] = ()
    """Operations that the Kafka user may do, by name; empty where the brokers do not tell."""
    settings: Mapping[str, str] = field(default_factory=dict)
    """Its configuration with the brokers' defaults; empty when it could not be read."""
    settings_problem: str | None = None
    """Why the configuration could not be read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterLayout:
    """Topics of one cluster."""

    brokers: int
    """How many run."""
    topics: Mapping[str, TopicLayout | KafkaException]
    """By name; an exception for one that does not exist or may not be described."""


async def read_layout(
    connection: KafkaConnection, topics: Iterable[str], *, deadline_seconds: float = _DEADLINE_SECONDS
) -> ClusterLayout:
    """Describe the topics with these names; never creates one.

    Raises `KafkaUnavailableError` when no broker answers in time, `TopicError` when the cluster may not be described,
    and as `KafkaAdmin.open` does.
    """
    names = list(dict.fromkeys(topics))
    admin = await KafkaAdmin.open(connection, client_id=_CLIENT_ID)
    client = admin.client
    # First, and alone: when nothing answers, the other requests would only wait as well.
    cluster = (await admin.results({"cluster": client.describe_cluster(request_timeout=deadline_seconds)}))["cluster"]
    if isinstance(cluster, KafkaException):
        raise TopicError(f"the cluster cannot be described: {explain(cluster)}") from cluster
    if not names:
        return ClusterLayout(brokers=len(cluster.nodes), topics={})
    resources = {ConfigResource(ResourceType.TOPIC, name): name for name in names}
    described, configs = await asyncio.gather(
        admin.results(
            client.describe_topics(
                TopicCollection(names), include_authorized_operations=True, request_timeout=deadline_seconds
            )
        ),
        admin.results(client.describe_configs(list(resources), request_timeout=deadline_seconds)),
    )
    settings = {resources[resource]: answer for resource, answer in configs.items()}
    return ClusterLayout(
        brokers=len(cluster.nodes),
        topics={
            name: answer if isinstance(answer, KafkaException) else _topic(answer, settings[name])
            for name, answer in described.items()
        },
    )


def _topic(described: Any, config: Any) -> TopicLayout:
    is_refused = isinstance(config, KafkaException)
    return TopicLayout(
        partitions=len(described.partitions),
        replication_factor=min((len(item.replicas) for item in described.partitions), default=0),
        # librdkafka gives a broker without address, id -1, when there is no leader.
        leaderless=tuple(item.id for item in described.partitions if item.leader is None or item.leader.id < 0),
        rights=tuple(sorted(operation.name for operation in described.authorized_operations or ())),
        settings={} if is_refused else {name: entry.value or "" for name, entry in config.items()},
        settings_problem=explain(config) if is_refused else None,
    )
