"""A process that has imported programs and forks them: the far side of `kit.programs.warm_start`.

Usage: fork_server.py CONTROL LISTENER IMPORTS: two inherited descriptors, and what to import. When the other end of
CONTROL ends, it ends with its programs. A client of LISTENER sends a message with descriptors, then a request;
it is answered by the pid and, once the program has ended, by its exit code. This process has a single thread, so a
fork copies no lock that another thread holds. A program has its own arguments, environment, fault points, streams
and signal handlers, runs as `__main__`, and finishes as any interpreter does.
"""

import fcntl
import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import struct
import sys
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

from fluxpool_cli.main import COMMANDS
from kit.faults import forked_faults

NUMBER: Final = struct.Struct("=i")
CREDENTIALS: Final = struct.Struct("=iII")
"""`struct ucred`, unix(7): pid, uid, gid."""
MAX_DESCRIPTORS: Final = 8
BOUND: Final = b"\1"
"""The one byte of the message that asks for a program that is killed when its connection ends; any other is not."""


class Imports(StrEnum):
    """What a fork server has imported; a process of tests has one of each that it needs."""

    PROGRAMS = "programs"
    """Gateways, workers, commands and stand-in engines."""
    ENGINE = "engine"
    """An engine with a model, or the tiny checkpoint: eight seconds of a core, once."""
    PODS = "pods"
    """Operators and workers in containers of `kit.process_node`."""


_MODULES: Final = {
    Imports.PROGRAMS: (
        "fluxpool_gateway.dispatcher",
        "fluxpool_gateway.server",
        "fluxpool_gateway.projector",
        "fluxpool_worker.__main__",
        "kit.programs.console_script",
        *sorted({f"fluxpool_cli.{place.partition(':')[0]}" for place, _ in COMMANDS.values()}),
        "kit.programs.stand_in_engine",
        "uvicorn.lifespan.on",
        "uvicorn.loops.auto",
        "uvicorn.protocols.http.auto",
    ),
    Imports.ENGINE: ("kit.programs.engine_imports",),
    Imports.PODS: ("fluxpool_operator.__main__", "fluxpool_worker.__main__"),
}


def read_exactly(connection: socket.socket, size: int) -> bytes:
    """Raises `EOFError` when the other side ends before."""
    received = b""
    while len(received) < size:
        part = connection.recv(size - len(received))
        if not part:
            raise EOFError("the fork server or its program ended unexpectedly")
        received += part
    return received


@dataclass(slots=True)
class _Program:
    pid: int
    connection: socket.socket
    is_bound: bool
    has_ended: bool = False
    has_peer: bool = True

    def end(self) -> None:
        # It stays a zombie, so that its pid stays its own, until the other side has read this and closed its end.
        ended = os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)
        assert ended is not None
        self.has_ended = True
        with suppress(OSError):
            self.connection.sendall(
                NUMBER.pack(ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status)
            )

    def lose_peer(self) -> None:
        self.has_peer = False
        if self.is_bound:
            self.kill()

    def kill(self) -> None:
        if not self.has_ended:
            os.kill(self.pid, signal.SIGKILL)


def _serve(
    control: socket.socket, listener: socket.socket, programs: dict[int, _Program]
) -> tuple[socket.socket, list[int]] | None:
    """Fork when asked; returns a program's connection and descriptors in its process, None in this one at the end.

    `programs` has those that run, by the descriptors of their ends and connections.
    """
    with select.epoll() as poll:
        for served in (control, listener):
            poll.register(served, select.EPOLLIN)
        while True:
            for number, _ in poll.poll():
                if number == control.fileno():
                    return None
                if number == listener.fileno():
                    asked = _accept(listener)
                    if asked is None:
                        continue
                    connection, descriptors, is_bound = asked
                    pid = os.fork()
                    if pid == 0:
                        return connection, descriptors
                    for descriptor in descriptors:
                        os.close(descriptor)
                    with suppress(OSError):
                        connection.sendall(NUMBER.pack(pid))
                    program = _Program(pid, connection, is_bound)
                    ends = os.pidfd_open(pid)
                    programs |= {ends: program, connection.fileno(): program}
                    poll.register(ends, select.EPOLLIN)
                    # Of the connection its end alone: the request is the program's to read.
                    poll.register(connection, select.EPOLLHUP)
                    continue
                program = programs.pop(number)
                poll.unregister(number)
                if number == program.connection.fileno():
                    program.lose_peer()
                else:
                    os.close(number)
                    program.end()
                if program.has_ended and not program.has_peer:
                    program.connection.close()
                    os.waitpid(program.pid, 0)


def _accept(listener: socket.socket) -> tuple[socket.socket, list[int], bool] | None:
    """The next connection with its descriptors, unless it is another user's or has ended already."""
    connection, _ = listener.accept()
    _, uid, _ = CREDENTIALS.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, CREDENTIALS.size))
    with suppress(OSError):
        # An address without a file has no permissions.
        if uid == os.getuid():
            message, descriptors, _, _ = socket.recv_fds(connection, 1, MAX_DESCRIPTORS)
            if message:
                return connection, descriptors, message == BOUND
    connection.close()
    return None


def _become(connection: socket.socket, descriptors: list[int]) -> list[str]:
    """Give this process what was asked for; returns the module to run and its arguments."""
    request: dict[str, Any] = json.loads(
        read_exactly(connection, *NUMBER.unpack(read_exactly(connection, NUMBER.size)))
    )
    highest = max(int(name) for name in os.listdir("/proc/self/fd"))  # noqa: PTH208 - names, not paths
    wanted = dict(zip(request["descriptors"], descriptors, strict=True))
    # First out of each other's way: a number that is wanted may be one that was received.
    spare = max(highest, *wanted) + 1
    wanted = {number: fcntl.fcntl(descriptor, fcntl.F_DUPFD, spare) for number, descriptor in wanted.items()}
    connection.detach()
    os.closerange(3, spare)
    for number, descriptor in wanted.items():
        os.dup2(descriptor, number)
        os.close(descriptor)
    with suppress(FileNotFoundError):  # a pod's folder
        os.chdir(request["folder"])
    os.umask(request["umask"])
    os.environ.clear()
    os.environ.update(request["environment"])
    forked_faults.arm()
    # None stands for the fork server, whose pid the other side does not know.
    arguments = [str(os.getppid()) if argument is None else argument for argument in request["arguments"]]
    return [request["module"], *arguments]


def run(module: str, *arguments: str) -> None:
    """Run an imported program in this process, to its end."""
    # It runs as `__main__` alone.
    for name in (module, f"{module}.__main__"):
        if not hasattr(sys.modules.get(name), "__path__"):
            sys.modules.pop(name, None)
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def main() -> None:
    """Serve, and run in each forked process what was asked for."""
    # Ctrl-C goes to every process of the terminal; this one ends with the tests. Its programs treat it as executed ones
    # would: in the background of a shell it is ignored from the start.
    on_interrupt = signal.signal(signal.SIGINT, signal.SIG_IGN)
    control, listener = (socket.socket(fileno=int(descriptor)) for descriptor in sys.argv[1:3])
    forked_faults.defer()
    for name in _MODULES[Imports(sys.argv[3])]:
        importlib.import_module(name)
    # Objects that the collector never visits stay shared between the processes.
    gc.collect()
    gc.freeze()
    programs: dict[int, _Program] = {}
    asked = _serve(control, listener, programs)
    if asked is None:
        # The tests may have been killed; no other process knows these.
        for program in programs.values():
            program.kill()
        # At an ordinary end some libraries list what they never free.
        os._exit(0)
    control.detach()
    listener.detach()
    signal.signal(signal.SIGINT, on_interrupt)
    run(*_become(*asked))


if __name__ == "__main__":
    main()
