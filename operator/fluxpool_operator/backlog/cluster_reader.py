"""Reads lanes of one Kafka cluster for whoever asks, all that ask meanwhile in one go.

Owns the joining of requests and the words for what went wrong. Must not know of pools, nor of what was read before.
"""

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from typing import Final

import structlog
from aiokafka.errors import KafkaError
from confluent_kafka import KafkaException

from fluxpool_contract.kafka_connection import KafkaConnection
from fluxpool_operator.backlog.observation import LaneTarget, RetryTier
from fluxpool_operator.backlog.probe import HeadProbe, HeadQuestion
from fluxpool_operator.backlog.reading import Head, LaneReading, head_offset
from fluxpool_transport.backlog import BacklogReader, GroupBacklog, KnownFor, PartitionBacklog, StalePartition
from fluxpool_transport.kafka_admin import KafkaUnavailableError
from fluxpool_transport.kafka_clients import KafkaCredentialsError

log = structlog.get_logger(__name__)

# New partitions are seen by the second reading of a pool that is read every five seconds; the others cost as much as
# the offsets themselves when there are a thousand groups, and nothing is decided by them at once.
_KNOWN_FOR: Final = KnownFor(layout_seconds=6.0, log_start_seconds=15.0, members_seconds=30.0)
_KAFKA_ERRORS: Final = (KafkaUnavailableError, KafkaCredentialsError, KafkaException, KafkaError, OSError)

_GroupOnTopic = tuple[str, str]
_Request = tuple[tuple[LaneTarget, ...], "asyncio.Future[tuple[LaneReading, ...]]"]


class ClusterReader:
    """Answers `read`; connects at the first one and stays connected until `close`, or until nothing can be read."""

    def __init__(
        self,
        connection: KafkaConnection,
        tasks: asyncio.TaskGroup,
        *,
        deadline_seconds: float,
        on_lost: Callable[[], None],
    ) -> None:
        """`on_lost` is called when nothing at all could be read: other connections to the cluster may be as dead."""
        self._connection = connection
        self._tasks = tasks
        self._deadline_seconds = deadline_seconds
        self._on_lost = on_lost
        self._requests: list[_Request] = []
        self._serving: asyncio.Task[None] | None = None
        self._open: tuple[AsyncExitStack, BacklogReader] | None = None
        self._heads = HeadProbe(connection, tasks)

    @property
    def is_busy(self) -> bool:
        """Whether somebody waits for an answer."""
        return self._serving is not None and not self._serving.done()

    async def read(self, targets: Sequence[LaneTarget]) -> tuple[LaneReading, ...]:
        """One reading for each target, in their order; what is wrong stands in them. Never raises for Kafka.

        Requests that come while a reading runs are answered together by the next one.
        """
        answer: asyncio.Future[tuple[LaneReading, ...]] = asyncio.get_running_loop().create_future()
        self._requests.append((tuple(targets), answer))
        if not self.is_busy:
            self._serving = self._tasks.create_task(self._serve(), name="backlog-reading")
        return await answer

    async def close(self) -> None:
        """Let go of the connections; whoever still waits is cancelled."""
        if self._serving is not None:
            self._serving.cancel()
            await asyncio.wait({self._serving})
        await self._heads.close()
        await self._drop_reader()

    async def _serve(self) -> None:
        batch: list[_Request] = []
        try:
            while self._requests:
                batch, self._requests = self._requests, []
                readings = await self._read(dict.fromkeys(target for targets, _ in batch for target in targets))
                for targets, answer in batch:
                    if not answer.done():  # its asker may be gone
                        answer.set_result(tuple(readings[target] for target in targets))
        finally:
            for _, answer in [*batch, *self._requests]:
                answer.cancel()

    async def _read(self, targets: Iterable[LaneTarget]) -> dict[LaneTarget, LaneReading]:
        try:
            readings = await self._read_offsets(targets)
            if _is_lost(readings.values()):
                await self._start_over()
                return readings
            return await self._with_heads(readings)
        except _KAFKA_ERRORS as error:
            problem = str(error) or type(error).__name__
        except Exception as error:
            log.exception("backlog_reading_failed")
            problem = f"the backlog could not be read: {type(error).__name__}: {error}"
        await self._start_over()
        return {target: LaneReading(target=target, problem=problem) for target in targets}

    async def _read_offsets(self, targets: Iterable[LaneTarget]) -> dict[LaneTarget, LaneReading]:
        reader = await self._reader()
        tiers = tuple(dict.fromkeys(tier for target in targets for tier in target.retry_tiers))
        groups = [(target.consumer_group, target.topic) for target in targets]
        groups += [(tier.scheduler_group, tier.topic) for tier in tiers]
        backlogs = await _read_groups(reader, groups)
        due = await _due_records(reader, tiers, backlogs)
        return {target: _lane_reading(target, backlogs[target.consumer_group, target.topic], due) for target in targets}

    async def _with_heads(self, readings: Mapping[LaneTarget, LaneReading]) -> dict[LaneTarget, LaneReading]:
        questions = {
            (target, item.partition): HeadQuestion(target.topic, item.partition, head_offset(item), item.log_end_offset)
            for target, reading in readings.items()
            for item in reading.partitions
            if isinstance(item, PartitionBacklog) and item.waiting_records > 0
        }
        found = await self._heads.look_up(set(questions.values()))
        heads: dict[LaneTarget, dict[int, Head]] = {}
        for (target, number), question in questions.items():
            if question in found:
                heads.setdefault(target, {})[number] = found[question]
        return {target: replace(reading, heads=heads.get(target, {})) for target, reading in readings.items()}

    async def _reader(self) -> BacklogReader:
        if self._open is None:
            stack = AsyncExitStack()
            reader = await stack.enter_async_context(
                BacklogReader(self._connection, deadline_seconds=self._deadline_seconds, known_for=_KNOWN_FOR)
            )
            self._open = stack, reader
        return self._open[1]

    async def _start_over(self) -> None:
        """Connect anew: aiokafka's client asks the bootstrap servers once only, and then the brokers that it knew."""
        await self._drop_reader()
        self._heads.reconnect()
        self._on_lost()

    async def _drop_reader(self) -> None:
        opened, self._open = self._open, None
        if opened is not None:
            await opened[0].aclose()


def _is_lost(readings: Iterable[LaneReading]) -> bool:
    """Whether there are partitions, and none of them could be read."""
    found = [isinstance(item, PartitionBacklog) for reading in readings for item in reading.partitions]
    return bool(found) and not any(found)


async def _read_groups(reader: BacklogReader, groups: Iterable[_GroupOnTopic]) -> dict[_GroupOnTopic, GroupBacklog]:
    """The backlog of each group on its topic. One call, unless a group is asked about on several topics."""
    backlogs: dict[_GroupOnTopic, GroupBacklog] = {}
    remaining = set(groups)
    while remaining:
        topics = dict(remaining)
        backlogs |= {(group, topics[group]): item for group, item in (await reader.read(topics)).items()}
        remaining -= topics.items()
    return backlogs


async def _due_records(
    reader: BacklogReader, tiers: Iterable[RetryTier], backlogs: Mapping[_GroupOnTopic, GroupBacklog]
) -> dict[RetryTier, int | str]:
    """How many records of each tier have waited long enough; a text where that could not be read."""
    found = {tier: backlogs[tier.scheduler_group, tier.topic] for tier in tiers}
    now_ms = time.time() * 1000
    times_ms = {
        tier.topic: int(now_ms - tier.delay_seconds * 1000)
        for tier, backlog in found.items()
        if backlog.uncommitted_records_at_least
    }
    offsets: dict[tuple[str, int], int] = {}
    if times_ms:
        try:
            offsets = await reader.offsets_at(times_ms)
        except KafkaUnavailableError as error:
            log.warning("due_retries_unknown", error=str(error))
    return {tier: _due_of(backlog, offsets) for tier, backlog in found.items()}


def _due_of(backlog: GroupBacklog, offsets: Mapping[tuple[str, int], int]) -> int | str:
    due = 0
    for item in backlog.partitions:
        if isinstance(item, StalePartition):
            return f"{backlog.topic}: {item.reason}"
        if item.uncommitted_records:
            offset = offsets.get((backlog.topic, item.partition))
            if offset is None:
                return f"{backlog.topic}: the partitions' leaders did not say what is due"
            due += max(0, min(offset, item.log_end_offset) - item.next_offset)
    return due if backlog.partitions else backlog.problem or f"{backlog.topic}: could not be read"


def _lane_reading(target: LaneTarget, backlog: GroupBacklog, due: Mapping[RetryTier, int | str]) -> LaneReading:
    counts = [due[tier] for tier in target.retry_tiers]
    unread = [count for count in counts if isinstance(count, str)]
    problem = backlog.problem
    if problem is None and unread:
        problem = f"due retries are not known: {'; '.join(unread)}"
    return LaneReading(
        target=target,
        partitions=backlog.partitions,
        member_count=backlog.member_count,
        due_retries=None if unread else sum(count for count in counts if isinstance(count, int)),
        problem=problem,
    )
