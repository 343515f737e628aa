"""Migrates a database to this release's schema; apart from `database`, because servers do not import Alembic."""

import re
from pathlib import Path
from typing import Final

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.util import CommandError
from sqlalchemy import Engine, text

from fluxpool_gateway.store.database import DatabaseUnusableError
from fluxpool_gateway.store.database_faults import DamagedStoreError
from fluxpool_gateway.store.postgres.connection import Lock, take_lock

TASK_MIGRATIONS: Final = Path(__file__).parents[1] / "migrations"

TASK_VERSION_TABLE: Final = "alembic_version"

_REVISION: Final = re.compile(r"[0-9]{4}")


FILE_REMEDY: Final = "delete the file: it is built again from Kafka"


def migrate(engine: Engine, database: Path | str, *, setting: str = "database_file", remedy: str = FILE_REMEDY) -> None:
    """Bring the schema to this release's; all but the engine is for messages.

    Raises `DatabaseUnusableError` when it is of a newer release, and SQLAlchemy's `DatabaseError` or
    `DamagedStoreError` when it does not answer as a store.
    """
    try:
        upgrade(engine, TASK_MIGRATIONS)
    except CommandError as error:
        with engine.connect() as connection:
            revisions = list(connection.execute(text("SELECT version_num FROM alembic_version")).scalars())
        if len(revisions) == 1 and _REVISION.fullmatch(str(revisions[0])):
            raise DatabaseUnusableError(
                f"{setting}: {database} was written by a newer release ({error}); run that release, or {remedy}"
            ) from error
        raise DamagedStoreError(f"no release wrote this schema: {error}") from error


def upgrade(engine: Engine, scripts: Path, *, version_table: str = TASK_VERSION_TABLE) -> None:
    """Run the migrations in a folder, all or none; raises Alembic's `CommandError` for a schema of another release.

    Tables with different migrations in one database have a `version_table` each.
    """
    configuration = Config()
    configuration.set_main_option("script_location", str(scripts).replace("%", "%%"))
    with engine.begin() as connection:
        if connection.dialect.name == "postgresql":
            # Replicas start at once.
            take_lock(connection, Lock.MIGRATION)
        configuration.attributes["connection"] = connection
        configuration.attributes["version_table"] = version_table
        command.upgrade(configuration, "head")


def revision_of(engine: Engine, *, version_table: str = TASK_VERSION_TABLE) -> str | None:
    """The last migration that was run; None before the first one. Raises SQLAlchemy's `DBAPIError`."""
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"version_table": version_table})
        return context.get_current_revision()
