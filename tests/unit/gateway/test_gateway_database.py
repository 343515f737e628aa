"""The SQLite file of the gateway: what stays of its companions, and of what was deleted."""

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pytest

from fluxpool_gateway.store.database import MAX_IDLE_WAL_BYTES, open_writer
from fluxpool_gateway.store.migration import migrate
from fluxpool_gateway.store.reading import TaskStoreReader
from fluxpool_gateway.store.task_list import ListFilter, ListOrder
from fluxpool_gateway.store.task_state import DeletionSeen, TaskSeen
from fluxpool_gateway.store.task_store import TaskStoreWriter

SECRET = b"a secret fox"


@dataclass(slots=True)
class Store:
    file: Path
    writer: TaskStoreWriter
    written: int = 0

    def write(self, *request_ids: str, prompt: bytes = b"x" * 60_000) -> None:
        """Tasks whose bodies are as large as any."""
        changes = [
            (
                ("tasks", 0, self.written + number),
                TaskSeen(
                    request_id=request_id,
                    tenant="default",
                    body=f'{{"prompt":"{prompt.decode()}"}}',
                    priority="standard",
                    created_at_ms=1,
                ),
            )
            for number, request_id in enumerate(request_ids)
        ]
        self.written += len(changes)
        self.writer.apply(changes, {}, now_ms=1)

    def log_bytes(self) -> int:
        return self.file.with_name(f"{self.file.name}-wal").stat().st_size

    def checkpoint(self) -> bool:
        """Write the log back and empty it; whether no reader was in the way."""
        with closing(sqlite3.connect(self.file, timeout=0)) as connection:
            busy, _, _ = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        return not busy


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    file = tmp_path / "tasks.sqlite"
    engine = open_writer(file)
    migrate(engine, file)
    yield Store(file, TaskStoreWriter(engine))
    engine.dispose()


def test_the_log_that_a_forgotten_shell_made_grow_is_cut_when_it_has_gone(store: Store) -> None:
    with closing(sqlite3.connect(store.file, isolation_level=None)) as shell:
        shell.execute("BEGIN")
        shell.execute("SELECT count(*) FROM task").fetchone()
        for number in range(8):
            store.write(*(f"r-{number}-{place}" for place in range(60)))
        assert store.log_bytes() > MAX_IDLE_WAL_BYTES
    for number in range(3):
        store.write(f"later-{number}")
    assert store.log_bytes() <= MAX_IDLE_WAL_BYTES


async def test_a_page_that_ends_early_leaves_no_reader_in_the_way_of_the_log(store: Store) -> None:
    store.write(*(f"r-{number}" for number in range(9)), prompt=b"x")
    reader = TaskStoreReader(store.file)
    page = await reader.list(ListFilter(tenant="default"), order=ListOrder.DESC, limit=2)
    assert page.next is not None
    assert store.checkpoint()
    reader.close()


def test_the_prompt_of_a_deleted_task_is_in_none_of_the_files(store: Store) -> None:
    # Longer than a page: what it fills otherwise is overwritten anyway.
    store.write("r-1", prompt=SECRET * 1000)
    assert store.checkpoint()
    assert SECRET in store.file.read_bytes()
    store.writer.apply([(("results", 0, 0), DeletionSeen(request_id="r-1", tenant="default"))], {}, now_ms=1)
    assert store.checkpoint()
    assert [file.name for file in store.file.parent.iterdir() if SECRET in file.read_bytes()] == []
