"""Prepares the database of webhooks when a program starts: its tables, and the encryption of the secrets in it."""

import os
from pathlib import Path
from typing import Final

from alembic.util import CommandError
from sqlalchemy import Connection, select, update
from sqlalchemy.exc import DBAPIError

from fluxpool_gateway.store.database import DatabaseUnusableError, open_writer
from fluxpool_gateway.store.migration import upgrade
from fluxpool_gateway.store.postgres.connection import open_shared, shown
from fluxpool_gateway.webhooks.endpoints import read_secrets, write_secrets
from fluxpool_gateway.webhooks.secret_box import SealedSecretError, SecretBox
from fluxpool_gateway.webhooks.signing import Secret
from fluxpool_gateway.webhooks.tables import endpoints, signers

VERSION_TABLE: Final = "webhook_version"
"""Of these tables on PostgreSQL, where others are beside them."""
MIGRATIONS: Final = Path(__file__).parent / "migrations"


def prepare_webhooks(database: Path | str, box: SecretBox | None = None) -> None:
    """Make or migrate the file, or the tables at an address; by the programs that start, in any order.

    Secrets are stored then as `box` does it: those that were stored otherwise, by an earlier release or with another of
    its keys, are stored again. Raises `DatabaseUnusableError`.
    """
    is_file = isinstance(database, Path)
    name = f"webhooks_file: {database}" if is_file else f"database_url: the webhooks in {shown(str(database))}"
    try:
        if isinstance(database, Path):
            database.parent.mkdir(parents=True, exist_ok=True)
            # It has the secrets that messages are signed with.
            os.close(os.open(database, os.O_CREAT | os.O_RDWR, 0o600))
            engine = open_writer(database, synchronous="FULL")
        else:
            engine = open_shared(database, "start")
        try:
            upgrade(engine, MIGRATIONS, version_table=VERSION_TABLE)
            with engine.begin() as connection:
                _renew_secrets(connection, box or SecretBox())
        finally:
            engine.dispose()
    except SealedSecretError as error:
        raise DatabaseUnusableError(f"{name}: {error}") from error
    except CommandError as error:
        raise DatabaseUnusableError(f"{name} was written by a newer release ({error}); run that release") from error
    except (DBAPIError, OSError) as error:
        reason = error.orig if isinstance(error, DBAPIError) else error.strerror
        raise DatabaseUnusableError(
            f"{name} cannot be used ({reason}); let the gateway's user write it, or restore it: the endpoints are "
            "nowhere else"
        ) from error


def _renew_secrets(connection: Connection, box: SecretBox) -> None:
    # The signers first, as a rotation locks them; rows in the order of their ids, as all lock them.
    for table, key in ((signers, signers.c.tenant), (endpoints, endpoints.c.endpoint_id)):
        for row in connection.execute(select(key, table.c.secrets).order_by(key).with_for_update()).all():
            kept = read_secrets(row.secrets)
            renewed = [Secret(box.renew(secret.text), secret.expires_at_ms) for secret in kept]
            if list(kept) != renewed:
                connection.execute(update(table).where(key == row[0]).values(secrets=write_secrets(renewed)))
