"""Where a pool's relay begins in each partition of its retry topics.

Owns which answers about committed offsets are believed: a coordinator or leader that has just taken over may not know
of the latest commits or records. A pool that has no offsets of its own yet begins at those of the group of earlier
versions, which was shared by all pools.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import KW_ONLY, dataclass, field
from typing import Final

import structlog
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import GroupAuthorizationFailedError, KafkaError

from fluxpool_contract.kafka import committed_topic_id, former_scheduler_group, relayed_ahead
from fluxpool_transport.lag import GroupOffsetsError, MemberlessOffsets, StoredOffset
from fluxpool_worker.agent.retry.retry_partition import RetryPartition

CONFIRMING_SECONDS: Final = 5.0
"""An offset that is missing, or lies past the end of the log, is believed when it has been so for this long."""
CONFIRMING_INTERVAL_SECONDS: Final = 1.0
BOUNDS_SECONDS: Final = 5.0

log = structlog.get_logger(__name__)


@dataclass(slots=True, eq=False)
class RetryStart:
    """Finds the partitions and their first offsets."""

    topics: tuple[str, ...]
    _: KW_ONLY
    group: str
    offsets: MemberlessOffsets
    partitions_of: Callable[[str], Awaitable[set[int]]]
    ask_topic_id: Callable[[str], Awaitable[str | None]]
    is_complete: bool = field(default=True, init=False)
    """Whether the last `find` found every partition."""

    async def find(self, reader: AIOKafkaConsumer) -> dict[TopicPartition, RetryPartition]:
        """Every partition that can be read, with the reader assigned to all of them and sought to their starts.

        Raises `GroupOffsetsError`.
        """
        known = await self._existing()
        reader.assign(known)
        stored, bounds = await self._confirmed(reader, known)
        ids = {topic: await self.ask_topic_id(topic) for topic in self.topics}
        former = await self._former([partition for partition in bounds if partition not in stored])
        self.is_complete = bounds.keys() == set(known)
        if not self.is_complete:
            reader.assign(list(bounds))
        found = {}
        for partition, bound in bounds.items():
            found[partition] = state = _state(
                stored.get(partition), former.get(partition), bound=bound, topic_id=ids[partition.topic]
            )
            reader.seek(partition, state.position)
        return found

    async def is_outdated(self, partitions: Mapping[TopicPartition, RetryPartition]) -> bool:
        """Whether a topic has other partitions by now, or was deleted and recreated."""
        if set(await self._existing()) != partitions.keys():
            return True
        ids = {topic: await self.ask_topic_id(topic) for topic in self.topics}
        return any(_is_other(state.topic_id, ids[partition.topic]) for partition, state in partitions.items())

    async def _existing(self) -> list[TopicPartition]:
        found: list[TopicPartition] = []
        for topic in self.topics:
            try:
                found += [TopicPartition(topic, number) for number in sorted(await self.partitions_of(topic))]
            except KafkaError as error:
                log.warning("retry_topic_unreadable", topic=topic, error=repr(error))
        return found

    async def _confirmed(
        self, reader: AIOKafkaConsumer, partitions: list[TopicPartition]
    ) -> tuple[dict[TopicPartition, StoredOffset], dict[TopicPartition, range]]:
        """What the group has, and the offsets of each log that has a leader."""
        clock = asyncio.get_running_loop().time
        deadline = clock() + CONFIRMING_SECONDS
        while True:
            stored = await self.offsets.fetch(self.group, partitions)
            # After the offsets: a log only grows, so an offset past this end is doubtful, not early.
            bounds = await _bounds(reader, partitions)
            doubtful = [
                partition
                for partition, bound in bounds.items()
                if bound and (partition not in stored or stored[partition].offset > bound.stop)
            ]
            if not doubtful or clock() >= deadline:
                return stored, bounds
            await asyncio.sleep(CONFIRMING_INTERVAL_SECONDS)

    async def _former(self, partitions: Iterable[TopicPartition]) -> dict[TopicPartition, StoredOffset]:
        by_topic: dict[str, list[TopicPartition]] = {}
        for partition in partitions:
            by_topic.setdefault(partition.topic, []).append(partition)
        found: dict[TopicPartition, StoredOffset] = {}
        for topic, wanted in by_topic.items():
            try:
                found |= await self.offsets.fetch(former_scheduler_group(topic), wanted)
            except GroupOffsetsError as error:
                if not isinstance(error.__cause__, GroupAuthorizationFailedError):
                    raise  # to begin at the log's start would relay again what was relayed before
        return found


def _state(
    stored: StoredOffset | None, former: StoredOffset | None, *, bound: range, topic_id: str | None
) -> RetryPartition:
    if stored is None and former is not None and former.offset <= bound.stop:
        return RetryPartition(start=max(former.offset, bound.start), topic_id=topic_id)
    if stored is None or stored.offset > bound.stop or _is_other(committed_topic_id(stored.metadata), topic_id):
        # Never committed, or the topic was deleted and recreated since.
        return RetryPartition(start=bound.start, topic_id=topic_id)
    start = max(stored.offset, bound.start)
    return RetryPartition(start=start, relayed=relayed_ahead(stored.metadata, stored.offset), topic_id=topic_id)


def _is_other(known: str | None, topic_id: str | None) -> bool:
    return known is not None and topic_id is not None and known != topic_id


async def _bounds(reader: AIOKafkaConsumer, partitions: list[TopicPartition]) -> dict[TopicPartition, range]:
    async def ask(partition: TopicPartition) -> range | None:
        try:
            async with asyncio.timeout(BOUNDS_SECONDS):
                begins = await reader.beginning_offsets([partition])
                ends = await reader.end_offsets([partition])
        except (KafkaError, TimeoutError) as error:
            # Without a leader: the others are relayed meanwhile.
            log.warning(
                "retry_partition_unreadable", topic=partition.topic, partition=partition.partition, error=repr(error)
            )
            return None
        return range(begins[partition], ends[partition])

    answers = await asyncio.gather(*map(ask, partitions))
    return {partition: bound for partition, bound in zip(partitions, answers, strict=True) if bound is not None}
