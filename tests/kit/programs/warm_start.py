"""Starts the product's programs from a process that has imported them: in milliseconds of a core, not seconds.

Gateways and workers are started by tests, engines by their agents, whose command for engines `warm_engine` is, and
gateways of local mode by `warm_program`.

A program differs from an executed one in its command line, which is the fork server's, and in what its modules read
from the environment when they are imported, fault points excepted (`kit.faults.forked_faults`). Python's own need
`executed`.
"""

import atexit
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import uuid
from collections.abc import Mapping
from functools import cache
from json import dumps
from pathlib import Path
from typing import IO, Any, Final

from kit.programs.fork_server import NUMBER, Imports, read_exactly

STAND_IN: Final = Path(__file__).with_name("stand_in_engine.py")
_WARM_PROGRAM: Final = Path(__file__).with_name("warm_program.py")


class ForkedProcess:
    """A forked program: the part of `subprocess.Popen` that tests use, with the same meaning."""

    def __init__(self, pid: int, connection: socket.socket) -> None:
        """`connection` delivers the exit code; the process is a zombie until that was read."""
        self.pid = pid
        self.returncode: int | None = None
        self._connection = connection
        self._lock = threading.Lock()

    def poll(self) -> int | None:
        """Return the exit code, negative for a signal, or None while it runs."""
        return self._exit_code(timeout=0)

    def wait(self, timeout: float | None = None) -> int:
        """Return the exit code; raises `subprocess.TimeoutExpired`."""
        code = self._exit_code(timeout=timeout)
        if code is None:
            raise subprocess.TimeoutExpired(f"process {self.pid}", timeout or 0.0)
        return code

    def send_signal(self, number: int) -> None:
        """Signal it, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """SIGKILL, unless it has ended."""
        self.send_signal(signal.SIGKILL)

    def _exit_code(self, *, timeout: float | None) -> int | None:
        if self.returncode is None:
            news = select.poll()
            try:
                news.register(self._connection, select.POLLIN)
            except ValueError:  # another thread has read it and closed the connection in between
                return self.returncode
            if news.poll(None if timeout is None else timeout * 1000):
                with self._lock:
                    if self.returncode is None:
                        (self.returncode,) = NUMBER.unpack(read_exactly(self._connection, NUMBER.size))
                        self._connection.close()
        return self.returncode


Program = ForkedProcess | subprocess.Popen[bytes]


def start_program(
    module: str,
    *arguments: str,
    environment: Mapping[str, str],
    output: IO[Any],
    errors: int | IO[Any] | None = None,
    folder: Path | None = None,
    executed: bool = False,
    imported: Imports = Imports.PROGRAMS,
) -> Program:
    """Run `python -m module` with this environment and its streams in these files; returns at once.

    Without `errors` both streams are in `output`. Its input is empty. The default folder is the present one.
    """
    errors = output if errors is None else errors
    if executed or sys.platform != "linux":
        command = [sys.executable, "-m", module, *arguments]
        return subprocess.Popen(
            command,
            cwd=folder,
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=errors,
        )
    return _fork_server(imported).start(
        module, *arguments, environment=environment, output=output, errors=errors, folder=folder
    )


def warm_engine(*, stand_in: bool) -> tuple[str, ...]:
    """The command of engines for an agent: forked ones, with the stand-in for a model or a real one.

    Engines of another file system than that of the tests are right with the stand-in only.
    """
    if sys.platform != "linux":
        return (sys.executable, str(STAND_IN)) if stand_in else ()
    imported, module = (
        (Imports.PROGRAMS, "kit.programs.stand_in_engine") if stand_in else (Imports.ENGINE, "fluxpool_worker.engine")
    )
    return (*warm_program(imported), module)


def warm_program(imported: Imports = Imports.PROGRAMS) -> tuple[str, ...]:
    """The command that runs a module, appended with its arguments, as `python -m` does."""
    return (sys.executable, "-I", "-S", str(_WARM_PROGRAM), _fork_server(imported).address)


class _ForkServer:
    """A process that has imported programs and forks them; they end with this one at the latest."""

    def __init__(self, imported: Imports) -> None:
        # Without a file, so that processes with another root reach it, too.
        self.address = f"fluxpool-fork-server-{uuid.uuid4()}"
        self._control, theirs = socket.socketpair()
        with theirs, socket.socket(socket.AF_UNIX) as listener:
            listener.bind(f"\0{self.address}")
            listener.listen()
            inherited = (theirs.fileno(), listener.fileno())
            self._process = subprocess.Popen(
                [sys.executable, "-m", "kit.programs.fork_server", *map(str, inherited), imported],
                pass_fds=inherited,
                stdin=subprocess.DEVNULL,
                # As a program's own output: no terminal, so its lines are buffered alike.
                stdout=subprocess.DEVNULL,
                env={**_environment_of_imports(), "OMP_NUM_THREADS": "1"},
            )
        atexit.register(self.close)

    def start(
        self,
        module: str,
        *arguments: str,
        environment: Mapping[str, str],
        output: IO[Any],
        errors: int | IO[Any],
        folder: Path | None,
    ) -> ForkedProcess:
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(f"\0{self.address}")
        streams = [output.fileno(), errors if isinstance(errors, int) else errors.fileno()]
        socket.send_fds(connection, [b"\0"], streams)
        request = {
            "module": module,
            "arguments": arguments,
            "environment": dict(environment),
            "folder": str(folder or Path.cwd()),
            "umask": _umask(),
            "descriptors": [1, 2],
        }
        encoded = dumps(request).encode()
        connection.sendall(NUMBER.pack(len(encoded)) + encoded)
        (pid,) = NUMBER.unpack(read_exactly(connection, NUMBER.size))
        return ForkedProcess(pid, connection)

    def close(self) -> None:
        self._control.close()
        self._process.wait()


def _umask() -> int:
    # The system call that returns it also sets it, for all threads.
    status = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1], 8) for line in status if line.startswith("Umask:"))


def _environment_of_imports() -> dict[str, str]:
    """Without what a program reads for itself, and with its buffered streams."""
    own = ("FLUXPOOL_", "PYTHONUNBUFFERED")
    return {name: value for name, value in os.environ.items() if not name.startswith(own)}


@cache
def _fork_server(imported: Imports) -> _ForkServer:
    return _ForkServer(imported)
