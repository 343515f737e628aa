"""The tables of API keys on PostgreSQL, as `key_store` uses them."""

from collections.abc import Callable
from typing import TypeVar

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from fluxpool_gateway.identity.key_store import KEY_THREADS, KeyStoreAwayError
from fluxpool_gateway.store.postgres.connection import open_shared, shown
from fluxpool_gateway.store.postgres.outage import Outage

T = TypeVar("T")


class KeyTables:
    """The keys in a database, for several threads."""

    def __init__(self, url: str) -> None:
        """Opens nothing yet."""
        self._shown = shown(url)
        self._engine = open_shared(url, "keys", connections=KEY_THREADS)
        self._outage = Outage()

    def close(self) -> None:
        """Close the connections."""
        self._engine.dispose()

    def run(self, work: Callable[[Connection], T], *, writes: bool) -> T:
        """What `work` makes of a transaction; raises `KeyStoreAwayError`."""
        if (reason := self._outage.reason()) is not None:
            raise KeyStoreAwayError(f"{self._shown} cannot be reached ({reason})")
        try:
            try:
                return self._run(work)
            except DBAPIError as error:
                # After a restart of the server; a write may have been done, and is not done twice.
                if writes or not error.connection_invalidated:
                    raise
                return self._run(work)
        except (DBAPIError, PoolTimeoutError) as error:
            reason = str(error.orig if isinstance(error, DBAPIError) else error).strip()
            self._outage.note(error, reason)
            raise KeyStoreAwayError(f"{self._shown} cannot be used ({reason})") from error

    def _run(self, work: Callable[[Connection], T]) -> T:
        with self._engine.begin() as connection:
            return work(connection)
