"""Where the logs of partitions begin and end, and where they stood at a time.

Owns these questions to librdkafka's admin client. Knows nothing of groups or of what the numbers lead to.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from confluent_kafka import IsolationLevel, KafkaException, TopicCollection, TopicPartition
from confluent_kafka.admin import OffsetSpec

from fluxpool_transport.kafka_admin import KafkaAdmin


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


async def read_offsets_at(
    admin: KafkaAdmin, times_ms: Mapping[tuple[str, int], int], *, timeout_seconds: float
) -> dict[tuple[str, int], int]:
    """For each (topic, partition) the first offset whose record is not older than a time (since 1970, UTC).

    It is the log's end when all records are older. Partitions that could not be read are left out. Raises
    `KafkaUnavailableError` when no broker answers.
    """
    specs = {key: OffsetSpec.for_timestamp(time_ms) for key, time_ms in times_ms.items()}
    answers = await _list_offsets(admin, specs, timeout_seconds=timeout_seconds)
    offsets = {key: int(answer.offset) for key, answer in answers.items() if _has_offset(answer)}
    # "No record is that young" looks like "the leader was late": only one of them knows its youngest record.
    unsure = [key for key, answer in answers.items() if key not in offsets and not isinstance(answer, KafkaException)]
    youngest = await read_log_offsets(admin, unsure, OffsetSpec.max_timestamp(), timeout_seconds=timeout_seconds)
    ends = await read_log_offsets(admin, unsure, OffsetSpec.latest(), timeout_seconds=timeout_seconds)
    for key in unsure:
        if _has_offset(youngest[key]) and _has_offset(ends[key]):
            is_older = youngest[key].timestamp < times_ms[key]
            offsets[key] = int(ends[key].offset if is_older else youngest[key].offset)
    return offsets


def _has_offset(answer: Any) -> bool:
    return not isinstance(answer, KafkaException) and answer.offset >= 0


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
