"""Creates the topics that are missing, widens those that are too narrow, and sets their timestamp type.

Never deletes or shrinks one. Owns the wait until a new topic can be used. Knows nothing of which topics there are:
their layout is the caller's.
"""

import asyncio
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import structlog
from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import AlterConfigOpType, ConfigEntry, ConfigResource, NewPartitions, NewTopic, ResourceType

from fluxpool_contract.kafka import LOG_APPEND_TIME, TIMESTAMP_TYPE, KafkaConnection, TopicSpec
from fluxpool_transport.kafka.admin import KafkaAdmin, explain, has_code
from fluxpool_transport.kafka.metadata import KafkaMetadata, TopicError, TopicMetadata, undescribed

log = structlog.get_logger(__name__)

_CLIENT_ID = "fluxpool-topics"
_CONFIG_SECONDS: Final = 10.0
_POLL_INTERVAL_SECONDS = 0.1
"""New topics have leaders within milliseconds on a healthy cluster; a poll costs one small request."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TopicChanges:
    """What was done to topics, by name, and what could not be done."""

    created: tuple[str, ...] = ()
    widened: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()


async def keep_topics(
    connection: KafkaConnection, specs: Sequence[TopicSpec], *, deadline_seconds: float = 10.0
) -> TopicChanges:
    """Create the topics of `specs` that are missing, and add partitions to those that have fewer.

    Nothing else about an existing topic changes. A compacted one is not widened: the records of a key would be on two
    partitions, and both would be kept. A problem with one topic does not affect the others. Does not wait for leaders.
    Raises `KafkaUnavailableError` when no broker answers in time, and as `KafkaAdmin.open` does.
    """
    metadata = KafkaMetadata(connection, client_id=_CLIENT_ID, timeout_seconds=deadline_seconds)
    wanted = {spec.name: spec for spec in specs}
    described = await metadata.topics(wanted)
    admin = await metadata.admin()
    problems: list[str] = []
    missing: list[TopicSpec] = []
    narrow: list[TopicSpec] = []
    for name, answer in described.items():
        spec = wanted[name]
        if has_code(answer, KafkaError.UNKNOWN_TOPIC_OR_PART):
            missing.append(spec)
        elif isinstance(answer, KafkaException):
            problems.append(str(undescribed(name, answer)))
        elif len(answer.partitions) < spec.partitions and spec.config.get("cleanup.policy") != "compact":
            narrow.append(spec)
    created, refused = await _create_each(admin, missing, deadline_seconds=deadline_seconds)
    widened, unwidened = await _widen_each(admin, narrow, deadline_seconds=deadline_seconds)
    return TopicChanges(created=created, widened=widened, problems=(*problems, *map(str, (*refused, *unwidened))))


async def ensure_topics(
    connection: KafkaConnection, specs: Sequence[TopicSpec], *, deadline_seconds: float = 30.0
) -> tuple[str, ...]:
    """Create the topics of `specs` that are missing and wait until every partition of all of them has a leader.

    A replication factor above the number of live brokers is lowered to it, which is logged. Returns the names of the
    topics that this call created. Raises `TopicError`, or `KafkaUnavailableError` when no broker answers in time.
    """
    metadata = KafkaMetadata(connection, client_id=_CLIENT_ID, timeout_seconds=deadline_seconds)
    loop = asyncio.get_running_loop()
    ends_at_seconds = loop.time() + deadline_seconds
    names = [spec.name for spec in specs]
    described = await metadata.existing(names)
    missing = [spec for spec in specs if described[spec.name] is None]
    created: tuple[str, ...] = ()
    if missing:
        left_seconds = max(1.0, ends_at_seconds - loop.time())
        created = await _create(await metadata.admin(), missing, deadline_seconds=left_seconds)
    while leaderless := _leaderless(described):
        remaining_seconds = ends_at_seconds - loop.time()
        if remaining_seconds <= 0:
            raise TopicError(
                f"after {deadline_seconds:.0f} s these partitions have no leader: {', '.join(leaderless)}; "
                "check that the brokers holding them run"
            )
        described = await metadata.existing(names)
        if _leaderless(described):
            await asyncio.sleep(_POLL_INTERVAL_SECONDS)
    return created


async def _create(admin: KafkaAdmin, specs: Sequence[TopicSpec], *, deadline_seconds: float) -> tuple[str, ...]:
    cluster = await admin.results({"cluster": admin.client.describe_cluster(request_timeout=deadline_seconds)})
    if isinstance(cluster["cluster"], KafkaException):
        raise TopicError(f"the cluster cannot be described: {explain(cluster['cluster'])}") from cluster["cluster"]
    live_brokers = max(1, len(cluster["cluster"].nodes))
    affordable = []
    for spec in specs:
        if spec.replication_factor > live_brokers:
            log.warning(
                "topic_replication_lowered",
                topic=spec.name,
                wanted=spec.replication_factor,
                live_brokers=live_brokers,
            )
        affordable.append(replace(spec, replication_factor=min(spec.replication_factor, live_brokers)))
    created, refused = await _create_each(admin, affordable, deadline_seconds=deadline_seconds)
    if refused:
        raise refused[0]
    return created


async def _create_each(
    admin: KafkaAdmin, specs: Sequence[TopicSpec], *, deadline_seconds: float
) -> tuple[tuple[str, ...], list[TopicError]]:
    """The names of those that were created, and why others were not."""
    if not specs:
        return (), []
    requests = [
        NewTopic(
            spec.name,
            num_partitions=spec.partitions,
            replication_factor=spec.replication_factor,
            config=dict(spec.config),
        )
        for spec in specs
    ]
    answers = await admin.results(admin.client.create_topics(requests, request_timeout=deadline_seconds))
    created, refused = _outcome(
        answers,
        done_by_another_client=KafkaError.TOPIC_ALREADY_EXISTS,
        refusal=lambda name, error: f"topic {name}: cannot be created: {explain(error)}; {_remedy(error)}",
    )
    for name in created:
        log.info("topic_created", topic=name)
    return created, refused


async def _widen_each(
    admin: KafkaAdmin, specs: Sequence[TopicSpec], *, deadline_seconds: float
) -> tuple[tuple[str, ...], list[TopicError]]:
    """The names of those that have more partitions now, and why others have not."""
    if not specs:
        return (), []
    requests = [NewPartitions(spec.name, spec.partitions) for spec in specs]
    answers = await admin.results(admin.client.create_partitions(requests, request_timeout=deadline_seconds))
    partitions = {spec.name: spec.partitions for spec in specs}
    widened, refused = _outcome(
        answers,
        done_by_another_client=KafkaError.INVALID_PARTITIONS,
        refusal=lambda name, error: (
            f"topic {name}: cannot have {partitions[name]} partitions: {explain(error)}; "
            "grant the Kafka user ALTER, or add them by other means"
        ),
    )
    for name in widened:
        log.info("topic_widened", topic=name, partitions=partitions[name])
    return widened, refused


def _outcome(
    answers: dict[str, Any], *, done_by_another_client: int, refusal: Callable[[str, KafkaException], str]
) -> tuple[tuple[str, ...], list[TopicError]]:
    # Several operators and agents may create at the same time: what another client did first is no error.
    done = tuple(name for name, answer in answers.items() if not isinstance(answer, KafkaException))
    refused = []
    for name, answer in answers.items():
        if isinstance(answer, KafkaException) and not has_code(answer, done_by_another_client):
            refused.append(TopicError(refusal(name, answer)))
            refused[-1].__cause__ = answer
    return done, refused


def _remedy(refusal: KafkaException) -> str:
    if has_code(refusal, KafkaError.TOPIC_AUTHORIZATION_FAILED, KafkaError.CLUSTER_AUTHORIZATION_FAILED):
        return "grant the Kafka user CREATE, or create the topic by other means"
    if has_code(refusal, KafkaError.INVALID_REPLICATION_FACTOR):
        return "use a smaller replication factor, or start more brokers"
    return "correct its layout, or create it by other means"


def _leaderless(described: dict[str, TopicMetadata | None]) -> list[str]:
    """Partitions without a leader, as `topic-partition`, and topics that the broker does not know yet."""
    missing = [name for name, topic in described.items() if topic is None]
    return missing + [f"{name}-{number}" for name, topic in described.items() if topic for number in topic.leaderless]


async def find_create_time_topics(
    connection: KafkaConnection, topics: Iterable[str], *, deadline_seconds: float = _CONFIG_SECONDS
) -> tuple[str, ...]:
    """Those of `topics` with CreateTime, in their order.

    Topics that do not exist, or whose configuration the Kafka user may not read (DESCRIBE_CONFIGS), are left out.
    Raises `KafkaUnavailableError` when no broker answers in time, and as `KafkaAdmin.open` does.
    """
    admin = await KafkaAdmin.open(connection, client_id=_CLIENT_ID)
    resources = {topic: ConfigResource(ResourceType.TOPIC, topic) for topic in topics}
    if not resources:
        return ()
    futures = admin.client.describe_configs(list(resources.values()), request_timeout=deadline_seconds)
    answers = await admin.results(futures)
    return tuple(topic for topic, resource in resources.items() if _keeps_create_time(answers[resource]))


async def set_log_append_time(
    connection: KafkaConnection, topics: Iterable[str], *, deadline_seconds: float = _CONFIG_SECONDS
) -> dict[str, str]:
    """Have the brokers stamp new records of `topics`; nothing else of their configuration changes.

    Returns why, by topic, for those that could not be changed. Raises `KafkaUnavailableError` when no broker answers in
    time, and as `KafkaAdmin.open` does.
    """
    admin = await KafkaAdmin.open(connection, client_id=_CLIENT_ID)
    entry = ConfigEntry(TIMESTAMP_TYPE, LOG_APPEND_TIME, incremental_operation=AlterConfigOpType.SET)
    resources = {topic: ConfigResource(ResourceType.TOPIC, topic, incremental_configs=[entry]) for topic in topics}
    if not resources:
        return {}
    futures = admin.client.incremental_alter_configs(list(resources.values()), request_timeout=deadline_seconds)
    answers = await admin.results(futures)
    refused = {topic: answers[resource] for topic, resource in resources.items()}
    return {topic: explain(answer) for topic, answer in refused.items() if isinstance(answer, KafkaException)}


def _keeps_create_time(answer: object) -> bool:
    if isinstance(answer, KafkaException) or not isinstance(answer, dict):
        return False
    entry = answer.get(TIMESTAMP_TYPE)
    return entry is not None and entry.value != LOG_APPEND_TIME
