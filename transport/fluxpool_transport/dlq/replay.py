"""Resolves dead letters: sends their tasks again or discards them, and writes a resolution for each.

Owns the order that makes a crash harmless: the task is sent and acknowledged, then its resolution, then the next one.
So a second run continues where the first ended and sends at most one task again, as the very same record with the same
epoch, which the object store answers with what the first copy left. Knows nothing of filters or of who asks.
"""

import asyncio
import itertools
import random
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Final, Self

import structlog
from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError

from fluxpool_contract.kafka import KafkaConnection
from fluxpool_contract.messages import Resolution, ResolutionAction
from fluxpool_contract.tenants import TenantTrust
from fluxpool_transport.dlq.prepare import (
    NO_KEYS,
    PreparedReplay,
    RefusedReplay,
    ReplayChoices,
    prepare_replay,
    refuse_deleted_task,
    refuse_missing_topic,
)
from fluxpool_transport.dlq.reading import DeadLetterEntry, read_records
from fluxpool_transport.kafka.client_stop import stop_producer
from fluxpool_transport.kafka.clients import aiokafka_options
from fluxpool_transport.kafka.metadata import KafkaMetadata
from fluxpool_transport.process.faults import fault_point

CLIENT_ID: Final = "fluxpool-dead-letters"
SOURCE: Final = "/fluxpool/dead-letters"
"""CloudEvents source of resolutions."""
ACK_SECONDS: Final = 30.0

IsDeleted = Callable[[DeadLetterEntry], Awaitable[bool]]
"""Whether the task of a dead letter was deleted meanwhile."""

_after_send = fault_point("replay-after-send")

log = structlog.get_logger(__name__)


async def never_deleted(_entry: DeadLetterEntry) -> bool:
    """For who has no store to ask: what was read says it."""
    return False


class ResolutionInterruptedError(Exception):
    """Kafka did not confirm a record; earlier resolutions are written, and the same command continues from there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SentReplay:
    """A task that was sent again, and where it lies now."""

    prepared: PreparedReplay
    resolution: Resolution


class DeadLetterReplayer:
    """Resolves dead letters of one topic: `async with DeadLetterReplayer(connection, topic, by="ops") as replayer`."""

    def __init__(
        self,
        connection: KafkaConnection,
        topic: str,
        *,
        by: str | None = None,
        job_id: str | None = None,
        trust: TenantTrust = NO_KEYS,
    ) -> None:
        """`topic` is the dead-letter topic; `by` and `job_id` are in the resolutions; `trust` proves tenants."""
        self._connection = connection
        self._topic = topic
        self._by = by
        self._job_id = job_id
        self._trust = trust
        self._producer: Any = None
        self._metadata = KafkaMetadata(connection, client_id=CLIENT_ID)
        self._partitions: dict[str, Iterator[int] | None] = {}

    async def __aenter__(self) -> Self:
        """Open; connects when something is to be written."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close, under a deadline."""
        if self._producer is not None and (failure := await stop_producer(self._producer)):
            log.warning("producer_stop_failed", error=repr(failure))

    async def plan(
        self, entries: Sequence[DeadLetterEntry], choices: ReplayChoices
    ) -> AsyncGenerator[PreparedReplay | RefusedReplay, None]:
        """What a replay of these dead letters would send and refuse; writes nothing.

        Raises as `read_dead_letters` does.
        """
        async with aclosing(read_records(self._connection, self._topic, entries)) as found:
            async for entry, record in found:
                prepared = prepare_replay(
                    entry, record, choices, topic=self._topic, now=datetime.now(UTC), trust=self._trust
                )
                if isinstance(prepared, PreparedReplay):
                    exists = await self._partitions_of(prepared.topic) is not None
                    prepared = prepared if exists else refuse_missing_topic(prepared)
                yield prepared

    async def replay(
        self,
        entries: Sequence[DeadLetterEntry],
        choices: ReplayChoices,
        *,
        per_second: float,
        is_deleted: IsDeleted = never_deleted,
    ) -> AsyncGenerator[SentReplay | RefusedReplay, None]:
        """Send the tasks of these dead letters again, one after the other; a refused dead letter stays open.

        `is_deleted` is asked of each in its turn. Raises `ResolutionInterruptedError`, as `read_dead_letters` does, and
        what `is_deleted` raises.
        """
        pace = _Pace(per_second)
        async with aclosing(self.plan(entries, choices)) as planned:
            async for prepared in planned:
                if isinstance(prepared, RefusedReplay):
                    yield prepared
                    continue
                await pace.wait()
                # Now, and not when the dead letters were read: thousands take a quarter of an hour.
                if await is_deleted(prepared.entry):
                    yield refuse_deleted_task(prepared.entry)
                    continue
                yield await self._replay_one(prepared, choices)

    async def mark_deleted(self, entries: Sequence[DeadLetterEntry]) -> None:
        """Say of each dead letter that its task was deleted, which no other resolution changes.

        Raises `ResolutionInterruptedError`.
        """
        for entry in entries:
            await self._resolve(entry, ResolutionAction.DELETED, {"request_id": entry.request_id})

    async def discard(
        self, entries: Sequence[DeadLetterEntry], *, reason: str
    ) -> AsyncGenerator[tuple[DeadLetterEntry, Resolution], None]:
        """Resolve each dead letter without sending its task; it stays on the topic until it expires.

        Raises `ResolutionInterruptedError`.
        """
        for entry in entries:
            fields = {"reason": reason, "request_id": entry.request_id}
            yield entry, await self._resolve(entry, ResolutionAction.DISCARDED, fields)

    async def _replay_one(self, prepared: PreparedReplay, choices: ReplayChoices) -> SentReplay:
        partitions = await self._partitions_of(prepared.topic)
        if partitions is None:
            raise ValueError(f"topic {prepared.topic} does not exist, although the plan found it")
        sent = await self._send(
            prepared.topic,
            prepared.value,
            key=prepared.key,
            headers=prepared.headers,
            # Round robin: hashing the key would pile tasks up on some workers.
            partition=next(partitions),
        )
        _after_send()
        fields = {
            "request_id": prepared.request_id,
            "epoch": prepared.epoch,
            "replayed_topic": prepared.topic,
            "replayed_partition": sent.partition,
            "replayed_offset": sent.offset,
            "patch": choices.patch,
        }
        resolution = await self._resolve(prepared.entry, ResolutionAction.REPLAYED, fields)
        return SentReplay(prepared=prepared, resolution=resolution)

    async def _resolve(self, entry: DeadLetterEntry, action: ResolutionAction, fields: Mapping[str, Any]) -> Resolution:
        """Write the resolution of a dead letter; `fields` are further ones of `Resolution`."""
        partition, offset = entry.ref.partition, entry.ref.offset
        resolution = Resolution(
            partition=partition,
            offset=offset,
            action=action,
            at=datetime.now(UTC),
            by=self._by,
            job_id=self._job_id,
            **fields,
        )
        await self._send(
            self._topic,
            resolution.to_json(),
            key=resolution.request_id.encode() if resolution.request_id is not None else None,
            headers=resolution.to_headers(source=SOURCE),
            # Behind its dead letter: retention then removes the dead letter first.
            partition=partition,
        )
        return resolution

    async def _send(
        self, topic: str, value: bytes, *, key: bytes | None, headers: list[tuple[str, bytes]], partition: int
    ) -> Any:
        try:
            async with asyncio.timeout(ACK_SECONDS):
                producer = await self._connected()
                return await producer.send_and_wait(topic, value, key=key, headers=headers, partition=partition)
        except (KafkaError, TimeoutError) as error:
            reason = str(error) or f"no acknowledgement within {ACK_SECONDS:g} s"
            raise ResolutionInterruptedError(
                f"topic {topic}: a record was not confirmed ({reason}); "
                "run the same command again, it continues with what is open"
            ) from error

    async def _connected(self) -> Any:
        if self._producer is None:
            self._producer = AIOKafkaProducer(
                **aiokafka_options(self._connection, client_id=CLIENT_ID), acks="all", enable_idempotence=True
            )
            await self._producer.start()
        return self._producer

    async def _partitions_of(self, topic: str) -> Iterator[int] | None:
        """The topic's partitions, round robin from a random one; None when there is no such topic."""
        if topic not in self._partitions:
            found = (await self._metadata.existing([topic]))[topic]
            self._partitions[topic] = None
            if found is not None:
                first = random.randrange(len(found.partitions))  # noqa: S311 - spreads load, guards nothing
                self._partitions[topic] = itertools.cycle((*found.partitions[first:], *found.partitions[:first]))
        return self._partitions[topic]


class _Pace:
    """Lets through at most so many a second, evenly."""

    def __init__(self, per_second: float) -> None:
        self._interval_seconds = 1 / per_second
        self._next_at = 0.0

    async def wait(self) -> None:
        now = asyncio.get_running_loop().time()
        if now < self._next_at:
            await asyncio.sleep(self._next_at - now)
        self._next_at = max(now, self._next_at) + self._interval_seconds
