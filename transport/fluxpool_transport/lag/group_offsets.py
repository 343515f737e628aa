"""What consumer groups committed and who is in them, asked of each group's coordinator; and commits without a member.

Owns the questions to coordinators and their errors. Knows nothing of how long the logs are. By aiokafka's client and
its protocol classes: librdkafka's admin client ends the whole process when a coordinator that is moving or loading
answers an offset fetch (https://github.com/confluentinc/librdkafka/issues/5040), and aiokafka's own admin client takes
the same answer for "nothing committed".
"""

import asyncio
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Final

from aiokafka import TopicPartition
from aiokafka.client import CoordinationType
from aiokafka.coordinator.protocol import ConsumerProtocol
from aiokafka.errors import KafkaError, for_code
from aiokafka.protocol.admin import DescribeGroupsRequest
from aiokafka.protocol.commit import OffsetCommitRequest, OffsetFetchRequest

from fluxpool_contract.kafka import KafkaConnection
from fluxpool_transport.kafka.clients import KafkaCredentialsError, open_client

MEMBERLESS_DEADLINE_SECONDS: Final = 10.0
_NO_OFFSET: Final = -1
_NO_MEMBER: Final = (-1, "")
"""Generation and member id of a commit from outside a group."""


class GroupOffsetsError(Exception):
    """A group's offsets could not be read or written; the message names the group and the cause."""


@dataclass(frozen=True, slots=True)
class StoredOffset:
    """What a group committed for one partition."""

    offset: int
    metadata: str = ""


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

    offsets: Mapping[int, StoredOffset | str | None]
    """By partition; None where the group never committed; one that is missing was missing in the answer."""
    state: str | None = None
    """Stable, Empty, Dead (no such group), PreparingRebalance or CompletingRebalance; None when not described."""
    members: tuple[GroupMember, ...] = ()
    problem: str | None = None


class _Coordinators:
    """One client, and which broker coordinates each group; connects at the first question, and again after `close`."""

    def __init__(self, connection: KafkaConnection, *, client_id: str) -> None:
        self._connection = connection
        self._client_id = client_id
        self._client: Any = None
        self._nodes: dict[str, int] = {}

    async def client(self) -> Any:
        if self._client is None:
            self._client = await open_client(self._connection, client_id=self._client_id)
        return self._client

    async def find(self, group: str) -> int:
        if group not in self._nodes:
            self._nodes[group] = await (await self.client()).coordinator_lookup(CoordinationType.GROUP, group)
        return self._nodes[group]

    async def send(self, group: str, request: Any) -> Any:
        node = await self.find(group)
        return await (await self.client()).send(node, request)

    def evict(self, group: str) -> None:
        """After an error: the coordinator may have moved, and is looked up again next time."""
        self._nodes.pop(group, None)

    async def close(self) -> None:
        # Taken out first: a question that arrives while the connections close must open new ones.
        client, self._client = self._client, None
        self._nodes.clear()
        if client is not None:
            await client.close()


class GroupOffsetsReader:
    """Asks coordinators; connects at the first question and stays connected until `close`."""

    def __init__(self, connection: KafkaConnection, *, client_id: str, members_seconds: float = 0.0) -> None:
        """A group is described again when its members are known for longer than `members_seconds`."""
        self._coordinators = _Coordinators(connection, client_id=client_id)
        self._members_seconds = members_seconds
        self._described: dict[str, tuple[float, str, tuple[GroupMember, ...]]] = {}
        """When, the state and the members, by group."""
        self._metadata_is_suspect = False

    async def read(
        self, groups: Mapping[str, tuple[str, Sequence[int]]], *, timeout_seconds: float
    ) -> dict[str, GroupOffsets]:
        """The offsets of each group (`groups` maps group to topic and partition numbers); all are asked at once.

        Raises aiokafka's `KafkaConnectionError` when no broker can be reached; an error of one group, or an
        answer later than `timeout_seconds`, is its own `problem`.
        """
        client = await self._coordinators.client()
        if self._metadata_is_suspect:
            self._metadata_is_suspect = False
            await client.force_metadata_update()
        answers = await asyncio.gather(
            *(
                self._read_one(group, OffsetFetchRequest(group, [(topic, list(partitions))]), timeout_seconds)
                for group, (topic, partitions) in groups.items()
            )
        )
        return dict(zip(groups, answers, strict=True))

    async def close(self) -> None:
        """Close the connections."""
        self._described.clear()
        await self._coordinators.close()

    async def _read_one(self, group: str, request: Any, timeout_seconds: float) -> GroupOffsets:
        try:
            async with asyncio.timeout(timeout_seconds):
                # First, so that the two questions do not look the coordinator up twice.
                await self._coordinators.find(group)
                describing = asyncio.ensure_future(self._describe(group))
                fetching = asyncio.ensure_future(self._coordinators.send(group, request))
                # Both end before an error is raised: the other one might connect after the client was closed.
                await asyncio.gather(describing, fetching, return_exceptions=True)
            (state, members), fetched = describing.result(), fetching.result()
            offsets = {
                partition.partition: str(found) if isinstance(found, KafkaError) else found
                for partition, found in _committed(fetched)
            }
        except (KafkaError, TimeoutError) as error:
            self._coordinators.evict(group)
            self._described.pop(group, None)
            self._metadata_is_suspect = True
            return GroupOffsets(offsets={}, problem=_problem(group, error, timeout_seconds))
        return GroupOffsets(offsets=offsets, state=state, members=members)

    async def _describe(self, group: str) -> tuple[str, tuple[GroupMember, ...]]:
        now = asyncio.get_running_loop().time()
        known = self._described.get(group)
        if known is not None and now - known[0] < self._members_seconds:
            return known[1:]
        # One group a request: aiokafka decodes answers about several with the wrong schema.
        described = await self._coordinators.send(group, DescribeGroupsRequest([group]))
        ((error_code, _, state, _, _, rows, *_),) = described.groups
        _raise_for(error_code)
        members = tuple(
            GroupMember(member_id=member_id, client_id=client_id, partitions=_assigned(assignment))
            for member_id, client_id, _, _, assignment in rows
        )
        if self._members_seconds:
            self._described[group] = now, state, members
        return state, members


class MemberlessOffsets:
    """Reads and writes the offsets of consumer groups that have no members, with one request each.

    A broker takes such a commit only while the group has no member, and takes it whatever the offset is: that it is not
    lower than the one before is the caller's business. Unlike in aiokafka's consumer nothing is tried again in the
    background; but a broker may still carry out a commit whose answer came too late, also after the next one.
    """

    def __init__(self, connection: KafkaConnection, *, client_id: str, retention: timedelta) -> None:
        """`retention` is how long the brokers are asked to keep what is written."""
        self._coordinators = _Coordinators(connection, client_id=client_id)
        self._retention_ms = int(retention.total_seconds() * 1000)

    async def fetch(self, group: str, partitions: Iterable[TopicPartition]) -> dict[TopicPartition, StoredOffset]:
        """What the group has; partitions without an offset are absent. Raises `GroupOffsetsError`."""
        numbers: dict[str, list[int]] = {}
        for topic, number in partitions:
            numbers.setdefault(topic, []).append(number)
        answer = await self._ask(group, OffsetFetchRequest(group, list(numbers.items())))
        stored = {}
        try:
            for partition, found in _committed(answer):
                if isinstance(found, KafkaError):
                    raise found
                if found is not None:
                    stored[partition] = found
        except KafkaError as error:
            raise self._failed(group, error) from error
        return stored

    async def commit(self, group: str, offsets: Mapping[TopicPartition, StoredOffset]) -> None:
        """Write all of them; raises `GroupOffsetsError` when one was refused or the outcome is not known."""
        rows: dict[str, list[tuple[int, int, str]]] = {}
        for (topic, number), stored in offsets.items():
            rows.setdefault(topic, []).append((number, stored.offset, stored.metadata))
        answer = await self._ask(group, OffsetCommitRequest(group, *_NO_MEMBER, self._retention_ms, list(rows.items())))
        try:
            for _, answers in answer.topics:
                for _, error_code in answers:
                    _raise_for(error_code)
        except KafkaError as error:
            raise self._failed(group, error) from error

    async def close(self) -> None:
        """Close the connections."""
        await self._coordinators.close()

    async def _ask(self, group: str, request: Any) -> Any:
        try:
            async with asyncio.timeout(MEMBERLESS_DEADLINE_SECONDS):
                return await self._coordinators.send(group, request)
        except (KafkaError, KafkaCredentialsError, OSError, TimeoutError) as error:
            # After its start aiokafka asks only the brokers that it knows, which may be gone: open a new client.
            await self.close()
            raise self._failed(group, error) from error

    def _failed(self, group: str, error: Exception) -> GroupOffsetsError:
        self._coordinators.evict(group)
        return GroupOffsetsError(_problem(group, error, MEMBERLESS_DEADLINE_SECONDS))


def _problem(group: str, error: Exception, timeout_seconds: float) -> str:
    return f"consumer group {group}: {str(error) or f'no answer within {timeout_seconds:g} s'}"


def _raise_for(error_code: int) -> None:
    if error_code:
        raise for_code(error_code)


def _committed(answer: Any) -> Iterator[tuple[TopicPartition, StoredOffset | KafkaError | None]]:
    """Each partition of an answer; raises the `KafkaError` of the whole answer, which the oldest versions lack."""
    _raise_for(getattr(answer, "error_code", 0))
    for topic, rows in answer.topics:
        for number, offset, metadata, error_code in rows:
            found = None if offset == _NO_OFFSET else StoredOffset(offset, metadata or "")
            yield TopicPartition(topic, number), for_code(error_code)() if error_code else found


def _assigned(assignment: bytes | None) -> dict[str, tuple[int, ...]]:
    # Empty until the leader has assigned the partitions. What cannot be read belongs to a foreign group protocol.
    if not assignment:
        return {}
    try:
        decoded = ConsumerProtocol.ASSIGNMENT.decode(assignment)
    except ValueError:
        return {}
    return {topic: tuple(numbers) for topic, numbers in decoded.assignment or ()}
