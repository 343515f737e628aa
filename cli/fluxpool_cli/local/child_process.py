"""A child of the supervisor: started with its own log file, bound to the supervisor's life, stopped with a deadline.

Owns the process; knows nothing of what it does.
"""

import asyncio
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from fluxpool_cli.local.state_file import ProcessRecord
from fluxpool_transport.process import bound_command

_LOG_TAIL_LINES = 25


class ChildProcess:
    """One running or ended child. Spawn it from the main thread: the kernel binds it to the thread that starts it."""

    def __init__(self, name: str, process: asyncio.subprocess.Process, *, log_path: Path, log_start_bytes: int) -> None:
        self.name = name
        self.log_path = log_path
        self._process = process
        self._log_start_bytes = log_start_bytes
        self._record = ProcessRecord.of(name, process.pid, log=log_path)

    @classmethod
    async def spawn(
        cls, name: str, command: Sequence[str], *, environment: Mapping[str, str], log_path: Path
    ) -> "ChildProcess":
        """Start `command`; its output is appended to the log file."""
        log_path.parent.mkdir(parents=True, exist_ok=True)
        with log_path.open("ab") as log:
            log_start_bytes = log.tell()
            process = await asyncio.create_subprocess_exec(
                *bound_command([*command]),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=dict(environment),
                # Ctrl-C in a terminal goes to the supervisor alone, which ends its children in order.
                start_new_session=True,
            )
        return cls(name, process, log_path=log_path, log_start_bytes=log_start_bytes)

    @property
    def exit_status(self) -> int | None:
        """Null while it runs; negative when a signal ended it."""
        return self._process.returncode

    def record(self, *, state: str = "running") -> ProcessRecord:
        """Its line in the state file."""
        return self._record.model_copy(update={"state": state})

    def terminate(self) -> None:
        """Ask it to end."""
        if self.exit_status is None:
            self._process.terminate()

    def kill(self) -> None:
        """SIGKILL it and every process it started."""
        if self.exit_status is None:
            try:
                os.killpg(self._process.pid, signal.SIGKILL)
            except ProcessLookupError:
                return

    async def wait(self) -> int:
        """Return its exit status once it has ended."""
        return await self._process.wait()

    async def stop(self, *, grace_seconds: float) -> int:
        """Ask it to end, SIGKILL it after the grace; returns its exit status."""
        self.terminate()
        return await self.end_within(grace_seconds)

    async def end_within(self, grace_seconds: float) -> int:
        """Wait for the end it was asked for, SIGKILL it after the grace; returns its exit status."""
        try:
            async with asyncio.timeout(grace_seconds):
                return await self.wait()
        except TimeoutError:
            self.kill()
            return await self.wait()

    def log_tail(self, *, lines: int = _LOG_TAIL_LINES) -> str:
        """The last lines that this process logged."""
        try:
            with self.log_path.open("rb") as log:
                log.seek(self._log_start_bytes)
                return "\n".join(log.read().decode(errors="replace").splitlines()[-lines:])
        except FileNotFoundError:
            return ""
