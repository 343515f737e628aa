"""How the projector's process handles damage and loss of its file and a full disk; without a broker."""

import asyncio
import json
import os
import signal
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from fluxpool_contract.kafka.topics import TopicNames
from fluxpool_gateway.settings import EXIT_CONFIGURATION
from fluxpool_gateway.store.damage import report_damage
from fluxpool_gateway.store.database import identity_of
from fluxpool_gateway.store.reading import StoreUnavailableError, TaskStoreReader
from kit.faults.disk import small_disk
from kit.gateways.gateway_process import (
    START_DEADLINE_SECONDS,
    STOP_DEADLINE_SECONDS,
    gateway_settings,
    start_projector,
)
from kit.programs.processes import whole_lines
from kit.programs.warm_start import Program
from kit.waiting import PATIENCE, wait_until_blocking

UNREACHABLE = "127.0.0.1:1"


@dataclass(slots=True)
class ProjectorProcess:
    """A projector without a gateway."""

    process: Program
    file: Path
    log_path: Path

    def events(self) -> list[dict[str, object]]:
        """What it logged."""
        lines = whole_lines(self.log_path)
        assert not any("Traceback" in line for line in lines), "\n".join(lines)
        return [json.loads(line) for line in lines if line.startswith("{")]

    def count(self, name: str) -> int:
        """How many events of this name it logged."""
        return sum(event["event"] == name for event in self.events())

    def wait_for_event(self, name: str) -> dict[str, object]:
        """The first event of this name."""

        def found() -> bool:
            assert self.process.poll() is None, self.log_path.read_text()
            return any(event["event"] == name for event in self.events())

        wait_until_blocking(found, deadline_seconds=30, what=name)
        return next(event for event in self.events() if event["event"] == name)

    def beats_after(self, spoil: Callable[[], None]) -> str | None:
        """Spoil something; return why the store was rebuilt, once the new store has a heartbeat."""
        reader = TaskStoreReader(self.file)
        because: str | None = None

        def beaten() -> bool:
            nonlocal because
            assert self.process.poll() is None, self.log_path.read_text()
            try:
                heartbeat = asyncio.run(reader.heartbeat())
            except StoreUnavailableError:
                return False
            because = None if heartbeat is None else heartbeat.rebuilt_because
            return because is not None

        spoil()
        try:
            wait_until_blocking(beaten, deadline_seconds=30, what="a heartbeat in the new store")
        finally:
            reader.close()
        return because


@contextmanager
def running_projector(file: Path, log_path: Path) -> Iterator[ProjectorProcess]:
    settings = gateway_settings(UNREACHABLE, log_path.parent, TopicNames(), database_file=file)
    process = start_projector(settings, log_path=log_path)
    try:
        yield ProjectorProcess(process, file, log_path)
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(STOP_DEADLINE_SECONDS)
        finally:
            process.kill()
            process.wait()


def checkpoint(file: Path) -> None:
    """Move everything into the main file; damage to pages that the write-ahead log also holds has no effect."""
    with closing(sqlite3.connect(file)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")


def delete(file: Path) -> None:
    file.unlink()


def delete_log(file: Path) -> None:
    for suffix in ("-wal", "-shm"):
        file.with_name(file.name + suffix).unlink()


def empty(file: Path) -> None:
    checkpoint(file)
    os.truncate(file, 0)


def overwrite(file: Path) -> None:
    checkpoint(file)
    with file.open("r+b") as raw:
        raw.write(b"\xa5" * file.stat().st_size)


def replace(file: Path) -> None:
    other = file.with_name("other")
    other.write_bytes(b"anything")
    other.replace(file)


def drop_tables(file: Path) -> None:
    with closing(sqlite3.connect(file)) as connection, connection:
        connection.execute("DROP TABLE projector_heartbeat")


def report(file: Path) -> None:
    identity = identity_of(file)
    assert identity is not None
    report_damage(file, identity)


@pytest.mark.parametrize("spoil", [delete, delete_log, empty, overwrite, replace, drop_tables, report])
def test_a_store_that_is_damaged_while_in_use_is_rebuilt_by_the_same_process(
    tmp_path: Path, spoil: Callable[[Path], None]
) -> None:
    file = tmp_path / "store" / "tasks.sqlite"
    with running_projector(file, tmp_path / "log") as projector:
        projector.wait_for_event("projector_started")
        because = projector.beats_after(lambda: spoil(file))
        damaged = projector.wait_for_event("database_damaged")
    assert because is not None
    assert str(file) in because
    assert damaged["database_file"] == str(file)
    moved_to = damaged["moved_to"]
    assert moved_to is None if spoil is delete else Path(str(moved_to)).exists()


def test_a_deleted_folder_of_the_store_is_recreated(tmp_path: Path) -> None:
    file = tmp_path / "store" / "tasks.sqlite"

    def delete_folder() -> None:
        for path in file.parent.iterdir():
            path.unlink()
        file.parent.rmdir()

    with running_projector(file, tmp_path / "log") as projector:
        projector.wait_for_event("projector_started")
        assert projector.beats_after(delete_folder) is not None


def test_a_full_disk_is_named_with_its_remedy_and_waited_for(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk") as disk:
        file = disk.folder / "tasks.sqlite"
        with running_projector(file, tmp_path / "log") as projector:
            projector.wait_for_event("projector_started")
            with closing(sqlite3.connect(file)) as connection:
                connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            disk.fill()
            unusable = projector.wait_for_event("database_unusable")
            assert unusable["database_file"] == str(file)
            assert unusable["remedy"] == f"see that the disk of {disk.folder} is well and has free space"
            # Counted while it cannot start: it may start at once when there is space.
            started = projector.count("projector_started")
            disk.free()
            wait_until_blocking(
                lambda: projector.count("projector_started") > started,
                deadline_seconds=30,
                what="the projector to continue",
            )
            assert not any(event["event"] == "database_damaged" for event in projector.events())


def test_a_store_that_cannot_be_moved_aside_is_named_with_its_remedy(tmp_path: Path) -> None:
    file = tmp_path / "store" / "tasks.sqlite"
    with running_projector(file, tmp_path / "log") as projector:
        projector.wait_for_event("projector_started")
        # A folder of that name cannot be deleted as an earlier damaged file is.
        (file.parent / f"{file.name}.damaged-folder").mkdir()
        overwrite(file)
        unusable = projector.wait_for_event("database_unusable")
        assert f"let the gateway's user write {file.parent}, or delete {file}" in str(unusable["remedy"])
        assert "cannot be moved aside" in str(unusable["reason"])
        (file.parent / f"{file.name}.damaged-folder").rmdir()
        assert projector.beats_after(lambda: None) is not None


def test_a_file_that_is_no_store_is_refused_and_not_changed(tmp_path: Path) -> None:
    file = tmp_path / "notes.txt"
    file.write_text("these are notes, and long ones at that; no database begins like this")
    with running_projector(file, tmp_path / "log") as projector:
        assert projector.process.wait(START_DEADLINE_SECONDS * PATIENCE) == EXIT_CONFIGURATION
        assert f"database_file: {file} cannot be used as a database" in projector.log_path.read_text()
    assert file.read_text().startswith("these are notes")
