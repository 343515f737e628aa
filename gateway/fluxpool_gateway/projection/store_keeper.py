"""Keeps the projector running on its database file: damage is moved aside and rebuilt, a full disk is waited for.

Owns what follows a failure of the file. Called by the program `fluxpool_gateway.projector`, which holds the lock; the
projecting itself is `projection.projector`.
"""

import asyncio
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final, assert_never

import structlog
from sqlalchemy.exc import DatabaseError

from fluxpool_contract.tenants import TenantTrust
from fluxpool_gateway.projection.projector import Projector
from fluxpool_gateway.settings import GatewaySettings
from fluxpool_gateway.store.damage import move_aside, remove_orphans, take_damage_report
from fluxpool_gateway.store.database import DatabaseUnusableError, StoreIdentity, identity_of, open_writer
from fluxpool_gateway.store.database_faults import DamagedStoreError, DatabaseFault, fault_of
from fluxpool_gateway.store.migration import migrate
from fluxpool_gateway.store.task_store import TaskStoreWriter
from fluxpool_transport.process import Backoff

RETRY_SECONDS: Final = 0.5
MAX_RETRY_SECONDS: Final = 15.0
"""So that a disk that damages every file is not worn out by rebuilding."""
STEADY_SECONDS: Final = 30.0
"""A store that worked for so long gets the first delay again."""
_CHECK_SECONDS: Final = 0.5

logger = structlog.stdlib.get_logger(__name__)


class StoreKeeper:
    """Projects into the file until SIGTERM, through everything that may happen to the file."""

    def __init__(
        self, settings: GatewaySettings, *, trust: TenantTrust, stopping: threading.Event, is_foreign: bool
    ) -> None:
        """`is_foreign`: no projector ever wrote the file. It is refused when unusable, never moved aside."""
        self._settings = settings
        self._file = settings.task_store_file()
        self._trust = trust
        self._stopping = stopping
        self._is_foreign = is_foreign
        self._was_opened = False
        self._rebuilt_because: str | None = None
        self._backoff = Backoff(initial_seconds=RETRY_SECONDS, maximum_seconds=MAX_RETRY_SECONDS)

    def run(self) -> None:
        """Return once stopping is set; raises `DatabaseUnusableError` or `OSError` when the file never was opened."""
        while not self._stopping.is_set():
            started_at = time.monotonic()
            try:
                self._project()
                continue
            except (DatabaseError, DamagedStoreError) as error:
                if time.monotonic() - started_at > STEADY_SECONDS:
                    self._backoff.reset()
                reason = str(error.orig) if isinstance(error, DatabaseError) else str(error)
                self._recover(fault_of(error), reason)
            except OSError as error:
                if not self._was_opened:
                    raise
                self._wait(f"let the gateway's user write {self._file.parent}", str(error))

    def _project(self) -> None:
        """Open the file and project; returns once stopping is set, raises what is wrong with the file."""
        self._file.parent.mkdir(parents=True, exist_ok=True)
        remove_orphans(self._file)
        engine = open_writer(self._file)
        try:
            migrate(engine, self._file)
            projector = Projector(
                self._settings.kafka,
                topics=self._settings.topics,
                store=TaskStoreWriter(engine),
                trust=self._trust,
                rebuilt_because=self._rebuilt_because,
            )
            self._was_opened = True
            logger.info("projector_started", database_file=str(self._file))
            asyncio.run(projector.run(_StopCheck(self._file, identity_of(self._file), self._stopping)))
        finally:
            engine.dispose()

    def _recover(self, fault: DatabaseFault, reason: str) -> None:
        if not self._was_opened and (self._is_foreign or fault is DatabaseFault.INACCESSIBLE):
            raise DatabaseUnusableError(
                f"database_file: {self._file} cannot be used as a database ({reason}); let the gateway's user write "
                "it and its folder, or delete the file: it is built again from Kafka"
            )
        match fault:
            case DatabaseFault.DAMAGED | DatabaseFault.NO_SCHEMA:
                self._rebuild(reason)
            case DatabaseFault.INACCESSIBLE:
                self._wait(f"let the gateway's user write {self._file.parent} and all in it", reason)
            case DatabaseFault.TRANSIENT:
                self._wait(f"see that the disk of {self._file.parent} is well and has free space", reason)
            case unknown:
                assert_never(unknown)

    def _rebuild(self, reason: str) -> None:
        """Move the damaged file aside; the next round makes a new one and reads every topic from its beginning."""
        try:
            aside = move_aside(self._file)
        except OSError as error:
            self._wait(
                f"let the gateway's user write {self._file.parent}, or delete {self._file} and what begins with its "
                "name: it is built again from Kafka",
                f"{reason}; it cannot be moved aside ({error.strerror})",
            )
            return
        self._rebuilt_because = f"{self._file} was damaged ({reason})"
        logger.error(
            "database_damaged",
            database_file=str(self._file),
            reason=reason,
            moved_to=None if aside is None else str(aside),
            remedy="none is needed: the store is being rebuilt from Kafka; the moved file may be deleted",
        )
        self._stopping.wait(self._backoff.next_seconds())

    def _wait(self, remedy: str, reason: str) -> None:
        delay_seconds = self._backoff.next_seconds()
        logger.error(
            "database_unusable",
            database_file=str(self._file),
            reason=reason,
            remedy=remedy,
            retry_in_seconds=round(delay_seconds, 1),
        )
        self._stopping.wait(delay_seconds)


@dataclass(slots=True)
class _StopCheck:
    """Whether to stop, asked between batches; twice a second also whether the file is still the one that was opened."""

    file: Path
    opened: StoreIdentity | None
    stopping: threading.Event
    check_at: float = 0.0

    def __call__(self) -> bool:
        """Raises `DamagedStoreError`."""
        now = time.monotonic()
        if now >= self.check_at:
            self.check_at = now + _CHECK_SECONDS
            found = identity_of(self.file)
            if found is None:
                raise DamagedStoreError("the file was deleted")
            # Readers that open the path from now on would not see what is written here, and another writer's log
            # would overwrite it.
            if found != self.opened:
                raise DamagedStoreError("the file, its write-ahead log or its index was deleted or replaced")
            if take_damage_report(self.file):
                raise DamagedStoreError("a reader found damage")
        return self.stopping.is_set()
