"""One lane: a topic, its consumer group and this worker's membership in it.

Owns polling, pauses and rebalances, and which records are in flight. A new assignment continues in `assignment_loader`,
a commit in `offset_commits`, a gap of the log in `gap_tracker`. Knows nothing of tasks. The consumer is polled at all
times, with full partitions paused, because only polling keeps the membership and notices a rebalance.
"""

import asyncio
import contextlib
from collections import deque
from collections.abc import Awaitable, Callable, Collection, Iterator
from dataclasses import dataclass, field
from typing import Final

import structlog
from aiokafka import AIOKafkaConsumer, ConsumerRebalanceListener, TopicPartition
from aiokafka.errors import KafkaError
from aiokafka.structs import ConsumerRecord

from fluxpool_contract.kafka import LedgerEntry
from fluxpool_transport.kafka import stop_consumer
from fluxpool_transport.process import Backoff
from fluxpool_worker.agent.clock import SYSTEM_CLOCK, Clock
from fluxpool_worker.agent.consumer.assignment_loader import AssignmentLoader, TopicReplacedError
from fluxpool_worker.agent.consumer.events import LaneEvents
from fluxpool_worker.agent.consumer.gap_tracker import GapTracker
from fluxpool_worker.agent.consumer.lane_choice import arrived_ms
from fluxpool_worker.agent.consumer.membership import member_id, refuse_commits_without_generation
from fluxpool_worker.agent.consumer.offset_commits import REVOKED_COMMIT_DEADLINE_SECONDS, OffsetCommits
from fluxpool_worker.agent.task.holds import Hold, HoldCause, HoldExpiredError, Holds

POLL_SECONDS: Final = 0.5
HEADS_PER_PARTITION: Final = 32
"""A resumed partition waits for the fetch under way (100 ms), and aiokafka decodes its batch again: these heads bridge
that for short tasks and for records that are refused."""
LEAVE_DEADLINE_SECONDS: Final = 5.0
STABLE_SECONDS: Final = 60.0
"""A consumer that lasted this long did not fail from the start: its failure begins a new series."""

log = structlog.get_logger(__name__)


class PartitionLostError(Exception):
    """The partition belongs to another member; its offsets must not be committed from here."""


@dataclass(slots=True, eq=False)
class ClaimedRecord:
    """A record in flight here; the lane reports when its partition is lost."""

    lane: "LaneConsumer"
    record: ConsumerRecord
    crashes: int = 0
    """How many engines or workers died over the task, by the ledger of former owners."""
    lost: bool = False
    on_lost: Callable[[], None] = field(default=lambda: None)
    """Called once, from the event loop, when the partition went to another member."""
    remaining_seconds: Callable[[], float | None] = field(default=lambda: None)
    """Estimate until the task is finished; None when unknown."""

    @property
    def partition(self) -> TopicPartition:
        """The partition of the record."""
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
        ask_topic_id: Callable[[], Awaitable[str | None]],
        events: LaneEvents,
        holds: Holds,
        revoke_wait_seconds: float,
        clock: Clock = SYSTEM_CLOCK,
        model_family: Callable[[], str | None] = lambda: None,
    ) -> None:
        """`ask_topic_id` returns the id of the topic that has the name now, None when it is unknown.

        `model_family` returns that of the model which the engine has loaded, for the operator.
        """
        self.name = name
        self.topic = topic
        self.last_poll: float | None = None
        """Monotonic time of the last return from a poll; None before the first."""
        self._build_consumer = build_consumer
        self._events = events
        self._holds = holds
        self._revoke_wait_seconds = revoke_wait_seconds
        self._clock = clock
        self._consumer: AIOKafkaConsumer | None = None
        self._member: object = None
        """The member id at the last assignment."""
        self._heads: dict[TopicPartition, deque[_Head]] = {}
        self._in_flight: set[ClaimedRecord] = set()
        self._intake_stopped = False
        self._leaving = False
        self._log = log.bind(lane=name)
        self._commits = OffsetCommits(holds=holds, log=self._log, model_family=model_family)
        self._gaps = GapTracker(events=events, log=self._log)
        self._loader = AssignmentLoader(
            self._commits,
            self._gaps,
            lane=self,
            events=events,
            topic=topic,
            ask_topic_id=ask_topic_id,
            holds=holds,
            log=self._log,
        )

    # Membership

    async def run(self) -> None:
        """Be a member until `leave()`; a consumer that failed, for whatever reason, is replaced by a new one.

        Raises `TopicReplacedError`, and `HoldExpiredError` when offsets can be neither read nor committed, or one
        consumer after the other fails, for too long.
        """
        clock, backoff = asyncio.get_running_loop().time, Backoff(initial_seconds=1.0, maximum_seconds=4.0)
        failing: Hold | None = None
        while not self._leaving:
            began_at, failure = clock(), ""
            try:
                await self._serve()
            except (HoldExpiredError, TopicReplacedError):
                raise
            except KafkaError as error:
                failure = repr(error)
                self._log.warning("lane_consumer_failed", error=failure)
            except Exception as error:  # noqa: BLE001 - logged with its trace
                # Only this lane is in trouble: other lanes have tasks in flight, and the agent's end would cost each of
                # them an attempt.
                failure = repr(error)
                self._log.exception("lane_failed")
            finally:
                # Before the consumer leaves: its partitions are the group's from then on, and a commit must not follow.
                self._commits.end()
                self._events.on_assigned(())
                self._lose(set(self._commits.progress))
                await self._commits.notify()
                await self._close_consumer()
            if failure:
                self._events.on_consumer_failed()
            if not self._leaving:
                if failing is None or clock() - began_at >= STABLE_SECONDS:
                    failing = self._holds.begin_apart(HoldCause.KAFKA)
                    backoff.reset()
                self._holds.check(failing, f"each consumer of lane {self.name} failed, at last with {failure}")
                await backoff.sleep()

    async def _serve(self) -> None:
        consumer = self._build_consumer()
        self._consumer, self._member = consumer, None
        await consumer.start()
        # Before the subscription: from the first join on, no commit is sent unguarded.
        refuse_commits_without_generation(consumer)
        consumer.subscribe([self.topic], listener=self)
        background = [
            asyncio.create_task(self._commits.run(consumer), name=f"commit-{self.name}"),
            asyncio.create_task(self._loader.run(consumer), name=f"load-assignment-{self.name}"),
            asyncio.create_task(self._loader.watch_topic(), name=f"watch-topic-{self.name}"),
            asyncio.create_task(self._gaps.run(consumer), name=f"gaps-{self.name}"),
        ]
        try:
            while not self._leaving:
                for task in background:
                    if task.done():
                        task.result()  # none returns: the error of one ends this membership
                # aiokafka forgets pauses in a rebalance, so they are applied before each poll.
                self._apply_pauses(consumer)
                # Never cancelled and never under a timeout: a cancelled poll disables max_poll_interval_ms.
                batches = await consumer.getmany(timeout_ms=int(POLL_SECONDS * 1000), max_records=HEADS_PER_PARTITION)
                self.last_poll = self._clock.monotonic()
                for partition, records in batches.items():
                    await self._receive(consumer, partition, records)
                await self._commit_positions(consumer)
        finally:
            # Each is awaited before the consumer is closed: a commit under way must not outlive its client.
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
        """Hand out no further record; polling continues, and with it the membership."""
        self._intake_stopped = True
        if self._consumer is not None and self._commits.progress:
            self._apply_pauses(self._consumer)

    async def leave_when_done(self) -> None:
        """As `leave()`, once nothing is in flight any more; call `stop_intake()` before."""
        await self._commits.wait_until(lambda: not self._in_flight)
        await self.leave()

    async def leave(self) -> None:
        """Commit what is finished, mark the rest as released, and make `run()` leave the group."""
        await self._events.on_revoked()
        if self._consumer is not None:
            with contextlib.suppress(TopicReplacedError):  # the commit is set back: the next owner begins there
                await self._commit_positions(self._consumer)
        # Permanently: a rebalance before the end would otherwise resume these tasks here.
        self._commits.release_all(permanently=True)
        await self._commits.wait_committed()
        # Last: `run()` polls until then, and polling keeps the membership that the commit needs.
        self._leaving = True

    # Heads

    @property
    def is_joined(self) -> bool:
        """Whether the group has given this member an assignment that is still valid."""
        return self._commits.is_joined

    def oldest_head_ms(self) -> float | None:
        """When the oldest waiting record arrived, milliseconds since 1970; None when none waits."""
        return min((head.arrived_ms for head in self._waiting()), default=None)

    def claim_next(self) -> ClaimedRecord | None:
        """The record that has waited longest, now in flight; None when none waits."""
        oldest = min(self._waiting(), key=lambda head: head.arrived_ms, default=None)
        if oldest is None:
            return None
        partition = TopicPartition(oldest.record.topic, oldest.record.partition)
        # No await from here to `start`: a commit in between would pass a record that is in neither place.
        record = self._heads[partition].popleft().record
        inherited = self._commits.progress[partition].start(record.offset)
        claimed = ClaimedRecord(lane=self, record=record, crashes=inherited.crashes if inherited is not None else 0)
        self._in_flight.add(claimed)
        if self._consumer is not None:
            self._apply_pauses(self._consumer)
        return claimed

    def _waiting(self) -> list[_Head]:
        if self._intake_stopped:
            return []
        # What former owners committed and recorded must be known before a record is started.
        return [
            heads[0] for partition, heads in self._heads.items() if heads and partition not in self._commits.unloaded
        ]

    async def _receive(
        self, consumer: AIOKafkaConsumer, partition: TopicPartition, records: list[ConsumerRecord]
    ) -> None:
        if partition not in self._commits.progress:
            return
        heads, seen_ms = self._heads[partition], self._clock.time() * 1000
        for record in records:
            await self._observe(consumer, partition, record.offset, next_offset=record.offset + 1)
            # After a rebalance the consumer begins at the commit: finished records and those in flight here come again.
            is_new = self._commits.progress[partition].accepts(record.offset)
            if is_new and not (heads and record.offset <= heads[-1].record.offset):
                arrived = arrived_ms(record.timestamp, record.timestamp_type, seen_ms=seen_ms)
                heads.append(_Head(record, arrived))
        if heads:
            self._events.on_record_waiting()

    async def _observe(
        self, consumer: AIOKafkaConsumer, partition: TopicPartition, offset: int, *, next_offset: int
    ) -> None:
        """Take note of a record or position; raises `TopicReplacedError` when the log ends before what was read."""
        if not self.is_joined:
            return  # the consumer may have its next assignment before the listener is called
        if self._gaps.goes_back(partition, offset):
            # Set the commit back while still a member: with the commit of the longer log, the next start would skip
            # what is written to this one until then.
            self._lose_claimed(claimed for claimed in self._in_flight if claimed.partition == partition)
            self.on_restarted(partition)
            self._commits.reset(partition, offset)
            await self._commits.commit_once(consumer, deadline_seconds=REVOKED_COMMIT_DEADLINE_SECONDS)
            raise TopicReplacedError(
                self.topic, f"went back to offset {offset} in partition {partition.partition}: its log is another one"
            )
        self._gaps.see(partition, offset, next_offset=next_offset)

    async def _commit_positions(self, consumer: AIOKafkaConsumer) -> None:
        """Where all that was read is finished, let the position be committed.

        It is behind the markers, which no consumer sees: a transaction, also an aborted one, ends with one, and would
        leave a lag of 1.
        """
        for partition in self._commits.progress.keys() - self._commits.unloaded:
            if not self.is_joined:
                return  # the consumer may have its next assignment before the listener is called
            with contextlib.suppress(KafkaError, TimeoutError):
                # Known at once or left to the next look: in an await that suspends, a record might be received.
                async with asyncio.timeout(0):
                    position = await consumer.position(partition)
                await self._observe(consumer, partition, position, next_offset=position)
                if self._is_idle(partition) and self._commits.progress[partition].seek_past_gap(position):
                    self._commits.mark_changed(partition)

    def _is_idle(self, partition: TopicPartition) -> bool:
        in_flight = self._commits.progress[partition].in_flight
        return self._gaps.may_pass(partition) and not in_flight and not self._heads[partition]

    def _apply_pauses(self, consumer: AIOKafkaConsumer) -> None:
        assigned = consumer.assignment()
        # Nothing is fetched before the assignment is loaded: the consumer may have begun at another topic's offset.
        full = {
            partition
            for partition in assigned
            if self._intake_stopped
            or partition in self._commits.unloaded
            or len(self._heads.get(partition, ())) * 2 >= HEADS_PER_PARTITION
        }
        paused = consumer.paused() & assigned
        if full - paused:
            consumer.pause(*(full - paused))
        if paused - full:
            consumer.resume(*(paused - full))

    # Rebalance

    async def on_partitions_revoked(self, revoked: Collection[TopicPartition]) -> None:
        """Before a join: heartbeats still run, and what is finished may still be committed."""
        # First of all: a commit that starts from here on might be sent under the next generation.
        self._commits.suspend()
        for heads in self._heads.values():
            heads.clear()
        if not revoked or self._consumer is None:
            return
        # The whole group waits for this member to join, so each step has its own short limit.
        await self._events.on_revoked()
        await self._wait_for_nearly_finished()
        # The next owner must not count these as crashes; an assignment that keeps the partition takes it back.
        self._commits.release_all()
        await self._commits.commit_once(self._consumer, deadline_seconds=REVOKED_COMMIT_DEADLINE_SECONDS)

    def on_partitions_assigned(self, assigned: Collection[TopicPartition]) -> None:
        """After a join. Must not await: the heartbeat task is not running yet."""
        self._note_lost_membership()
        if self._commits.progress and self._consumer and not self._consumer.partitions_for_topic(self.topic):
            self._log.error("topic_missing", topic=self.topic, remedy="create the topic")
        # Lost partitions first: their progress must be gone before the new epoch lets commits run again.
        self._lose(self._commits.progress.keys() - set(assigned))
        self._commits.assign(assigned)
        self._gaps.assign(assigned)
        self._heads = {partition: deque() for partition in assigned}
        # After the new epoch: the load compares it to discard answers about an earlier assignment.
        self._loader.begin()
        self._events.on_assigned(assigned)
        if self._consumer is not None:
            self._apply_pauses(self._consumer)
        self._log.info("lane_assigned", partitions=sorted(partition.partition for partition in assigned))

    def _note_lost_membership(self) -> None:
        """What kept this member from its group may have kept others from it, who are alive all the same."""
        if self._consumer is None:
            return
        member = member_id(self._consumer)
        if self._member not in (None, member):
            self._holds.note_outage(HoldCause.KAFKA)
        self._member = member

    def on_loaded(self) -> None:
        """Records of all assigned partitions may be fetched and started."""
        if self._consumer is not None:
            self._apply_pauses(self._consumer)
        self._events.on_record_waiting()

    def on_overtaken(self, partition: TopicPartition, offsets: frozenset[int]) -> None:
        """Another member committed past these offsets, which are in flight here."""
        self._lose_claimed(
            claimed
            for claimed in self._in_flight
            if claimed.partition == partition and claimed.record.offset in offsets
        )

    def on_restarted(self, partition: TopicPartition) -> None:
        """The partition is read again from another offset; what was fetched so far does not count."""
        self._heads[partition].clear()
        self._gaps.reset(partition)

    def _lose(self, partitions: set[TopicPartition]) -> None:
        self._commits.revoke(partitions)
        for partition in partitions:
            self._heads.pop(partition, None)
        self._lose_claimed(claimed for claimed in self._in_flight if claimed.partition in partitions)

    def _lose_claimed(self, lost: Iterator[ClaimedRecord]) -> None:
        # A copy: the generator reads `_in_flight`, which the loop changes.
        for claimed in list(lost):
            self._in_flight.discard(claimed)
            claimed.lost = True
            claimed.on_lost()

    async def _wait_for_nearly_finished(self) -> None:
        """Give work that would end within the limit the time to do so; the rest is adopted or lost."""
        clock = asyncio.get_running_loop().time
        began = clock()
        deadline = began + self._revoke_wait_seconds
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(deadline):
                await self._commits.wait_until(lambda: not self._nearly_finished(deadline - clock()))
        if self._in_flight:
            self._log.info(
                "rebalance_in_mid_task",
                in_flight=sorted((claimed.record.partition, claimed.record.offset) for claimed in self._in_flight),
                waited_seconds=round(clock() - began, 3),
            )

    def _nearly_finished(self, within_seconds: float) -> bool:
        estimates = [claimed.remaining_seconds() for claimed in self._in_flight]
        return any(estimate is not None and estimate <= within_seconds for estimate in estimates)

    # Claimed records

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
