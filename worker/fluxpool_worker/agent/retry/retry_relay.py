"""Relays due tasks of the pool from its retry topics back to their lanes; CPU only, in one agent of the pool at a time.

Owns which records are this pool's, when each is sent back, and the offsets of the pool's retry group. The agent that
owns partition 0 of the first lane relays (`relay_duty`); where it begins is in `retry_start`, what it knows of a
partition in `retry_partition`. It reads the retry topics without a group, so pods that start and stop cause no
rebalance there. A task is sent back and acknowledged before its offset is committed: a crash in between relays it
twice, and the second copy finds the manifest of the first. Knows nothing of what a task is.
"""

import asyncio
import contextlib
import math
import random
from collections.abc import Awaitable, Callable
from typing import Any, Final

import structlog
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError
from aiokafka.structs import ConsumerRecord

from fluxpool_contract.kafka import due_seconds, not_before_seconds, origin_topic, strays_group
from fluxpool_contract.messages import Disposition
from fluxpool_contract.problems import ErrorClass, ErrorCode
from fluxpool_contract.settings import WorkerSettings
from fluxpool_transport.kafka import KafkaCredentialsError, UndecodableRecord, stop_consumer
from fluxpool_transport.lag import GroupOffsetsError, MemberlessOffsets, StoredOffset
from fluxpool_transport.partitioner import AHEAD_SECONDS, IdleAwarePartitioner
from fluxpool_transport.process import Backoff, fault_point
from fluxpool_worker.agent.clock import SYSTEM_CLOCK, Clock
from fluxpool_worker.agent.retry.relay_duty import RelayDuty
from fluxpool_worker.agent.retry.retry_partition import PendingRetry, RetryPartition
from fluxpool_worker.agent.retry.retry_start import RetryStart
from fluxpool_worker.agent.task.outgoing_records import Failure, due_record
from fluxpool_worker.agent.task.publisher import RecordRefusedError, ReliablePublisher
from fluxpool_worker.agent.task.run_until import AbandonedError, run_until

POLL_SECONDS: Final = 0.5
POLL_RECORDS: Final = 128
BATCH_RECORDS: Final = 64
"""Sent back at once, and committed with one request."""
COMMIT_SECONDS: Final = 5.0
"""Between commits that only say how many records of other pools were passed over."""
KEEP_SECONDS: Final = 3600.0
"""Kafka forgets an offset some time after its commit, not after its last use: it is committed again this often."""
REFRESH_SECONDS: Final = 60.0
"""Between two looks at the topics: their partitions, and whether they are still the same topics."""
INCOMPLETE_SECONDS: Final = 10.0
"""The same while some partition could not be read."""
STRAY_SPREAD_SECONDS: Final = 2.0
"""Pools look at a record that names no origin at different moments, so that one of them takes it before the others."""
STABLE_SECONDS: Final = 30.0
"""A relay that lasted this long did not fail from the start."""
AVERAGE_WORK: Final = 1.0
"""How large a task is, is in its body."""

_INTERRUPTIONS: Final = (KafkaError, GroupOffsetsError, KafkaCredentialsError, OSError, TimeoutError)

_after_republish = fault_point("retry-after-republish")

log = structlog.get_logger(__name__)


class RetryRelay:
    """Serves all retry topics of the pool; `choice.run()` must be running meanwhile."""

    def __init__(
        self,
        settings: WorkerSettings,
        *,
        duty: RelayDuty,
        build_reader: Callable[[], AIOKafkaConsumer],
        offsets: MemberlessOffsets,
        ask_topic_id: Callable[[str], Awaitable[str | None]],
        publisher: ReliablePublisher,
        choice: IdleAwarePartitioner,
        fail: Callable[[ConsumerRecord, Failure], Awaitable[None]],
        on_relayed: Callable[[str], None] = lambda _retry_topic: None,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        """`build_reader` makes a consumer without a group; `fail` ends a record that cannot be relayed, ever."""
        self._delays = dict(zip(settings.topics.retry, settings.retry_delays_seconds, strict=True))
        self._origins = frozenset(lane.topic for lane in settings.lanes)
        self._home_topic = settings.lanes[0].topic
        self._group = settings.retry_group
        self._duty = duty
        self._build_reader = build_reader
        self._offsets = offsets
        self._start = RetryStart(
            tuple(self._delays),
            group=self._group,
            offsets=offsets,
            partitions_of=publisher.partitions,
            ask_topic_id=ask_topic_id,
        )
        self._publisher = publisher
        self._choice = choice
        self._fail = fail
        self._on_relayed = on_relayed
        self._clock = clock
        self._partitions: dict[TopicPartition, RetryPartition] = {}
        self._stopping = asyncio.Event()
        self._committed_at = self._kept_at = 0.0

    def stop(self) -> None:
        """Make `run()` return when it has finished what it does."""
        self._stopping.set()

    async def run(self) -> None:
        """Relay until `stop()`, whenever this agent has the duty; raises `HoldExpiredError`."""
        backoff = Backoff(initial_seconds=1.0, maximum_seconds=30.0)
        if not self._delays:
            await self._stopping.wait()
        while not self._stopping.is_set():
            try:
                await run_until(self._stopping, self._duty.wait_held())
            except AbandonedError:
                return
            began_at = self._clock.monotonic()
            try:
                await self._serve()
            except _INTERRUPTIONS as error:
                if self._clock.monotonic() - began_at > STABLE_SECONDS:
                    backoff.reset()
                delay_seconds = backoff.next_seconds()
                log.warning("retry_relay_interrupted", error=repr(error), delay_seconds=delay_seconds)
                await self._wait_stopping(delay_seconds)

    async def _wait_stopping(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._stopping.wait()

    async def _serve(self) -> None:
        """Relay until the duty is lost or the topics must be read again."""
        reader = self._build_reader()
        try:
            await reader.start()
            # Before the offsets are read: a hand-over during the reading makes them outdated and raises the term.
            term = self._duty.term
            found = await self._start.find(reader)
            for partition, state in found.items():
                if partition in self._partitions:
                    state.remember(self._partitions[partition])
            self._partitions = found
            log.info(
                "retry_relay_started", positions={f"{t}-{n}": p.position for (t, n), p in self._partitions.items()}
            )
            # Before anything is relayed: a pool that may not commit would relay the same tasks again and again.
            async with self._duty.round():
                if self._duty.may_work and term == self._duty.term:
                    await self._commit()
            refresh_at = self._clock.monotonic() + (REFRESH_SECONDS if self._start.is_complete else INCOMPLETE_SECONDS)
            while self._duty.is_held and not self._stopping.is_set():
                if term != self._duty.term:
                    term = self._duty.term
                    await self._catch_up(list(self._partitions))
                if self._clock.monotonic() >= refresh_at:
                    if await self._start.is_outdated(self._partitions):
                        return
                    refresh_at = self._clock.monotonic() + REFRESH_SECONDS
                if not await self._poll(reader):
                    return
                if not self._duty.may_work:
                    # A due record leaves the next poll no time to wait, so this loop would never let the lane rejoin.
                    with contextlib.suppress(AbandonedError):
                        await run_until(self._stopping, self._duty.wait_assigned())
                async with self._duty.round():
                    if self._duty.may_work:
                        await self._work()
        finally:
            if error := await stop_consumer(reader):
                log.info("retry_reader_stop_failed", error=repr(error))
            await self._offsets.close()

    # Reading

    async def _poll(self, reader: AIOKafkaConsumer) -> bool:
        """Fetch until the next record is due; False when a log is not the one that was read so far."""
        full = {partition for partition, state in self._partitions.items() if state.is_full}
        paused = reader.paused()
        if full - paused:
            reader.pause(*(full - paused))
        if paused - full:
            reader.resume(*(paused - full))
        if not self._partitions:
            await self._wait_stopping(POLL_SECONDS)
            return True
        # Never cancelled: a cancelled poll would lose what it had fetched.
        batches = await reader.getmany(timeout_ms=math.ceil(self._nap_seconds() * 1000), max_records=POLL_RECORDS)
        for partition, records in batches.items():
            state = self._partitions[partition]
            for record in records:
                if state.goes_back(record.offset):
                    log.warning("retry_log_replaced", topic=partition.topic, partition=partition.partition)
                    return False
                state.see(record.offset, self._pending(record))
        for partition, state in self._partitions.items():
            with contextlib.suppress(KafkaError, TimeoutError):
                # Known at once, or left to the next poll. It is behind the markers that follow the last record.
                async with asyncio.timeout(0):
                    state.pass_over(await reader.position(partition))
        return True

    def _nap_seconds(self) -> float:
        due = [at for state in self._partitions.values() if (at := state.next_due_seconds()) is not None]
        if not due:
            return POLL_SECONDS
        seconds = min(due) - self._clock.time()
        if seconds <= AHEAD_SECONDS:
            self._choice.expect()
        return max(0.0, min(POLL_SECONDS, seconds))

    def _pending(self, record: ConsumerRecord) -> PendingRetry | None:
        now = self._clock.time()
        if is_lost := isinstance(record, UndecodableRecord) and not record.has_contents:
            origin, due = None, now
        else:
            origin = origin_topic(record.headers)
            due = due_seconds(
                arrived_seconds=min(record.timestamp / 1000, now),
                not_before_seconds=not_before_seconds(record.headers),
                delay_seconds=self._delays[record.topic],
            )
        if origin is None:
            due = max(due, now + random.uniform(0, STRAY_SPREAD_SECONDS))  # noqa: S311 - spreads pools
        elif origin not in self._origins:
            return None
        return PendingRetry(
            record=record,
            due_seconds=due,
            size_bytes=_size_bytes(record),
            is_stray=origin is None,
            is_undecodable=is_lost,
        )

    # Relaying

    async def _work(self) -> None:
        """Relay what is due, then commit. The duty may be lost meanwhile: then nothing is committed."""
        term = self._duty.term
        is_due = bool(self._due())
        if is_due:
            # Another agent may have had the duty in between, unknown to this one: it has committed what it relayed.
            await self._catch_up(list({partition for partition, _, _ in self._due()}))
            due = self._due()[:BATCH_RECORDS]
            await asyncio.gather(*(self._relay(*item) for item in due if not item[2].is_stray))
            # One after the other, in the order of their offsets: each commit covers all offsets before it.
            for partition, offset, item in due:
                if item.is_stray and self._is_still(term):
                    await self._relay_stray(partition, offset, item)
            _after_republish()
        now = self._clock.monotonic()
        if self._is_still(term) and (is_due or now - self._committed_at >= COMMIT_SECONDS):
            if now - self._kept_at >= KEEP_SECONDS:
                for state in self._partitions.values():
                    state.commit_again()
                self._kept_at = now
            await self._commit()
            self._committed_at = now

    def _is_still(self, term: int) -> bool:
        return self._duty.may_work and term == self._duty.term

    def _due(self) -> list[tuple[TopicPartition, int, PendingRetry]]:
        now = self._clock.time()
        found = [
            (partition, offset, item)
            for partition, state in self._partitions.items()
            for offset, item in state.due(now)
        ]
        return sorted(found, key=lambda it: it[2].due_seconds)

    async def _relay(self, partition: TopicPartition, offset: int, item: PendingRetry) -> None:
        record = item.record
        await self._send_back(record, origin_topic(record.headers) or self._home_topic)
        # Only when acknowledged: the next commit passes what is marked here.
        self._partitions[partition].relayed(offset)

    async def _relay_stray(self, partition: TopicPartition, offset: int, item: PendingRetry) -> None:
        """No header tells its pool: the first pool to see it takes it, and commits that for the others."""
        group = strays_group(partition.topic)
        stored = (await self._offsets.fetch(group, [partition])).get(partition)
        if stored is None or stored.offset <= offset:
            if item.is_undecodable:
                await self._fail(item.record, _undecodable(item.record))
            else:
                await self._send_back(item.record, self._home_topic)
            # After the send is acknowledged: a crash in between relays the task twice, the other order would lose it.
            await self._offsets.commit(group, {partition: StoredOffset(offset + 1)})
        self._partitions[partition].relayed(offset)

    async def _send_back(self, record: ConsumerRecord, topic: str) -> None:
        await self._choice.ready()
        partitioner = self._choice.partitioner
        place = None
        try:
            place = await self._publisher.publish(
                due_record(record, topic=topic),
                refusable=True,
                choose_partition=lambda partitions: partitioner.choose(topic, partitions=partitions, work=AVERAGE_WORK),
            )
        except RecordRefusedError as error:
            await self._fail(record, _refused(topic, error))
        if place is not None and place.offset >= 0:
            partitioner.acknowledged(topic, partition=place.partition, offset=place.offset, work=AVERAGE_WORK)
        self._on_relayed(record.topic)
        log.info(
            "retry_relayed",
            retry_topic=record.topic,
            topic=topic,
            partition=place.partition if place is not None else None,
            offset=record.offset,
        )

    # Offsets

    async def _catch_up(self, partitions: list[TopicPartition]) -> None:
        stored = await self._offsets.fetch(self._group, partitions)
        for partition, found in stored.items():
            self._partitions[partition].catch_up(found.offset, found.metadata)

    async def _commit(self) -> None:
        changed = {
            partition: StoredOffset(state.commit_offset, state.metadata())
            for partition, state in self._partitions.items()
            if state.is_changed
        }
        if not changed:
            return
        await self._offsets.commit(self._group, changed)
        # What was sent, not the present state: records may be relayed during the request.
        for partition, stored in changed.items():
            self._partitions[partition].commit_done(stored.offset, stored.metadata)


def _size_bytes(record: Any) -> int:
    headers = sum(len(name) + len(value or b"") for name, value in record.headers)
    return len(record.key or b"") + len(record.value or b"") + headers


def _undecodable(record: UndecodableRecord) -> Failure:
    return Failure(
        error_class=ErrorClass.INVALID,
        code=ErrorCode.UNDECODABLE,
        disposition=Disposition.INVALID,
        message=f"offsets {record.first_offset} to {record.offset} cannot be decoded: {record.problem}",
    )


def _refused(topic: str, error: RecordRefusedError) -> Failure:
    return Failure(
        error_class=ErrorClass.INFRA,
        code=ErrorCode.REFUSED_BY_TOPIC,
        disposition=Disposition.EXHAUSTED,
        message=f"the task was due again and cannot be sent back to topic {topic}: {error}",
    )
