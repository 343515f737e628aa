"""The database of webhooks: tables on PostgreSQL, or a SQLite file of their own beside the API keys.

Not in the task store's file, which is moved aside and built again from Kafka when it is damaged: endpoints are nowhere
else. Blocks: callers use threads.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Final, TypeVar

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from fluxpool_gateway.store.database import StoreIdentity, identity_of, open_reader, open_writer
from fluxpool_gateway.store.postgres.connection import open_shared, shown

T = TypeVar("T")

THREADS: Final = 2


class WebhooksUnavailableError(Exception):
    """The webhooks cannot be read or written now; the message says why."""


class WebhookDatabase:
    """The database, for several threads."""

    def __init__(self, database: Path | str, *, durable: bool = True) -> None:
        """`database` is a file or the address of PostgreSQL. Opens nothing yet.

        What owners change is to survive a power cut, as a secret is shown once: `durable`. Of what the dispatcher
        writes the last moments may be lost: it finds and delivers them again.
        """
        self._file = database if isinstance(database, Path) else None
        self._shown = str(database) if isinstance(database, Path) else shown(database)
        self._identity: StoreIdentity | None = None
        self._reader: Engine
        self._writer: Engine
        if isinstance(database, Path):
            self._reader = open_reader(database)
            self._writer = open_writer(database, synchronous="FULL" if durable else "NORMAL")
        else:
            self._reader = self._writer = open_shared(database, "webhooks", connections=THREADS + 1, durable=durable)

    def read(self, work: Callable[[Connection], T]) -> T:
        """What `work` makes of a transaction that reads; raises `WebhooksUnavailableError`."""
        return self._run(self._reader, work)

    def write(self, work: Callable[[Connection], T]) -> T:
        """What `work` makes of a transaction; what it raises undoes it. Raises `WebhooksUnavailableError`."""
        return self._run(self._writer, work)

    def close(self) -> None:
        """Close the connections."""
        self._reader.dispose()
        self._writer.dispose()

    def _run(self, engine: Engine, work: Callable[[Connection], T]) -> T:
        if self._file is not None:
            identity = identity_of(self._file)
            if identity is None:
                raise WebhooksUnavailableError(f"{self._file} does not exist; restore it, or start the gateway again")
            if identity != self._identity:
                # Open connections go on using the file that once had this name.
                self._identity = identity
                self.close()
        try:
            with engine.begin() as connection:
                return work(connection)
        except (DBAPIError, PoolTimeoutError) as error:
            reason = str(error.orig if isinstance(error, DBAPIError) else error).strip()
            raise WebhooksUnavailableError(f"{self._shown} cannot be used ({reason})") from error
