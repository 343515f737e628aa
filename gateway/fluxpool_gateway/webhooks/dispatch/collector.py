"""Finds what endpoints are to be told: ends of tasks in the task store, and groups that have ended with them.

The task store numbers each change in the transaction that projects it, so that its rows are the outbox: the collector
reads the ends after the number that it has come to, and saves its deliveries in one transaction with that number. So
nothing is lost or made twice whenever it is killed, the projector does no work for it, and a store that was built again
from Kafka, which renumbers all of its tasks, brings up events that are known already. An end that a replay undid
before it was read makes no event: the task has not ended.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import structlog
from sqlalchemy import Connection, delete, select, update
from sqlalchemy.dialects.postgresql import insert as upsert_postgresql
from sqlalchemy.dialects.sqlite import insert as upsert_sqlite

from fluxpool_gateway.store.reading import TaskStoreReader
from fluxpool_gateway.store.task_list import ChangePlace, Changes
from fluxpool_gateway.webhooks.deliveries import RETENTION_MS, enqueue
from fluxpool_gateway.webhooks.endpoints import TooManyEndpointsError, lock_enabled, tenants_to_tell
from fluxpool_gateway.webhooks.event import Event, EventType, group_completed, task_ended
from fluxpool_gateway.webhooks.requested.endpoints import host_of, use_requested
from fluxpool_gateway.webhooks.signing import new_secret
from fluxpool_gateway.webhooks.store import WebhookStore
from fluxpool_gateway.webhooks.tables import cursors, groups

PAGE: Final = 200
QUIET_MS: Final = 5_000
"""A group has ended when nothing was added to it or has ended in it for so long: its client may be submitting still."""
GROUPS_AT_ONCE: Final = 100
_DAY_MS: Final = 24 * 3600 * 1000
_NEW_MS: Final = RETENTION_MS - _DAY_MS
"""An older end is no news. Within it every event is still known, though clocks differ."""
_SLACK_MS: Final = 60_000
"""Changes are numbered by the clock of the projector."""


_SKIPPED_NUMBERS: Final = 30_000_000
"""Half a minute: numbers are microseconds."""


logger = structlog.stdlib.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class _ReadPosition:
    """How far the changes of a tenant were read."""

    place: ChangePlace
    queued_at_ms: int
    """When the last delivery was queued: a clock that is set back must not change the order."""


class Collector:
    """Collects for all tenants; run by one process at a time."""

    def __init__(
        self,
        webhooks: WebhookStore,
        tasks: TaskStoreReader,
        *,
        base: str,
        now_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
    ) -> None:
        """`base` is the address of the gateway for clients, ending in a slash."""
        self._webhooks = webhooks
        self._tasks = tasks
        self._base = base
        self._now_ms = now_ms
        self._known: dict[str, int] = {}
        """The change that each tenant was read to."""

    async def collect(self) -> int:
        """Queue deliveries of what has ended since the last time; returns how many.

        Raises `WebhooksUnavailableError` or `StoreUnavailableError`.
        """
        told = await self._webhooks.read(tenants_to_tell)
        latest = await self._tasks.latest_changes(list(told)) if told else {}
        queued = 0
        for tenant, number in latest.items():
            if self._known.get(tenant) != number:
                queued += await self._collect(tenant, since_ms=told[tenant])
        return queued + await self._complete_groups()

    async def _collect(self, tenant: str, *, since_ms: int) -> int:
        queued = 0
        while True:
            known = await self._webhooks.read(lambda connection: _read_place(connection, tenant))
            place = await self._start(tenant, known, since_ms=since_ms)
            changes = await self._tasks.changes(tenant, after=place, limit=PAGE, ended=True)
            reached = changes.tasks[-1][0] if changes.has_more else changes.newest
            # Changes that are no ends are saved now and then: each save is a write to the disk.
            if changes.tasks or known is None or reached.number - place.number > _SKIPPED_NUMBERS:
                queued += await self._webhooks.write(
                    lambda connection, known=known, changes=changes, reached=reached: self._save(  # type: ignore[misc]
                        connection, tenant, changes, known=known, reached=reached
                    )
                )
            if not changes.has_more:
                self._known[tenant] = reached.number
                return queued

    async def _start(self, tenant: str, known: _ReadPosition | None, *, since_ms: int) -> ChangePlace:
        newest = await self._tasks.place(tenant)
        # No endpoint gets an event of what ended before: a tenant that was without one for long is not read from there.
        first = min(newest.number, max(0, since_ms - _SLACK_MS) * 1000)
        if known is not None and known.place.is_within(newest):
            return ChangePlace(newest.first, max(known.place.number, first))
        # The store is not the one that was read, or none was: every task of it has a number of its own.
        return ChangePlace(newest.first, first if known is None else 0)

    def _save(
        self,
        connection: Connection,
        tenant: str,
        changes: Changes,
        *,
        known: _ReadPosition | None,
        reached: ChangePlace,
    ) -> int:
        # Locked, where several processes collect: only the first of two that read the same saves it.
        found = _read_place(connection, tenant, lock=True)
        if found != known:
            return 0
        now_ms = max(self._now_ms(), 0 if known is None else known.queued_at_ms)
        events = [
            event
            for _, task in changes.tasks
            if (event := task_ended(task, base=self._base)) is not None and event.at_ms > now_ms - _NEW_MS
        ]
        self._use_requested(connection, events, now_ms=now_ms)
        told = lock_enabled(connection, [tenant])
        queued = enqueue(connection, events, told, now_ms=now_ms)
        if any(endpoint.wants(EventType.GROUP_COMPLETED) for endpoint in told):
            _note_groups(
                connection,
                tenant,
                sorted({task.group_id for _, task in changes.tasks if task.group_id is not None}),
                now_ms=now_ms,
            )
        _save_place(
            connection, tenant, _ReadPosition(reached, now_ms if queued or known is None else known.queued_at_ms)
        )
        return queued

    def _use_requested(self, connection: Connection, events: Sequence[Event], *, now_ms: int) -> None:
        """Have endpoints of the webhooks that tasks name.

        A gateway has made them when it accepted the tasks, unless that was long ago or another program wrote these.
        """
        for tenant, url in {(event.tenant, event.webhook.url) for event in events if event.webhook is not None}:
            secret = self._webhooks.box.seal(new_secret())
            try:
                use_requested(connection, tenant, url, new_secret=secret, now_ms=now_ms)
            except TooManyEndpointsError:
                logger.warning("webhook_of_request_dropped", tenant=tenant, host=host_of(url))

    async def _complete_groups(self) -> int:
        """Queue that groups have ended."""
        quiet_since_ms = self._now_ms() - QUIET_MS
        waiting = (
            select(groups)
            .where(groups.c.changed_at_ms <= quiet_since_ms)
            .order_by(groups.c.changed_at_ms)
            .limit(GROUPS_AT_ONCE)
        )
        found = await self._webhooks.read(lambda connection: connection.execute(waiting).all())
        if not found:
            return 0
        heartbeat = await self._tasks.heartbeat()
        caught_up_at_ms = 0 if heartbeat is None else heartbeat.caught_up_at_ms or 0
        queued = 0
        for tenant, group_id, changed_at_ms in found:
            # Before, the store may lack tasks that were accepted before the last one ended.
            if caught_up_at_ms > changed_at_ms:
                queued += await self._complete(tenant, group_id, changed_at_ms)
        return queued

    async def _complete(self, tenant: str, group_id: str, changed_at_ms: int) -> int:
        counted = await self._tasks.count_group(tenant=tenant, group_id=group_id)
        now_ms = self._now_ms()
        has_ended = counted.total > 0 and all(status.terminal for status in counted.counts)

        def save(connection: Connection) -> int:
            # One that ended meanwhile has noted it with another time.
            noted = groups.c.tenant == tenant, groups.c.group_id == group_id, groups.c.changed_at_ms == changed_at_ms
            if has_ended and counted.last_at_ms > now_ms - QUIET_MS:
                # Looked at again behind others: the time of a task may lie in the future.
                connection.execute(update(groups).where(*noted).values(changed_at_ms=now_ms))
                return 0
            # Without those that have not ended: they are noted again when another task ends.
            if not connection.execute(delete(groups).where(*noted)).rowcount or not has_ended:
                return 0
            event = group_completed(tenant, group_id, counted, at_ms=now_ms, base=self._base)
            return enqueue(connection, [event], lock_enabled(connection, [tenant]), now_ms=now_ms)

        return await self._webhooks.write(save)


def _read_place(connection: Connection, tenant: str, *, lock: bool = False) -> _ReadPosition | None:
    query = select(cursors).where(cursors.c.tenant == tenant)
    row = connection.execute(query.with_for_update() if lock else query).first()
    return None if row is None else _ReadPosition(ChangePlace(row.first_number, row.number), row.queued_at_ms)


def _save_place(connection: Connection, tenant: str, reached: _ReadPosition) -> None:
    values = {
        "first_number": reached.place.first,
        "number": reached.place.number,
        "queued_at_ms": reached.queued_at_ms,
    }
    make = upsert_postgresql if connection.dialect.name == "postgresql" else upsert_sqlite
    added = make(cursors).values(tenant=tenant, **values)
    connection.execute(added.on_conflict_do_update(index_elements=["tenant"], set_=values))


def _note_groups(connection: Connection, tenant: str, group_ids: Sequence[str], *, now_ms: int) -> None:
    make = upsert_postgresql if connection.dialect.name == "postgresql" else upsert_sqlite
    for group_id in group_ids:
        added = make(groups).values(tenant=tenant, group_id=group_id, changed_at_ms=now_ms)
        connection.execute(
            added.on_conflict_do_update(index_elements=["tenant", "group_id"], set_={"changed_at_ms": now_ms})
        )
