"""One lane: a topic, its consumer group and this pod's membership in it.

Owns polling, head buffers, pauses, rebalances and commits; knows nothing of tasks. The consumer is polled at all times,
with partitions paused that have heads enough, because only polling keeps the membership and notices a rebalance.
"""

import asyncio
import contextlib
import itertools
import time
from collections import deque
from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace
from typing import Final

import structlog
from aiokafka import AIOKafkaConsumer, ConsumerRebalanceListener, TopicPartition
from aiokafka.errors import CommitFailedError, IllegalStateError, KafkaError
from aiokafka.structs import ConsumerRecord, OffsetAndMetadata

from fluxpool_contract.ledger import LedgerEntry, decode_ledger
from fluxpool_transport.faults import fault_point
from fluxpool_worker.agent.holds import Hold, HoldCause, Holds
from fluxpool_worker.agent.membership import (
    committed_with_metadata,
    has_generation,
    refuse_commits_without_generation,
)
from fluxpool_worker.agent.offsets import PartitionOffsets, lost_range

POLL_SECONDS: Final = 0.5
HEADS_PER_PARTITION: Final = 4
"""A resumed partition waits for the fetch under way (100 ms); a few heads bridge that for short tasks."""
COMMIT_DEADLINE_SECONDS: Final = 10.0
COMMIT_RETRY_SECONDS: Final = 0.5
LEDGER_DEADLINE_SECONDS: Final = 10.0
LEAVE_DEADLINE_SECONDS: Final = 5.0
REBUILD_SECONDS: Final = 1.0

_before_commit = fault_point("agent-before-commit")
_after_commit = fault_point("agent-after-commit")

log = structlog.get_logger(__name__)


class PartitionLostError(Exception):
    """The partition now belongs to somebody else; its offsets must not be committed from here."""


@dataclass(slots=True, eq=False)
class Taken:
    """A record taken from the lane; the lane tells it when its partition is lost."""

    lane: "LaneConsumer"
    record: ConsumerRecord
    crashes: int = 0
    """How many engines or workers died over the task, as the ledger of former owners says."""
    lost: bool = False
    on_lost: Callable[[], None] = field(default=lambda: None)
    """Called once, from the event loop, when the partition went to another member."""
    remaining_seconds: Callable[[], float | None] = field(default=lambda: None)
    """Estimate until the task is finished; None when unknown."""

    @property
    def partition(self) -> TopicPartition:
        """Where the record lies."""
        return TopicPartition(self.record.topic, self.record.partition)


class LaneConsumer(ConsumerRebalanceListener):  # type: ignore[misc]  # aiokafka is untyped
    """Membership of one lane's consumer group."""

    def __init__(
        self,
        *,
        name: str,
        topic: str,
        build_consumer: Callable[[], AIOKafkaConsumer],
        revoke_wait_seconds: float,
        wake: asyncio.Event,
        holds: Holds,
        count_crashes: Callable[[LedgerEntry], int],
        count_lost: Callable[[int], None] = lambda _records: None,
    ) -> None:
        """`count_crashes` says what an entry of a former owner's ledger means; `wake` is set when a record waits.

        `count_lost` is told how many records went away before anybody had done them.
        """
        self.name = name
        self.topic = topic
        self.last_poll: float | None = None
        """Monotonic time of the last return from a poll; None before the first."""
        self._build_consumer = build_consumer
        self._revoke_wait_seconds = revoke_wait_seconds
        self._wake = wake
        self._holds = holds
        self._hold: Hold | None = None
        self._count_crashes = count_crashes
        self._count_lost = count_lost
        self._consumer: AIOKafkaConsumer | None = None
        self._heads: dict[TopicPartition, deque[ConsumerRecord]] = {}
        self._offsets: dict[TopicPartition, PartitionOffsets] = {}
        self._taken: set[Taken] = set()
        self._assigned: frozenset[TopicPartition] = frozenset()
        self._unread: frozenset[TopicPartition] = frozenset()
        """Assigned, but what the group committed for them is not known yet: nothing is begun or committed there."""
        self._reassigned = asyncio.Event()
        self._joined = asyncio.Event()
        self._epoch = 0
        """Counts assignments; a commit that was refused may be repeated only in a later one."""
        self._versions = itertools.count(1)
        self._changed_at: dict[TopicPartition, int] = {}
        self._committed_at: dict[TopicPartition, int] = {}
        self._changed = asyncio.Event()
        self._settled = asyncio.Condition()
        self._commit_lock = asyncio.Lock()
        self._read_back: set[TopicPartition] = set()
        self._intake_stopped = False
        self._leaving = False
        self._log = log.bind(lane=name)

    # Life

    async def run(self) -> None:
        """Be a member until `leave()`; a consumer whose poll failed is replaced by a new one."""
        while not self._leaving:
            try:
                await self._serve()
            except KafkaError as error:
                self._log.warning("lane_consumer_failed", error=repr(error))
            finally:
                self._joined.clear()
                self._lose(set(self._offsets))
                self._end_hold()
                await self._close_consumer()
            if not self._leaving:
                await asyncio.sleep(REBUILD_SECONDS)

    async def _serve(self) -> None:
        consumer = self._build_consumer()
        self._consumer = consumer
        await consumer.start()
        refuse_commits_without_generation(consumer)
        consumer.subscribe([self.topic], listener=self)
        background = [
            asyncio.create_task(self._commit_when_changed(consumer), name=f"commit-{self.name}"),
            asyncio.create_task(self._take_over_when_assigned(consumer), name=f"take-over-{self.name}"),
        ]
        try:
            while not self._leaving:
                for task in background:
                    if task.done():
                        task.result()  # they never end by themselves: whatever ended one must end the agent too
                self._apply_pauses(consumer)
                # Never cancelled and never under a timeout of ours: a cancelled poll disables max_poll_interval_ms.
                batches = await consumer.getmany(timeout_ms=int(POLL_SECONDS * 1000), max_records=HEADS_PER_PARTITION)
                self.last_poll = time.monotonic()
                for partition, records in batches.items():
                    self._receive(partition, records)
        finally:
            for task in background:
                task.cancel()
            for task in background:
                with contextlib.suppress(asyncio.CancelledError):
                    await task

    async def _close_consumer(self) -> None:
        consumer, self._consumer = self._consumer, None
        if consumer is None:
            return
        try:
            async with asyncio.timeout(LEAVE_DEADLINE_SECONDS):
                await consumer.stop()
        except (KafkaError, TimeoutError) as error:
            self._log.warning("lane_leave_failed", error=repr(error))

    def stop_intake(self) -> None:
        """Hand out no further record; polling goes on, and with it the membership."""
        self._intake_stopped = True
        for heads in self._heads.values():
            heads.clear()
        if self._consumer is not None and self._assigned:
            self._apply_pauses(self._consumer)

    async def leave(self) -> None:
        """Commit what is finished, mark the rest as released, and make `run()` leave the group."""
        for partition, offsets in self._offsets.items():
            # One by one, which is for good: a rebalance before the end must not take the releases back.
            for offset in list(offsets.in_flight):
                offsets.release(offset)
            self._mark_changed(partition)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(COMMIT_DEADLINE_SECONDS), self._settled:
                await self._settled.wait_for(lambda: not self._uncommitted())
        self._leaving = True

    # Heads

    @property
    def is_joined(self) -> bool:
        """Whether the group has given this member an assignment that still stands."""
        return self._joined.is_set()

    def oldest_head_ms(self) -> int | None:
        """Timestamp of the oldest record that waits here, milliseconds since 1970; None when none does."""
        return min((head.timestamp for head in self.waiting_heads()), default=None)

    def waiting_heads(self) -> list[ConsumerRecord]:
        """The first waiting record of each partition."""
        if self._intake_stopped:
            return []
        return [heads[0] for partition, heads in self._heads.items() if heads and partition not in self._unread]

    def take(self) -> Taken | None:
        """The oldest waiting record, now in flight; None when none waits."""
        waiting = self.waiting_heads()
        return self.take_head(min(waiting, key=lambda head: head.timestamp)) if waiting else None

    def take_head(self, head: ConsumerRecord) -> Taken:
        """One of `waiting_heads()`, now in flight; no await may lie between the two calls."""
        partition = TopicPartition(head.topic, head.partition)
        record = self._heads[partition].popleft()
        inherited = self._offsets[partition].start(record.offset)
        taken = Taken(lane=self, record=record, crashes=inherited.crashes if inherited is not None else 0)
        self._taken.add(taken)
        if self._consumer is not None:
            self._apply_pauses(self._consumer)
        return taken

    def _receive(self, partition: TopicPartition, records: list[ConsumerRecord]) -> None:
        if partition not in self._assigned or self._intake_stopped:
            return
        offsets = self._offsets[partition]
        heads = self._heads[partition]
        for record in records:
            if offsets.accepts(record.offset) and not (heads and record.offset <= heads[-1].offset):
                heads.append(record)
        if heads:
            self._wake.set()

    def _apply_pauses(self, consumer: AIOKafkaConsumer) -> None:
        assigned = consumer.assignment()
        full = {
            partition
            for partition in assigned
            if self._intake_stopped or len(self._heads.get(partition, ())) * 2 >= HEADS_PER_PARTITION
        }
        paused = consumer.paused() & assigned
        if full - paused:
            consumer.pause(*(full - paused))
        if paused - full:
            consumer.resume(*(paused - full))

    # Rebalance

    async def on_partitions_revoked(self, revoked: Collection[TopicPartition]) -> None:
        """Before a join: heartbeats still run, and what is finished may still be committed."""
        self._joined.clear()
        for heads in self._heads.values():
            heads.clear()
        if not revoked or self._consumer is None:
            return
        await self._wait_for_nearly_finished()
        for partition, offsets in self._offsets.items():
            offsets.release()
            self._mark_changed(partition)
        await self._commit_once(self._consumer, deadline_seconds=COMMIT_DEADLINE_SECONDS / 4)

    def on_partitions_assigned(self, assigned: Collection[TopicPartition]) -> None:
        """After a join. Must not await: the heartbeat task is not running yet."""
        self._epoch += 1
        self._assigned = frozenset(assigned)
        self._lose(set(self._offsets) - self._assigned)
        for partition in self._assigned:
            self._heads[partition] = deque()
            offsets = self._offsets.setdefault(partition, PartitionOffsets())
            offsets.reclaim()
            if offsets.in_flight:
                self._mark_changed(partition)
        self._unread = self._assigned
        self._reassigned.set()
        if self._consumer is not None:
            self._apply_pauses(self._consumer)
        self._joined.set()
        self._changed.set()
        self._log.info("lane_assigned", partitions=sorted(partition.partition for partition in self._assigned))

    async def _take_over_when_assigned(self, consumer: AIOKafkaConsumer) -> None:
        """After each assignment, learn what former owners left behind; heads wait meanwhile."""
        while True:
            await self._reassigned.wait()
            self._reassigned.clear()
            epoch, unread = self._epoch, self._unread
            try:
                async with asyncio.timeout(LEDGER_DEADLINE_SECONDS):
                    committed = await committed_with_metadata(consumer, unread)
            except (KafkaError, TimeoutError) as error:
                self._log.warning("ledger_delayed", error=repr(error))
                await asyncio.sleep(COMMIT_RETRY_SECONDS)
                self._reassigned.set()
                continue
            if epoch != self._epoch:
                continue  # assigned anew meanwhile, which has set the event
            for partition in unread & self._assigned & committed.keys():
                self._take_over(partition, committed[partition])
            self._unread = frozenset()
            self._wake.set()
            self._changed.set()
            await self._tell_losses(consumer, {partition: found.offset for partition, found in committed.items()})

    async def _tell_losses(self, consumer: AIOKafkaConsumer, committed: dict[TopicPartition, int]) -> None:
        """Say loudly what nobody else would: the consumer itself goes on at the beginning of the log in silence."""
        epoch = self._epoch
        try:
            async with asyncio.timeout(LEDGER_DEADLINE_SECONDS):
                log_starts = await consumer.beginning_offsets(list(committed))
        except (KafkaError, TimeoutError) as error:
            self._log.info("log_start_unknown", error=repr(error))
            return
        for partition, log_start in log_starts.items():
            lost = lost_range(committed=committed[partition], log_start=log_start)
            if not lost or epoch != self._epoch or partition not in self._assigned:
                continue
            self._log.error("records_lost", partition=partition.partition, first=lost.start, end=lost.stop)
            self._count_lost(len(lost))
            if self._offsets[partition].skip_to(log_start):
                self._mark_changed(partition)

    def _take_over(self, partition: TopicPartition, committed: OffsetAndMetadata) -> None:
        offsets = self._offsets[partition]
        # A member that was thrown out and came back: others may have had the partition, and their commits stand.
        lost = offsets.pass_to(committed.offset)
        self._lose_taken(
            [taken for taken in self._taken if taken.partition == partition and taken.record.offset in lost]
        )
        entries = {
            offset: entry for offset, entry in decode_ledger(committed.metadata).items() if offsets.accepts(offset)
        }
        counted = {offset: replace(entry, crashes=self._count_crashes(entry)) for offset, entry in entries.items()}
        offsets.inherit(counted)
        for offset, entry in counted.items():
            if entry.crashes:
                self._log.warning(
                    "crash_counted" if entry.crashes > entries[offset].crashes else "crashes_inherited",
                    request_id=entry.task,
                    crashes=entry.crashes,
                    worker=entry.worker,
                    partition=partition.partition,
                    offset=offset,
                )

    def _lose(self, partitions: set[TopicPartition]) -> None:
        for partition in partitions:
            self._offsets.pop(partition, None)
            self._heads.pop(partition, None)
            self._changed_at.pop(partition, None)
            self._committed_at.pop(partition, None)
        self._assigned -= partitions
        self._lose_taken([taken for taken in self._taken if taken.partition in partitions])
        if partitions:
            self._changed.set()

    def _lose_taken(self, lost: list[Taken]) -> None:
        for taken in lost:
            self._taken.discard(taken)
            taken.lost = True
            taken.on_lost()

    async def _wait_for_nearly_finished(self) -> None:
        """Give work that would end within the bound the time to do so; the rest is adopted or lost."""
        deadline = time.monotonic() + self._revoke_wait_seconds
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(asyncio.get_running_loop().time() + self._revoke_wait_seconds), self._settled:
                await self._settled.wait_for(lambda: not self._nearly_finished(deadline - time.monotonic()))

    def _nearly_finished(self, within_seconds: float) -> bool:
        estimates = [taken.remaining_seconds() for taken in self._taken]
        return any(estimate is not None and estimate <= within_seconds for estimate in estimates)

    # Commits

    async def record(self, taken: Taken, entry: LedgerEntry) -> None:
        """Write the task into the ledger and wait until the broker has it.

        Raises `PartitionLostError` when the partition went to another member meanwhile.
        """
        if taken.lost:
            raise PartitionLostError
        self._offsets[taken.partition].record(taken.record.offset, entry)
        version = self._mark_changed(taken.partition)
        async with self._settled:
            await self._settled.wait_for(lambda: taken.lost or self._committed_at.get(taken.partition, 0) >= version)
        if taken.lost:
            raise PartitionLostError

    def drawn(self, taken: Taken) -> None:
        """Note in the ledger that the task's images exist; returns at once."""
        if not taken.lost:
            self._offsets[taken.partition].drawn(taken.record.offset)
            self._mark_changed(taken.partition)

    async def finish(self, taken: Taken) -> None:
        """The task reached its end; its offset is committed as soon as everything before it is finished too.

        Returns at once: the commit follows, and a crash before it only means a redelivery that finds its result.
        Raises `PartitionLostError` when the partition went to another member meanwhile.
        """
        self._taken.discard(taken)
        if taken.lost:
            raise PartitionLostError
        self._offsets[taken.partition].finish(taken.record.offset)
        self._mark_changed(taken.partition)
        async with self._settled:
            self._settled.notify_all()

    async def release(self, taken: Taken) -> None:
        """Give a task up in good order; its offset stays uncommitted for the next owner."""
        self._taken.discard(taken)
        if not taken.lost:
            self._offsets[taken.partition].release(taken.record.offset)
            self._mark_changed(taken.partition)

    def _mark_changed(self, partition: TopicPartition) -> int:
        version = next(self._versions)
        self._changed_at[partition] = version
        self._changed.set()
        return version

    def _uncommitted(self) -> set[TopicPartition]:
        return {
            partition
            for partition, version in self._changed_at.items()
            if partition in self._assigned - self._unread and version > self._committed_at.get(partition, 0)
        }

    async def _commit_when_changed(self, consumer: AIOKafkaConsumer) -> None:
        while True:
            await self._changed.wait()
            self._changed.clear()
            async with self._settled:
                self._settled.notify_all()
            await self._joined.wait()
            if not await self._commit_once(consumer, deadline_seconds=COMMIT_DEADLINE_SECONDS):
                await asyncio.sleep(COMMIT_RETRY_SECONDS)
                self._changed.set()

    async def _commit_once(self, consumer: AIOKafkaConsumer, *, deadline_seconds: float) -> bool:
        """Commit every partition that changed; False when it has to be tried again."""
        async with self._commit_lock:
            versions = {partition: self._changed_at[partition] for partition in self._uncommitted()}
            batch = {
                partition: OffsetAndMetadata(commit_point, self._offsets[partition].metadata())
                for partition in versions
                if (commit_point := self._offsets[partition].commit_point()) is not None
            }
            if batch and not await self._send_commit(consumer, batch, deadline_seconds):
                return False
            for partition, version in versions.items():
                if partition in self._assigned:
                    self._committed_at[partition] = version
            async with self._settled:
                self._settled.notify_all()
            return True

    async def _send_commit(
        self, consumer: AIOKafkaConsumer, batch: dict[TopicPartition, OffsetAndMetadata], deadline_seconds: float
    ) -> bool:
        epoch = self._epoch
        _before_commit()
        try:
            async with asyncio.timeout(deadline_seconds):
                await consumer.commit(batch)
                late = self._read_back & batch.keys()
                behind = [tp for tp in late if (await consumer.committed(tp) or 0) < batch[tp].offset]
        except (CommitFailedError, IllegalStateError) as error:
            # Not the tasks' failure. Nothing may be committed again before a new assignment proves ownership.
            self._log.info("commit_refused", error=str(error), member=has_generation(consumer))
            if self._epoch == epoch:
                self._joined.clear()
            return False
        except (KafkaError, TimeoutError) as error:
            # The request may still be on its way and land late, with these offsets: read back after the next success.
            self._read_back |= batch.keys()
            self._hold = self._hold or self._holds.begin(HoldCause.KAFKA)
            self._log.warning("commit_delayed", error=repr(error))
            return False
        _after_commit()
        self._end_hold()
        self._read_back -= late
        return not behind

    def _end_hold(self) -> None:
        self._holds.end(self._hold)
        self._hold = None
