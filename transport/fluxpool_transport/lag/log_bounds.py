"""Partitions of many topics and the start and end of their logs, cached so that reading often costs little.

Owns the cache and the words for answers that are missing. Knows nothing of consumer groups.
Ends are last stable offsets, where a read-committed reader's view ends.
"""

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass

from confluent_kafka import KafkaException
from confluent_kafka.admin import OffsetSpec

from fluxpool_transport.kafka.admin import explain
from fluxpool_transport.kafka.metadata import KafkaMetadata, PartitionKey

_LATE = "the partition's leader did not answer in time"


@dataclass(frozen=True, slots=True)
class LogBounds:
    """Log start offset and last stable offset of one partition."""

    start: int
    end: int


class LogBoundsReader:
    """Asks about topics; a text in place of an answer says why there is none.

    Partitions of a topic and starts of logs seldom change, and for a thousand topics they cost as much as the ends do:
    they are asked again when they are older than `layout_seconds` and `start_seconds`, or contradict an end.
    """

    def __init__(self, metadata: KafkaMetadata, *, layout_seconds: float = 0.0, start_seconds: float = 0.0) -> None:
        self._metadata = metadata
        self._layout_seconds = layout_seconds
        self._start_seconds = start_seconds
        self._layouts: dict[str, tuple[tuple[int, ...], float]] = {}
        """Partitions, and when they were read."""
        self._starts: dict[PartitionKey, tuple[int, float]] = {}
        """Log start offset, and when it was read."""

    async def partitions(self, topics: Iterable[str]) -> dict[str, tuple[int, ...] | str]:
        """The numbers of each topic's partitions; raises as `KafkaMetadata` does."""
        now = asyncio.get_running_loop().time()
        wanted = sorted(set(topics))
        unknown = [topic for topic in wanted if _is_older(self._layouts.get(topic), self._layout_seconds, now)]
        problems: dict[str, str] = {}
        for topic, answer in (await self._metadata.topics(unknown)).items():
            if isinstance(answer, KafkaException):
                problems[topic] = f"topic {topic}: {explain(answer)}; create it, or grant the Kafka user DESCRIBE"
                self._layouts.pop(topic, None)
            else:
                self._layouts[topic] = answer.partitions, now
        return {topic: problems.get(topic) or self._layouts[topic][0] for topic in wanted}

    async def bounds(self, keys: Iterable[PartitionKey]) -> dict[PartitionKey, LogBounds | str]:
        """Both bounds of each partition; raises as `KafkaMetadata` does."""
        now = asyncio.get_running_loop().time()
        wanted = list(keys)
        old = [key for key in wanted if _is_older(self._starts.get(key), self._start_seconds, now)]
        unread, ends = await asyncio.gather(self._read_starts(old, now), self._offsets(wanted, OffsetSpec.latest()))
        # A cached start past the end belongs to a topic that was deleted and created again.
        wrong = [
            key
            for key, end in ends.items()
            if isinstance(end, int) and key in self._starts and self._starts[key][0] > end
        ]
        unread |= await self._read_starts(wrong, now)
        bounds = {key: self._bounds(unread.get(key), ends[key], key) for key in wanted}
        for (topic, number), bound in bounds.items():
            if isinstance(bound, str):
                self._layouts.pop(topic, None)
                self._starts.pop((topic, number), None)
        return bounds

    async def _offsets(self, keys: Iterable[PartitionKey], spec: OffsetSpec) -> dict[PartitionKey, int | str]:
        answers = await self._metadata.offsets(keys, spec)
        return {
            key: explain(answer) if isinstance(answer, KafkaException) else _LATE if answer is None else answer
            for key, answer in answers.items()
        }

    async def _read_starts(self, keys: Iterable[PartitionKey], now: float) -> dict[PartitionKey, str]:
        """Remember the starts; returns why others could not be read."""
        starts = await self._offsets(keys, OffsetSpec.earliest())
        self._starts |= {key: (start, now) for key, start in starts.items() if isinstance(start, int)}
        return {key: problem for key, problem in starts.items() if isinstance(problem, str)}

    def _bounds(self, problem: str | None, end: int | str, key: PartitionKey) -> LogBounds | str:
        if isinstance(end, str):
            return end
        return problem or LogBounds(self._starts[key][0], end)


def _is_older(known: tuple[object, float] | None, limit_seconds: float, now: float) -> bool:
    return known is None or now - known[1] >= limit_seconds
