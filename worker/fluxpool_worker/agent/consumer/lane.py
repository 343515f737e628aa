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
from aiokafka.errors import KafkaError
from aiokafka.structs import ConsumerRecord

from fluxpool_contract.kafka import LedgerEntry
from fluxpool_transport.kafka import stop_consumer
from fluxpool_worker.agent.consumer.assignment_loader import AssignmentLoader, TopicReplacedError
from fluxpool_worker.agent.consumer.gap_tracker import GapTracker
from fluxpool_worker.agent.consumer.lane_choice import arrived_ms
from fluxpool_worker.agent.consumer.membership import member_id, refuse_commits_without_generation
from fluxpool_worker.agent.consumer.offset_commits import REVOKED_COMMIT_DEADLINE_SECONDS, OffsetCommits
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


async def unknown_id() -> str | None:
    """The topic's id where it cannot be asked."""
    return None


class PartitionLostError(Exception):
    """The partition now belongs to somebody else; its offsets must not be committed from here."""


@dataclass(slots=True, eq=False)
class ClaimedRecord:
    """A record claimed from the lane; the lane tells it when its partition is lost."""

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


@dataclass(frozen=True, slots=True)
class _Head:
    """A record that waits to be claimed."""

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
        self._in_flight: set[ClaimedRecord] = set()
        self._intake_stopped = False
        self._leaving = False
        self._log = log.bind(lane=name)
        self._commits = OffsetCommits(holds=holds, log=self._log)
        self._crashes_of = count_crashes
        self._count_failure = count_failure
        self._gaps = GapTracker(count_lost=count_lost, log=self._log)
        self._loader = AssignmentLoader(
            self._commits,
            self._gaps,
            lane=self,
            topic=topic,
            ask_topic_id=ask_topic_id,
            holds=holds,
            log=self._log,
        )

    # Life

    async def run(self) -> None:
        """Be a member until `leave()`; a consumer that failed, in whatever way, is replaced by a new one.

        Raises `TopicReplacedError`, and `HoldExpiredError` when offsets can be neither read nor committed, or one
        consumer after the other fails, for too long.
        """
        clock, failing, failure = asyncio.get_running_loop().time, None, ""
        while not self._leaving:
            began_at = clock()
            try:
                await self._serve()
            except (HoldExpiredError, TopicReplacedError):
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
            asyncio.create_task(self._loader.watch_topic(), name=f"watch-topic-{self.name}"),
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
                    await self._receive(consumer, partition, records)
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
        """As `leave()`, once nothing that was claimed here is in flight any more; call `stop_intake()` before."""
        await self._commits.wait_until(lambda: not self._in_flight)
        await self.leave()

    async def leave(self) -> None:
        """Commit what is finished, mark the rest as released, and make `run()` leave the group."""
        await self._duty.revoked()  # a round under way commits first, or the successor repeats it
        if self._consumer is not None:
            with contextlib.suppress(TopicReplacedError):  # the next owner begins where the commit was set back to
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
        claimed = ClaimedRecord(lane=self, record=record, crashes=inherited.crashes if inherited is not None else 0)
        self._in_flight.add(claimed)
        if self._consumer is not None:
            self._apply_pauses(self._consumer)
        return claimed

    async def _receive(
        self, consumer: AIOKafkaConsumer, partition: TopicPartition, records: list[ConsumerRecord]
    ) -> None:
        if partition not in self._commits.progress:
            return
        seen_ms = time.time() * 1000
        for record in records:
            await self._see(consumer, partition, record.offset, next_offset=record.offset + 1)
            heads = self._heads[partition]
            is_new = self._commits.progress[partition].accepts(record.offset)
            if is_new and not (heads and record.offset <= heads[-1].record.offset):
                arrived = arrived_ms(record.timestamp, record.timestamp_type, seen_ms=seen_ms)
                heads.append(_Head(record, arrived))
        if self._heads[partition]:
            self._wake.set()

    async def _see(
        self, consumer: AIOKafkaConsumer, partition: TopicPartition, offset: int, *, next_offset: int
    ) -> None:
        """Take note of a record or position; raises `TopicReplacedError` when the log ends before what was read."""
        if not self.is_joined:
            return  # the consumer may have its next assignment before the listener is called
        if self._gaps.goes_back(partition, offset):
            # Set the commit back while still a member: with the commit of the longer log, the next start would skip
            # what is written to this one until then.
            self._lose_claimed(lambda claimed: claimed.partition == partition)
            self.on_restarted(partition)
            self._commits.reset(partition, offset)
            await self._commits.commit_once(consumer, deadline_seconds=REVOKED_COMMIT_DEADLINE_SECONDS)
            raise TopicReplacedError(
                self.topic, f"went back to offset {offset} in partition {partition.partition}: its log is another one"
            )
        self._gaps.see(partition, offset, next_offset=next_offset)

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
                await self._see(consumer, partition, position, next_offset=position)
                if self._is_idle(partition) and self._commits.progress[partition].seek_past_gap(position):
                    self._commits.mark_changed(partition)

    def _is_idle(self, partition: TopicPartition) -> bool:
        offsets = self._commits.progress[partition]
        if partition in self._commits.unread or not self._gaps.may_pass(partition):
            return False
        return not offsets.in_flight and not self._heads[partition]

    # What the assignment loader reports

    def on_assignment_loaded(self) -> None:
        """Records of all assigned partitions may be started."""
        self._wake.set()

    def on_overtaken(self, partition: TopicPartition, offsets: frozenset[int]) -> None:
        """Another member committed past these offsets, which are in flight here."""
        self._lose_claimed(lambda claimed: claimed.partition == partition and claimed.record.offset in offsets)

    def on_restarted(self, partition: TopicPartition) -> None:
        """The partition is read again from another offset; what was fetched so far does not count."""
        self._heads[partition].clear()
        self._gaps.reset(partition)

    def crashes_of(self, entry: LedgerEntry) -> int:
        """How many crashes an entry of a former owner's ledger stands for."""
        return self._crashes_of(entry)

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
        if (
            self._consumer is not None
            and self._commits.progress
            and not self._consumer.partitions_for_topic(self.topic)
        ):
            self._log.error(
                "topic_missing", topic=self.topic, in_flight=len(self._in_flight), remedy="create the topic"
            )
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

    def _lose(self, partitions: set[TopicPartition]) -> None:
        self._commits.revoke(partitions)
        for partition in partitions:
            self._heads.pop(partition, None)
        self._lose_claimed(lambda claimed: claimed.partition in partitions)

    def _lose_claimed(self, is_lost: Callable[[ClaimedRecord], bool]) -> None:
        for claimed in filter(is_lost, tuple(self._in_flight)):
            self._in_flight.discard(claimed)
            claimed.lost = True
            claimed.on_lost()

    async def _wait_for_nearly_finished(self) -> None:
        """Give work that would end within the bound the time to do so; the rest is adopted or lost."""
        began = time.monotonic()
        deadline = began + self._revoke_wait_seconds
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._revoke_wait_seconds):
                await self._commits.wait_until(lambda: not self._nearly_finished(deadline - time.monotonic()))
        if self._in_flight:
            self._log.info(
                "rebalance_in_mid_task",
                in_flight=sorted((claimed.record.partition, claimed.record.offset) for claimed in self._in_flight),
                waited_seconds=round(time.monotonic() - began, 3),
            )

    def _nearly_finished(self, within_seconds: float) -> bool:
        estimates = [claimed.remaining_seconds() for claimed in self._in_flight]
        return any(estimate is not None and estimate <= within_seconds for estimate in estimates)

    # What becomes of what was claimed

    async def record(self, claimed: ClaimedRecord, entry: LedgerEntry) -> None:
        """Write the task into the ledger and wait until the broker has it.

        Raises `PartitionLostError` when the partition went to another member meanwhile.
        """
        if claimed.lost:
            raise PartitionLostError
        partition = claimed.partition
        self._commits.progress[partition].record(claimed.record.offset, entry)
        version = self._commits.mark_changed(partition)
        await self._commits.wait_until(lambda: claimed.lost or self._commits.is_committed(partition, version))
        if claimed.lost:
            raise PartitionLostError

    def mark_generated(self, claimed: ClaimedRecord) -> None:
        """Note in the ledger that the task's images exist; returns at once."""
        if not claimed.lost:
            self._commits.progress[claimed.partition].mark_generated(claimed.record.offset)
            self._commits.mark_changed(claimed.partition)

    async def finish(self, claimed: ClaimedRecord) -> None:
        """The task reached its end; its offset is committed as soon as everything before it is finished too.

        Returns at once: the commit follows, and a crash before it only means a redelivery that finds its result.
        Raises `PartitionLostError` when the partition went to another member meanwhile.
        """
        self._in_flight.discard(claimed)
        if claimed.lost:
            raise PartitionLostError
        self._commits.progress[claimed.partition].finish(claimed.record.offset)
        self._commits.mark_changed(claimed.partition)
        await self._commits.notify()

    async def release(self, claimed: ClaimedRecord) -> None:
        """Give a task up in good order; its offset stays uncommitted for the next owner."""
        self._in_flight.discard(claimed)
        if not claimed.lost:
            self._commits.progress[claimed.partition].release(claimed.record.offset)
            self._commits.mark_changed(claimed.partition)
        await self._commits.notify()
