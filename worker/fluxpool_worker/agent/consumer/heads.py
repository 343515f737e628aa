"""Heads: records fetched from each partition that wait to be started. Pure: no Kafka client, no clock.

Owns their order and when a partition has enough of them. Whether a record may be started is decided in `lane`.
"""

from collections import deque
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Final

from aiokafka import TopicPartition
from aiokafka.structs import ConsumerRecord

HEADS_PER_PARTITION: Final = 32
"""A resumed partition waits for the fetch under way (100 ms), and aiokafka decodes its batch again: these heads bridge
that for short tasks and for records that are refused."""


@dataclass(frozen=True, slots=True)
class Head:
    """A record that waits to be started."""

    record: ConsumerRecord
    arrived_ms: float
    """Milliseconds since 1970."""


class Heads:
    """The heads of each assigned partition, in the order of their offsets."""

    def __init__(self) -> None:
        self._heads: dict[TopicPartition, deque[Head]] = {}

    def assign(self, partitions: Collection[TopicPartition]) -> None:
        """Start without heads, on these partitions."""
        self._heads = {partition: deque() for partition in partitions}

    def clear(self, partitions: Iterable[TopicPartition] | None = None) -> None:
        """Drop the heads of these partitions, by default of all: the consumer fetches them again."""
        for partition in list(self._heads) if partitions is None else partitions:
            self._heads[partition].clear()

    def revoke(self, partitions: Iterable[TopicPartition]) -> None:
        """Forget these partitions."""
        for partition in partitions:
            self._heads.pop(partition, None)

    def has(self, partition: TopicPartition) -> bool:
        """Whether a record of the partition waits."""
        return bool(self._heads[partition])

    def is_full(self, partition: TopicPartition) -> bool:
        """Whether nothing needs to be fetched from the partition."""
        return len(self._heads.get(partition, ())) * 2 >= HEADS_PER_PARTITION

    def add(self, partition: TopicPartition, record: ConsumerRecord, *, arrived_ms: float) -> None:
        """Append a record, unless it has been appended before."""
        heads = self._heads[partition]
        if not heads or record.offset > heads[-1].record.offset:
            heads.append(Head(record, arrived_ms))

    def first(self, *, outside: Collection[TopicPartition]) -> list[Head]:
        """The first head of each partition that is not in `outside`."""
        return [heads[0] for partition, heads in self._heads.items() if heads and partition not in outside]

    def pop(self, partition: TopicPartition) -> ConsumerRecord:
        """Remove and return the first record of the partition."""
        return self._heads[partition].popleft().record
