"""The projector's process: one for each database, whoever starts how many gateways on it."""

import asyncio
import fcntl
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final, assert_never

import structlog
from sqlalchemy.exc import DatabaseError

from fluxpool_gateway.process.child import EXIT_CONFIGURATION
from fluxpool_gateway.projection.projector import Projector
from fluxpool_gateway.settings import GatewaySettings
from fluxpool_gateway.store.damage import move_aside, remove_orphans, take_damage_report
from fluxpool_gateway.store.database import StoreIdentity, identity_of, open_writer
from fluxpool_gateway.store.database_faults import DamagedStoreError, DatabaseFault, fault_of
from fluxpool_gateway.store.migration import DatabaseFileError, migrate
from fluxpool_gateway.store.task_store import TaskStoreWriter

LOCK_SUFFIX: Final = ".projector-lock"
FIRST_PAUSE_SECONDS: Final = 0.5
LONGEST_PAUSE_SECONDS: Final = 15.0
STEADY_SECONDS: Final = 30.0
"""A store that was well for so long gets the first pause again."""
_CHECK_SECONDS: Final = 0.5
_LOCK_INTERVAL_SECONDS: Final = 0.5
_NICENESS: Final = 15
"""On a busy machine accepting requests goes before telling of them; a projection catches up, a client gives up."""

logger = structlog.stdlib.get_logger(__name__)


def run_projector(settings: GatewaySettings, *, ready: Callable[[], None]) -> int:
    """Project until SIGTERM; returns the exit status.

    Stands by while another process projects into the same file, and takes over when that one ends. `ready` is called
    once the schema is current.
    """
    stopping = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())
    # Its chatter about every start; what goes wrong is raised.
    logging.getLogger("alembic").setLevel(logging.WARNING)
    with suppress(PermissionError):
        os.nice(_NICENESS)
    file = settings.database_file
    # Only a projector makes a lock: without one this file was never a store, and may be anything of anybody's.
    is_strange = file.exists() and not _lock_of(file).exists()
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with _sole_projector(file, stopping=stopping, standing_by=ready) as stood_by:
            keeper = _StoreKeeper(
                settings, stopping=stopping, ready=(lambda: None) if stood_by else ready, is_strange=is_strange
            )
            keeper.run()
    except DatabaseFileError as error:
        sys.stderr.write(f"fluxpool-gateway: {error}\n")
        return EXIT_CONFIGURATION
    except OSError as error:
        sys.stderr.write(f"fluxpool-gateway: database_file: {file} cannot be used ({error.strerror}); choose another\n")
        return EXIT_CONFIGURATION
    logger.info("projector_stopped")
    return 0


class _StoreKeeper:
    """Projects into the file again and again: a damaged one is put aside and built anew, a lost one is made again."""

    def __init__(
        self, settings: GatewaySettings, *, stopping: threading.Event, ready: Callable[[], None], is_strange: bool
    ) -> None:
        """`is_strange` says that nobody projected into the file before: it is not moved aside, but refused."""
        self._is_strange = is_strange
        self._settings = settings
        self._file = settings.database_file
        self._stopping = stopping
        self._ready = ready
        self._is_ready = False
        self._rebuilt_because: str | None = None
        self._pause_seconds = FIRST_PAUSE_SECONDS

    def run(self) -> None:
        """Return after SIGTERM; raises `DatabaseFileError` when the file cannot even be opened at the start."""
        while not self._stopping.is_set():
            started_at = time.monotonic()
            try:
                self._project()
                continue
            except (DatabaseError, DamagedStoreError) as error:
                if time.monotonic() - started_at > STEADY_SECONDS:
                    self._pause_seconds = FIRST_PAUSE_SECONDS
                reason = str(error.orig) if isinstance(error, DatabaseError) else str(error)
                self._recover(fault_of(error), reason)
            except OSError as error:
                if not self._is_ready:
                    raise
                self._wait(f"let the gateway's user write {self._file.parent}", str(error))

    def _project(self) -> None:
        """Open the file and project until the end, or until something is wrong with it."""
        self._file.parent.mkdir(parents=True, exist_ok=True)
        remove_orphans(self._file)
        engine = open_writer(self._file)
        try:
            migrate(engine, self._file)
            projector = Projector(
                self._settings.kafka,
                topics=self._settings.topics,
                store=TaskStoreWriter(engine),
                rebuilt_because=self._rebuilt_because,
            )
            opened = identity_of(self._file)
            if not self._is_ready:
                self._is_ready = True
                self._ready()
            logger.info("projector_started", database_file=str(self._file))
            asyncio.run(projector.run(_Checks(self._file, opened, self._stopping)))
        finally:
            engine.dispose()

    def _recover(self, fault: DatabaseFault, reason: str) -> None:
        if not self._is_ready and (self._is_strange or fault is DatabaseFault.INACCESSIBLE):
            raise DatabaseFileError(
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
            remedy="none is needed: the store is being rebuilt from Kafka; delete what was moved when nobody needs it",
        )
        self._pause()

    def _wait(self, remedy: str, reason: str) -> None:
        logger.error(
            "database_unusable",
            database_file=str(self._file),
            reason=reason,
            remedy=remedy,
            retry_in_seconds=self._pause_seconds,
        )
        self._pause()

    def _pause(self) -> None:
        """Longer each time, so that a disk that damages every file is not worn out by rebuilding."""
        self._stopping.wait(self._pause_seconds)
        self._pause_seconds = min(2 * self._pause_seconds, LONGEST_PAUSE_SECONDS)


class _Checks:
    """Whether to stop; besides, looks now and then whether the file is still there and found to be sound."""

    def __init__(self, file: Path, opened: StoreIdentity | None, stopping: threading.Event) -> None:
        self._file = file
        self._opened = opened
        self._stopping = stopping
        self._check_at = 0.0

    def __call__(self) -> bool:
        """Raises `DamagedStoreError`."""
        now = time.monotonic()
        if now >= self._check_at:
            self._check_at = now + _CHECK_SECONDS
            found = identity_of(self._file)
            if found is None:
                raise DamagedStoreError("the file was deleted")
            # Whoever opens it from now on would not see what is written here, and overwrite it.
            if found != self._opened:
                raise DamagedStoreError("the file, its write-ahead log or its index was deleted or replaced")
            if take_damage_report(self._file):
                raise DamagedStoreError("a reader found damage")
        return self._stopping.is_set()


@contextmanager
def _sole_projector(file: Path, *, stopping: threading.Event, standing_by: Callable[[], None]) -> Iterator[bool]:
    """Hold the lock of the database; yields whether it had to be waited for. Given up by the kernel on any end."""
    stood_by = False
    with _lock_of(file).open("a") as lock:
        while not stopping.is_set():
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if not stood_by:
                    stood_by = True
                    logger.info("projector_standby", database_file=str(file))
                    standing_by()
            stopping.wait(_LOCK_INTERVAL_SECONDS)
        yield stood_by


def _lock_of(file: Path) -> Path:
    return file.with_name(file.name + LOCK_SUFFIX)
