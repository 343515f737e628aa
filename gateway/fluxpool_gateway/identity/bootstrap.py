"""Prepares the key store before the servers start: schema, the first admin key, and the refusal to start without any.

Blocks; called once for all server processes. Apart from `key_store`, because servers do not import Alembic.
"""

import hmac
import os
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Final

from alembic.util import CommandError
from sqlalchemy import Connection
from sqlalchemy.exc import DatabaseError, DBAPIError

from fluxpool_contract.messages import DEFAULT_TENANT
from fluxpool_gateway.identity.api_key import KeyScope, PresentedKey, parse_key
from fluxpool_gateway.identity.key_record import KeyRecord
from fluxpool_gateway.identity.key_store import KeysError, add_key, find_key, has_active_key, keep_secret
from fluxpool_gateway.identity.rights import EVERYTHING
from fluxpool_gateway.store.database import open_writer
from fluxpool_gateway.store.migration import upgrade
from fluxpool_gateway.store.postgres.connection import Lock, open_shared, shown, take_lock

BOOTSTRAP_NAME: Final = "bootstrap"
_SECRET_LABEL: Final = b"fluxpool: tenants of tasks"
_MIGRATIONS: Final = Path(__file__).parent / "migrations"
VERSION_TABLE: Final = "api_key_version"
"""Of the keys on PostgreSQL, where the task store's tables are beside them."""


def prepare_keys(
    database: Path | str, *, bootstrap_key_file: Path | None, takes_tokens: bool = False, now_ms: int
) -> None:
    """Make or migrate the file, or the tables at an address, and add the bootstrap key unless it is there already.

    A bootstrap key that was revoked stays so, whatever the file holds. Raises `KeysError`, also when neither a key nor
    a token would be accepted.
    """
    if not _prepare(database, bootstrap_key_file, now_ms)[0] and not takes_tokens:
        raise KeysError(
            "bootstrap_key_file: no API key would be accepted; name a file with a key in FLUXPOOL_BOOTSTRAP_KEY_FILE "
            "(`fluxpool keys generate` makes one), or an issuer of tokens in FLUXPOOL_OIDC_ISSUER. To let everyone who "
            "can connect use the gateway, set FLUXPOOL_AUTHENTICATION=none-for-anyone-who-can-connect"
        )


def prepare_secret(database: Path | str, *, bootstrap_key_file: Path | None, now_ms: int) -> bytes:
    """The same for the projector, which needs no key: it and the server start in any order. Returns the secret."""
    return _prepare(database, bootstrap_key_file, now_ms)[1]


def _prepare(database: Path | str, bootstrap_key_file: Path | None, now_ms: int) -> tuple[bool, bytes]:
    """Whether any key is accepted, and the secret that proves tenants."""
    text = None if bootstrap_key_file is None else _read_text(bootstrap_key_file)
    bootstrap = None if bootstrap_key_file is None or text is None else _key_in(text, bootstrap_key_file)
    # Of the first key, where there is one: then a gateway without a volume has the same after every start.
    derived = None if text is None else hmac.digest(text.encode(), _SECRET_LABEL, "sha256")

    def fill(connection: Connection) -> tuple[bool, bytes]:
        if bootstrap is not None:
            _add_bootstrap(connection, bootstrap, now_ms)
        secret = keep_secret(connection, derived or secrets.token_bytes(32))
        return has_active_key(connection, now_ms), secret

    return _fill_file(database, fill) if isinstance(database, Path) else _fill_tables(database, fill)


def _fill_tables(url: str, fill: Callable[[Connection], tuple[bool, bytes]]) -> tuple[bool, bytes]:
    engine = open_shared(url, "start")
    try:
        upgrade(engine, _MIGRATIONS, version_table=VERSION_TABLE)
        with engine.begin() as connection:
            take_lock(connection, Lock.KEYS)
            return fill(connection)
    except CommandError as error:
        raise KeysError(
            f"database_url: the API keys in {shown(url)} were written by a newer release ({error}); run that release"
        ) from error
    except DBAPIError as error:
        raise KeysError(f"database_url: {shown(url)} cannot be used ({str(error.orig).strip()})") from error
    finally:
        engine.dispose()


def _fill_file(file: Path, fill: Callable[[Connection], tuple[bool, bytes]]) -> tuple[bool, bytes]:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        # Names and tenants are not for the log.
        os.close(os.open(file, os.O_CREAT | os.O_RDWR, 0o600))
        engine = open_writer(file, synchronous="FULL")
        try:
            upgrade(engine, _MIGRATIONS)
            with engine.begin() as connection:
                return fill(connection)
        finally:
            engine.dispose()
    except CommandError as error:
        raise KeysError(f"keys_file: {file} was written by a newer release ({error}); run that release") from error
    except (DatabaseError, OSError) as error:
        reason = error.orig if isinstance(error, DatabaseError) else error.strerror
        raise KeysError(
            f"keys_file: {file} cannot be used ({reason}); let the gateway's user write it and its folder, or restore "
            "it: the keys are nowhere else"
        ) from error


def _read_text(file: Path) -> str:
    try:
        # 1 KiB: a key is 69 characters long, and the file may be anything.
        with file.open("rb") as opened:
            # A Secret made with `echo` ends in a line end.
            return opened.read(1024).decode("ascii", errors="replace").strip()
    except OSError as error:
        raise KeysError(f"bootstrap_key_file: {file} cannot be read ({error.strerror}); mount the Secret") from error


def _key_in(text: str, file: Path) -> PresentedKey:
    key = parse_key(text)
    if key is None:
        raise KeysError(
            f"bootstrap_key_file: {file} does not hold one API key of the form fp_<id>_<secret>; "
            "make one with `fluxpool keys generate`"
        )
    return key


def _add_bootstrap(connection: Connection, key: PresentedKey, now_ms: int) -> None:
    found = find_key(connection, key.key_id)
    if found is None:
        record = KeyRecord(
            key_id=key.key_id,
            digest=key.digest,
            name=BOOTSTRAP_NAME,
            tenant=DEFAULT_TENANT,
            scopes=frozenset(KeyScope),
            rights=EVERYTHING,
            created_at_ms=now_ms,
        )
        add_key(connection, record)
    elif not found.matches(key):
        raise KeysError(
            f"bootstrap_key_file: another key has the id {key.key_id}; make a new one with `fluxpool keys generate`"
        )
