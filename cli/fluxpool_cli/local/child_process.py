"""A program as a child process: it has its own log file, ends with this process, and is stopped with a deadline.

Owns the process; knows nothing of what it does or when it is ready. Bound to no event loop: it may be started in one
and stopped in another.
"""

import asyncio
import os
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

from fluxpool_cli.local.state_file import ProcessRecord
from fluxpool_transport.process import bound_command

_LOG_TAIL_LINES: Final = 25
_POLL_INTERVAL_SECONDS: Final = 0.02


class ChildProcess:
    """A program that dies with the one that started it, and with the *thread* that started it (prctl(2)).

    Start it from a thread that lives on, such as the main thread.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        *,
        log_path: Path,
        environment: Mapping[str, str] | None = None,
        folder: Path | None = None,
        error: Callable[[str], Exception] = RuntimeError,
    ) -> None:
        """Take a command line and the caller's own exception; starts nothing.

        Without `environment` and `folder` it runs in those of the caller.
        """
        self.name = name
        self.log_path = log_path
        self._command = list(command)
        self._environment = environment
        self._folder = folder
        self._error = error
        self._process: subprocess.Popen[bytes] | None = None
        self._record: ProcessRecord | None = None
        self._log_start_bytes = 0

    @property
    def pid(self) -> int | None:
        """The process id; null when it does not run."""
        return self._process.pid if self._process is not None and self._process.poll() is None else None

    @property
    def exit_status(self) -> int | None:
        """Null while it runs and before its first start; negative when a signal ended it."""
        return None if self._process is None else self._process.poll()

    def spawn(self) -> None:
        """Start the process, its output appended to the log file, and return at once; does nothing when it runs."""
        if self.pid is not None:
            return
        self.log_path.parent.mkdir(parents=True, exist_ok=True)
        with self.log_path.open("ab") as log:
            self._log_start_bytes = log.tell()
            self._process = subprocess.Popen(  # noqa: S603 - the command is the caller's own
                bound_command(self._command),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self._folder,
                env=None if self._environment is None else dict(self._environment),
                # The terminal then sends Ctrl-C to the starting program alone, which stops its children in order.
                start_new_session=True,
            )
        # Before anything polls: a process that has ended already is a zombie until then, and still has a start time.
        self._record = ProcessRecord.of(self.name, self._process.pid, log=self.log_path)

    def record(self, *, state: str = "running") -> ProcessRecord:
        """Its line in the state file; raises `RuntimeError` before its first start."""
        if self._record is None:
            raise RuntimeError(f"{self.name} was never started")
        return self._record.model_copy(update={"state": state})

    def terminate(self) -> None:
        """Send SIGTERM."""
        if self.pid is not None and self._process is not None:
            self._process.terminate()

    def send_kill(self) -> None:
        """Send SIGKILL to it and every process of its session; returns at once."""
        if self.pid is not None and self._process is not None:
            # Its pid is not reused before it is polled as dead, so the group is its own.
            os.killpg(self._process.pid, signal.SIGKILL)

    async def kill(self) -> None:
        """SIGKILL it and return once the process is gone."""
        self.send_kill()
        await self.wait()

    async def wait(self) -> int | None:
        """Return its exit status once it has ended; null when it was never started."""
        # Polled: asyncio's own way to wait for a child belongs to the loop that started it.
        while self.pid is not None:  # noqa: ASYNC110
            await asyncio.sleep(_POLL_INTERVAL_SECONDS)
        return self.exit_status

    async def stop(self, *, grace_seconds: float = 10) -> None:
        """Send SIGTERM; SIGKILL it when it still runs after the grace."""
        self.terminate()
        await self.end_within(grace_seconds)

    async def end_within(self, grace_seconds: float) -> None:
        """Wait for its end; SIGKILL it when it still runs after the grace."""
        try:
            async with asyncio.timeout(grace_seconds):
                await self.wait()
        except TimeoutError:
            await self.kill()

    def check_alive(self) -> None:
        """Raise the caller's exception, with the end of the log, when the started process has died."""
        if self.exit_status is not None:
            raise self.error(f"ended with status {self.exit_status}")

    def error(self, reason: str) -> Exception:
        """The caller's exception, which ends with the last lines of this process's log."""
        return self._error(f"{self.name} {reason}; the last lines of {self.log_path}:\n{self.log_tail()}")

    def log_tail(self, *, lines: int = _LOG_TAIL_LINES) -> str:
        """The last lines that the current (or last) process logged."""
        try:
            with self.log_path.open("rb") as log:
                log.seek(self._log_start_bytes)
                return "\n".join(log.read().decode(errors="replace").splitlines()[-lines:])
        except FileNotFoundError:
            return ""
