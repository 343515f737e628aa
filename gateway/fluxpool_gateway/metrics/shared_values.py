"""Values of metrics that all server processes of a gateway can read, also those of processes that have ended.

The multiprocess mode of prometheus_client: each process writes its values to files that are mapped into memory, and any
process adds them up. That mode names the files by pid, so those of every process that ever ended stay. Here a process
takes a number that no living one has and continues the counters that it finds: there are no more files than processes
ever ran at once. Owns the files; knows no metric.
"""

import fcntl
import itertools
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import structlog
from prometheus_client import values
from prometheus_client.core import Metric
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

FOLDER_VARIABLE: Final = "PROMETHEUS_MULTIPROC_DIR"
"""Where prometheus_client finds the folder."""
FOLDER_PREFIX: Final = "fluxpool-metrics-"
FILE_BYTES: Final = 128 * 1024
"""Of one kind of metrics of one process, allocated at once: a store to a mapped page that finds no room in the file
system ends the process (SIGBUS). Three times as much as all labels together take."""
_MEMORY: Final = Path("/dev/shm")  # noqa: S108 - folders in it are private (mkdtemp)
"""Not on a disk, which would have to write the changed pages. Containers have it also where their root is read-only."""
_FREE_BYTES: Final = 32 * 1024 * 1024
_KINDS: Final = ("counter", "histogram", "gauge_livesum")

logger = structlog.stdlib.get_logger(__name__)


@contextmanager
def shared_folder() -> Iterator[Path]:
    """A new, empty folder for the values of one gateway, removed at the end; raises `OSError`.

    Also removes those of gateways that were killed.
    """
    parent = _MEMORY if _has_room(_MEMORY) else Path(tempfile.gettempdir())
    made = Path(tempfile.mkdtemp(prefix=f".{FOLDER_PREFIX}", dir=parent))
    folder = made.with_name(made.name[1:])
    lock = os.open(made, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        # Only now under a name that another gateway looks at: a folder without a lock is one it may remove.
        made.rename(folder)
        _remove_abandoned(parent)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


@dataclass(frozen=True, slots=True, eq=False)
class SharedValues(Collector):
    """The values of all processes that share a folder."""

    folder: Path

    @classmethod
    def join(cls, folder: Path) -> "SharedValues":
        """Keep the values of all metrics that are made from now on in the folder; once in a process.

        Raises `OSError` when the folder is gone or full.
        """
        number = _take_number(folder)
        for kind in _KINDS:
            _allocate(folder / f"{kind}_{number}.db")
        os.environ[FOLDER_VARIABLE] = str(folder)
        values.ValueClass = values.MultiProcessValue(lambda: number)  # type: ignore[no-untyped-call]
        return cls(folder)

    def collect(self) -> Iterator[Metric]:
        """Yield the sums: of counters over all processes that ever were, of gauges over the living ones."""
        files = sorted(file for file in self.folder.glob("*.db") if not _is_gauge_of_ended(file))
        yield from MultiProcessCollector.merge(list(map(str, files)))  # type: ignore[no-untyped-call]


def _take_number(folder: Path) -> int:
    for number in itertools.count():
        lock = os.open(_lock_file(folder, number), os.O_RDWR | os.O_CREAT, 0o600)
        try:
            # Never closed: the kernel releases it when the process has ended, however that came.
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            continue
        for gauge in folder.glob(f"gauge_*_{number}.db"):
            gauge.unlink()
        return number
    raise AssertionError("numbers do not end")


def _lock_file(folder: Path, number: int | str) -> Path:
    return folder / f"{number}.lock"


def _allocate(file: Path) -> None:
    if file.exists():
        return
    # Under another name at first: readers fail on a file that has no size yet.
    unfinished = file.with_suffix(".new")
    with unfinished.open("wb") as opened:
        os.posix_fallocate(opened.fileno(), 0, FILE_BYTES)
    unfinished.rename(file)


def _is_gauge_of_ended(file: Path) -> bool:
    kind, _, number = file.stem.rpartition("_")
    return kind.startswith("gauge") and _is_free(_lock_file(file.parent, number))


def _is_free(path: Path) -> bool:
    """Whether no process holds the lock. A process that starts in this moment takes it for held, and the next one."""
    lock = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(lock)
    return True


def _has_room(folder: Path) -> bool:
    try:
        return os.access(folder, os.W_OK) and shutil.disk_usage(folder).free >= _FREE_BYTES
    except OSError:
        return False


def _remove_abandoned(parent: Path) -> None:
    for folder in parent.glob(f"{FOLDER_PREFIX}*"):
        # Those of other users cannot be opened.
        with suppress(OSError):
            if _is_free(folder):
                logger.info("abandoned_metrics_removed", folder=str(folder))
                shutil.rmtree(folder, ignore_errors=True)
