"""Choices that the processes of one program share through memory, before their records are in any log.

Owns one ring of the latest choices for each process, in a folder that all of them know. Knows nothing of loads. A ring
has one writer, which holds its lock; the others only read. An entry counts once the number of entries is stored, 8
aligned bytes at once, so that a writer that is killed leaves a whole ring: the next process continues it.
"""

import fcntl
import itertools
import mmap
import os
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

RING_ENTRIES: Final = 1024
"""A reader that is farther behind misses some: it looks before each of its own choices, and is busy otherwise."""
MAX_AGE_SECONDS: Final = 1.0
"""Older choices are in the readings of the lag, or were never written."""
_HEADER_BYTES: Final = 64
_ENTRY: Final = struct.Struct("=IIdd")
"""Checksum of the topic's name, partition, work, monotonic seconds, which all processes of a machine share."""
_FILE_BYTES: Final = _HEADER_BYTES + RING_ENTRIES * _ENTRY.size


@dataclass(frozen=True, slots=True)
class SharedSend:
    """The choice of another process."""

    topic: str
    partition: int
    work: float
    at: float


class _Ring:
    """One file as memory; `count` is how many entries were ever written to it."""

    def __init__(self, file: Path) -> None:
        with file.open("r+b") as opened:
            self._memory = memoryview(mmap.mmap(opened.fileno(), _FILE_BYTES))
        self._count = self._memory[:8].cast("Q")
        self.read = self.count
        """How far this process has read it."""

    @property
    def count(self) -> int:
        return self._count[0]

    def append(self, *values: float) -> None:
        count = self._count[0]
        _ENTRY.pack_into(self._memory, self._place(count), *values)
        # Last: a process that reads this number finds the entry.
        self._count[0] = count + 1

    def unread(self) -> Iterator[tuple[int, int, float, float]]:
        """What was written since the last call, but for what has been written over."""
        count = self._count[0]
        first, self.read = max(self.read, count - RING_ENTRIES), count
        for number in range(first, count):
            entry = _ENTRY.unpack_from(self._memory, self._place(number))
            # One less: the next entry may be half written over this one.
            if self._count[0] - number < RING_ENTRIES:
                yield entry

    @staticmethod
    def _place(number: int) -> int:
        return _HEADER_BYTES + number % RING_ENTRIES * _ENTRY.size


class SharedSends:
    """The rings of a folder; one instance a process, which belongs to one event loop."""

    def __init__(self, folder: Path) -> None:
        """Takes a ring that no living process has; raises `OSError` when the folder is gone or full."""
        self._folder = folder
        self._own_file, self._own = _take_ring(folder)
        self._others: dict[Path, _Ring] = {}
        self._topics: dict[int, str] = {}
        self.find_others()

    def find_others(self) -> None:
        """Look for the rings of processes that have started since."""
        for file in self._folder.glob("sends-*.ring"):
            if file != self._own_file and file not in self._others:
                self._others[file] = _Ring(file)

    def know(self, topic: str) -> None:
        """Take notice of choices for this topic."""
        self._topics[zlib.crc32(topic.encode())] = topic

    def tell(self, topic: str, *, partition: int, work: float, now: float) -> None:
        """A record was sent to a partition."""
        self._own.append(zlib.crc32(topic.encode()), partition, work, now)

    def news(self, *, now: float) -> list[SharedSend]:
        """What the other processes told since the last call."""
        found = []
        for ring in self._others.values():
            if ring.count != ring.read:
                for checksum, partition, work, at in ring.unread():
                    topic = self._topics.get(checksum)
                    if topic is not None and now - at <= MAX_AGE_SECONDS:
                        found.append(SharedSend(topic, partition, work, at))
        return found


def _take_ring(folder: Path) -> tuple[Path, _Ring]:
    for number in itertools.count():
        lock = os.open(folder / f"sends-{number}.lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            # Never closed: the kernel releases it when the process has ended, however that came.
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            continue
        file = folder / f"sends-{number}.ring"
        if not file.exists():
            unfinished = file.with_suffix(".new")
            with unfinished.open("wb") as opened:
                # At once: a store to a page that finds no room in the file system ends the process (SIGBUS).
                os.posix_fallocate(opened.fileno(), 0, _FILE_BYTES)
            unfinished.rename(file)
        return file, _Ring(file)
    raise AssertionError("numbers do not end")
