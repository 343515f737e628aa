"""The SQLite file: connections for its one writer and its many readers, and the identity of the file."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.engine import URL
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.pool import ConnectionPoolEntry

_BUSY_TIMEOUT_MILLISECONDS = 5000
"""Readers and the writer never block each other in WAL mode, but for a moment at checkpoints."""
MAX_IDLE_WAL_BYTES: Final = 16 * 1024 * 1024
"""The write-ahead log grows as long as any reader holds an old state, as a shell that is left open does, and would keep
that size for ever."""
COMPANIONS: Final = ("-wal", "-shm")
"""What SQLite keeps beside the file while it is open in WAL mode."""


class DatabaseUnusableError(Exception):
    """The task store's database cannot be used; the message names the setting and says what to do."""


StoreIdentity = tuple[int, ...]
"""Device and inode of the file, inodes of its companions (0 without). Differs once any of them was replaced.

A number is not given to another file while a connection holds this one open.
"""


def identity_of(file: Path) -> StoreIdentity | None:
    """Identity of the files at this path now; None when there is none."""
    try:
        found = os.stat(file)  # noqa: PTH116 - before every read, where pathlib would take half the time
    except OSError:
        return None
    return (found.st_dev, found.st_ino, *(_inode(f"{file}{suffix}") for suffix in COMPANIONS))


def _inode(path: str) -> int:
    try:
        return os.stat(path).st_ino  # noqa: PTH116 - as above
    except OSError:
        return 0


def open_writer(file: Path, *, synchronous: str = "NORMAL") -> Engine:
    """The engine of a process that writes. Makes the file when it is missing.

    With WAL, NORMAL can lose the last transactions on a power cut, never corrupt; Kafka has all of the task store's.
    """
    engine = _engine(file, mode="rwc", pragmas=(*_WRITER, f"synchronous={synchronous}"))

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    return engine


_WRITER: Final = (
    "journal_mode=WAL",
    f"journal_size_limit={MAX_IDLE_WAL_BYTES}",
    # A deleted prompt must not stay in free pages. Debian's build has it on, others do not.
    "secure_delete=ON",
)


def open_reader(file: Path) -> Engine:
    """The engine of a server process. Reads only; the file must exist by the time of the first query."""
    return _engine(file, mode="rw", pragmas=("query_only=ON",))


def _engine(file: Path, *, mode: str, pragmas: Sequence[str]) -> Engine:
    # As a URI, so that a reader that comes first does not make an empty file.
    url = URL.create("sqlite", database=f"{file.absolute().as_uri()}", query={"mode": mode, "uri": "true"})
    # `isolation_level` None: Python's own transactions leave schema changes out, so BEGIN is said by us.
    engine = create_engine(url, connect_args={"isolation_level": None})

    @event.listens_for(engine, "connect")
    def _settings(connection: DBAPIConnection, _record: ConnectionPoolEntry) -> None:
        cursor = connection.cursor()
        for pragma in (*pragmas, f"busy_timeout={_BUSY_TIMEOUT_MILLISECONDS}"):
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    return engine
