"""`python -m fluxpool_gateway.projector`: the one process that writes the task store, until SIGTERM.

Configured as the server is. One projects for each database; any other waits for its lock and takes over. Its heartbeat
in the store says how it is: the servers show that by `/readyz` and `/metrics`. Continues in `projection.store_keeper`,
or with PostgreSQL in `projection.postgres_keeper`.
"""

import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Final

import structlog

from fluxpool_contract.settings import SettingsError
from fluxpool_contract.tenants import TenantTrust
from fluxpool_gateway.identity.bootstrap import prepare_secret
from fluxpool_gateway.identity.key_store import KeysError
from fluxpool_gateway.process_lock import acquire_lock
from fluxpool_gateway.projection.postgres_keeper import PostgresKeeper
from fluxpool_gateway.projection.store_keeper import StoreKeeper
from fluxpool_gateway.settings import EXIT_CONFIGURATION, GatewaySettings
from fluxpool_gateway.store.database import DatabaseUnusableError
from fluxpool_gateway.store.postgres.start import prepare_database
from fluxpool_gateway.stores import open_trust
from fluxpool_transport.kafka import KafkaCredentialsError, librdkafka_options
from fluxpool_transport.process import configure_logging, run_program

LOCK_SUFFIX: Final = ".projector-lock"
_NICENESS: Final = 15
"""On a busy machine accepting requests comes before projecting them: a projection catches up, a client gives up."""

# By name, because the program itself is `__main__`.
logger = structlog.stdlib.get_logger("fluxpool_gateway.projector")


def main() -> int:
    """Project until SIGTERM; returns the exit status, 2 when the settings or the database file are wrong."""
    stopping = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())
    try:
        settings = GatewaySettings.from_environment(os.environ)
        librdkafka_options(settings.kafka, client_id="settings-check")
        configure_logging(service="gateway-projector")
        # It logs every start; failures are raised.
        logging.getLogger("alembic").setLevel(logging.WARNING)
        with suppress(PermissionError):
            os.nice(_NICENESS)
        if settings.database_url is not None:
            prepare_database(settings.database_url.get_secret_value())
        _project(settings, _trust(settings), stopping)
    except (SettingsError, KafkaCredentialsError, DatabaseUnusableError, KeysError) as error:
        sys.stderr.write(f"fluxpool-gateway: {error}\n")
        return EXIT_CONFIGURATION
    logger.info("projector_stopped")
    return 0


def _trust(settings: GatewaySettings) -> TenantTrust:
    """Raises `KeysError`, `SettingsError`."""
    secret = None
    if settings.needs_keys():
        now_ms = time.time_ns() // 1_000_000
        secret = prepare_secret(settings.key_store(), bootstrap_key_file=settings.bootstrap_key_file, now_ms=now_ms)
    return open_trust(settings, secret)


def _project(settings: GatewaySettings, trust: TenantTrust, stopping: threading.Event) -> None:
    """Raises `DatabaseUnusableError` when the file cannot be opened at the start."""
    if settings.database_url is not None:
        PostgresKeeper(settings, trust=trust, stopping=stopping).run()
        return
    file = settings.task_store_file()
    lock_file = file.with_name(file.name + LOCK_SUFFIX)
    try:
        # Only a projector makes a lock: a file without one was never a store, and is not ours to move aside.
        is_foreign = file.exists() and not lock_file.exists()
        file.parent.mkdir(parents=True, exist_ok=True)
        with _lock(lock_file, stopping):
            StoreKeeper(settings, trust=trust, stopping=stopping, is_foreign=is_foreign).run()
    except OSError as error:
        raise DatabaseUnusableError(
            f"database_file: {file} cannot be used ({error.strerror}); choose another"
        ) from error


@contextmanager
def _lock(lock_file: Path, stopping: threading.Event) -> Iterator[None]:
    """Hold the lock of the database, or wait for it until `stopping`. The kernel releases it however this ends."""
    with lock_file.open("a") as lock:
        on_standby = partial(logger.info, "projector_standby", lock_file=str(lock_file))
        for seconds in acquire_lock(lock.fileno(), on_standby=on_standby):
            if stopping.wait(seconds):
                break
        yield


if __name__ == "__main__":
    run_program(main)
