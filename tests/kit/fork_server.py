"""A process that has imported the product's programs and forks them: the far side of `kit.warm_start`.

It has a single thread, so a fork copies no lock that another thread holds. A program has its own arguments,
environment, streams and signal handlers, runs as `__main__`, and finishes as any interpreter does.
"""

import gc
import importlib
import json
import os
import runpy
import selectors
import signal
import socket
import struct
import sys
from contextlib import suppress
from typing import Any, Final

PRELOADED: Final = (
    "fluxpool_gateway.dispatcher",
    "fluxpool_gateway.http.server",
    "fluxpool_gateway.projector",
    "fluxpool_worker.__main__",
    "uvicorn.lifespan.on",
    "uvicorn.loops.auto",
    "uvicorn.protocols.http.auto",
)
NUMBER: Final = struct.Struct("=i")


def read_exactly(connection: socket.socket, size: int) -> bytes:
    """Raises `EOFError` when the other side ends before."""
    received = b""
    while len(received) < size:
        part = connection.recv(size - len(received))
        if not part:
            raise EOFError("the fork server or its program ended unexpectedly")
        received += part
    return received


def _serve(control: socket.socket) -> tuple[socket.socket, int] | None:
    """Fork when asked; returns a program's connection and output in its process, None in this one at the end."""
    with selectors.DefaultSelector() as selector:
        selector.register(control, selectors.EVENT_READ)
        while True:
            for key, _ in selector.select():
                if key.fileobj is control:
                    asked, descriptors, _, _ = socket.recv_fds(control, 1, 2)
                    if not asked:
                        return None
                    connection, output = socket.socket(fileno=descriptors[0]), descriptors[1]
                    pid = os.fork()
                    if pid == 0:
                        return connection, output
                    os.close(output)
                    connection.sendall(NUMBER.pack(pid))
                    selector.register(os.pidfd_open(pid), selectors.EVENT_READ, (pid, connection))
                elif isinstance(key.fileobj, int):
                    selector.unregister(key.fileobj)
                    os.close(key.fileobj)
                    selector.register(_report_end(*key.data), selectors.EVENT_READ, key.data)
                else:
                    _reap(selector, *key.data)


def _report_end(pid: int, connection: socket.socket) -> socket.socket:
    # It stays a zombie, so that its pid stays its own, until the tests' side has read this and closed the connection.
    ended = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    assert ended is not None
    with suppress(OSError):
        connection.sendall(NUMBER.pack(ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status))
    return connection


def _reap(selector: selectors.BaseSelector, pid: int, connection: socket.socket) -> None:
    with suppress(OSError):
        # A program that was killed early has left its request unread.
        if connection.recv(65_536):
            return
    selector.unregister(connection)
    connection.close()
    os.waitpid(pid, 0)


def _become(connection: socket.socket, output: int) -> str:
    """Give this process the streams and environment that were asked for; returns the module to run."""
    request: dict[str, Any] = json.loads(
        read_exactly(connection, *NUMBER.unpack(read_exactly(connection, NUMBER.size)))
    )
    os.dup2(output, 1)
    os.dup2(output, 2)
    highest = max(int(name) for name in os.listdir("/proc/self/fd"))  # noqa: PTH208 - names, not paths
    connection.detach()
    os.closerange(3, highest + 1)
    os.environ.clear()
    os.environ.update(request["environment"])
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.argv = [request["module"]]
    return str(request["module"])


def main() -> None:
    """Serve, and run in each forked process what was asked for."""
    # Ctrl-C goes to every process of the terminal; this one ends with the tests.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    control = socket.socket(fileno=int(sys.argv[1]))
    for name in PRELOADED:
        importlib.import_module(name)
        if name.endswith("__main__"):
            del sys.modules[name]
    # Objects that the collector never visits stay shared between the processes.
    gc.collect()
    gc.freeze()
    asked = _serve(control)
    if asked is not None:
        control.detach()
        runpy.run_module(_become(*asked), run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
