"""A small SQLite file that all server processes of a gateway share: short transactions, one process at a time.

What it holds can be made again: a damaged file is replaced by an empty one. Owns the file and its lock, not what is in
it: that is said by the operations. Blocks: callers use a thread. Replicas share tables of PostgreSQL instead
(`store.postgres.shared_tables`), with the same operations.
"""

import fcntl
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final, Protocol, TypeVar

import structlog

from fluxpool_gateway.store.database import COMPANIONS

LOCK_SUFFIX: Final = ".lock"
_BUSY_SECONDS: Final = 5.0

logger = structlog.stdlib.get_logger(__name__)

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


class SharedFileError(Exception):
    """The file, or the tables in its place, cannot be used; the message says why."""


class Rows(Protocol):
    """What a statement found."""

    @property
    def rowcount(self) -> int:
        """Rows that were changed."""

    def fetchone(self) -> Any:
        """The next row; None at the end."""

    def __iter__(self) -> Iterator[Any]: ...


class Statements(Protocol):
    """Runs statements that SQLite and PostgreSQL both take, with `?` for values; a connection of `sqlite3` is one."""

    def execute(self, sql: str, parameters: Sequence[Any] = (), /) -> Rows:
        """Run a statement."""

    def executemany(self, sql: str, parameters: Sequence[Sequence[Any]], /) -> object:
        """Run a statement for each of some rows."""


class Operation(Protocol[T_co]):
    """A part of a transaction."""

    def apply(self, connection: Statements, now_ms: int) -> T_co:
        """Read and write; what it raises undoes the transaction."""


class Shared(Protocol):
    """What server processes share; used in one thread."""

    def apply(self, operations: Sequence[Operation[T]], *, now_ms: int) -> list[T]:
        """Apply all in one transaction, in order; raises `SharedFileError`, then none was applied."""

    def close(self) -> None:
        """Disconnect; the next operation connects again."""


class SharedFile:
    """The file, as one process uses it in one thread."""

    def __init__(self, file: Path, *, schema: Sequence[str], version: int) -> None:
        """Opens nothing yet. `file` is made with the schema when it is missing, and again when it is damaged.

        The statements of `schema` change nothing where they ran before; a file of another `version` is replaced.
        """
        self._file = file
        self._schema = schema
        self._version = version
        self._connection: sqlite3.Connection | None = None
        self._inode = 0

    def apply(self, operations: Sequence[Operation[T]], *, now_ms: int) -> list[T]:
        """Apply all in one transaction, in order.

        Raises `SharedFileError`; then none was applied.
        """
        try:
            with self._locked():
                try:
                    return self._apply(operations, now_ms)
                except sqlite3.DatabaseError as error:
                    # Its subclass says what may pass, as a full disk does; the class itself, that this is no database.
                    if type(error) is not sqlite3.DatabaseError:
                        raise
                    logger.warning("shared_file_recreated", file=str(self._file), reason=str(error))
                    self._remove()
                    return self._apply(operations, now_ms)
        except (sqlite3.Error, OSError) as error:
            self.close()
            raise SharedFileError(f"{self._file} cannot be used ({error})") from error

    def close(self) -> None:
        """Close the file; the next operation opens it again."""
        if self._connection is not None:
            with suppress(sqlite3.Error):
                self._connection.close()
            self._connection = None

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """One process at a time. SQLite's own lock is asked for again and again with growing pauses instead."""
        self._file.parent.mkdir(parents=True, exist_ok=True)
        with self._file.with_name(self._file.name + LOCK_SUFFIX).open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _apply(self, operations: Sequence[Operation[T]], now_ms: int) -> list[T]:
        connection = self._opened()
        connection.execute("BEGIN IMMEDIATE")
        try:
            outcomes = [operation.apply(connection, now_ms) for operation in operations]
        except BaseException:
            with suppress(sqlite3.Error):
                connection.execute("ROLLBACK")
            raise
        connection.execute("COMMIT")
        return outcomes

    def _opened(self) -> sqlite3.Connection:
        """The connection to the file that is there now: it may have been deleted, or made again by another process."""
        try:
            inode = self._file.stat().st_ino
        except FileNotFoundError:
            inode = 0
        if self._connection is not None and inode == self._inode:
            return self._connection
        self.close()
        # No thread is the owner, because `close` comes from another one than the last operation.
        connection = sqlite3.connect(self._file, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False)
        self._connection = connection
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=NORMAL")
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        if version not in {0, self._version}:
            raise sqlite3.DatabaseError(f"it is of another release (schema {version})")
        for statement in self._schema:
            connection.execute(statement)
        connection.execute(f"PRAGMA user_version={self._version}")
        self._inode = self._file.stat().st_ino
        return connection

    def _remove(self) -> None:
        self.close()
        for suffix in ("", *COMPANIONS):
            self._file.with_name(self._file.name + suffix).unlink(missing_ok=True)
