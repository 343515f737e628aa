"""One server program as a handle: started with its own log, bound to our life, paused, resumed, stopped, killed.

Owns the process; knows nothing of what it serves or when it is ready. Bound to no event loop: it may be started in one
and stopped in another.
"""

import asyncio
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

from fluxpool_transport.process import bound_command

_LOG_TAIL_LINES: Final = 25
_POLL_INTERVAL_SECONDS: Final = 0.02


class ServerProcess:
    """A program that dies with the one that started it, and with the *thread* that started it (prctl(2)).

    Start it from a thread that lives on, such as the main thread.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        *,
        log_path: Path,
        error: Callable[[str], Exception],
        folder: Path | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """Take an absolute program with its arguments and the caller's own exception; starts nothing.

        Without `folder` and `environment` it runs in those of the caller.
        """
        self.name = name
        self.log_path = log_path
        self._command = list(command)
        self._error = error
        self._folder = folder
        self._environment = environment
        self._process: subprocess.Popen[bytes] | None = None
        self._log_start_bytes = 0

    @property
    def pid(self) -> int | None:
        """The process id, or None when the program does not run."""
        return self._process.pid if self._process is not None and self._process.poll() is None else None

    def spawn(self) -> None:
        """Start the process and return at once; does nothing when it runs."""
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
                env=self._environment,
                # Ctrl-C in a terminal goes to the starting program alone, which stops its servers in order.
                start_new_session=True,
            )

    async def stop(self, *, grace_seconds: float = 10) -> None:
        """Ask it to stop; SIGKILL it when it still runs after the grace."""
        process = self._process
        if process is None:
            return
        if process.poll() is None:
            process.terminate()
            # A paused process would take the signal only once it is resumed.
            process.send_signal(signal.SIGCONT)
        try:
            async with asyncio.timeout(grace_seconds):
                await self._exited(process)
        except TimeoutError:
            await self.kill()

    async def kill(self) -> None:
        """SIGKILL it and return once the process is gone."""
        if self._process is not None:
            self._process.kill()
            await self._exited(self._process)

    def pause(self) -> None:
        """SIGSTOP: connections stay open and nothing answers."""
        self._running().send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """SIGCONT."""
        self._running().send_signal(signal.SIGCONT)

    def check_alive(self) -> None:
        """Raise the caller's exception, with the end of the log, when the started process has died."""
        if self._process is not None and self._process.poll() is not None:
            raise self.error(f"ended with status {self._process.returncode}")

    def error(self, reason: str) -> Exception:
        """The caller's exception, which ends with the last lines of this process' log."""
        return self._error(f"{self.name} {reason}; the last lines of {self.log_path}:\n{self.log_tail()}")

    def log_tail(self, *, lines: int = _LOG_TAIL_LINES) -> str:
        """The last lines that the current (or last) process logged."""
        try:
            with self.log_path.open("rb") as log:
                log.seek(self._log_start_bytes)
                return "\n".join(log.read().decode(errors="replace").splitlines()[-lines:])
        except FileNotFoundError:
            return "(nothing)"

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None or self._process.poll() is not None:
            raise self._error(f"{self.name} does not run")
        return self._process

    async def _exited(self, process: subprocess.Popen[bytes]) -> None:
        # Polled: asyncio's own way to wait for a child belongs to the loop that started it.
        while process.poll() is None:  # noqa: ASYNC110
            await asyncio.sleep(_POLL_INTERVAL_SECONDS)
