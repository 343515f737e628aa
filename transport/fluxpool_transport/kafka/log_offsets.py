"""The partitions of topics, and where their logs begin and end.

Owns these questions to librdkafka's admin client. Knows nothing of groups or of what the numbers lead to.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from confluent_kafka import IsolationLevel, KafkaException, TopicCollection, TopicPartition

from fluxpool_transport.kafka.admin import KafkaAdmin


async def read_partitions(
    admin: KafkaAdmin, topics: Sequence[str], *, timeout_seconds: float
) -> dict[str, tuple[int, ...] | KafkaException]:
    """Each topic's partition numbers in order, or the exception in their place; never creates a topic.

    Raises `KafkaUnavailableError` when no broker answers.
    """
    if not topics:
        return {}
    described = await admin.settle(
        admin.client.describe_topics(TopicCollection(topic_names=list(topics)), request_timeout=timeout_seconds)
    )
    return {
        topic: answer if isinstance(answer, KafkaException) else tuple(sorted(item.id for item in answer.partitions))
        for topic, answer in described.items()
    }


async def read_log_offsets(
    admin: KafkaAdmin, keys: Iterable[tuple[str, int]], spec: Any, *, timeout_seconds: float
) -> dict[tuple[str, int], Any]:
    """The answer for each (topic, partition), whose `offset` is as a read-committed reader sees it, or the exception.

    `spec` is an `OffsetSpec`. An offset below 0 means that there is none: the leader was late, or no record is that
    young. Raises `KafkaUnavailableError` when no broker answers.
    """
    return await _list_offsets(admin, dict.fromkeys(keys, spec), timeout_seconds=timeout_seconds)


async def _list_offsets(
    admin: KafkaAdmin, specs: Mapping[tuple[str, int], Any], *, timeout_seconds: float
) -> dict[tuple[str, int], Any]:
    request = {TopicPartition(topic, number): spec for (topic, number), spec in specs.items()}
    if not request:
        return {}
    answers = await admin.settle(
        admin.client.list_offsets(
            request, isolation_level=IsolationLevel.READ_COMMITTED, request_timeout=timeout_seconds
        )
    )
    return {(item.topic, item.partition): answer for item, answer in answers.items()}
