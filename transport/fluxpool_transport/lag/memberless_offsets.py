"""Committed offsets of consumer groups that have no members, read and written with one request each.

Owns the questions to the groups' coordinators and their errors. Knows nothing of what the offsets are about. A broker
takes such a commit only while the group has no member, and takes it whatever the offset is: that it is not lower than
the one before is the caller's business. Unlike in aiokafka's consumer nothing is tried again in the background; but a
broker may still carry out a commit whose answer came too late, also after the next one.
"""

import asyncio
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final

from aiokafka import TopicPartition
from aiokafka.client import CoordinationType
from aiokafka.errors import KafkaError, for_code
from aiokafka.protocol.commit import OffsetCommitRequest, OffsetFetchRequest

from fluxpool_contract.kafka import KafkaConnection
from fluxpool_transport.kafka.clients import KafkaCredentialsError, open_client

DEADLINE_SECONDS: Final = 10.0
_NO_OFFSET: Final = -1
_NO_MEMBER: Final = (-1, "")
"""Generation and member id of a commit from outside a group."""


class GroupOffsetsError(Exception):
    """A group's offsets could not be read or written; the message names the group and the cause."""


@dataclass(frozen=True, slots=True)
class StoredOffset:
    """What a group has for one partition."""

    offset: int
    metadata: str = ""


class MemberlessOffsets:
    """Reads and writes; connects at the first question and stays connected until `close`."""

    def __init__(self, connection: KafkaConnection, *, client_id: str, retention: timedelta) -> None:
        """`retention` is how long the brokers are asked to keep what is written."""
        self._connection = connection
        self._client_id = client_id
        self._retention_ms = int(retention.total_seconds() * 1000)
        self._client: Any = None
        self._coordinators: dict[str, int] = {}

    async def fetch(self, group: str, partitions: Iterable[TopicPartition]) -> dict[TopicPartition, StoredOffset]:
        """What the group has; partitions without an offset are absent. Raises `GroupOffsetsError`."""
        numbers: dict[str, list[int]] = {}
        for topic, number in partitions:
            numbers.setdefault(topic, []).append(number)
        answer = await self._ask(group, OffsetFetchRequest(group, list(numbers.items())))
        stored = {}
        try:
            _raise_for(getattr(answer, "error_code", 0))
            for topic, rows in answer.topics:
                for number, offset, metadata, error_code in rows:
                    _raise_for(error_code)
                    if offset != _NO_OFFSET:
                        stored[TopicPartition(topic, number)] = StoredOffset(offset, metadata or "")
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
        client, self._client = self._client, None
        self._coordinators.clear()
        if client is not None:
            await client.close()

    async def _ask(self, group: str, request: Any) -> Any:
        try:
            async with asyncio.timeout(DEADLINE_SECONDS):
                client = await self._connected()
                coordinator = self._coordinators.get(group)
                if coordinator is None:
                    coordinator = await client.coordinator_lookup(CoordinationType.GROUP, group)
                    self._coordinators[group] = coordinator
                return await client.send(coordinator, request)
        except (KafkaError, KafkaCredentialsError, OSError, TimeoutError) as error:
            await self.close()
            raise self._failed(group, error) from error

    async def _connected(self) -> Any:
        if self._client is None:
            self._client = await open_client(self._connection, client_id=self._client_id)
        return self._client

    def _failed(self, group: str, error: Exception) -> GroupOffsetsError:
        # The coordinator may have moved.
        self._coordinators.pop(group, None)
        cause = str(error) or f"no answer within {DEADLINE_SECONDS:g} s"
        return GroupOffsetsError(f"consumer group {group}: {cause}")


def _raise_for(error_code: int) -> None:
    if error_code:
        raise for_code(error_code)
