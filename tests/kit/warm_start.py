"""Starts the product's programs from a process that has imported them: in milliseconds of a core, not seconds.

A program differs from an executed one in its command line, which is the fork server's, and in what its modules read
from the environment when they are imported. Fault points and Python's own variables need `executed`.
"""

import atexit
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping
from functools import cache
from json import dumps
from typing import BinaryIO

from kit.fork_server import NUMBER, read_exactly


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


def start_program(module: str, *, environment: Mapping[str, str], output: BinaryIO, executed: bool = False) -> Program:
    """Run `python -m module` with this environment and both its streams in that file; returns at once."""
    if executed or sys.platform != "linux":
        command = [sys.executable, "-m", module]
        return subprocess.Popen(command, env=dict(environment), stdout=output, stderr=output)
    return _server().start(module, environment=environment, output=output)


class _ForkServer:
    def __init__(self) -> None:
        self._control, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "kit.fork_server", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                # As a program's own output: no terminal, so its lines are buffered alike.
                stdout=subprocess.DEVNULL,
                env={**_environment_of_imports(), "OMP_NUM_THREADS": "1"},
            )
        self._lock = threading.Lock()

    def start(self, module: str, *, environment: Mapping[str, str], output: BinaryIO) -> ForkedProcess:
        ours, theirs = socket.socketpair()
        with theirs, self._lock:
            socket.send_fds(self._control, [b"\0"], [theirs.fileno(), output.fileno()])
        request = dumps({"module": module, "environment": dict(environment)}).encode()
        ours.sendall(NUMBER.pack(len(request)) + request)
        (pid,) = NUMBER.unpack(read_exactly(ours, NUMBER.size))
        return ForkedProcess(pid, ours)

    def close(self) -> None:
        self._control.close()
        self._process.wait()


def _environment_of_imports() -> dict[str, str]:
    """Without what a program reads for itself, and with its buffered streams."""
    own = ("FLUXPOOL_", "PYTHONUNBUFFERED")
    return {name: value for name, value in os.environ.items() if not name.startswith(own)}


@cache
def _server() -> _ForkServer:
    """The one server of this process."""
    server = _ForkServer()
    atexit.register(server.close)
    return server
