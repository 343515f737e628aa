"""Reads the lanes of one Kafka cluster for all pools; requests that arrive during a reading share the next one.

Owns the batching and the explanation of errors. Readings go to `memory`. Must not know of pools or earlier readings.
"""

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Final

import structlog
from aiokafka.errors import KafkaError
from confluent_kafka import KafkaException

from fluxpool_contract.kafka import KafkaConnection
from fluxpool_operator.backlog.observation import LaneTarget, RetryTier
from fluxpool_operator.backlog.probe import HeadProbe, HeadQuestion
from fluxpool_operator.backlog.reading import Head, LaneReading, head_offset
from fluxpool_operator.backlog.retries.due_retries import DueRetries, read_groups
from fluxpool_operator.backlog.retries.retry_scan import RetryScan
from fluxpool_transport.kafka import KafkaCredentialsError, KafkaUnavailableError
from fluxpool_transport.lag import GroupLag, KnownFor, LagReader, PartitionLag

log = structlog.get_logger(__name__)

# New partitions are seen by the second reading at an interval of five seconds. Log starts and members cost as much as
# the offsets when there are a thousand groups, and no decision depends on them at once.
_KNOWN_FOR: Final = KnownFor(layout_seconds=6.0, log_start_seconds=15.0, members_seconds=30.0)
_KAFKA_ERRORS: Final = (KafkaUnavailableError, KafkaCredentialsError, KafkaException, KafkaError, OSError)

_Request = tuple[tuple[LaneTarget, ...], "asyncio.Future[tuple[LaneReading, ...]]"]


class ClusterReader:
    """Connects at the first `read`; stays connected until `close`, or until no partition can be read."""

    def __init__(
        self,
        connection: KafkaConnection,
        tasks: asyncio.TaskGroup,
        *,
        deadline_seconds: float,
        on_lost: Callable[[], None],
    ) -> None:
        """`on_lost` is called when no partition could be read: other connections to the cluster may be dead too."""
        self._tasks = tasks
        self._on_lost = on_lost
        self._requests: list[_Request] = []
        self._serving: asyncio.Task[None] | None = None
        self._reader = LagReader(connection, deadline_seconds=deadline_seconds, known_for=_KNOWN_FOR)
        self._heads = HeadProbe(connection, tasks)
        self._retries = RetryScan(connection, tasks)
        self._due_retries = DueRetries(self._retries)

    @property
    def is_busy(self) -> bool:
        """Whether a reading is running."""
        return self._serving is not None and not self._serving.done()

    async def read(self, targets: Sequence[LaneTarget]) -> tuple[LaneReading, ...]:
        """One reading for each target, in their order; errors are in the readings. Never raises for Kafka."""
        answer: asyncio.Future[tuple[LaneReading, ...]] = asyncio.get_running_loop().create_future()
        self._requests.append((tuple(targets), answer))
        # Only one reading at a time: requests that arrive while it runs are answered together by the next.
        if not self.is_busy:
            self._serving = self._tasks.create_task(self._serve(), name="backlog-reading")
        return await answer

    async def close(self) -> None:
        """Close the connections and cancel waiting requests."""
        if self._serving is not None:
            self._serving.cancel()
            await asyncio.wait({self._serving})
        await self._heads.close()
        await self._retries.close()
        await self._reader.close()

    async def _serve(self) -> None:
        batch: list[_Request] = []
        try:
            while self._requests:
                # Taken before the first await: a request that arrives during the reading belongs to the next batch.
                batch, self._requests = self._requests, []
                readings = await self._read(dict.fromkeys(target for targets, _ in batch for target in targets))
                for targets, answer in batch:
                    if not answer.done():  # the requester may be cancelled
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
            # A defect. Every pool of the cluster waits for an answer: they get the problem, and the next reading.
            log.exception("backlog_reading_failed")
            problem = f"the backlog could not be read: {type(error).__name__}: {error}"
        await self._start_over()
        return {target: LaneReading(target=target, problem=problem) for target in targets}

    async def _read_offsets(self, targets: Iterable[LaneTarget]) -> dict[LaneTarget, LaneReading]:
        backlogs = await read_groups(self._reader, [(target.consumer_group, target.topic) for target in targets])
        due = await self._due_retries.count(self._reader, [tier for target in targets for tier in target.retry_tiers])
        return {target: _lane_reading(target, backlogs[target.consumer_group, target.topic], due) for target in targets}

    async def _with_heads(self, readings: Mapping[LaneTarget, LaneReading]) -> dict[LaneTarget, LaneReading]:
        questions = {
            (target, item.partition): HeadQuestion(target.topic, item.partition, head_offset(item), item.log_end_offset)
            for target, reading in readings.items()
            for item in reading.partitions
            if isinstance(item, PartitionLag) and item.pending_records > 0
        }
        found = await self._heads.look_up(set(questions.values()))
        heads: dict[LaneTarget, dict[int, Head]] = {}
        for (target, number), question in questions.items():
            if question in found:
                heads.setdefault(target, {})[number] = found[question]
        return {target: replace(reading, heads=heads.get(target, {})) for target, reading in readings.items()}

    async def _start_over(self) -> None:
        """Use new connections: after its start aiokafka asks only the brokers that it knows, which may be gone."""
        await self._reader.close()
        self._heads.reconnect()
        self._retries.reconnect()
        self._on_lost()


def _is_lost(readings: Iterable[LaneReading]) -> bool:
    """Whether no partition could be read although there are some."""
    found = [isinstance(item, PartitionLag) for reading in readings for item in reading.partitions]
    return bool(found) and not any(found)


def _lane_reading(target: LaneTarget, backlog: GroupLag, due: Mapping[RetryTier, int | str]) -> LaneReading:
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
