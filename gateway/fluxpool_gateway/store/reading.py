"""Reading the task store from a server process, while the projector writes it and may replace it.

Owns the check that the path of a SQLite file still names the opened file, and the report of damage to the projector.
PostgreSQL's side is `store.postgres.reads`.
"""

import asyncio
import json
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final, Protocol, TypeVar, assert_never

from sqlalchemy import Connection, bindparam, select, text
from sqlalchemy.exc import DatabaseError

from fluxpool_contract.messages import DEFAULT_TENANT
from fluxpool_gateway.store.damage import report_damage
from fluxpool_gateway.store.database import StoreIdentity, identity_of, open_reader
from fluxpool_gateway.store.database_faults import DamagedStoreError, DatabaseFault, fault_of
from fluxpool_gateway.store.tables import JSON_ELEMENTS, tasks
from fluxpool_gateway.store.task_list import (
    ChangePlace,
    Changes,
    GroupCounts,
    ListCursor,
    ListFilter,
    ListOrder,
    TaskPage,
    count_group,
    list_tasks,
    read_changes,
    read_latest_changes,
    read_place,
)
from fluxpool_gateway.store.task_state import Position, TaskKey, TaskState
from fluxpool_gateway.store.task_store import (
    Heartbeat,
    LogPosition,
    Quarantine,
    read_heartbeat,
    read_positions,
    read_quarantine,
    read_versions,
    to_state,
)
from fluxpool_gateway.usage.hours import HourOfUsage, read_hours

T = TypeVar("T")

READER_THREADS: Final = 4
_COUNT_UNFINISHED: Final = text(
    "SELECT count(*) FROM"
    " (SELECT 1 FROM task WHERE tenant = :tenant AND status IN ('queued', 'running') LIMIT :most) found"
)
"""With the states as they are in the index of unfinished tasks, which serves only a query that names the same."""
_STORED: Final = {
    dialect: text(
        "SELECT request_id FROM task WHERE tenant = :tenant"  # noqa: S608 - names of functions
        f" AND request_id IN (SELECT value FROM {elements}(:known))"
    )
    for dialect, elements in JSON_ELEMENTS.items()
}
_WITH_ID: Final = select(tasks).where(tasks.c.request_id == bindparam("request_id"))
_FIND_TASK: Final = _WITH_ID.where(tasks.c.tenant == bindparam("tenant"))
_FIND_OF_ANY: Final = _WITH_ID.order_by(tasks.c.tenant != DEFAULT_TENANT, tasks.c.tenant).limit(1)


class StoreUnavailableError(Exception):
    """The store cannot be read now; the message says why, and the remedy."""


class ReadableDatabase(Protocol):
    """A database that holds a task store, for several threads."""

    begin_snapshot: str
    """Begins a transaction in which all statements see one moment. It ends when the connection is returned."""

    def read(self, read: Callable[[Connection], T]) -> T:
        """What `read` makes of a connection; raises `StoreUnavailableError`."""

    def close(self) -> None:
        """Close the connections."""


class TaskStoreReader:
    """The servers' side, for an event loop; close it at the end. Every read raises `StoreUnavailableError`."""

    def __init__(self, database: Path | ReadableDatabase) -> None:
        """`database` is the path of a SQLite file, which need not exist yet, or another database."""
        self._database = _FileReads(database) if isinstance(database, Path) else database
        self._executor = ThreadPoolExecutor(max_workers=READER_THREADS, thread_name_prefix="task-store")

    async def find(self, request_id: str, *, tenant: str | None) -> TaskState | None:
        """The task with this id as far as it is projected; of any tenant, `default` first, when none is given."""
        statement = _FIND_OF_ANY if tenant is None else _FIND_TASK
        values = {"request_id": request_id, "tenant": tenant}

        def read(connection: Connection) -> TaskState | None:
            row = connection.execute(statement, values).mappings().first()
            return None if row is None else to_state(row)

        return await self._read(read)

    async def list(
        self, wanted: ListFilter, *, order: ListOrder, after: ListCursor | None = None, limit: int
    ) -> TaskPage:
        """At most `limit` tasks that pass the filter, as far as they are projected."""

        def read(connection: Connection) -> TaskPage:
            self._begin_snapshot(connection)
            return list_tasks(connection, wanted, order=order, after=after, limit=limit)

        return await self._read(read)

    async def count_group(self, *, tenant: str, group_id: str) -> GroupCounts:
        """The tasks of a group by status, as far as they are projected."""
        return await self._read(lambda connection: count_group(connection, tenant=tenant, group_id=group_id))

    async def versions(self, request_ids: Sequence[str]) -> dict[TaskKey, int]:
        """How far each task with one of these ids is, of those that are projected; a higher number is later."""
        return await self._read(lambda connection: read_versions(connection, request_ids))

    async def latest_changes(self, tenants: Collection[str]) -> dict[str, int]:
        """The number of the latest change of each of these tenants that has any."""
        return await self._read(lambda connection: read_latest_changes(connection, tenants))

    async def changes(self, tenant: str, *, after: ChangePlace, limit: int, ended: bool = False) -> Changes:
        """At most `limit` tasks of the tenant that changed after a place; with `ended` only those that have."""

        def read(connection: Connection) -> Changes:
            self._begin_snapshot(connection)
            return read_changes(connection, tenant, after=after, limit=limit, ended=ended)

        return await self._read(read)

    async def snapshot(self, wanted: ListFilter, *, limit: int) -> tuple[TaskPage, ChangePlace]:
        """The newest tasks that pass the filter, and the place of the latest change that they have."""

        def read(connection: Connection) -> tuple[TaskPage, ChangePlace]:
            self._begin_snapshot(connection)
            return list_tasks(connection, wanted, limit=limit), read_place(connection, wanted.tenant)

        return await self._read(read)

    async def place(self, tenant: str) -> ChangePlace:
        """The place of the latest change of the tenant's tasks."""
        return await self._read(lambda connection: read_place(connection, tenant))

    async def usage(self, tenant: str, *, first: int, end: int) -> Sequence[HourOfUsage]:
        """What the tenant used in the hours from the first to before the end, as far as results are projected."""
        return await self._read(lambda connection: read_hours(connection, tenant, first=first, end=end))

    async def read(self, read: Callable[[Connection], T]) -> T:
        """What `read` makes of a connection, in a thread; all its statements see one moment."""

        def in_snapshot(connection: Connection) -> T:
            self._begin_snapshot(connection)
            return read(connection)

        return await self._read(in_snapshot)

    async def positions(self) -> dict[Position, LogPosition]:
        """The next position that the projector will read, of every partition that it ever read."""
        return await self._read(read_positions)

    async def heartbeat(self) -> Heartbeat | None:
        """What the projector last said of itself; None when none ever ran."""
        return await self._read(read_heartbeat)

    async def quarantine(self) -> Quarantine:
        """The records that the projector passed over."""
        return await self._read(read_quarantine)

    def count_unfinished(self, tenant: str, *, known: Sequence[str], most: int) -> tuple[int, Collection[str]]:
        """Unfinished tasks of the tenant, counted up to `most`, and which of the ids in `known` are stored.

        Blocks, for callers with a thread of their own. Both are of one moment.
        """

        def read(connection: Connection) -> tuple[int, Collection[str]]:
            self._begin_snapshot(connection)
            count = connection.execute(_COUNT_UNFINISHED, {"tenant": tenant, "most": most}).scalar_one()
            if not known:
                return count, ()
            values = {"tenant": tenant, "known": json.dumps(known)}
            return count, connection.execute(_STORED[connection.dialect.name], values).scalars().all()

        return self._database.read(read)

    def close(self) -> None:
        """End the threads and the connections."""
        self._executor.shutdown(wait=False, cancel_futures=True)
        self._database.close()

    def _begin_snapshot(self, connection: Connection) -> None:
        """Readers begin no transaction otherwise: each statement would see a moment of its own."""
        connection.exec_driver_sql(self._database.begin_snapshot)

    async def _read(self, read: Callable[[Connection], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._executor, self._database.read, read)


class _FileReads:
    """A SQLite file, which is opened again when it was replaced."""

    begin_snapshot = "BEGIN"

    def __init__(self, file: Path) -> None:
        self._file = file
        self._engine = open_reader(file)
        self._identity: StoreIdentity | None = None

    def close(self) -> None:
        """Close the connections."""
        self._engine.dispose()

    def read(self, read: Callable[[Connection], T]) -> T:
        """What `read` makes of a connection."""
        identity = identity_of(self._file)
        if identity is None:
            raise StoreUnavailableError(f"the store {self._file} does not exist; the projector builds it from Kafka")
        # Threads may both see the change: to dispose twice costs a connection.
        if identity != self._identity:
            # Open connections go on reading the file that once had this name, for ever.
            self._identity = identity
            self._engine.dispose()
        try:
            with self._engine.connect() as connection:
                return read(connection)
        except (DatabaseError, DamagedStoreError) as error:
            raise self._unavailable(error, identity) from error

    def _unavailable(self, error: DatabaseError | DamagedStoreError, identity: StoreIdentity) -> StoreUnavailableError:
        reason = error.orig if isinstance(error, DatabaseError) else error
        match fault_of(error):
            case DatabaseFault.DAMAGED:
                report_damage(self._file, identity)
                return StoreUnavailableError(
                    f"the store is being rebuilt from Kafka: {self._file} is damaged ({reason})"
                )
            case DatabaseFault.NO_SCHEMA:
                return StoreUnavailableError(f"the store {self._file} is being built from Kafka ({reason})")
            case DatabaseFault.INACCESSIBLE:
                return StoreUnavailableError(
                    f"the store {self._file} cannot be opened ({reason}); let the gateway's user read and write it"
                )
            case DatabaseFault.TRANSIENT:
                return StoreUnavailableError(
                    f"the store {self._file} cannot be read ({reason}); see that its disk is well and has free space"
                )
            case unknown:
                assert_never(unknown)
