"""Partitions of many topics and the start and end of their logs, cached so that reading often costs little.

Owns the cache and the words for answers that are missing. Knows nothing of consumer groups.
Ends are last stable offsets, where a read-committed reader's view ends.
"""

import asyncio
from collections.abc import Iterable, Mapping
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


@dataclass(frozen=True, slots=True)
class _Layout:
    partitions: tuple[int, ...]
    read_at_seconds: float


@dataclass(frozen=True, slots=True)
class _Start:
    offset: int
    read_at_seconds: float


class LogBoundsReader:
    """Asks about topics; a text in place of an answer says why there is none.

    Partitions of a topic and starts of logs seldom change, and for a thousand topics they cost as much as the ends do:
    they are asked again when they are older than `layout_seconds` and `start_seconds`, or contradict an end.
    """

    def __init__(self, metadata: KafkaMetadata, *, layout_seconds: float = 0.0, start_seconds: float = 0.0) -> None:
        self._metadata = metadata
        self._layout_seconds = layout_seconds
        self._start_seconds = start_seconds
        self._layouts: dict[str, _Layout] = {}
        self._starts: dict[PartitionKey, _Start] = {}

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
                self._layouts[topic] = _Layout(answer.partitions, now)
        return {topic: problems.get(topic) or self._layouts[topic].partitions for topic in wanted}

    async def bounds(self, keys: Iterable[PartitionKey]) -> dict[PartitionKey, LogBounds | str]:
        """Both bounds of each partition; raises as `KafkaMetadata` does."""
        now = asyncio.get_running_loop().time()
        wanted = list(keys)
        old = [key for key in wanted if _is_older(self._starts.get(key), self._start_seconds, now)]
        starts, ends = await asyncio.gather(
            self._offsets(old, OffsetSpec.earliest()),
            self._offsets(wanted, OffsetSpec.latest()),
        )
        self._remember(starts, now)
        # A cached start past the end belongs to a topic that was deleted and created again.
        wrong = [key for key, end in ends.items() if isinstance(end, int) and self._start_is_past(key, end)]
        if wrong:
            again = await self._offsets(wrong, OffsetSpec.earliest())
            self._remember(again, now)
            starts |= again
        bounds = {key: self._bounds(key, starts.get(key), ends[key]) for key in wanted}
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

    def _remember(self, starts: Mapping[PartitionKey, int | str], now: float) -> None:
        self._starts |= {key: _Start(start, now) for key, start in starts.items() if isinstance(start, int)}

    def _start_is_past(self, key: PartitionKey, end: int) -> bool:
        known = self._starts.get(key)
        return known is not None and known.offset > end

    def _bounds(self, key: PartitionKey, start: int | str | None, end: int | str) -> LogBounds | str:
        if isinstance(end, str):
            return end
        if isinstance(start, str):
            return start
        return LogBounds(self._starts[key].offset if start is None else start, end)


def _is_older(known: _Layout | _Start | None, limit_seconds: float, now: float) -> bool:
    return known is None or now - known.read_at_seconds >= limit_seconds
