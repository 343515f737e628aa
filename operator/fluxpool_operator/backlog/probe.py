"""Finds the first pending record of partitions: its offset and timestamp, or that nothing there can be consumed.

Answers two questions: how old the oldest pending task is, and whether an apparent lag holds a record at all (a
transaction marker occupies an offset forever, and would keep the last worker of the pool). Owns a groupless
read-committed consumer and a cache, so that each offset is fetched once. Must not know of groups or pools; asked by
`cluster_reader`.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

from aiokafka import TopicPartition

from fluxpool_contract.kafka import KafkaConnection
from fluxpool_operator.backlog.groupless import GrouplessReader
from fluxpool_operator.backlog.reading import Head
from fluxpool_transport.kafka import UndecodableRecord

_WAIT_SECONDS: Final = 0.25
"""A reading waits this long for heads; those found later serve the next reading."""
_PASS_SECONDS: Final = 2.0
_PASS_QUESTIONS: Final = 600
"""Maximum number of partitions in one pass, so that the short searches at its front are answered soon."""
_SEARCH_AGAIN_SECONDS: Final = 30.0
"""An offset without an answer (no leader, or no READ right) is searched for again after this."""
_KNOWN_HEADS: Final = 20_000
_CONSUMER_OPTIONS: Final = {
    # A fetch that finds nothing must not delay the next pass, which uses the same connection.
    "fetch_max_wait_ms": 100,
    # Only the first batch of each partition is needed; a larger one is returned whole (KIP-74).
    "max_partition_fetch_bytes": 16 * 1024,
    "fetch_max_bytes": 4 * 1024 * 1024,
}


@dataclass(frozen=True, slots=True)
class HeadQuestion:
    """Asks for the first record of a partition from `offset` on, below `end_offset`."""

    topic: str
    partition: int
    offset: int
    end_offset: int


class HeadProbe(GrouplessReader):
    """Answers questions about heads for one Kafka cluster; connects at the first one."""

    def __init__(self, connection: KafkaConnection, tasks: asyncio.TaskGroup) -> None:
        super().__init__(connection, tasks, client_id="fluxpool-heads", options=_CONSUMER_OPTIONS)
        self._open_questions: dict[tuple[str, int, int], HeadQuestion] = {}
        self._heads: OrderedDict[tuple[str, int, int], Head] = OrderedDict()
        self._search_again_at: dict[HeadQuestion, float] = {}

    async def look_up(self, questions: Iterable[HeadQuestion]) -> dict[HeadQuestion, Head]:
        """The heads that are known or found within a moment; the others are searched for in the background.

        Those with the fewest offsets to search come first: they may turn out to be no records. Never raises for Kafka.
        """
        wanted = sorted(questions, key=lambda question: question.end_offset - question.offset)
        missing = [question for question in wanted if self._is_missing(question)]
        self._open_questions |= {_key(question): question for question in missing}
        if missing:
            self._start(self._run)
            await self._wait(_WAIT_SECONDS)
        return {question: head for question in wanted if (head := self._known(question)) is not None}

    def _known(self, question: HeadQuestion) -> Head | None:
        head = self._heads.get(_key(question))
        if head is None or (head.record_offset is None and head.end_offset < question.end_offset):
            return None
        self._heads.move_to_end(_key(question))
        return head

    def _is_missing(self, question: HeadQuestion) -> bool:
        now = asyncio.get_running_loop().time()
        return self._known(question) is None and self._search_again_at.get(question, now) <= now

    async def _run(self) -> None:
        while self._open_questions:
            # Two groups may be at different offsets of one partition, but a consumer has one position: next pass.
            batch: dict[TopicPartition, HeadQuestion] = {}
            for key, question in list(self._open_questions.items()):
                partition = TopicPartition(question.topic, question.partition)
                if partition not in batch and len(batch) < _PASS_QUESTIONS:
                    batch[partition] = self._open_questions.pop(key)
            await self._guarded(self._search(batch))
            self._postpone_unanswered(batch.values())

    async def _search(self, batch: dict[TopicPartition, HeadQuestion]) -> None:
        def take(partition: TopicPartition, records: list[Any], position: int) -> bool:
            question = batch[partition]
            first = next((item for item in records if item.offset >= question.offset), None)
            if first is None and position < question.end_offset:
                return False
            self._remember(question, first)
            return True

        starts = {partition: question.offset for partition, question in batch.items()}
        await self._read_from(starts, seconds=_PASS_SECONDS, take=take)

    def _remember(self, question: HeadQuestion, record: Any) -> None:
        offset = None if record is None else _first_offset(record, question)
        if offset is not None and offset >= question.end_offset:
            offset = None
        self._heads[_key(question)] = Head(
            offset=question.offset,
            end_offset=question.end_offset,
            record_offset=offset,
            # A batch that cannot be decoded is pending like any other record, but may have no timestamp.
            timestamp_ms=record.timestamp if offset is not None and record.timestamp >= 0 else None,
        )
        while len(self._heads) > _KNOWN_HEADS:
            self._heads.popitem(last=False)

    def _postpone_unanswered(self, questions: Iterable[HeadQuestion]) -> None:
        now = asyncio.get_running_loop().time()
        self._search_again_at = {key: at for key, at in self._search_again_at.items() if at > now}
        self._search_again_at |= {
            question: now + _SEARCH_AGAIN_SECONDS for question in questions if self._known(question) is None
        }


def _first_offset(record: Any, question: HeadQuestion) -> int:
    """Offset of the first record; an undecodable one may stand for several (see `UndecodableRecord`)."""
    if isinstance(record, UndecodableRecord):
        return max(question.offset, record.first_offset)
    return int(record.offset)


def _key(question: HeadQuestion) -> tuple[str, int, int]:
    return question.topic, question.partition, question.offset
