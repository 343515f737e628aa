"""What consumer groups committed and who is in them, asked of each group's coordinator.

Owns the questions to coordinators and their errors. Knows nothing of how long the logs are. By aiokafka's client and
its protocol classes: librdkafka's admin client ends the whole process when a coordinator that is moving or loading
answers an offset fetch (https://github.com/confluentinc/librdkafka/issues/5040), and aiokafka's own admin client takes
the same answer for "nothing committed".
"""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from aiokafka.client import CoordinationType
from aiokafka.coordinator.protocol import ConsumerProtocol
from aiokafka.errors import KafkaError, for_code
from aiokafka.protocol.admin import DescribeGroupsRequest
from aiokafka.protocol.commit import OffsetFetchRequest

from fluxpool_contract.kafka import KafkaConnection
from fluxpool_transport.kafka.clients import open_client

_NO_OFFSET = -1


@dataclass(frozen=True, slots=True)
class CommittedOffset:
    """What a group committed for a partition; `offset` is None when it never did."""

    offset: int | None
    metadata: str


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupMember:
    """One member of a consumer group and its assignment."""

    member_id: str
    client_id: str
    partitions: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """Partition numbers by topic; empty while the group rebalances, and for members that are no consumers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupOffsets:
    """One group on one topic. A text in place of an offset, or as `problem`, says why it could not be read."""

    offsets: Mapping[int, CommittedOffset | str]
    """By partition; one that is missing was missing in the answer."""
    member_count: int | None
    state: str | None
    """Stable, Empty, Dead (no such group), PreparingRebalance or CompletingRebalance."""
    members: tuple[GroupMember, ...] = ()
    problem: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Membership:
    members: tuple[GroupMember, ...]
    state: str
    read_at_seconds: float


class GroupOffsetsReader:
    """Asks coordinators; connects at the first question and stays connected until `close`."""

    def __init__(self, connection: KafkaConnection, *, client_id: str, members_seconds: float = 0.0) -> None:
        """A group is described again when its members are known for longer than `members_seconds`."""
        self._connection = connection
        self._client_id = client_id
        self._members_seconds = members_seconds
        self._membership: dict[str, _Membership] = {}
        self._client: Any = None
        self._coordinators: dict[str, int] = {}
        self._metadata_is_suspect = False

    async def read(
        self, groups: Mapping[str, tuple[str, Sequence[int]]], *, timeout_seconds: float
    ) -> dict[str, GroupOffsets]:
        """The offsets of each group (`groups` maps group to topic and partition numbers); all are asked at once.

        Raises aiokafka's `KafkaConnectionError` when no broker can be reached; an error of one group, or an
        answer later than `timeout_seconds`, is its own `problem`.
        """
        client = await self._connected()
        if self._metadata_is_suspect:
            self._metadata_is_suspect = False
            await client.force_metadata_update()
        answers = await asyncio.gather(
            *(
                self._read_one(client, group, topic=topic, partitions=partitions, timeout_seconds=timeout_seconds)
                for group, (topic, partitions) in groups.items()
            )
        )
        return dict(zip(groups, answers, strict=True))

    async def close(self) -> None:
        """Close the connections."""
        if self._client is not None:
            await self._client.close()
            self._client = None

    async def _connected(self) -> Any:
        if self._client is None:
            self._client = await open_client(self._connection, client_id=self._client_id)
        return self._client

    async def _read_one(
        self, client: Any, group: str, *, topic: str, partitions: Sequence[int], timeout_seconds: float
    ) -> GroupOffsets:
        try:
            async with asyncio.timeout(timeout_seconds):
                membership, fetched = await self._ask(client, group, topic=topic, partitions=partitions)
            if fetched.error_code:
                raise for_code(fetched.error_code)
        except (KafkaError, TimeoutError) as error:
            # The coordinator may have moved; look it up again next time.
            self._coordinators.pop(group, None)
            self._membership.pop(group, None)
            self._metadata_is_suspect = True
            reason = str(error) or f"no answer within {timeout_seconds:g} s"
            return GroupOffsets(offsets={}, member_count=None, state=None, problem=f"consumer group {group}: {reason}")
        offsets = {
            partition: _committed(offset, metadata, code)
            for _, rows in fetched.topics
            for partition, offset, metadata, code in rows
        }
        return GroupOffsets(
            offsets=offsets,
            member_count=len(membership.members),
            state=membership.state,
            members=membership.members,
        )

    async def _ask(self, client: Any, group: str, *, topic: str, partitions: Sequence[int]) -> tuple[_Membership, Any]:
        coordinator = self._coordinators.get(group)
        if coordinator is None:
            coordinator = await client.coordinator_lookup(CoordinationType.GROUP, group)
            self._coordinators[group] = coordinator
        describing = asyncio.ensure_future(self._describe(client, coordinator, group))
        fetching = asyncio.ensure_future(
            client.send(coordinator, OffsetFetchRequest(group, [(topic, list(partitions))]))
        )
        # Both end before an error is raised: the other one might connect after the client was closed.
        await asyncio.gather(describing, fetching, return_exceptions=True)
        return describing.result(), fetching.result()

    async def _describe(self, client: Any, coordinator: int, group: str) -> _Membership:
        now = asyncio.get_running_loop().time()
        known = self._membership.get(group)
        if known is not None and now - known.read_at_seconds < self._members_seconds:
            return known
        # One group a request: aiokafka decodes answers about several with the wrong schema.
        described = await client.send(coordinator, DescribeGroupsRequest([group]))
        ((error_code, _, state, _, _, members, *_),) = described.groups
        if error_code:
            raise for_code(error_code)
        membership = _Membership(
            members=tuple(
                GroupMember(member_id=member_id, client_id=client_id, partitions=_assigned(assignment))
                for member_id, client_id, _, _, assignment in members
            ),
            state=state,
            read_at_seconds=now,
        )
        if self._members_seconds:
            self._membership[group] = membership
        return membership


def _committed(offset: int, metadata: str | None, error_code: int) -> CommittedOffset | str:
    if error_code:
        return str(for_code(error_code)())
    return CommittedOffset(offset=None if offset == _NO_OFFSET else offset, metadata=metadata or "")


def _assigned(assignment: bytes | None) -> dict[str, tuple[int, ...]]:
    # Empty until the leader has assigned the partitions. What cannot be read belongs to a foreign group protocol.
    if not assignment:
        return {}
    try:
        decoded = ConsumerProtocol.ASSIGNMENT.decode(assignment)
    except ValueError:
        return {}
    return {topic: tuple(numbers) for topic, numbers in decoded.assignment or ()}
