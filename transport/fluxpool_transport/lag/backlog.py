"""How far consumer groups are behind: committed offsets against the ends of their topics' partitions.

Owns reading and the arithmetic of one moment. Knows nothing of what the numbers lead to. What cannot be read is marked
as stale and never counted as zero: a scaler that mistakes silence for an empty topic stops workers that have work.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Self, TypeVar

from aiokafka.errors import KafkaConnectionError

from fluxpool_contract.kafka import KafkaConnection, LedgerEntry, decode_ledger, is_ledger
from fluxpool_transport.kafka.admin import KafkaAdmin
from fluxpool_transport.lag.group_offsets import CommittedOffset, GroupMember, GroupOffsets, GroupOffsetsReader
from fluxpool_transport.lag.log_bounds import LogBounds, LogBoundsReader

T = TypeVar("T")

_CLIENT_ID = "fluxpool-backlog"
_ROUNDS = 3.5
"""Topics, groups and log offsets are asked one after the other, and some time is left to put them together."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PartitionBacklog:
    """One partition as one group sees it; all offsets as of one reading."""

    partition: int
    committed_offset: int | None
    """Next record the group takes; None when it never committed here and so begins at the log's start."""
    log_start_offset: int
    log_end_offset: int
    """Last stable offset: where a read-committed reader's view ends."""
    metadata: str
    """Text stored beside the committed offset; empty when there is none."""

    @property
    def is_recreated(self) -> bool:
        """Whether the commit lies past the end: the topic was deleted and made again since."""
        return self.committed_offset is not None and self.committed_offset > self.log_end_offset

    @property
    def next_offset(self) -> int:
        """Where the group's next record lies: a commit that is out of range restarts at the log's start."""
        if self.committed_offset is None or self.is_recreated:
            return self.log_start_offset
        return max(self.committed_offset, self.log_start_offset)

    @property
    def lag_records(self) -> int:
        """Records not yet committed, those in work included."""
        return max(0, self.log_end_offset - self.next_offset)

    @property
    def in_flight(self) -> dict[int, LedgerEntry]:
        """Tasks that a worker says it is working on, by offset; empty when the group's members keep no ledger."""
        return {
            offset: entry
            for offset, entry in decode_ledger(self.metadata).items()
            if self.next_offset <= offset < self.log_end_offset and not entry.released
        }

    @property
    def pending_records(self) -> int:
        """Records that nobody has begun."""
        return self.lag_records - len(self.in_flight)

    @property
    def is_foreign_commit(self) -> bool:
        """Whether another client than a worker committed the offset: nobody asked the broker to keep it for long."""
        return self.committed_offset is not None and not is_ledger(self.metadata)

    @property
    def expired_records(self) -> int:
        """Records that retention deleted before the group had committed them."""
        if self.committed_offset is None or self.is_recreated:
            return 0
        return max(0, self.log_start_offset - self.committed_offset)


@dataclass(frozen=True, slots=True, kw_only=True)
class StalePartition:
    """A partition that could not be read this time."""

    partition: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupBacklog:
    """One consumer group on one topic."""

    group: str
    topic: str
    partitions: tuple[PartitionBacklog | StalePartition, ...]
    """By number; empty when the topic could not be read."""
    member_count: int | None
    """None when the group could not be described."""
    state: str | None
    """The coordinator's word: Stable, Empty, Dead (no such group), PreparingRebalance or CompletingRebalance."""
    members: tuple[GroupMember, ...] = ()
    """Who is in the group, with the partitions of each; empty when it could not be described."""
    problem: str | None = None
    """Why the whole topic or group could not be read."""

    @property
    def is_stale(self) -> bool:
        """Whether anything that `lag_records` needs is missing."""
        return not self.partitions or any(isinstance(item, StalePartition) for item in self.partitions)

    @property
    def readable_partitions(self) -> tuple[PartitionBacklog, ...]:
        """The partitions that were read."""
        return tuple(item for item in self.partitions if isinstance(item, PartitionBacklog))

    @property
    def lag_records(self) -> int | None:
        """Records not yet committed in all partitions; None when some could not be read."""
        return None if self.is_stale else self.lag_records_at_least

    @property
    def lag_records_at_least(self) -> int:
        """The same in the partitions that were read: enough to start workers by, never to stop one."""
        return sum(item.lag_records for item in self.readable_partitions)


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownFor:
    """For how many seconds an answer about what seldom changes is taken as known; 0 asks each time."""

    layout_seconds: float = 0.0
    """How many partitions a topic has."""
    log_start_seconds: float = 0.0
    """Where a partition's log starts. While it is older, lost records are still taken for waiting ones."""
    members_seconds: float = 0.0
    """Who is in a group."""


class BacklogReader:
    """Reads the backlog of many groups at once: `async with BacklogReader(connection) as reader`."""

    def __init__(
        self, connection: KafkaConnection, *, deadline_seconds: float = 10.0, known_for: KnownFor | None = None
    ) -> None:
        known_for = known_for or KnownFor()
        self._connection = connection
        self._deadline_seconds = deadline_seconds
        self._admin: KafkaAdmin | None = None
        self._is_open = False
        self._log_bounds = LogBoundsReader(
            layout_seconds=known_for.layout_seconds, start_seconds=known_for.log_start_seconds
        )
        self._group_offsets = GroupOffsetsReader(
            connection, client_id=_CLIENT_ID, members_seconds=known_for.members_seconds
        )

    async def __aenter__(self) -> Self:
        """Open the client; raises as `KafkaAdmin.open` does."""
        self._admin = await KafkaAdmin.open(self._connection, client_id=_CLIENT_ID)
        self._is_open = True
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Let go of the connections."""
        self._is_open = False
        self._admin = None
        await self._group_offsets.close()

    async def read(self, groups: Mapping[str, str]) -> dict[str, GroupBacklog]:
        """The backlog of each consumer group on its topic (`groups` maps group to topic).

        What one group or partition lacks is stale in its own entry. Raises `KafkaUnavailableError` when no broker
        answers before the deadline, `RuntimeError` outside `async with`. One call at a time.
        """
        return await self._answered(lambda admin: self._read(admin, groups))

    async def log_bounds(self, topics: Iterable[str]) -> dict[str, dict[int, LogBounds | str] | str]:
        """The bounds of each topic's partitions; a text in place of an answer says why there is none.

        Raises as `read` does.
        """
        return await self._answered(lambda admin: self._read_log_bounds(admin, set(topics)))

    async def _answered(self, question: Callable[[KafkaAdmin], Awaitable[T]]) -> T:
        if not self._is_open:
            raise RuntimeError("BacklogReader: use it inside `async with BacklogReader(...)`")
        admin = self._admin or await KafkaAdmin.open(self._connection, client_id=_CLIENT_ID)
        # Only a client that answered is kept: librdkafka asks a dead controller until its metadata are a minute old.
        self._admin = None
        try:
            async with asyncio.timeout(self._deadline_seconds):
                answer = await question(admin)
        except TimeoutError:
            raise admin.unavailable(f"no complete answer within {self._deadline_seconds:g} s") from None
        except KafkaConnectionError as error:
            raise admin.unavailable(error) from error
        self._admin = admin
        return answer

    async def _read_log_bounds(
        self, admin: KafkaAdmin, topics: set[str]
    ) -> dict[str, dict[int, LogBounds | str] | str]:
        round_seconds = self._deadline_seconds / _ROUNDS
        layouts = await self._log_bounds.partitions(admin, topics, timeout_seconds=round_seconds)
        keys = [
            (topic, number) for topic, layout in layouts.items() if not isinstance(layout, str) for number in layout
        ]
        bounds = await self._log_bounds.bounds(admin, keys, timeout_seconds=round_seconds)
        return {
            topic: layout if isinstance(layout, str) else {number: bounds[topic, number] for number in layout}
            for topic, layout in layouts.items()
        }

    async def _read(self, admin: KafkaAdmin, groups: Mapping[str, str]) -> dict[str, GroupBacklog]:
        if not groups:
            return {}
        # Each round ends early enough that what others answered is still reported before the deadline.
        round_seconds = self._deadline_seconds / _ROUNDS
        layouts = await self._log_bounds.partitions(admin, groups.values(), timeout_seconds=round_seconds)
        partitions = {topic: layout for topic, layout in layouts.items() if not isinstance(layout, str)}
        # Commits before ends, not beside them: a commit made in between would seem to lie past the end.
        committed = await self._group_offsets.read(
            {group: (topic, partitions.get(topic, ())) for group, topic in groups.items()},
            timeout_seconds=round_seconds,
        )
        keys = [(topic, number) for topic, numbers in partitions.items() for number in numbers]
        logs = await self._log_bounds.bounds(admin, keys, timeout_seconds=round_seconds)
        backlogs = {}
        for group, topic in groups.items():
            layout, offsets = layouts[topic], committed[group]
            backlogs[group] = GroupBacklog(
                group=group,
                topic=topic,
                partitions=tuple(
                    _partition_backlog(number, offsets, log=logs[topic, number]) for number in partitions.get(topic, ())
                ),
                member_count=offsets.member_count,
                state=offsets.state,
                members=offsets.members,
                problem=layout if isinstance(layout, str) else offsets.problem,
            )
        return backlogs


def _partition_backlog(
    number: int, offsets: GroupOffsets, *, log: LogBounds | str
) -> PartitionBacklog | StalePartition:
    if isinstance(log, str):
        return StalePartition(partition=number, reason=log)
    match offsets.offsets.get(number):
        case None:
            return StalePartition(partition=number, reason=offsets.problem or "missing in the coordinator's answer")
        case str(reason):
            return StalePartition(partition=number, reason=reason)
        case CommittedOffset(offset, metadata):
            return PartitionBacklog(
                partition=number,
                committed_offset=offset,
                log_start_offset=log.start,
                log_end_offset=log.end,
                metadata=metadata,
            )
