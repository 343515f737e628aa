"""Prepares a database for a program that starts: address, login, version, schema; or refuses with the remedy.

Blocks. Apart from `connection`, because servers do not import Alembic.
"""

from typing import Final

from sqlalchemy.exc import DBAPIError

from fluxpool_gateway.store.database import DatabaseUnusableError
from fluxpool_gateway.store.migration import migrate
from fluxpool_gateway.store.postgres.connection import OLDEST_VERSION, open_shared, server_version, shown

_REMEDIES: Final = {
    "28": "correct its user and password, and what pg_hba.conf allows",
    "3D": "create the database, or name one that exists",
    "42": "let its user create tables there",
    "08": "correct its parameters",
}
"""By the class of the SQLSTATE. Login refused, no such database, insufficient privilege, no connection."""


def prepare_database(url: str) -> None:
    """Bring the schema to this release's; replicas that start at once wait for each other.

    Raises `DatabaseUnusableError` when the database cannot be used.
    """
    engine = open_shared(url, "start")
    try:
        with engine.connect() as connection:
            version = server_version(connection)
        if version < OLDEST_VERSION:
            raise DatabaseUnusableError(
                f"database_url: {shown(url)} is PostgreSQL {version // 10_000}; use "
                f"{OLDEST_VERSION // 10_000} or a later version"
            )
        migrate(engine, shown(url), setting="database_url", remedy="name an empty database")
    except DBAPIError as error:
        raise _refusal(url, error) from error
    finally:
        engine.dispose()


def _refusal(url: str, error: DBAPIError) -> DatabaseUnusableError:
    reason = " ".join(str(error.orig).split())
    state = getattr(error.orig, "sqlstate", None) or _state_in(reason)
    remedy = _REMEDIES.get(
        state[:2], "check its host and port, that the server runs, and that this machine may connect"
    )
    return DatabaseUnusableError(f"database_url: {shown(url)} cannot be used ({reason}); {remedy}")


def _state_in(reason: str) -> str:
    """The state that goes with a message: libpq hides that of an error while it connects."""
    if "authentication failed" in reason or "no pg_hba.conf entry" in reason or "no password supplied" in reason:
        return "28"
    if "invalid connection option" in reason or "invalid sslmode" in reason:
        return "08"
    if "does not exist" in reason:
        return "3D" if "database" in reason else "28"
    return ""
