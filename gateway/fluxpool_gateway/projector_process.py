"""The projector's process: one for each database, whoever starts how many gateways on it."""

import fcntl
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

import structlog

from fluxpool_gateway.child import EXIT_CONFIGURATION
from fluxpool_gateway.projector import Projector
from fluxpool_gateway.settings import GatewaySettings
from fluxpool_gateway.store.database import open_writer
from fluxpool_gateway.store.migration import DatabaseFileError, migrate
from fluxpool_gateway.store.task_store import TaskStoreWriter
from fluxpool_transport.kafka_clients import librdkafka_options

CLIENT_ID: Final = "fluxpool-projector"
LOCK_SUFFIX: Final = ".projector-lock"
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
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with _sole_projector(file, stopping=stopping, standing_by=ready) as stood_by:
            if stopping.is_set():
                return 0
            engine = open_writer(file)
            migrate(engine, file)
            if not stood_by:
                ready()
            projector = Projector(
                librdkafka_options(settings.kafka, client_id=CLIENT_ID),
                topics=settings.topics,
                store=TaskStoreWriter(engine),
            )
            logger.info("projector_started", database_file=str(file))
            projector.run(stopping.is_set)
            engine.dispose()
    except DatabaseFileError as error:
        sys.stderr.write(f"fluxpool-gateway: {error}\n")
        return EXIT_CONFIGURATION
    except OSError as error:
        sys.stderr.write(f"fluxpool-gateway: database_file: {file} cannot be used ({error.strerror}); choose another\n")
        return EXIT_CONFIGURATION
    logger.info("projector_stopped")
    return 0


@contextmanager
def _sole_projector(file: Path, *, stopping: threading.Event, standing_by: Callable[[], None]) -> Iterator[bool]:
    """Hold the lock of the database; yields whether it had to be waited for. Given up by the kernel on any end."""
    stood_by = False
    with file.with_name(file.name + LOCK_SUFFIX).open("a") as lock:
        while not stopping.is_set():
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if not stood_by:
                    stood_by = True
                    logger.info("projector_stands_by", database_file=str(file))
                    standing_by()
            stopping.wait(_LOCK_INTERVAL_SECONDS)
        yield stood_by
