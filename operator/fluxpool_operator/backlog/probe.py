"""What is first in line in partitions: the record at an offset, its time, or that nothing there can be consumed.

Owns a groupless read-committed consumer and a memory of what it found, so that each offset is fetched once. Must not
know of groups or pools. Serves two questions at once: how old the oldest waiting task is, and whether what seems to
wait is a record at all (a transaction's marker keeps its offset for ever, and so would the pool's last worker).
"""

import asyncio
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

import structlog
from aiokafka import TopicPartition
from aiokafka.errors import KafkaError

from fluxpool_contract.kafka import KafkaConnection
from fluxpool_operator.backlog.groupless import open_consumer
from fluxpool_operator.backlog.reading import Head
from fluxpool_transport.kafka import KafkaCredentialsError, UndecodableRecord, stop_consumer

log = structlog.get_logger(__name__)

_WAIT_SECONDS: Final = 0.25
"""A reading waits so long for heads; those that come later serve the next one."""
_PASS_SECONDS: Final = 2.0
_PASS_QUESTIONS: Final = 600
"""One pass fetches no more partitions, so that the short tails at its front are answered soon."""
_AGAIN_SECONDS: Final = 30.0
"""An offset for which nothing came (its leader is away, or the user may not read) is asked for again after this."""
_KNOWN_HEADS: Final = 20_000
_CONSUMER_OPTIONS: Final = {
    # A fetch that finds nothing must not hold up the next pass, which uses the same connection.
    "fetch_max_wait_ms": 100,
    # One batch for each partition is all that is looked at; a larger one comes whole (KIP-74), first in its answer.
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


class HeadProbe:
    """Answers questions about heads for one Kafka cluster; connects at the first one."""

    def __init__(self, connection: KafkaConnection, tasks: asyncio.TaskGroup) -> None:
        self._connection = connection
        self._tasks = tasks
        self._running: asyncio.Task[None] | None = None
        self._consumer: Any = None
        self._is_suspect = False
        self._open_questions: dict[tuple[str, int, int], HeadQuestion] = {}
        self._heads: OrderedDict[tuple[str, int, int], Head] = OrderedDict()
        self._again_at_seconds: dict[HeadQuestion, float] = {}

    async def look_up(self, questions: Iterable[HeadQuestion]) -> dict[HeadQuestion, Head]:
        """The heads that are known, or become so within a moment; the rest is searched for meanwhile.

        Those with the fewest offsets to look at come first: they may turn out to be no records. Never raises for Kafka.
        """
        wanted = sorted(questions, key=lambda question: question.end_offset - question.offset)
        missing = [question for question in wanted if self._is_missing(question)]
        self._open_questions |= {_key(question): question for question in missing}
        if missing:
            if self._running is None or self._running.done():
                self._running = self._tasks.create_task(self._run(), name="backlog-heads")
            # Waited for, not cancelled: a cancelled poll would leave the consumer in an undefined state.
            await asyncio.wait({self._running}, timeout=_WAIT_SECONDS)
        return {question: head for question in wanted if (head := self._known(question)) is not None}

    def reconnect(self) -> None:
        """Search by a new connection from the next pass on."""
        self._is_suspect = True

    async def close(self) -> None:
        """End the search and the connection."""
        if self._running is not None:
            self._running.cancel()
            await asyncio.wait({self._running})
        await self._drop_consumer()

    def _known(self, question: HeadQuestion) -> Head | None:
        head = self._heads.get(_key(question))
        if head is None or (head.record_offset is None and head.end_offset < question.end_offset):
            return None
        self._heads.move_to_end(_key(question))
        return head

    def _is_missing(self, question: HeadQuestion) -> bool:
        now = asyncio.get_running_loop().time()
        return self._known(question) is None and self._again_at_seconds.get(question, now) <= now

    async def _run(self) -> None:
        while self._open_questions:
            # Two groups may stand at different offsets of one partition, but a consumer only at one.
            batch: dict[TopicPartition, HeadQuestion] = {}
            for key, question in list(self._open_questions.items()):
                partition = TopicPartition(question.topic, question.partition)
                if partition not in batch and len(batch) < _PASS_QUESTIONS:
                    batch[partition] = self._open_questions.pop(key)
            try:
                await self._search(batch)
            except (KafkaError, KafkaCredentialsError, OSError) as error:
                log.warning("backlog_heads_unknown", error=str(error) or type(error).__name__)
                await self._drop_consumer()
            except Exception:
                log.exception("backlog_heads_failed")
                await self._drop_consumer()
            self._postpone_unanswered(batch.values())

    async def _search(self, batch: dict[TopicPartition, HeadQuestion]) -> None:
        consumer = await self._opened()
        loop = asyncio.get_running_loop()
        consumer.assign(list(batch))
        for partition, question in batch.items():
            consumer.seek(partition, question.offset)
        unanswered = dict(batch)
        ends_at_seconds = loop.time() + _PASS_SECONDS
        while unanswered and loop.time() < ends_at_seconds:
            try:
                records = await consumer.getmany(timeout_ms=50)
            except KafkaError as error:  # of one partition; the others go on
                log.debug("backlog_head_unreadable", error=str(error))
                continue
            for partition in list(unanswered):
                question = unanswered[partition]
                first = next((item for item in records.get(partition, ()) if item.offset >= question.offset), None)
                if first is None and await consumer.position(partition) < question.end_offset:
                    continue
                del unanswered[partition]
                consumer.pause(partition)
                self._remember(question, first)
        consumer.unsubscribe()

    def _remember(self, question: HeadQuestion, record: Any) -> None:
        offset = None if record is None else _first_offset(record, question)
        if offset is not None and offset >= question.end_offset:
            offset = None
        self._heads[_key(question)] = Head(
            offset=question.offset,
            end_offset=question.end_offset,
            record_offset=offset,
            # A batch that cannot be decoded waits like any other record, but may have no time.
            timestamp_ms=record.timestamp if offset is not None and record.timestamp >= 0 else None,
        )
        while len(self._heads) > _KNOWN_HEADS:
            self._heads.popitem(last=False)

    def _postpone_unanswered(self, questions: Iterable[HeadQuestion]) -> None:
        now = asyncio.get_running_loop().time()
        self._again_at_seconds = {key: at for key, at in self._again_at_seconds.items() if at > now}
        self._again_at_seconds |= {
            question: now + _AGAIN_SECONDS for question in questions if self._known(question) is None
        }

    async def _opened(self) -> Any:
        if self._is_suspect:
            self._is_suspect = False
            await self._drop_consumer()
        if self._consumer is None:
            self._consumer = await open_consumer(
                self._connection, client_id="fluxpool-heads", options=_CONSUMER_OPTIONS
            )
        return self._consumer

    async def _drop_consumer(self) -> None:
        consumer, self._consumer = self._consumer, None
        if consumer is not None:
            await stop_consumer(consumer)


def _first_offset(record: Any, question: HeadQuestion) -> int:
    """Where the first record lies; one that cannot be decoded may stand for several (see `undecodable_records`)."""
    if isinstance(record, UndecodableRecord):
        return max(question.offset, record.first_offset)
    return int(record.offset)


def _key(question: HeadQuestion) -> tuple[str, int, int]:
    return question.topic, question.partition, question.offset
