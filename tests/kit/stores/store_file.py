"""A task store in a SQLite file, with the schema of this release, and the file of webhooks beside it.

Made once by the migrations for a process of tests and copied for each test: a fifth of their time.
"""

import secrets
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from sqlalchemy import Engine, update

from fluxpool_gateway.feedback.records import FeedbackSeen
from fluxpool_gateway.store.database import open_writer
from fluxpool_gateway.store.migration import migrate
from fluxpool_gateway.store.tables import change_counter
from fluxpool_gateway.store.task_state import Change, RecordRef
from fluxpool_gateway.store.task_store import QuarantinedRecord, TaskStoreWriter
from fluxpool_gateway.webhooks.start import prepare_webhooks


@contextmanager
def opened_store(file: Path) -> Iterator[Engine]:
    """Create or open it; the connections are closed at the end."""
    is_new = not file.exists()
    if is_new:
        file.write_bytes(_migrated_store())
    engine = open_writer(file)
    try:
        if is_new:
            _name_store(engine)
        else:
            migrate(engine, file)
        yield engine
    finally:
        engine.dispose()


def write_store(
    file: Path, records: Sequence[tuple[RecordRef, Change | FeedbackSeen]], *, size: int
) -> list[QuarantinedRecord]:
    """Create it and apply records, so many at a time; returns those that it could not take."""
    quarantined: list[QuarantinedRecord] = []
    with opened_store(file) as engine:
        store = TaskStoreWriter(engine)
        for start in range(0, len(records), size):
            quarantined += store.apply(records[start : start + size], {}, now_ms=7)
    return quarantined


def make_webhooks(file: Path) -> None:
    """Create the file of webhooks."""
    assert not file.exists()
    file.write_bytes(_migrated_webhooks())


@cache
def _migrated_store() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "tasks.sqlite")
        engine = open_writer(file)
        migrate(engine, file)
        # The last connection writes the log of changes into the file.
        engine.dispose()
        return file.read_bytes()


@cache
def _migrated_webhooks() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "webhooks.db")
        prepare_webhooks(file)
        return file.read_bytes()


def _name_store(engine: Engine) -> None:
    """Give a copy the numbers that the migration would: those of no other store."""
    first = time.time_ns() // 1_000_000 * 1000 + secrets.randbelow(1000)
    with engine.begin() as connection:
        connection.execute(update(change_counter).values(first_number=first, last_number=first))
