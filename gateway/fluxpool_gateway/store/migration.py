"""Migrates a SQLite file to this release's schema; apart from `database`, because servers do not import Alembic."""

import re
from pathlib import Path
from typing import Final

from alembic import command
from alembic.config import Config
from alembic.util import CommandError
from sqlalchemy import Engine, text

from fluxpool_gateway.store.database_faults import DamagedStoreError

_MIGRATIONS: Final = Path(__file__).parents[1] / "migrations"


_REVISION: Final = re.compile(r"[0-9]{4}")


class DatabaseFileError(Exception):
    """The task store's file cannot be used; the message says what to do."""


def migrate(engine: Engine, file: Path) -> None:
    """Bring the schema to this release's.

    Raises `DatabaseFileError` when the file is of a newer release, and SQLAlchemy's `DatabaseError` or
    `DamagedStoreError` when it does not answer as a store.
    """
    try:
        upgrade(engine, _MIGRATIONS)
    except CommandError as error:
        with engine.connect() as connection:
            revisions = list(connection.execute(text("SELECT version_num FROM alembic_version")).scalars())
        if len(revisions) == 1 and _REVISION.fullmatch(str(revisions[0])):
            raise DatabaseFileError(
                f"database_file: {file} was written by a newer release ({error}); "
                "run that release, or delete the file: it is built again from Kafka"
            ) from error
        raise DamagedStoreError(f"no release wrote this schema: {error}") from error


def upgrade(engine: Engine, scripts: Path) -> None:
    """Run the migrations in a folder, all or none; raises Alembic's `CommandError` for a file of another release."""
    configuration = Config()
    configuration.set_main_option("script_location", str(scripts).replace("%", "%%"))
    with engine.begin() as connection:
        configuration.attributes["connection"] = connection
        command.upgrade(configuration, "head")
