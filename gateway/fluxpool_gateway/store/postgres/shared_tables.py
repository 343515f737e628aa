"""Tables that all server processes of all replicas share: short transactions, one at a time; used as a `SharedFile`.

Owns the lock, not what is in the tables: that is said by the operations. Blocks: callers use a thread.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from sqlalchemy import Connection, CursorResult
from sqlalchemy.exc import DBAPIError

from fluxpool_gateway.store.postgres.connection import Lock, open_shared, shown, take_lock
from fluxpool_gateway.store.postgres.outage import Outage
from fluxpool_gateway.store.shared_file import Operation, SharedFileError

T = TypeVar("T")


class SharedTables:
    """Some tables, as one process uses them in one thread."""

    def __init__(self, url: str, lock: Lock, *, durable: bool) -> None:
        """Opens nothing yet. What is not `durable` may lose its last moments when the server crashes."""
        self._shown = shown(url)
        self._lock = lock
        self._engine = open_shared(url, lock.name.lower(), durable=durable)
        self._outage = Outage()

    def apply(self, operations: Sequence[Operation[T]], *, now_ms: int) -> list[T]:  # noqa: ARG002 - of this machine
        """Apply all in one transaction, in order, at the time of the server, which is one for all replicas.

        Raises `SharedFileError`; then none was applied, or, where the connection was lost at the end, all may have
        been.
        """
        if (reason := self._outage.reason()) is not None:
            raise SharedFileError(f"{self._shown} cannot be reached ({reason})")
        try:
            with self._locked() as (connection, server_ms):
                statements = _Statements(connection)
                return [operation.apply(statements, server_ms) for operation in operations]
        except DBAPIError as error:
            reason = str(error.orig).strip()
            self._outage.note(error, reason)
            raise SharedFileError(f"{self._shown} cannot be used ({reason})") from error

    @contextmanager
    def _locked(self) -> Iterator[tuple[Connection, int]]:
        """A transaction with the lock, and the time of the server."""
        with self._engine.connect() as connection:
            try:
                server_ms = take_lock(connection, self._lock)
            except DBAPIError as error:
                if not error.connection_invalidated:
                    raise
                # The server was restarted since the last time; nothing was done yet, and the next statement reconnects.
                connection.rollback()
                server_ms = take_lock(connection, self._lock)
            yield connection, server_ms
            connection.commit()

    def close(self) -> None:
        """Disconnect; the next operation connects again."""
        self._engine.dispose()


class _Statements:
    """Statements with `?` for values, as the operations have them; they contain no `%` and no other `?`."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def execute(self, sql: str, parameters: Sequence[Any] = (), /) -> CursorResult[Any]:
        """Run a statement."""
        return self._connection.exec_driver_sql(sql.replace("?", "%s"), tuple(parameters))

    def executemany(self, sql: str, parameters: Sequence[Sequence[Any]], /) -> None:
        """Run a statement for each of some rows."""
        if parameters:
            self._connection.exec_driver_sql(sql.replace("?", "%s"), [tuple(row) for row in parameters])
