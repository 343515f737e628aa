"""`python -m fluxpool_gateway.migrate`: brings the databases of a gateway to this release's schema, and ends.

Configured as the server is. Server, projector and dispatcher do the same when they start; run before a rollout it says
whether they will.
"""

import fcntl
import os
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import Engine
from sqlalchemy.exc import DatabaseError, DBAPIError, OperationalError

from fluxpool_contract.settings import SettingsError
from fluxpool_gateway.identity.bootstrap import VERSION_TABLE as KEY_VERSION_TABLE
from fluxpool_gateway.identity.bootstrap import prepare_secret
from fluxpool_gateway.identity.key_store import KeysError
from fluxpool_gateway.projector import LOCK_SUFFIX
from fluxpool_gateway.settings import EXIT_CONFIGURATION, GatewaySettings
from fluxpool_gateway.store.damage import remove_orphans
from fluxpool_gateway.store.database import DatabaseUnusableError, open_reader, open_writer
from fluxpool_gateway.store.database_faults import DamagedStoreError
from fluxpool_gateway.store.migration import FILE_REMEDY, TASK_VERSION_TABLE, migrate, revision_of
from fluxpool_gateway.store.postgres.connection import open_shared, shown
from fluxpool_gateway.store.postgres.start import prepare_database
from fluxpool_gateway.stores import DatabaseProblemError
from fluxpool_gateway.webhooks.secret_box import SecretKeysError, open_secret_box
from fluxpool_gateway.webhooks.start import VERSION_TABLE as WEBHOOK_VERSION_TABLE
from fluxpool_gateway.webhooks.start import prepare_webhooks


@dataclass(frozen=True, slots=True, kw_only=True)
class Migrated:
    """One database, or the tables of one purpose in a database that is shared."""

    what: str
    database: str
    """The file, or the address without its password."""
    before: str | None
    """The last migration that had been run; None where there was none."""
    after: str | None
    """The last one now."""
    in_use: bool = False
    """Whether nothing was done, because a projector holds the file; it migrated it when it started."""


def migrate_databases(settings: GatewaySettings) -> tuple[Migrated, ...]:
    """Migrate the tasks, the webhooks and, where requests need one, the API keys; in this order.

    Makes what is missing, as the start of the programs does. Raises `DatabaseProblemError`; what was migrated before
    stays so.
    """
    try:
        return _migrate_all(settings)
    except (DatabaseUnusableError, KeysError, SecretKeysError) as error:
        is_away = settings.database_url is not None and isinstance(error.__cause__, OperationalError)
        raise DatabaseProblemError(str(error), is_away=is_away) from error


def _migrate_all(settings: GatewaySettings) -> tuple[Migrated, ...]:
    found = [_tasks(settings)]
    box = open_secret_box(settings.webhooks.key_file)
    store = settings.webhook_store()
    found.append(_migrated("webhooks", store, WEBHOOK_VERSION_TABLE, lambda: prepare_webhooks(store, box)))
    if settings.needs_keys():
        keys, now_ms = settings.key_store(), time.time_ns() // 1_000_000
        # The table of a file is Alembic's own.
        table = TASK_VERSION_TABLE if isinstance(keys, Path) else KEY_VERSION_TABLE
        found.append(
            _migrated(
                "API keys",
                keys,
                table,
                lambda: prepare_secret(keys, bootstrap_key_file=settings.bootstrap_key_file, now_ms=now_ms),
            )
        )
    return tuple(found)


def _tasks(settings: GatewaySettings) -> Migrated:
    if settings.database_url is not None:
        url = settings.database_url.get_secret_value()
        return _migrated("tasks", url, TASK_VERSION_TABLE, lambda: prepare_database(url))
    file = settings.task_store_file()
    lock_file = file.with_name(file.name + LOCK_SUFFIX)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with lock_file.open("a") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                now = _revision(file, TASK_VERSION_TABLE)
                return Migrated(what="tasks", database=str(file), before=now, after=now, in_use=True)
            return _migrated("tasks", file, TASK_VERSION_TABLE, lambda: _migrate_file(file))
    except OSError as error:
        raise DatabaseUnusableError(
            f"database_file: {file} cannot be used ({error.strerror}); choose another"
        ) from error


def _migrate_file(file: Path) -> None:
    remove_orphans(file)
    engine = open_writer(file)
    try:
        migrate(engine, file)
    except (DatabaseError, DamagedStoreError) as error:
        reason = error.orig if isinstance(error, DatabaseError) else error
        raise DatabaseUnusableError(
            f"database_file: {file} cannot be used as a database ({reason}); let the gateway's user write it and its "
            f"folder, or {FILE_REMEDY}"
        ) from error
    finally:
        engine.dispose()


def _migrated(what: str, database: Path | str, table: str, prepare: Callable[[], object]) -> Migrated:
    before = _revision(database, table)
    prepare()
    return Migrated(
        what=what,
        database=str(database) if isinstance(database, Path) else shown(database),
        before=before,
        after=_revision(database, table),
    )


def _revision(database: Path | str, table: str) -> str | None:
    """None also where it cannot be read: the migration itself says why."""
    if isinstance(database, Path) and not database.exists():
        return None
    engine: Engine = open_reader(database) if isinstance(database, Path) else open_shared(database, "start")
    try:
        with suppress(DBAPIError):
            return revision_of(engine, version_table=table)
        return None
    finally:
        engine.dispose()


def main() -> int:
    """Migrate; returns the exit status, 2 when the settings or a database are wrong, 1 when its server is away."""
    try:
        migrated = migrate_databases(GatewaySettings.from_environment(os.environ))
    except SettingsError as error:
        sys.stderr.write(f"fluxpool-gateway: {error}\n")
        return EXIT_CONFIGURATION
    except DatabaseProblemError as error:
        sys.stderr.write(f"fluxpool-gateway: {error}\n")
        return 1 if error.is_away else EXIT_CONFIGURATION
    for item in migrated:
        sys.stdout.write(f"{item.what}: {item.database}: {item.before or 'none'} -> {item.after or 'none'}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
