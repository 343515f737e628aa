"""`python -m fluxpool_gateway.rebuild`: builds the task store on PostgreSQL again from Kafka, while the gateway runs.

Configured as the server is. With SQLite the database file is deleted instead.
"""

import os
import sys

from sqlalchemy.exc import DBAPIError

from fluxpool_contract.settings import SettingsError
from fluxpool_gateway.settings import EXIT_CONFIGURATION, GatewaySettings
from fluxpool_gateway.store.postgres.connection import shown
from fluxpool_gateway.store.postgres.rebuild import empty_store


def main() -> int:
    """Empty the store; the projector builds it again. Returns the exit status, 2 when the settings are wrong."""
    try:
        settings = GatewaySettings.from_environment(os.environ)
    except SettingsError as error:
        sys.stderr.write(f"fluxpool-gateway: {error}\n")
        return EXIT_CONFIGURATION
    if settings.database_url is None:
        sys.stderr.write(f"fluxpool-gateway: database_url: is not set; delete {settings.database_file} instead\n")
        return EXIT_CONFIGURATION
    url = settings.database_url.get_secret_value()
    try:
        empty_store(url)
    except DBAPIError as error:
        sys.stderr.write(f"fluxpool-gateway: database_url: {shown(url)} cannot be used ({str(error.orig).strip()})\n")
        return 1
    sys.stdout.write("The task store is empty and is being built again from Kafka; /readyz tells when it is done.\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
