"""The folder of one local stack: its layout, the stored ports, and the lock of the process that runs the stack.

Stacks in different folders share nothing; a stack that starts again in its folder has its images, tasks and addresses.
"""

import fcntl
import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from fluxpool_cli.local.loopback import HOST, free_port, is_free

DEFAULT_NAME = ".fluxpool"
_LOCK = "supervisor.lock"
_PRIVATE_FOLDER = 0o700
_PRIVATE_FILE = 0o600
_PORTS = range(1, 65_536)


class DataDirError(Exception):
    """The folder cannot be used; the message says why and what to do."""


class AlreadyRunningError(DataDirError):
    """Another process runs the stack of this folder."""


class DataDir:
    """The layout of the folder, which need not exist yet."""

    def __init__(self, path: Path) -> None:
        self.path: Final = path.resolve()
        self.kafka: Final = self.path / "kafka"
        """Of the broker."""
        self.images: Final = self.path / "images"
        """The object store."""
        self.tiny_model: Final = self.path / "tiny-model"
        """The checkpoint that workers serve unless told otherwise."""
        self.logs: Final = self.path / "logs"
        """One file for each process; the broker's are in its own folder."""
        self.supervisor_log: Final = self.logs / "supervisor.log"
        """Of a detached supervisor."""
        self.database: Final = self.path / "gateway.db"
        """The gateway's task store."""
        self.tenant_secret: Final = self.path / "tenant-secret"
        """The key by which the gateway proves tenants to workers."""
        self.state: Final = self.path / "state.json"
        """What runs; there only while something runs."""
        self.results_export: Final = self.path / "results.jsonl"
        """The results topic, one record a line, as a demo leaves it."""

    def create(self) -> None:
        """Make the folders; raises `DataDirError` when that fails."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            for folder in (self.path, self.images, self.logs):
                # Other users of the machine must not read prompts and images.
                folder.mkdir(mode=_PRIVATE_FOLDER, exist_ok=True)
            for file in (self.path / _LOCK, self.supervisor_log):
                file.touch(mode=_PRIVATE_FILE)
            if not self.tenant_secret.exists():
                # Whole or not at all: a part that finds half a key does not start.
                fresh = self.tenant_secret.with_suffix(".new")
                fresh.touch(mode=_PRIVATE_FILE)
                fresh.write_text(f"{secrets.token_hex(32)}\n")
                fresh.replace(self.tenant_secret)
        except OSError as error:
            raise self._refused("cannot be made or written to", error) from None

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the folder; the kernel releases the lock when the process ends, however it ends.

        Raises `AlreadyRunningError` when another process holds it.
        """
        try:
            # Opened for reading, so that `is_locked` also works in a folder that it may not write to.
            opened = (self.path / _LOCK).open("rb")
        except OSError as error:
            raise self._refused("cannot be used", error) from None
        with opened as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise AlreadyRunningError(
                    f"a stack already runs in {self.path}; end it with `fluxpool local down --data-dir {self.path}`"
                ) from None
            yield

    def is_locked(self) -> bool:
        """Whether a process runs the stack of this folder.

        Takes the lock for a moment: a supervisor that starts in that moment is refused, as by another supervisor.
        """
        if not (self.path / _LOCK).is_file():
            return False
        try:
            with self.lock():
                return False
        except AlreadyRunningError:
            return True

    def gateway_port(self, asked: int | None) -> int:
        """The port asked for, else the stored one, else a free one; stored for the next start.

        Addresses of images hold this port. Raises `DataDirError` when it is taken.
        """
        file = self.path / "ports.json"
        try:
            kept = json.loads(file.read_text())["gateway"]
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            kept = None
        port = asked or (kept if isinstance(kept, int) and kept in _PORTS else None) or free_port()
        if not is_free(port):
            whose = "--gateway-port" if asked else "the stored port of the gateway"
            raise DataDirError(
                f"{whose}: {port} is in use on {HOST}; stop what listens there, or choose another with --gateway-port "
                "(addresses of earlier images then change)"
            )
        try:
            file.touch(mode=_PRIVATE_FILE)
            file.write_text(json.dumps({"gateway": port}))
        except OSError as error:
            raise self._refused("cannot be written to", error) from None
        return port

    def _refused(self, what: str, error: OSError) -> DataDirError:
        return DataDirError(f"--data-dir: {self.path} {what} ({error.strerror or error}); name another")


@contextmanager
def private_files() -> Iterator[None]:
    """Files made in the block, by this process or its children, are readable by its user alone."""
    before = os.umask(0o077)
    try:
        yield
    finally:
        os.umask(before)
