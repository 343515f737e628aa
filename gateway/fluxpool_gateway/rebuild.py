"""`python -m fluxpool_gateway.rebuild`: has the task store built again from Kafka, while the gateway runs.

Configured as the server is. Keys, webhooks, reservations and the counts of limits stay: Kafka does not have them.
"""

import os
import sys
from typing import Final

from sqlalchemy.exc import DBAPIError, OperationalError

from fluxpool_contract.settings import SettingsError
from fluxpool_gateway.projector import LOCK_SUFFIX
from fluxpool_gateway.settings import EXIT_CONFIGURATION, GatewaySettings
from fluxpool_gateway.store.postgres.connection import shown
from fluxpool_gateway.store.postgres.rebuild import empty_store
from fluxpool_gateway.stores import DatabaseProblemError

DONE: Final = "The task store is empty and is being built again from Kafka; /readyz tells when it is done."


def store_place(settings: GatewaySettings) -> str:
    """Where the task store is: the file, or the address of the database without its password."""
    if settings.database_url is None:
        return str(settings.task_store_file())
    return shown(settings.database_url.get_secret_value())


def rebuild_store(settings: GatewaySettings) -> None:
    """Empty the store; the projector that runs, or the next one, builds it again.

    Raises `DatabaseProblemError`.
    """
    if settings.database_url is not None:
        try:
            empty_store(settings.database_url.get_secret_value())
        except DBAPIError as error:
            reason = " ".join(str(error.orig).split())
            raise DatabaseProblemError(
                f"database_url: {store_place(settings)} cannot be used ({reason})",
                is_away=isinstance(error, OperationalError),
            ) from error
        return
    file = settings.task_store_file()
    if file.exists() and not file.with_name(file.name + LOCK_SUFFIX).exists():
        raise DatabaseProblemError(
            f"database_file: no projector has ever written {file}, so it is not deleted; check the setting"
        )
    try:
        # A projector that runs sees within a second that it is gone, and readers that have it open do as well. Who
        # opens the path next removes the write-ahead log: done here, it might be that of a file just made.
        file.unlink(missing_ok=True)
    except OSError as error:
        raise DatabaseProblemError(
            f"database_file: {file} cannot be deleted ({error.strerror}); let this user write {file.parent}"
        ) from error


def main() -> int:
    """Rebuild; returns the exit status, 2 when the settings are wrong, 1 when the database cannot be used."""
    try:
        settings = GatewaySettings.from_environment(os.environ)
        rebuild_store(settings)
    except SettingsError as error:
        sys.stderr.write(f"fluxpool-gateway: {error}\n")
        return EXIT_CONFIGURATION
    except DatabaseProblemError as error:
        sys.stderr.write(f"fluxpool-gateway: {error}\n")
        return 1 if error.is_away else EXIT_CONFIGURATION
    sys.stdout.write(f"{DONE}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
