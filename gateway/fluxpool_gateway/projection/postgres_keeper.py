"""Keeps the projector running on PostgreSQL: one of all replicas projects, the others stand by and take over.

Owns what follows a failure of the server or the loss of the lock. Called by `fluxpool_gateway.projector`. For a SQLite
file there is `projection.store_keeper`.
"""

import asyncio
import threading
import time
from typing import Final

import structlog
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from fluxpool_contract.tenants import TenantTrust
from fluxpool_gateway.projection.projector import Projector
from fluxpool_gateway.settings import GatewaySettings
from fluxpool_gateway.store.database import DatabaseUnusableError
from fluxpool_gateway.store.database_faults import DamagedStoreError, DatabaseFault, fault_of
from fluxpool_gateway.store.postgres.connection import NotLeaderError, open_projector, shown
from fluxpool_gateway.store.postgres.start import prepare_database
from fluxpool_gateway.store.task_store import TaskStoreWriter
from fluxpool_transport.process import Backoff

STANDBY_SECONDS: Final = 1.0
"""Between two tries for the lock: as long as a take-over may take."""
RETRY_SECONDS: Final = 0.5
MAX_RETRY_SECONDS: Final = 5.0
STEADY_SECONDS: Final = 30.0
"""A store that worked for so long gets the first delay again."""

logger = structlog.stdlib.get_logger(__name__)


class PostgresKeeper:
    """Projects into the database until SIGTERM, whenever no other process does."""

    def __init__(self, settings: GatewaySettings, *, trust: TenantTrust, stopping: threading.Event) -> None:
        """The schema is current."""
        assert settings.database_url is not None  # noqa: S101 - the caller looked
        self._settings = settings
        self._url = settings.database_url.get_secret_value()
        self._shown = shown(self._url)
        self._trust = trust
        self._stopping = stopping
        self._is_standby = False
        self._backoff = Backoff(initial_seconds=RETRY_SECONDS, maximum_seconds=MAX_RETRY_SECONDS)

    def run(self) -> None:
        """Return once stopping is set."""
        while not self._stopping.is_set():
            started_at = time.monotonic()
            try:
                self._project()
            except NotLeaderError:
                if not self._is_standby:
                    self._is_standby = True
                    logger.info("projector_standby", database=self._shown)
                self._stopping.wait(STANDBY_SECONDS)
            except (DBAPIError, DamagedStoreError, PoolTimeoutError) as error:
                if time.monotonic() - started_at > STEADY_SECONDS:
                    self._backoff.reset()
                self._recover(error)

    def _project(self) -> None:
        """Take the lock and project; returns once stopping is set, raises what is wrong with the database."""
        engine = open_projector(self._url)
        try:
            projector = Projector(
                self._settings.kafka,
                topics=self._settings.topics,
                store=TaskStoreWriter(engine),
                trust=self._trust,
            )
            self._is_standby = False
            logger.info("projector_started", database=self._shown)
            asyncio.run(projector.run(self._stopping.is_set))
        finally:
            engine.dispose()

    def _recover(self, error: DBAPIError | DamagedStoreError | PoolTimeoutError) -> None:
        """Wait; the next round reads how far the store is, and goes on from there."""
        reason = " ".join(str(error.orig if isinstance(error, DBAPIError) else error).split())
        delay_seconds = self._backoff.next_seconds()
        logger.error("database_unusable", database=self._shown, reason=reason, retry_in_seconds=round(delay_seconds, 1))
        self._stopping.wait(delay_seconds)
        if fault_of(error) is DatabaseFault.NO_SCHEMA and not self._stopping.is_set():
            try:
                prepare_database(self._url)
            except DatabaseUnusableError as unusable:
                logger.error("database_unusable", database=self._shown, reason=str(unusable))  # noqa: TRY400 - no fault here
