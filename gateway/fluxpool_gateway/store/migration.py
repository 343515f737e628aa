"""Bringing the task store to this release's schema; apart from `database`, because the servers need no Alembic."""

from pathlib import Path
from typing import Final

from alembic import command
from alembic.config import Config
from alembic.util import CommandError
from sqlalchemy import Engine
from sqlalchemy.exc import DatabaseError

_MIGRATIONS: Final = Path(__file__).parents[1] / "migrations"


class DatabaseFileError(Exception):
    """The task store's file cannot be used; the message says what to do."""


def migrate(engine: Engine, file: Path) -> None:
    """Bring the schema to this release's.

    Raises `DatabaseFileError` when the file is no database, cannot be written or is of a newer release.
    """
    configuration = Config()
    configuration.set_main_option("script_location", str(_MIGRATIONS).replace("%", "%%"))
    try:
        with engine.begin() as connection:
            configuration.attributes["connection"] = connection
            command.upgrade(configuration, "head")
    except CommandError as error:
        raise DatabaseFileError(
            f"database_file: {file} was written by a newer release ({error}); "
            "run that release, or delete the file: it is built again from Kafka"
        ) from error
    except DatabaseError as error:
        raise DatabaseFileError(
            f"database_file: {file} cannot be used as a database ({error.orig}); make its folder writable, "
            "or delete the file: it is built again from Kafka"
        ) from error
