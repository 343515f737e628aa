"""Creates the topics that are missing; never alters or deletes one.

Owns the wait until a new topic can be used. Knows nothing of which topics there are: their layout is the caller's.
"""

import asyncio
from collections.abc import Iterable, Sequence
from typing import Any

import structlog
from confluent_kafka import KafkaError, KafkaException, TopicCollection
from confluent_kafka.admin import NewTopic

from fluxpool_contract.kafka_connection import KafkaConnection
from fluxpool_contract.topics import TopicSpec
from fluxpool_transport.kafka_admin import KafkaAdmin, explain, has_code

log = structlog.get_logger(__name__)

_POLL_INTERVAL_SECONDS = 0.1
# A few milliseconds on a healthy cluster; a poll costs one small request.


class TopicError(Exception):
    """A topic cannot be created, read or used; the message says which and what to do."""


async def ensure_topics(
    connection: KafkaConnection, specs: Sequence[TopicSpec], *, deadline_seconds: float = 30.0
) -> tuple[str, ...]:
    """Create the topics of `specs` that are missing and wait until every partition of all of them has a leader.

    A replication factor above the number of live brokers is lowered to it, which is logged. Returns the names of the
    topics that this call created. Raises `TopicError`, or `KafkaUnavailableError` when no broker answers in time.
    """
    admin = await KafkaAdmin.open(connection, client_id="fluxpool-topics")
    loop = asyncio.get_running_loop()
    ends_at_seconds = loop.time() + deadline_seconds
    names = [spec.name for spec in specs]
    described = await _describe(admin, names, deadline_seconds=deadline_seconds)
    missing = [spec for spec in specs if described[spec.name] is None]
    created = await _create(admin, missing, deadline_seconds=max(1.0, ends_at_seconds - loop.time())) if missing else ()
    while unled := _unled(described):
        remaining_seconds = ends_at_seconds - loop.time()
        if remaining_seconds <= 0:
            raise TopicError(
                f"after {deadline_seconds:.0f} s these partitions have no leader: {', '.join(unled)}; "
                "check that the brokers holding them run"
            )
        described = await _describe(admin, names, deadline_seconds=remaining_seconds)
        if _unled(described):
            await asyncio.sleep(_POLL_INTERVAL_SECONDS)
    return created


async def _describe(admin: KafkaAdmin, names: Sequence[str], *, deadline_seconds: float) -> dict[str, Any]:
    """Each topic's description, None when there is no such topic."""
    request = TopicCollection(topic_names=list(dict.fromkeys(names)))
    answers = await admin.settle(admin.client.describe_topics(request, request_timeout=deadline_seconds))
    for name, answer in answers.items():
        if has_code(answer, KafkaError.UNKNOWN_TOPIC_OR_PART):
            answers[name] = None
        elif isinstance(answer, KafkaException):
            raise TopicError(
                f"topic {name}: cannot be described: {explain(answer)}; the Kafka user needs DESCRIBE on it"
            ) from answer
    return answers


async def _create(admin: KafkaAdmin, specs: Sequence[TopicSpec], *, deadline_seconds: float) -> tuple[str, ...]:
    cluster = await admin.settle({"cluster": admin.client.describe_cluster(request_timeout=deadline_seconds)})
    if isinstance(cluster["cluster"], KafkaException):
        raise TopicError(f"the cluster cannot be described: {explain(cluster['cluster'])}") from cluster["cluster"]
    live_brokers = max(1, len(cluster["cluster"].nodes))
    requests = []
    for spec in specs:
        if spec.replication_factor > live_brokers:
            log.warning(
                "topic_replication_lowered",
                topic=spec.name,
                wanted=spec.replication_factor,
                live_brokers=live_brokers,
            )
        requests.append(
            NewTopic(
                spec.name,
                num_partitions=spec.partitions,
                replication_factor=min(spec.replication_factor, live_brokers),
                config=dict(spec.config),
            )
        )
    answers = await admin.settle(admin.client.create_topics(requests, request_timeout=deadline_seconds))
    created = []
    for name, answer in answers.items():
        if has_code(answer, KafkaError.TOPIC_ALREADY_EXISTS):  # somebody else was quicker
            continue
        if isinstance(answer, KafkaException):
            raise TopicError(f"topic {name}: cannot be created: {explain(answer)}; {_remedy(answer)}") from answer
        created.append(name)
        log.info("topic_created", topic=name)
    return tuple(created)


def _remedy(refusal: KafkaException) -> str:
    if has_code(refusal, KafkaError.TOPIC_AUTHORIZATION_FAILED, KafkaError.CLUSTER_AUTHORIZATION_FAILED):
        return "grant the Kafka user CREATE, or create the topic by other means"
    return "correct its layout, or create it by other means"


def _unled(described: dict[str, Any]) -> list[str]:
    """Partitions (or whole topics that nobody sees yet) without a leader, as `topic-partition`."""
    return [partition for name, topic in described.items() for partition in _unled_of(name, topic)]


def _unled_of(name: str, topic: Any) -> Iterable[str]:
    if topic is None:
        return [name]
    # librdkafka gives a broker without address, id -1, when there is no leader.
    return [f"{name}-{item.id}" for item in topic.partitions if item.leader is None or item.leader.id < 0]
