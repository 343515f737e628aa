"""One lane: a topic, its consumer group and this pod's membership in it.

Owns polling, head buffers, pauses and rebalances. Commits continue in `offset_commits`, what former owners committed is
read in `assignment_loader`. Knows nothing of tasks. The consumer is polled at all times, with full partitions paused,
because only polling keeps the membership and notices a rebalance.
"""

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass, field
from typing import Final

import structlog
from aiokafka import AIOKafkaConsumer, ConsumerRebalanceListener, TopicPartition
from aiokafka.errors import IllegalStateError, KafkaError
from aiokafka.structs import ConsumerRecord

from fluxpool_contract.kafka import LedgerEntry
from fluxpool_transport.kafka import stop_consumer
from fluxpool_worker.agent.consumer.assignment_loader import AssignmentLoader
from fluxpool_worker.agent.consumer.gap_tracker import GapTracker
from fluxpool_worker.agent.consumer.lane_choice import arrived_ms
from fluxpool_worker.agent.consumer.membership import member_id, refuse_commits_without_generation
from fluxpool_worker.agent.consumer.offset_commits import REVOKED_COMMIT_DEADLINE_SECONDS, OffsetCommits
from fluxpool_worker.agent.consumer.topic_watch import TopicWatch, unknown_id
from fluxpool_worker.agent.retry.relay_duty import RelayDuty
from fluxpool_worker.agent.task.holds import HoldCause, HoldExpiredError, Holds

POLL_SECONDS: Final = 0.5
HEADS_PER_PARTITION: Final = 32
"""A resumed partition waits for the fetch under way (100 ms), and aiokafka decodes its batch again: these heads bridge
that for short tasks and for records that are refused."""
LEAVE_DEADLINE_SECONDS: Final = 5.0
REBUILD_SECONDS: Final = 1.0
STABLE_SECONDS: Final = 60.0
"""A consumer that lasted so long was no failure from the start; the next one's is another matter."""

log = structlog.get_logger(__name__)


class PartitionLostError(Exception):
    """The partition now belongs to somebody else; its offsets must not be committed from here."""


@dataclass(slots=True, eq=False)
class ClaimedRecord:
    """A record taken from the lane; the lane tells it when its partition is lost."""

    lane: "LaneConsumer"
    record: ConsumerRecord
    crashes: int = 0
    """How many engines or workers died over the task, as the ledger of former owners says."""
    lost: bool = False
    topic_deleted: bool = False
    """Its topic was deleted under it: nobody else will ever have it, and there is no offset left to commit."""
    on_lost: Callable[[], None] = field(default=lambda: None)
    """Called once, from the event loop, when the partition went to another member."""
    remaining_seconds: Callable[[], float | None] = field(default=lambda: None)
    """Estimate until the task is finished; None when unknown."""

    @property
    def partition(self) -> TopicPartition:
        """Where the record lies."""
        return TopicPartition(self.record.topic, self.record.partition)


@dataclass(frozen=True, slots=True)
class _Head:
    """A record that waits to be taken."""

    record: ConsumerRecord
    arrived_ms: float
    """Milliseconds since 1970."""


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
        count_failure: Callable[[], None] = lambda: None,
        ask_topic_id: Callable[[], Awaitable[str | None]] = unknown_id,
        duty: RelayDuty | None = None,
    ) -> None:
        """`count_crashes` says what an entry of a former owner's ledger means; `wake` is set when a record waits.

        `count_lost` is told how many records went away before anybody had done them, `count_failure` of each consumer
        that failed; `ask_topic_id` tells the id of the topic that has the name now, None when nobody knows. `duty`
        is told which partitions are this member's.
        """
        self.name = name
        self.topic = topic
        self.last_poll: float | None = None
        """Monotonic time of the last return from a poll; None before the first."""
        self._build_consumer = build_consumer
        self._revoke_wait_seconds = revoke_wait_seconds
        self._wake = wake
        self._holds = holds
        self._duty = duty or RelayDuty()
        self._consumer: AIOKafkaConsumer | None = None
        self._member: object = None
        """By what name the group knew this member when it was assigned last."""
        self._heads: dict[TopicPartition, deque[_Head]] = {}
        self._taken: set[ClaimedRecord] = set()
        self._intake_stopped = False
        self._leaving = False
        self._log = log.bind(lane=name)
        self._commits = OffsetCommits(holds=holds, log=self._log)
        self._count_lost = count_lost
        self._count_failure = count_failure
        self._gaps = GapTracker(count_lost=count_lost, log=self._log)
        self._loader = AssignmentLoader(
            self._commits,
            self._gaps,
            count_crashes=count_crashes,
            on_another_log=self._reset_partition,
            on_overtaken=self._lose_overtaken,
            on_read=self._on_read,
            holds=holds,
            log=self._log,
        )
        self._topic_watch = TopicWatch(self._commits, ask_id=ask_topic_id, on_another_log=self._reset_partition)

    # Life

    async def run(self) -> None:
        """Be a member until `leave()`; a consumer that failed, in whatever way, is replaced by a new one.

        Raises `HoldExpiredError` when offsets can be neither read nor committed, or one consumer after the other fails,
        for too long.
        """
        clock, failing, failure = asyncio.get_running_loop().time, None, ""
        while not self._leaving:
            began_at = clock()
            try:
                await self._serve()
            except HoldExpiredError:
                raise
            except KafkaError as error:
                failure = repr(error)
                self._count_failure()
                self._log.warning("lane_consumer_failed", error=failure)
            except Exception as error:  # noqa: BLE001 - logged with its trace
                # The trouble of one lane: the others have tasks in flight, which the agent's end would cost an attempt.
                failure = repr(error)
                self._count_failure()
                self._log.exception("lane_failed")
            finally:
                self._commits.end()
                self._duty.assigned(())
                self._lose(set(self._commits.progress))
                await self._commits.notify()
                await self._close_consumer()
            if not self._leaving:
                if failing is None or clock() - began_at >= STABLE_SECONDS:
                    failing = self._holds.begin_apart(HoldCause.KAFKA)
                self._holds.check(failing, f"each consumer of lane {self.name} failed, at last with {failure}")
                await asyncio.sleep(REBUILD_SECONDS)

    async def _serve(self) -> None:
        consumer = self._build_consumer()
        self._consumer, self._member = consumer, None
        await consumer.start()
        refuse_commits_without_generation(consumer)
        consumer.subscribe([self.topic], listener=self)
        background = [
            asyncio.create_task(self._commits.run(consumer), name=f"commit-{self.name}"),
            asyncio.create_task(self._loader.run(consumer), name=f"load-assignment-{self.name}"),
            asyncio.create_task(self._gaps.run(consumer), name=f"gaps-{self.name}"),
            asyncio.create_task(self._topic_watch.run(), name=f"topic-{self.name}"),
        ]
        try:
            while not self._leaving:
                for task in background:
                    if task.done():
                        task.result()  # they never end by themselves: what ended one ends this membership, too
                self._apply_pauses(consumer)
                # Never cancelled and never under a timeout of ours: a cancelled poll disables max_poll_interval_ms.
                batches = await consumer.getmany(timeout_ms=int(POLL_SECONDS * 1000), max_records=HEADS_PER_PARTITION)
                self.last_poll = time.monotonic()
                for partition, records in batches.items():
                    self._receive(partition, records)
                await self._look_at_positions(consumer)
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
        if error := await stop_consumer(consumer, deadline_seconds=LEAVE_DEADLINE_SECONDS):
            self._log.warning("lane_leave_failed", error=repr(error))

    def stop_intake(self) -> None:
        """Hand out no further record; polling goes on, and with it the membership."""
        self._intake_stopped = True
        if self._consumer is not None and self._commits.progress:
            self._apply_pauses(self._consumer)

    async def leave_when_done(self) -> None:
        """As `leave()`, once nothing that was taken here is in flight any more; call `stop_intake()` before."""
        await self._commits.wait_until(lambda: not self._taken)
        await self.leave()

    async def leave(self) -> None:
        """Commit what is finished, mark the rest as released, and make `run()` leave the group."""
        await self._duty.revoked()  # a round under way commits first, or the successor repeats it
        if self._consumer is not None:
            await self._look_at_positions(self._consumer)
        self._commits.release_for_good()
        await self._commits.wait_committed()
        self._leaving = True

    # Heads

    @property
    def is_joined(self) -> bool:
        """Whether the group has given this member an assignment that still stands."""
        return self._commits.is_joined

    def oldest_head_ms(self) -> float | None:
        """When the oldest record that waits here arrived, milliseconds since 1970; None when none does."""
        return min((head.arrived_ms for head in self._waiting_heads()), default=None)

    def waiting_heads(self) -> list[ConsumerRecord]:
        """The first waiting record of each partition."""
        return [head.record for head in self._waiting_heads()]

    def _waiting_heads(self) -> list[_Head]:
        if self._intake_stopped:
            return []
        unread = self._commits.unread
        return [heads[0] for partition, heads in self._heads.items() if heads and partition not in unread]

    def claim_next(self) -> ClaimedRecord | None:
        """The record that has waited longest, now in flight; None when none waits."""
        waiting = self._waiting_heads()
        if not waiting:
            return None
        oldest = min(waiting, key=lambda head: head.arrived_ms).record
        partition = TopicPartition(oldest.topic, oldest.partition)
        record = self._heads[partition].popleft().record
        inherited = self._commits.progress[partition].start(record.offset)
        taken = ClaimedRecord(lane=self, record=record, crashes=inherited.crashes if inherited is not None else 0)
        self._taken.add(taken)
        if self._consumer is not None:
            self._apply_pauses(self._consumer)
        return taken

    def _receive(self, partition: TopicPartition, records: list[ConsumerRecord]) -> None:
        offsets = self._commits.progress.get(partition)
        if offsets is None:
            return
        heads = self._heads[partition]
        seen_ms = time.time() * 1000
        for record in records:
            if self._shows_another_log(partition, record.offset, next_offset=record.offset + 1):
                return  # from its beginning on they come again
            if offsets.accepts(record.offset) and not (heads and record.offset <= heads[-1].record.offset):
                arrived = arrived_ms(record.timestamp, record.timestamp_type, seen_ms=seen_ms)
                heads.append(_Head(record, arrived))
        if heads:
            self._wake.set()

    async def _look_at_positions(self, consumer: AIOKafkaConsumer) -> None:
        """See what was passed over; and where all that was read is finished, the commit point is the position.

        Nobody reads the markers before it: a transaction, also an aborted one, ends with one, a lag for ever otherwise.
        """
        for partition in list(self._commits.progress):
            if not self.is_joined:
                return  # the consumer may have its next assignment before the listener was told
            with contextlib.suppress(KafkaError, TimeoutError):
                # Known at once, with no turn of the loop in which a record might come, or left to the next look.
                async with asyncio.timeout(0):
                    position = await consumer.position(partition)
                if self._shows_another_log(partition, position, next_offset=position):
                    continue
                if self._is_idle(partition) and self._commits.progress[partition].seek_past_gap(position):
                    self._commits.mark_changed(partition)

    def _is_idle(self, partition: TopicPartition) -> bool:
        offsets = self._commits.progress[partition]
        if partition in self._commits.unread or not self._gaps.may_pass(partition):
            return False
        return not offsets.in_flight and not self._heads[partition]

    def _shows_another_log(self, partition: TopicPartition, offset: int, *, next_offset: int) -> bool:
        if not self.is_joined:
            return False
        reached = self._gaps.see(partition, offset, next_offset=next_offset)
        if reached is None:
            return False
        # Only a log that ends before the position makes the consumer begin at its beginning again.
        self._count_lost(len(self._heads[partition]))
        self._reset_partition(partition, offset)
        return True

    def _on_read(self) -> None:
        self._wake.set()
        self._topic_watch.look()

    def _reset_partition(self, partition: TopicPartition, offset: int = 0) -> None:
        """A topic was deleted and made again, or its log cut short: do all that it has now, as if for the first time.

        What is in flight goes on to its end, for nobody else has it any more, and is committed nowhere.
        """
        offsets = self._commits.progress[partition]
        self._log.error(
            "log_replaced",
            partition=partition.partition,
            done_before=offsets.commit_point(),
            in_flight=sorted(offsets.in_flight),
            goes_on_at=offset,
        )
        self._heads[partition].clear()
        self._let_outlive({partition})
        self._commits.reset(partition, offset)
        self._gaps.reset(partition)
        self._topic_watch.look()
        if self._consumer is not None:
            with contextlib.suppress(IllegalStateError):  # a rebalance has just taken it away
                self._consumer.seek(partition, offset)

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
        self._commits.suspend()
        for heads in self._heads.values():
            heads.clear()
        if not revoked or self._consumer is None:
            return
        await self._duty.revoked()
        await self._wait_for_nearly_finished()
        self._commits.release_all()
        await self._commits.commit_once(self._consumer, deadline_seconds=REVOKED_COMMIT_DEADLINE_SECONDS)

    def on_partitions_assigned(self, assigned: Collection[TopicPartition]) -> None:
        """After a join. Must not await: the heartbeat task is not running yet."""
        self._note_lost_membership()
        if self._consumer is not None and self._commits.progress and self._is_topic_gone(self._consumer):
            self._let_outlive(set(self._commits.progress))
            self._log.error("topic_gone", topic=self.topic, in_flight=len(self._taken))
        self._lose(self._commits.progress.keys() - set(assigned))
        self._commits.assign(assigned)
        self._gaps.assign(assigned)
        self._heads = {partition: deque() for partition in assigned}
        self._loader.begin()
        self._duty.assigned(assigned)
        if self._consumer is not None:
            self._apply_pauses(self._consumer)
        self._log.info("lane_assigned", partitions=sorted(partition.partition for partition in assigned))

    def _note_lost_membership(self) -> None:
        """Whatever kept this member from its group may have kept others from it, too, who are alive all the same."""
        if self._consumer is None:
            return
        member = member_id(self._consumer)
        if self._member not in (None, member):
            self._holds.note_outage(HoldCause.KAFKA)
        self._member = member

    def _is_topic_gone(self, consumer: AIOKafkaConsumer) -> bool:
        return not consumer.partitions_for_topic(self.topic)

    def _let_outlive(self, partitions: set[TopicPartition]) -> None:
        for taken in self._taken:
            taken.topic_deleted = taken.topic_deleted or taken.partition in partitions

    def _lose(self, partitions: set[TopicPartition]) -> None:
        self._commits.revoke(partitions)
        for partition in partitions:
            self._heads.pop(partition, None)
        self._lose_taken([taken for taken in self._taken if taken.partition in partitions])

    def _lose_overtaken(self, partition: TopicPartition, passed: frozenset[int]) -> None:
        self._lose_taken(
            [taken for taken in self._taken if taken.partition == partition and taken.record.offset in passed]
        )

    def _lose_taken(self, lost: list[ClaimedRecord]) -> None:
        for taken in lost:
            if taken.topic_deleted:
                continue
            self._taken.discard(taken)
            taken.lost = True
            taken.on_lost()

    async def _wait_for_nearly_finished(self) -> None:
        """Give work that would end within the bound the time to do so; the rest is adopted or lost."""
        began = time.monotonic()
        deadline = began + self._revoke_wait_seconds
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._revoke_wait_seconds):
                await self._commits.wait_until(lambda: not self._nearly_finished(deadline - time.monotonic()))
        if self._taken:
            self._log.info(
                "rebalance_in_mid_task",
                in_flight=sorted((taken.record.partition, taken.record.offset) for taken in self._taken),
                waited_seconds=round(time.monotonic() - began, 3),
            )

    def _nearly_finished(self, within_seconds: float) -> bool:
        estimates = [taken.remaining_seconds() for taken in self._taken]
        return any(estimate is not None and estimate <= within_seconds for estimate in estimates)

    # What becomes of what was taken

    async def record(self, taken: ClaimedRecord, entry: LedgerEntry) -> None:
        """Write the task into the ledger and wait until the broker has it.

        Raises `PartitionLostError` when the partition went to another member meanwhile.
        """
        if taken.lost:
            raise PartitionLostError
        if taken.topic_deleted:
            return
        partition = taken.partition
        self._commits.progress[partition].record(taken.record.offset, entry)
        version = self._commits.mark_changed(partition)
        await self._commits.wait_until(
            lambda: taken.lost or taken.topic_deleted or self._commits.is_committed(partition, version)
        )
        if taken.lost:
            raise PartitionLostError

    def mark_generated(self, taken: ClaimedRecord) -> None:
        """Note in the ledger that the task's images exist; returns at once."""
        if self._is_of_log(taken):
            self._commits.progress[taken.partition].mark_generated(taken.record.offset)
            self._commits.mark_changed(taken.partition)

    async def finish(self, taken: ClaimedRecord) -> None:
        """The task reached its end; its offset is committed as soon as everything before it is finished too.

        Returns at once: the commit follows, and a crash before it only means a redelivery that finds its result.
        Raises `PartitionLostError` when the partition went to another member meanwhile.
        """
        self._taken.discard(taken)
        if taken.lost:
            raise PartitionLostError
        if self._is_of_log(taken):
            self._commits.progress[taken.partition].finish(taken.record.offset)
            self._commits.mark_changed(taken.partition)
        await self._commits.notify()

    async def release(self, taken: ClaimedRecord) -> None:
        """Give a task up in good order; its offset stays uncommitted for the next owner."""
        self._taken.discard(taken)
        if self._is_of_log(taken):
            self._commits.progress[taken.partition].release(taken.record.offset)
            self._commits.mark_changed(taken.partition)
        await self._commits.notify()

    @staticmethod
    def _is_of_log(taken: ClaimedRecord) -> bool:
        return not (taken.lost or taken.topic_deleted)
