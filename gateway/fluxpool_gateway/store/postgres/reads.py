"""Reading the task store on PostgreSQL; the counterpart of the SQLite file in `store.reading`."""

from collections.abc import Callable
from typing import Final, TypeVar, assert_never

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from fluxpool_gateway.store.database_faults import DamagedStoreError, DatabaseFault, fault_of
from fluxpool_gateway.store.postgres.connection import BEGIN_SNAPSHOT, open_reader, shown
from fluxpool_gateway.store.postgres.outage import Outage
from fluxpool_gateway.store.reading import READER_THREADS, StoreUnavailableError

T = TypeVar("T")

_OTHER_READERS: Final = 2
"""Threads that read beside those of `TaskStoreReader`, as the limits' does."""


class PostgresReads:
    """A database, for several threads."""

    begin_snapshot = BEGIN_SNAPSHOT

    def __init__(self, url: str) -> None:
        """Opens nothing yet."""
        self._shown = shown(url)
        self._engine = open_reader(url, connections=READER_THREADS + _OTHER_READERS)
        self._outage = Outage()

    def close(self) -> None:
        """Close the connections."""
        self._engine.dispose()

    def read(self, read: Callable[[Connection], T]) -> T:
        """What `read` makes of a connection; raises `StoreUnavailableError`."""
        if (reason := self._outage.reason()) is not None:
            raise StoreUnavailableError(f"the store {self._shown} cannot be reached ({reason})")
        try:
            try:
                return self._read(read)
            except DBAPIError as error:
                if not error.connection_invalidated:
                    raise
                # The server was restarted since the last read: all connections were closed now, and a new one may do.
                return self._read(read)
        except (DBAPIError, DamagedStoreError, PoolTimeoutError) as error:
            raise self._unavailable(error) from error

    def _read(self, read: Callable[[Connection], T]) -> T:
        with self._engine.connect() as connection:
            return read(connection)

    def _unavailable(self, error: DBAPIError | DamagedStoreError | PoolTimeoutError) -> StoreUnavailableError:
        reason = str(error.orig if isinstance(error, DBAPIError) else error).strip()
        match fault_of(error):
            case DatabaseFault.NO_SCHEMA | DatabaseFault.DAMAGED:
                return StoreUnavailableError(f"the store {self._shown} is being built from Kafka ({reason})")
            case DatabaseFault.INACCESSIBLE:
                return StoreUnavailableError(
                    f"database_url: {self._shown} refuses the gateway ({reason}); let its user read and write"
                )
            case DatabaseFault.TRANSIENT:
                self._outage.note(error, reason)
                return StoreUnavailableError(f"the store {self._shown} cannot be read ({reason}); see that it runs")
            case unknown:
                assert_never(unknown)
