"""What the routes of dead letters work with: the projected rows, the topic, the jobs."""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from sqlalchemy import Connection

from fluxpool_contract.kafka import TopicNames
from fluxpool_gateway.dead_letters.jobs import ReplayJobs
from fluxpool_gateway.dead_letters.replaying import ReplayRunner
from fluxpool_gateway.dead_letters.rows import (
    OPEN,
    Cause,
    DeadLetterQuery,
    Dimension,
    ListPosition,
    StoredDeadLetter,
    count_dead_letters,
    list_dead_letters,
    summarize_dead_letters,
)
from fluxpool_gateway.dead_letters.topic import DeadLetterTopic
from fluxpool_gateway.store.reading import TaskStoreReader
from fluxpool_transport.dlq import RecordRef, original_of

PAGE_ROWS: Final = 500
_PROJECTED_SECONDS: Final = 2.0
_POLL_SECONDS: Final = 0.05

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadLetters:
    """Those of one gateway. Reads raise `StoreUnavailableError`."""

    store: TaskStoreReader
    topic: DeadLetterTopic
    jobs: ReplayJobs
    runner: ReplayRunner
    topics: TopicNames

    async def page(
        self, wanted: DeadLetterQuery, *, after: ListPosition | None, newest_first: bool, limit: int
    ) -> tuple[Sequence[StoredDeadLetter], int]:
        """Some dead letters behind a place, and how many match in all."""
        name = self.topic.name

        def read(connection: Connection) -> tuple[Sequence[StoredDeadLetter], int]:
            found = list_dead_letters(connection, name, wanted, after=after, newest_first=newest_first, limit=limit)
            return found, count_dead_letters(connection, name, wanted)

        return await self.store.read(read)

    async def pages(self, wanted: DeadLetterQuery | None) -> AsyncIterator[Sequence[StoredDeadLetter]]:
        """All that match, the oldest failure first, in parts; without a query none."""
        after: ListPosition | None = None
        while wanted is not None:
            part = await self._read(_listing(self.topic.name, wanted, after=after, limit=PAGE_ROWS))
            if part:
                yield part
            if len(part) < PAGE_ROWS:
                return
            after = part[-1].place

    async def with_originals(
        self, wanted: DeadLetterQuery | None
    ) -> AsyncIterator[tuple[StoredDeadLetter, Mapping[str, Any] | None]]:
        """The same with what their records have, one at a time: each may have a megabyte. Raises `UNANSWERED` as well.

        Within a part they have the order of the topic.
        """
        async for part in self.pages(wanted):
            by_ref = {stored.entry.ref: stored for stored in part}
            async with aclosing(self.topic.with_records([stored.entry for stored in part])) as found:
                async for entry, record in found:
                    yield by_ref[entry.ref], None if record is None else original_of(record)

    async def oldest(self, wanted: DeadLetterQuery, *, limit: int) -> Sequence[StoredDeadLetter]:
        """At most so many that match, the oldest failure first."""
        return await self._read(_listing(self.topic.name, wanted, after=None, limit=limit))

    async def find(self, ref: RecordRef, *, tenant: str | None) -> StoredDeadLetter | None:
        """One dead letter, by any of its records."""
        wanted = DeadLetterQuery(tenant=tenant, refs=frozenset({ref}))
        return next(iter(await self._read(_listing(self.topic.name, wanted, after=None, limit=1))), None)

    async def of_task(self, request_id: str, *, tenant: str) -> Sequence[StoredDeadLetter]:
        """All that a task has left."""
        wanted = DeadLetterQuery(tenant=tenant, fields={"request_id": frozenset({request_id})})
        return [stored async for part in self.pages(wanted) for stored in part]

    async def summary(self, wanted: DeadLetterQuery, *, by: Sequence[Dimension], limit: int) -> Sequence[Cause]:
        """What they are, by some of their properties."""
        name = self.topic.name
        return await self._read(lambda connection: summarize_dead_letters(connection, name, wanted, by=by, limit=limit))

    async def until_resolved(self, ref: RecordRef) -> StoredDeadLetter | None:
        """The dead letter once its resolution is projected, or as it is after two seconds."""
        loop = asyncio.get_running_loop()
        until = loop.time() + _PROJECTED_SECONDS
        while True:
            found = await self.find(ref, tenant=None)
            if found is None or found.state != OPEN or loop.time() >= until:
                return found
            await asyncio.sleep(_POLL_SECONDS)

    async def _read(self, read: Callable[[Connection], T]) -> T:
        return await self.store.read(read)


def _listing(
    topic: str, wanted: DeadLetterQuery, *, after: ListPosition | None, limit: int
) -> Callable[[Connection], Sequence[StoredDeadLetter]]:
    def read(connection: Connection) -> Sequence[StoredDeadLetter]:
        return list_dead_letters(connection, topic, wanted, after=after, newest_first=False, limit=limit)

    return read
