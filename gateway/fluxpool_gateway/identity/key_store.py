"""The store of API keys, read and written by every server process of a gateway: a SQLite file of its own.

Not in the task store's file: that one is a projection, which is moved aside and built again from Kafka when it is
damaged, and keys are nowhere else. On PostgreSQL they are tables beside the task store's.
Owns the statements. Every method runs in a thread and returns a future, or raises `KeyStoreUnavailableError` from it.
`identity.bootstrap` makes the file or the tables.
"""

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Any, Final, Protocol, TypeVar

from sqlalchemy import Connection, Engine, bindparam, func, insert, select, update
from sqlalchemy.engine import RowMapping
from sqlalchemy.exc import DatabaseError

from fluxpool_contract.messages import Quality
from fluxpool_gateway.http.generation_request import Priority
from fluxpool_gateway.identity.api_key import KeyScope
from fluxpool_gateway.identity.key_record import KeyRecord
from fluxpool_gateway.identity.rights import Rights
from fluxpool_gateway.identity.tables import api_keys, secrets
from fluxpool_gateway.store.database import StoreIdentity, identity_of, open_reader, open_writer

T = TypeVar("T")
Name = TypeVar("Name", bound=StrEnum)

KEY_THREADS: Final = 2
_TENANTS: Final = "tenants"
_SECRET: Final = select(secrets.c.value).where(secrets.c.name == _TENANTS)
_FIND: Final = select(api_keys).where(api_keys.c.key_id == bindparam("key_id"))
_LATEST_USE: Final = func.coalesce(api_keys.c.last_used_at_ms, 0)
_USED: Final = (
    update(api_keys)
    .where(api_keys.c.key_id == bindparam("used_id"), bindparam("at_ms") > _LATEST_USE)
    .values(last_used_at_ms=bindparam("at_ms"))
)


class KeysError(Exception):
    """The gateway cannot start with these keys; the message names the setting and the remedy."""


class KeyStoreUnavailableError(Exception):
    """The keys cannot be read or written now; the message says why."""


class KeyStoreAwayError(KeyStoreUnavailableError):
    """The server that has the keys cannot be reached, or failed: they are as they were."""


class KeyDatabase(Protocol):
    """A database that holds the keys, for several threads."""

    def run(self, work: Callable[[Connection], T], *, writes: bool) -> T:
        """What `work` makes of a transaction; raises `KeyStoreUnavailableError`."""

    def close(self) -> None:
        """Close the connections."""


class KeyStore:
    """The keys, for an event loop; close it at the end."""

    def __init__(self, database: Path | KeyDatabase) -> None:
        """Opens nothing yet. `database` is the path of a SQLite file, or another database."""
        self._database = _KeyFile(database) if isinstance(database, Path) else database
        self._executor = ThreadPoolExecutor(max_workers=KEY_THREADS, thread_name_prefix="api-keys")

    def find(self, key_id: str) -> asyncio.Future[KeyRecord | None]:
        """The key with this id."""
        return self._run(lambda connection: find_key(connection, key_id))

    def secret(self) -> asyncio.Future[bytes]:
        """The secret that proves the tenants of tasks; made before the servers start."""
        return self._run(lambda connection: connection.execute(_SECRET).scalar_one())

    def page(self, *, after: str, limit: int) -> asyncio.Future[Sequence[KeyRecord]]:
        """At most `limit` keys, by their ids, those after the given one."""
        query = select(api_keys).where(api_keys.c.key_id > after).order_by(api_keys.c.key_id).limit(limit)

        def read(connection: Connection) -> Sequence[KeyRecord]:
            return [_to_record(row) for row in connection.execute(query).mappings()]

        return self._run(read)

    def add(self, record: KeyRecord) -> asyncio.Future[None]:
        """Add a new key."""
        return self._run(lambda connection: add_key(connection, record), writes=True)

    def change(
        self, key_id: str, change: Callable[[KeyRecord], tuple[KeyRecord, KeyRecord | None]]
    ) -> asyncio.Future[KeyRecord | None]:
        """Replace a key by what `change` makes of it, and add the second key that it returns.

        In one transaction, which what `change` raises undoes. None when there is no such key.
        """

        def write(connection: Connection) -> KeyRecord | None:
            # Locked where others write as well: what is replaced is what was read.
            found = find_key(connection, key_id, for_update=True)
            if found is None:
                return None
            changed, added = change(found)
            if changed != found:
                row = _to_row(changed)
                connection.execute(update(api_keys).where(api_keys.c.key_id == key_id).values(row))
            if added is not None:
                add_key(connection, added)
            return changed

        return self._run(write, writes=True)

    def save_used(self, used_at_ms: Mapping[str, int]) -> asyncio.Future[None]:
        """Note when keys were used last; an earlier time than the stored one changes nothing."""

        def write(connection: Connection) -> None:
            # In one order in all replicas, which then cannot wait for each other.
            rows = [{"used_id": key_id, "at_ms": at_ms} for key_id, at_ms in sorted(used_at_ms.items())]
            connection.execute(_USED, rows)

        return self._run(write, writes=True)

    def close(self) -> None:
        """End the threads and the connections."""
        self._executor.shutdown(wait=False, cancel_futures=True)
        self._database.close()

    def _run(self, work: Callable[[Connection], T], *, writes: bool = False) -> asyncio.Future[T]:
        run = partial(self._database.run, work, writes=writes)
        return asyncio.get_running_loop().run_in_executor(self._executor, run)


class _KeyFile:
    """A SQLite file, which is opened again when it was replaced."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._reader = open_reader(file)
        # A revocation that was answered must survive a power cut.
        self._writer = open_writer(file, synchronous="FULL")
        self._identity: StoreIdentity | None = None

    def close(self) -> None:
        """Close the connections."""
        self._reader.dispose()
        self._writer.dispose()

    def run(self, work: Callable[[Connection], T], *, writes: bool) -> T:
        """What `work` makes of a transaction."""
        engine: Engine = self._writer if writes else self._reader
        identity = identity_of(self._file)
        if identity is None:
            # Not made again: a gateway whose keys were deleted accepts no caller until it is started again.
            raise KeyStoreUnavailableError(f"{self._file} does not exist; restore it, or start the gateway again")
        if identity != self._identity:
            # Open connections go on using the file that once had this name.
            self._identity = identity
            self._reader.dispose()
            self._writer.dispose()
        try:
            with engine.begin() as connection:
                return work(connection)
        except DatabaseError as error:
            raise KeyStoreUnavailableError(f"{self._file} cannot be used ({error.orig})") from error


def find_key(connection: Connection, key_id: str, *, for_update: bool = False) -> KeyRecord | None:
    """The key with this id."""
    query = _FIND.with_for_update() if for_update else _FIND
    row = connection.execute(query, {"key_id": key_id}).mappings().first()
    return None if row is None else _to_record(row)


def add_key(connection: Connection, record: KeyRecord) -> None:
    """Add a new key."""
    connection.execute(insert(api_keys).values(_to_row(record)))


def keep_secret(connection: Connection, proposed: bytes) -> bytes:
    """The secret that is stored; the proposed one, which is stored then, where there is none.

    By one process at a time.
    """
    kept: bytes | None = connection.execute(_SECRET).scalar_one_or_none()
    if kept is None:
        connection.execute(insert(secrets).values(name=_TENANTS, value=proposed))
    return kept or proposed


def has_active_key(connection: Connection, now_ms: int) -> bool:
    """Whether any key is accepted now."""
    never = api_keys.c.expires_at_ms.is_(None)
    accepted = api_keys.c.revoked_at_ms.is_(None) & (never | (api_keys.c.expires_at_ms > now_ms))
    return connection.execute(select(api_keys.c.key_id).where(accepted).limit(1)).first() is not None


def _to_row(record: KeyRecord) -> dict[str, Any]:
    rights = record.rights
    as_text = {
        "scopes": _joined(record.scopes),
        "priorities": _joined(rights.priorities),
        "qualities": _joined_or_none(rights.qualities),
        "loras": _joined_or_none(rights.loras),
        "presets": _joined_or_none(rights.presets),
        "models": _joined_or_none(rights.models),
    }
    return {
        column.name: as_text[column.name] if column.name in as_text else getattr(record, column.name)
        for column in api_keys.columns
    }


def _to_record(row: RowMapping) -> KeyRecord:
    values = dict(row)
    qualities = values.pop("qualities")
    loras, presets, models = (
        None if text is None else frozenset(text.split()) for text in map(values.pop, ("loras", "presets", "models"))
    )
    rights = Rights(
        priorities=_members(Priority, values.pop("priorities")),
        qualities=None if qualities is None else _members(Quality, qualities),
        loras=loras,
        presets=presets,
        models=models,
    )
    return KeyRecord(scopes=_members(KeyScope, values.pop("scopes")), rights=rights, **values)


def _joined(names: Iterable[str]) -> str:
    return " ".join(sorted(names))


def _joined_or_none(names: Iterable[str] | None) -> str | None:
    return None if names is None else _joined(names)


def _members(kind: type[Name], text: str) -> frozenset[Name]:
    """The names that this release knows: one of a newer release allows nothing that this one has."""
    known = frozenset(kind)
    return frozenset(kind(name) for name in text.split() if name in known)
