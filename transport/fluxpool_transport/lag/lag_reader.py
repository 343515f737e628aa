"""The lag of consumer groups: the ends of their topics' partitions minus the committed offsets.

Owns reading and the arithmetic of one moment. Knows nothing of what the numbers are used for. A partition that cannot
be read is stale and never counted as zero: a scaler that takes silence for an empty topic stops workers that have work.
"""

import asyncio
from collections.abc import Coroutine, Iterable, Mapping
from contextlib import closing
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self, TypeVar

from aiokafka.errors import KafkaConnectionError

from fluxpool_contract.kafka import KafkaConnection, LedgerEntry, decode_ledger, is_ledger
from fluxpool_transport.kafka.metadata import KafkaMetadata
from fluxpool_transport.lag.group_offsets import GroupMember, GroupOffsets, GroupOffsetsReader
from fluxpool_transport.lag.log_bounds import LogBounds, LogBoundsReader

T = TypeVar("T")

_CLIENT_ID = "fluxpool-lag"
_ROUNDS = 3.5
"""Topics, groups and log offsets are read one after the other, and some time is left to combine them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PartitionLag:
    """The lag of one group on one partition; all offsets are of one reading."""

    partition: int
    committed_offset: int | None
    """The group's next record; None when it never committed here and so begins at the log's start."""
    log_start_offset: int
    log_end_offset: int
    """Last stable offset: where a read-committed reader's view ends."""
    metadata: str
    """Of the committed offset; empty without one."""

    @property
    def is_recreated(self) -> bool:
        """Whether the commit is past the end: the topic was deleted and created again since."""
        return self.committed_offset is not None and self.committed_offset > self.log_end_offset

    @property
    def next_offset(self) -> int:
        """Offset of the group's next record; a commit that is out of range restarts at the log's start."""
        if self.committed_offset is None or self.is_recreated:
            return self.log_start_offset
        return max(self.committed_offset, self.log_start_offset)

    @property
    def lag_records(self) -> int:
        """Log end minus next offset, so with the records in flight."""
        return max(0, self.log_end_offset - self.next_offset)

    @property
    def in_flight(self) -> dict[int, LedgerEntry]:
        """Tasks that a worker has begun, by offset, from its ledger; empty for groups that keep none."""
        return {
            offset: entry
            for offset, entry in decode_ledger(self.metadata).items()
            if self.next_offset <= offset < self.log_end_offset and not entry.released
        }

    @property
    def pending_records(self) -> int:
        """Lag minus the records in flight: no worker has begun them."""
        return self.lag_records - len(self.in_flight)

    @property
    def is_foreign_commit(self) -> bool:
        """Whether a client other than a worker committed the offset, with the broker's default retention."""
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
class GroupLag:
    """One consumer group on one topic."""

    group: str
    topic: str
    partitions: tuple[PartitionLag | StalePartition, ...]
    """By number; empty when the topic could not be read."""
    member_count: int | None
    """None when the group could not be described."""
    state: str | None
    """Stable, Empty, Dead (no such group), PreparingRebalance or CompletingRebalance."""
    members: tuple[GroupMember, ...] = ()
    """The group's members with their assignments; empty when it could not be described."""
    problem: str | None = None
    """Why the whole topic or group could not be read."""

    @property
    def is_stale(self) -> bool:
        """Whether anything that `lag_records` needs is missing."""
        return not self.partitions or any(isinstance(item, StalePartition) for item in self.partitions)

    @property
    def readable_partitions(self) -> tuple[PartitionLag, ...]:
        """The partitions that were read."""
        return tuple(item for item in self.partitions if isinstance(item, PartitionLag))

    @property
    def lag_records(self) -> int | None:
        """Sum over all partitions; None when some could not be read."""
        return None if self.is_stale else self.lag_records_at_least

    @property
    def lag_records_at_least(self) -> int:
        """Sum over the partitions that were read: enough to start workers, never to stop one."""
        return sum(item.lag_records for item in self.readable_partitions)


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownFor:
    """How many seconds an answer that seldom changes is cached; 0 asks each time."""

    layout_seconds: float = 0.0
    """How many partitions a topic has."""
    log_start_seconds: float = 0.0
    """Where a partition's log starts. Until it is read again, deleted records still count as lag."""
    members_seconds: float = 0.0
    """The members of a group."""


class LagReader:
    """Reads the lag of many groups at once: `async with LagReader(connection) as reader`.

    Connects at the first question, and again after `close`.
    """

    def __init__(
        self, connection: KafkaConnection, *, deadline_seconds: float = 10.0, known_for: KnownFor | None = None
    ) -> None:
        known_for = known_for or KnownFor()
        self._deadline_seconds = deadline_seconds
        # Each round ends early enough that the other answers are still reported before the deadline.
        self._round_seconds = deadline_seconds / _ROUNDS
        self._metadata = KafkaMetadata(connection, client_id=_CLIENT_ID, timeout_seconds=self._round_seconds)
        self._log_bounds = LogBoundsReader(
            self._metadata, layout_seconds=known_for.layout_seconds, start_seconds=known_for.log_start_seconds
        )
        self._group_offsets = GroupOffsetsReader(
            connection, client_id=_CLIENT_ID, members_seconds=known_for.members_seconds
        )

    async def __aenter__(self) -> Self:
        """Open the client; raises as `KafkaAdmin.open` does."""
        await self._metadata.admin()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close the connections."""
        await self.close()

    async def close(self) -> None:
        """Close the connections."""
        self._metadata.reconnect()
        await self._group_offsets.close()

    async def read(self, groups: Mapping[str, str]) -> dict[str, GroupLag]:
        """The lag of each consumer group on its topic (`groups` maps group to topic).

        A group or partition that cannot be read is stale in its own entry. Raises `KafkaUnavailableError` when no
        broker answers before the deadline, and what `KafkaAdmin.open` raises. One call at a time.
        """
        return await self._answered(self._read(groups))

    async def log_bounds(self, topics: Iterable[str]) -> dict[str, dict[int, LogBounds | str] | str]:
        """The bounds of each topic's partitions; a text in place of an answer says why there is none.

        Raises as `read` does.
        """
        return await self._answered(self._read_log_bounds(set(topics)))

    async def _answered(self, question: Coroutine[Any, Any, T]) -> T:
        with closing(question):
            admin = await self._metadata.admin()
            try:
                async with asyncio.timeout(self._deadline_seconds):
                    return await question
            except (TimeoutError, KafkaConnectionError) as error:
                self._metadata.reconnect()
                raise admin.unavailable(
                    str(error) or f"no complete answer within {self._deadline_seconds:g} s"
                ) from error

    async def _read_log_bounds(self, topics: set[str]) -> dict[str, dict[int, LogBounds | str] | str]:
        layouts = await self._log_bounds.partitions(topics)
        keys = [
            (topic, number) for topic, layout in layouts.items() if not isinstance(layout, str) for number in layout
        ]
        bounds = await self._log_bounds.bounds(keys)
        return {
            topic: layout if isinstance(layout, str) else {number: bounds[topic, number] for number in layout}
            for topic, layout in layouts.items()
        }

    async def _read(self, groups: Mapping[str, str]) -> dict[str, GroupLag]:
        if not groups:
            return {}
        layouts = await self._log_bounds.partitions(groups.values())
        partitions = {topic: layout for topic, layout in layouts.items() if not isinstance(layout, str)}
        # Commits before ends, not beside them: a commit made in between would seem to lie past the end.
        committed = await self._group_offsets.read(
            {group: (topic, partitions.get(topic, ())) for group, topic in groups.items()},
            timeout_seconds=self._round_seconds,
        )
        keys = [(topic, number) for topic, numbers in partitions.items() for number in numbers]
        logs = await self._log_bounds.bounds(keys)
        found = {}
        for group, topic in groups.items():
            layout, offsets = layouts[topic], committed[group]
            found[group] = GroupLag(
                group=group,
                topic=topic,
                partitions=tuple(
                    _partition_lag(number, offsets, log=logs[topic, number]) for number in partitions.get(topic, ())
                ),
                member_count=None if offsets.state is None else len(offsets.members),
                state=offsets.state,
                members=offsets.members,
                problem=layout if isinstance(layout, str) else offsets.problem,
            )
        return found


def _partition_lag(number: int, offsets: GroupOffsets, *, log: LogBounds | str) -> PartitionLag | StalePartition:
    if isinstance(log, str):
        return StalePartition(partition=number, reason=log)
    stored = offsets.offsets.get(number, offsets.problem or "missing in the coordinator's answer")
    if isinstance(stored, str):
        return StalePartition(partition=number, reason=stored)
    return PartitionLag(
        partition=number,
        committed_offset=stored.offset if stored else None,
        log_start_offset=log.start,
        log_end_offset=log.end,
        metadata=stored.metadata if stored else "",
    )
