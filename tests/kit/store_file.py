"""A task store in a SQLite file, with the schema of this release."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import Engine

from fluxpool_gateway.store.database import open_writer
from fluxpool_gateway.store.migration import migrate


@contextmanager
def opened_store(file: Path) -> Iterator[Engine]:
    """Create or open it; the connections are closed at the end."""
    engine = open_writer(file)
    try:
        migrate(engine, file)
        yield engine
    finally:
        engine.dispose()
