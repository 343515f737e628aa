"""Topic metadata: the id and the partitions of each topic, as the brokers describe it now.

A recreated topic has another id. Used by the projector, the barrier's end offsets and readiness.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from confluent_kafka import KafkaException, TopicCollection

from fluxpool_transport.kafka import KafkaAdmin, explain

_ANSWER_SECONDS: Final = 2.0


@dataclass(frozen=True, slots=True)
class TopicLayout:
    """One topic as the brokers describe it."""

    topic_id: str | None
    """None when the brokers are older than topic ids."""
    partitions: tuple[int, ...]


async def read_layouts(admin: KafkaAdmin, topics: Sequence[str]) -> Mapping[str, TopicLayout | str]:
    """Each topic's layout, or the reason why there is none; raises as `KafkaAdmin.settle` does."""
    request = TopicCollection(topic_names=list(topics))
    described = await admin.settle(admin.client.describe_topics(request, request_timeout=_ANSWER_SECONDS))
    layouts: dict[str, TopicLayout | str] = {}
    for topic, answer in described.items():
        if isinstance(answer, KafkaException):
            layouts[topic] = explain(answer)
            continue
        number = (answer.topic_id.get_most_significant_bits(), answer.topic_id.get_least_significant_bits())
        layouts[topic] = TopicLayout(
            topic_id=None if number == (0, 0) else str(answer.topic_id),
            partitions=tuple(sorted(item.id for item in answer.partitions)),
        )
    return layouts
