"""Finds topics with `message.timestamp.type=CreateTime`, where producers set the records' times; sets LogAppendTime."""

from collections.abc import Iterable
from typing import Final

from confluent_kafka import KafkaException
from confluent_kafka.admin import AlterConfigOpType, ConfigEntry, ConfigResource, ResourceType

from fluxpool_contract.kafka import LOG_APPEND_TIME, TIMESTAMP_TYPE, KafkaConnection
from fluxpool_transport.kafka.admin import KafkaAdmin, explain

_DEADLINE_SECONDS: Final = 10.0


async def find_create_time_topics(
    connection: KafkaConnection, topics: Iterable[str], *, deadline_seconds: float = _DEADLINE_SECONDS
) -> tuple[str, ...]:
    """Those of `topics` with CreateTime, in their order.

    Topics that do not exist, or whose configuration the Kafka user may not read (DESCRIBE_CONFIGS), are left out.
    Raises `KafkaUnavailableError` when no broker answers in time, and as `KafkaAdmin.open` does.
    """
    admin = await KafkaAdmin.open(connection, client_id="fluxpool-topic-times")
    resources = {topic: ConfigResource(ResourceType.TOPIC, topic) for topic in topics}
    if not resources:
        return ()
    futures = admin.client.describe_configs(list(resources.values()), request_timeout=deadline_seconds)
    answers = await admin.results(futures)
    return tuple(topic for topic, resource in resources.items() if _keeps_create_time(answers[resource]))


async def set_log_append_time(
    connection: KafkaConnection, topics: Iterable[str], *, deadline_seconds: float = _DEADLINE_SECONDS
) -> dict[str, str]:
    """Have the brokers stamp new records of `topics`; nothing else of their configuration changes.

    Returns why, by topic, for those that could not be changed. Raises `KafkaUnavailableError` when no broker answers in
    time, and as `KafkaAdmin.open` does.
    """
    admin = await KafkaAdmin.open(connection, client_id="fluxpool-topic-times")
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
