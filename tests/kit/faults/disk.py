"""A disk that is full on demand: a small, separate file system."""

import errno
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest

_BALLAST: Final = ".ballast"
_CHUNK_BYTES: Final = 64 * 1024


class SmallDisk:
    """A mounted folder with little space."""

    def __init__(self, folder: Path) -> None:
        """Take a folder that is mounted already; see `small_disk`."""
        self.folder = folder

    @property
    def free_bytes(self) -> int:
        """Remaining space."""
        usage = os.statvfs(self.folder)
        return usage.f_bavail * usage.f_frsize

    def fill(self) -> None:
        """Use up all space: writes now fail with ENOSPC."""
        with (self.folder / _BALLAST).open("ab", buffering=0) as ballast:
            try:
                while True:
                    ballast.write(bytes(_CHUNK_BYTES))
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise

    def free(self) -> None:
        """Release the space that `fill` used."""
        (self.folder / _BALLAST).unlink(missing_ok=True)


@contextmanager
def small_disk(folder: Path, *, size_bytes: int = 8 * 1024 * 1024) -> Iterator[SmallDisk]:
    """Mount a file system in memory on a new folder; skips the test where this user may not mount."""
    folder.mkdir(parents=True)
    mounted = _run("mount", "-t", "tmpfs", "-o", f"size={size_bytes},mode=0755", "tmpfs", str(folder))
    if mounted.returncode:
        pytest.skip(f"a full disk needs the right to mount a file system: {mounted.stderr.strip()}")
    try:
        yield SmallDisk(folder)
    finally:
        # Lazily, because a worker that was just killed may still hold it for a moment.
        unmounted = _run("umount", "--lazy", str(folder))
        assert unmounted.returncode == 0, unmounted.stderr


def _run(*command: str) -> "subprocess.CompletedProcess[str]":
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    except FileNotFoundError as error:
        return subprocess.CompletedProcess(command, 127, "", str(error))
