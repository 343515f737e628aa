"""A model of one topic and one consumer group, for state machines: faults and the passing of time are calls.

Owns the behaviour of broker and aiokafka on which the worker's lane depends: generations, eager rebalances, commits
that are refused, lost or late, and a group without members that accepts a commit of any client. Tests on a real broker
pin the same behaviour; the model is for interleavings that cannot be forced on a real broker. Knows nothing of tasks.
"""

import asyncio
import itertools
import selectors
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, TypeVar

from aiokafka import ConsumerRebalanceListener, TopicPartition
from aiokafka.errors import CommitFailedError, IllegalStateError
from aiokafka.structs import ConsumerRecord, OffsetAndMetadata

T = TypeVar("T")
NO_GENERATION = -1


class SteppedLoop(asyncio.SelectorEventLoop):
    """An event loop whose clock moves only in `settle`."""

    def __init__(self) -> None:
        self.now_seconds = 0.0
        self._until_seconds = 0.0
        super().__init__(_IdleSelector(self))

    def time(self) -> float:
        """Seconds since the loop was made, by its own clock."""
        return self.now_seconds

    def run_for(self, seconds: float = 0.0) -> None:
        """Advance the clock by this time; return when nothing can continue without more."""
        self._until_seconds = self.now_seconds + seconds
        self.run_forever()

    def idle(self, timeout_seconds: float | None) -> None:
        """Nothing is ready, and the next timer is due after the timeout; None when there is no timer."""
        if timeout_seconds is None or self.now_seconds + timeout_seconds > self._until_seconds:
            self.now_seconds = self._until_seconds
            self.stop()
        else:
            self.now_seconds += timeout_seconds


class _IdleSelector(selectors.SelectSelector):
    """Never waits: advances the loop's clock instead."""

    def __init__(self, loop: SteppedLoop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None or timeout > 0:
            self._loop.idle(timeout)
        return super().select(0)


class LinkState(StrEnum):
    """How requests fare."""

    UP = "up"
    SLOW = "slow"
    """Requests are delayed; each arrives when the link is up again, however late."""
    DEAF = "deaf"
    """Requests arrive, and responses are delayed."""


@dataclass(slots=True, eq=False)
class Link:
    """One client's connection to one service."""

    state: LinkState = LinkState.UP
    _requests: list[tuple[Callable[[], Any], asyncio.Future[Any]]] = field(default_factory=list)
    _answers: list[tuple[Any, asyncio.Future[Any]]] = field(default_factory=list)
    _lost: list[asyncio.Future[Any]] = field(default_factory=list)
    """References, because a task that waits for one of these must not be garbage-collected."""
    _is_up: asyncio.Event = field(default_factory=asyncio.Event)

    async def call(self, request: Callable[[], T]) -> T:
        """The response to a request; cancelling the call does not withdraw the request."""
        answered: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        match self.state:
            case LinkState.UP:
                return request()
            case LinkState.SLOW:
                self._requests.append((request, answered))
            case LinkState.DEAF:
                self._answers.append((request(), answered))
        return await answered

    async def wait_up(self) -> None:
        """Return when the link is up."""
        while self.state is not LinkState.UP:
            self._is_up.clear()
            await self._is_up.wait()

    def become(self, state: LinkState, *, last_first: bool = False) -> None:
        """Change the state; delayed requests arrive first, in order or with the last one overtaking all others."""
        self.state = state
        if state is LinkState.UP:
            self.deliver(last_first=last_first)
            self._is_up.set()

    def deliver(self, *, last_first: bool = False) -> None:
        """Deliver every delayed request, and then every response."""
        requests, self._requests = self._requests, []
        for request, answered in reversed(requests) if last_first else requests:
            self._answers.append((request(), answered))
        answers, self._answers = self._answers, []
        for answer, answered in answers:
            if not answered.done():
                answered.set_result(answer)

    @property
    def waiting_requests(self) -> int:
        """How many requests are delayed."""
        return len(self._requests)

    def drop(self) -> None:
        """Drop delayed requests and responses; their callers wait for ever."""
        self._lost += [answered for _, answered in (*self._requests, *self._answers)]
        self._requests.clear()
        self._answers.clear()


@dataclass(frozen=True, slots=True, kw_only=True)
class Commit:
    """An OffsetCommit request."""

    sender: "ModelConsumer"
    member_id: int
    generation: int
    offsets: Mapping[TopicPartition, OffsetAndMetadata]
    committed_when_sent: Mapping[TopicPartition, int]


class ModelGroup:
    """The broker's side: the log of a topic, and one group's members and offsets."""

    def __init__(
        self,
        topic: str,
        *,
        partitions: int,
        on_commit: Callable[[Commit, TopicPartition, OffsetAndMetadata], None],
        on_removed: "Callable[[ModelConsumer], None]",
    ) -> None:
        """`on_commit` is called for each partition of an accepted commit, before it is applied; `on_removed` before a
        member leaves or is removed."""
        self.log: dict[TopicPartition, list[ConsumerRecord]] = {TopicPartition(topic, n): [] for n in range(partitions)}
        self.ends: dict[TopicPartition, int] = dict.fromkeys(self.log, 0)
        """End offsets: after the last record or marker."""
        self.starts: dict[TopicPartition, int] = dict.fromkeys(self.log, 0)
        """Log start offsets."""
        self.committed: dict[TopicPartition, OffsetAndMetadata] = {}
        self.generation = 0
        self.members: dict[int, ModelConsumer] = {}
        self.is_rebalancing = False
        self.shift = 0
        """Rotates the next assignment among the members."""
        self._on_commit = on_commit
        self._on_removed = on_removed
        self._ids = itertools.count(1)
        self._joining: dict[int, asyncio.Future[tuple[int, frozenset[TopicPartition]] | None]] = {}

    # Log

    def append(self, record: ConsumerRecord) -> None:
        """Add a record at the end of its partition."""
        partition = TopicPartition(record.topic, record.partition)
        self.log[partition].append(record)
        self._end_at(partition, record.offset + 1)

    def append_marker(self, partition: TopicPartition) -> None:
        """End a transaction: a marker has an offset and is no record."""
        self._end_at(partition, self.ends[partition] + 1)

    def delete_before(self, partition: TopicPartition, offset: int) -> None:
        """Delete records, as retention does."""
        self.starts[partition] = offset
        self.log[partition] = [record for record in self.log[partition] if record.offset >= offset]

    def make_again(self, partition: TopicPartition) -> None:
        """Delete the partition with its records and commits, and create it again."""
        self.log[partition] = []
        self.starts[partition] = self.ends[partition] = 0
        self.committed.pop(partition, None)
        for member in self.members.values():
            member.wake()

    def _end_at(self, partition: TopicPartition, end: int) -> None:
        self.ends[partition] = end
        for member in self.members.values():
            member.wake()

    # Membership

    async def join(self, consumer: "ModelConsumer") -> tuple[int, frozenset[TopicPartition]] | None:
        """Generation and assignment, when all members have joined; None when removed meanwhile."""
        if self.members.get(consumer.member_id) is not consumer:
            consumer.member_id = next(self._ids)
            self.members[consumer.member_id] = consumer
        joined: asyncio.Future[tuple[int, frozenset[TopicPartition]] | None]
        joined = asyncio.get_running_loop().create_future()
        self._joining[consumer.member_id] = joined
        self.rebalance()
        self._complete_join()
        return await joined

    def rebalance(self) -> None:
        """Ask all members to join again; unreachable ones learn of it by a later heartbeat."""
        self.is_rebalancing = bool(self.members)
        for member in list(self.members.values()):
            self.heartbeat(member)

    def heartbeat(self, consumer: "ModelConsumer") -> None:
        """Tell a member whether it is still one, and whether the group rebalances."""
        if consumer.link.state is not LinkState.UP:
            return
        if self.members.get(consumer.member_id) is not consumer:
            consumer.reset_generation()
        elif self.is_rebalancing and consumer.member_id not in self._joining:
            consumer.request_rejoin()

    def remove(self, consumer: "ModelConsumer") -> None:
        """The member has left, or its session has expired; it may not know."""
        if self.members.get(consumer.member_id) is not consumer:
            return
        self._on_removed(consumer)
        del self.members[consumer.member_id]
        joining = self._joining.pop(consumer.member_id, None)
        if joining is not None and not joining.done():
            joining.set_result(None)
        self.rebalance()
        self._complete_join()

    def owns(self, consumer: "ModelConsumer") -> bool:
        """Whether the consumer is a member of the current, completed generation."""
        return (
            not self.is_rebalancing
            and self.members.get(consumer.member_id) is consumer
            and consumer.generation == self.generation
        )

    def _complete_join(self) -> None:
        if not self.members or set(self._joining) != set(self.members):
            return
        self.generation += 1
        self.is_rebalancing = False
        joining, self._joining = self._joining, {}
        ids = sorted(joining)
        for place, member_id in enumerate(ids):
            share = [tp for tp in self.log if (tp.partition + self.shift) % len(ids) == place]
            if not joining[member_id].done():
                joining[member_id].set_result((self.generation, frozenset(share)))

    # Offsets

    def commit(self, commit: Commit) -> bool:
        """Whether the commit was accepted; an empty group accepts one without a generation from any client."""
        if commit.generation == NO_GENERATION:
            accepted = not self.members
        else:
            accepted = self.members.get(commit.member_id) is commit.sender and commit.generation == self.generation
        if accepted:
            for partition, offset in commit.offsets.items():
                self._on_commit(commit, partition, offset)
                self.committed[partition] = offset
        return accepted

    def committed_offset(self, partition: TopicPartition) -> int:
        """The offset where the group continues."""
        return self.committed[partition].offset if partition in self.committed else 0


class ModelConsumer:
    """The part of `AIOKafkaConsumer` that the lane uses, with its coordinator as `_coordinator`."""

    def __init__(self, group: ModelGroup, link: Link, *, leaders: Link | None = None) -> None:
        """`link` is the connection to the group's coordinator, `leaders` that to the partition leaders."""
        self.link = link
        self._leaders = leaders or link
        self.member_id = 0
        self.generation = NO_GENERATION
        self.asked_for_starts = 0
        self._group = group
        self._assigned: frozenset[TopicPartition] = frozenset()
        self._paused: set[TopicPartition] = set()
        self._positions: dict[TopicPartition, int] = {}
        self._rejoin = asyncio.Event()
        self._stable = asyncio.Event()
        self._arrived = asyncio.Event()
        self._commit_lock = asyncio.Lock()
        self._membership: asyncio.Task[None] | None = None
        self._coordinator = self

    async def start(self) -> None:
        """Connect."""
        await self.link.wait_up()

    def subscribe(self, _topics: Collection[str], *, listener: ConsumerRebalanceListener) -> None:
        """Become a member, from now on."""
        self._rejoin.set()
        self._membership = asyncio.create_task(self._keep_membership(listener))

    async def stop(self) -> None:
        """Leave the group, if it can be reached."""
        if self._membership is not None:
            self._membership.cancel()
        if self.link.state is LinkState.UP:
            self._group.remove(self)

    async def _keep_membership(self, listener: ConsumerRebalanceListener) -> None:
        while True:
            await self._rejoin.wait()
            self._rejoin.clear()
            self._stable.clear()
            await listener.on_partitions_revoked(set(self._assigned))
            joined = None
            while joined is None:
                await self.link.wait_up()
                joined = await self._group.join(self)
            self.generation, self._assigned = joined
            self._paused, self._positions = set(), {}
            listener.on_partitions_assigned(set(self._assigned))
            self._stable.set()

    def request_rejoin(self) -> None:
        """A heartbeat response announced a rebalance."""
        self._rejoin.set()

    def reset_generation(self) -> None:
        """The broker no longer knows this member: it joins as a new one, and keeps its assignment until then."""
        self.generation = NO_GENERATION
        self._group.remove(self)
        self._rejoin.set()

    # Records

    def assignment(self) -> frozenset[TopicPartition]:
        """The assignment, also after the partitions were assigned to others, until the next join."""
        return self._assigned

    def partitions_for_topic(self, _topic: str) -> set[int]:
        """Partitions in the metadata."""
        return {partition.partition for partition in self._group.log}

    def paused(self) -> set[TopicPartition]:
        """Paused partitions; reset by every rebalance."""
        return set(self._paused)

    def pause(self, *partitions: TopicPartition) -> None:
        """Fetch nothing from these."""
        self._paused |= set(partitions)

    def resume(self, *partitions: TopicPartition) -> None:
        """Fetch from these again."""
        self._paused -= set(partitions)
        self.wake()

    def wake(self) -> None:
        """There may be something to fetch."""
        self._arrived.set()

    async def getmany(self, *, timeout_ms: int, max_records: int) -> dict[TopicPartition, list[ConsumerRecord]]:
        """Records of one partition, like aiokafka's; does not return during a rebalance."""
        while True:
            await asyncio.sleep(0)
            await self._stable.wait()
            self._arrived.clear()
            if self.link.state is LinkState.UP:
                for partition in sorted(self._assigned - self._paused):
                    if records := self._fetch(partition, max_records):
                        return {partition: records}
            try:
                async with asyncio.timeout(timeout_ms / 1000):
                    await self._arrived.wait()
            except TimeoutError:
                if self._stable.is_set():
                    return {}

    def _fetch(self, partition: TopicPartition, max_records: int) -> list[ConsumerRecord]:
        position = self._positions.setdefault(partition, self._group.committed_offset(partition))
        if not self._group.starts[partition] <= position <= self._group.ends[partition]:
            position = self._group.starts[partition]
        records = [record for record in self._group.log[partition] if record.offset >= position][:max_records]
        # As aiokafka: offsets after the last record are skipped when there was room for one more record.
        at_end = len(records) < max_records
        self._positions[partition] = self._group.ends[partition] if at_end else records[-1].offset + 1
        return records

    async def position(self, partition: TopicPartition) -> int:
        """Offset of the next fetch; does not return before the first fetch."""
        if partition not in self._assigned:
            raise IllegalStateError("partition is not assigned")
        if partition not in self._positions:
            await asyncio.Event().wait()
        return self._positions[partition]

    # Offsets

    async def commit(self, offsets: Mapping[TopicPartition, OffsetAndMetadata]) -> None:
        """As aiokafka: a commit continues after its caller was cancelled."""
        if not offsets.keys() <= self._assigned:
            raise IllegalStateError("partition is not assigned")
        async with self._commit_lock:
            sending = asyncio.ensure_future(self._do_commit_offsets(self._assigned, offsets))
            # The caller may be gone.
            sending.add_done_callback(lambda sent: sent.cancelled() or sent.exception())
            await asyncio.shield(sending)

    async def _do_commit_offsets(
        self, _assignment: Collection[TopicPartition], offsets: Mapping[TopicPartition, OffsetAndMetadata]
    ) -> None:
        commit = Commit(
            sender=self,
            member_id=self.member_id,
            generation=self.generation,
            offsets=dict(offsets),
            committed_when_sent={partition: self._group.committed_offset(partition) for partition in offsets},
        )
        if not await self.link.call(lambda: self._group.commit(commit)):
            self.reset_generation()
            raise CommitFailedError("the group has rebalanced")

    def seek(self, partition: TopicPartition, offset: int) -> None:
        """Fetch from that offset on."""
        if partition not in self._assigned:
            raise IllegalStateError("partition is not assigned")
        self._positions[partition] = offset
        self.wake()

    async def beginning_offsets(self, partitions: Collection[TopicPartition]) -> dict[TopicPartition, int]:
        """Log start offsets."""
        self.asked_for_starts += 1
        return await self._leaders.call(lambda: {partition: self._group.starts[partition] for partition in partitions})

    async def committed(self, partition: TopicPartition) -> int | None:
        """The group's offset; None when there is none."""
        return await self.link.call(
            lambda: self._group.committed[partition].offset if partition in self._group.committed else None
        )

    async def fetch_committed_offsets(
        self, partitions: Iterable[TopicPartition]
    ) -> dict[TopicPartition, OffsetAndMetadata]:
        """Committed offsets with their metadata."""
        wanted = frozenset(partitions)
        return await self.link.call(
            lambda: {partition: offset for partition, offset in self._group.committed.items() if partition in wanted}
        )
