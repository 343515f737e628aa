"""The folder of one local stack: where everything lies in it, which ports it keeps, and the lock of who runs it.

Two stacks in two folders never meet; a stack that comes back in its folder finds its images, tasks and addresses again.
"""

import fcntl
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from fluxpool_cli.local.loopback import HOST, free_port, is_free

DEFAULT_NAME = ".fluxpool"


class DataDirError(Exception):
    """The folder cannot be used; the message says why and what to do."""


class AlreadyRunningError(DataDirError):
    """Another process runs the stack of this folder."""


@dataclass(frozen=True, slots=True)
class DataDir:
    """The layout of the folder; `path` is absolute."""

    path: Path

    @classmethod
    def at(cls, path: Path) -> "DataDir":
        """The folder, which need not exist yet."""
        return cls(path.resolve())

    @property
    def kafka(self) -> Path:
        """Of the broker."""
        return self.path / "kafka"

    @property
    def images(self) -> Path:
        """The object store."""
        return self.path / "images"

    @property
    def tiny_model(self) -> Path:
        """The checkpoint that workers serve unless told otherwise."""
        return self.path / "tiny-model"

    @property
    def logs(self) -> Path:
        """One file for each process; the broker's are in its own folder."""
        return self.path / "logs"

    @property
    def database(self) -> Path:
        """The gateway's task store."""
        return self.path / "gateway.db"

    @property
    def state(self) -> Path:
        """What runs; there only while something runs."""
        return self.path / "state.json"

    @property
    def results_export(self) -> Path:
        """The results topic, one record a line, as a demo leaves it."""
        return self.path / "results.jsonl"

    def create(self) -> None:
        """Make the folders; raises `DataDirError` when that cannot be."""
        try:
            for folder in (self.path, self.images, self.logs):
                folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DataDirError(f"--data-dir: {self.path} cannot be made ({error.strerror}); name another") from None

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the folder; the system lets go of it when the process ends, however it ends.

        Raises `AlreadyRunningError` when another process holds it.
        """
        with (self.path / "supervisor.lock").open("a") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise AlreadyRunningError(
                    f"a stack already runs in {self.path}; end it with `fluxpool local down --data-dir {self.path}`"
                ) from None
            yield

    def is_locked(self) -> bool:
        """Whether some process runs the stack of this folder."""
        if not (self.path / "supervisor.lock").is_file():
            return False
        try:
            with self.lock():
                return False
        except AlreadyRunningError:
            return True

    def gateway_port(self, asked: int | None) -> int:
        """The port asked for, else the one of last time, else a free one; kept for the next time.

        Addresses of images hold this port. Raises `DataDirError` when it is taken.
        """
        file = self.path / "ports.json"
        try:
            kept = json.loads(file.read_text())["gateway"]
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            kept = None
        port = asked or (kept if isinstance(kept, int) else None) or free_port()
        if not is_free(port):
            whose = "--gateway-port" if asked else "the port kept for the gateway"
            raise DataDirError(
                f"{whose}: {port} is in use on {HOST}; stop what listens there, or choose another with --gateway-port "
                "(addresses of earlier images then change)"
            )
        file.write_text(json.dumps({"gateway": port}))
        return port
