"""Stands for an engine that a fork server has started; an agent's command for engines, see `kit.warm_start`.

To its agent this process is the engine: it ends as the engine does, with the same exit code, and the engine ends with
it. The engine has another pid, so a test that pauses one needs an executed engine. It runs in a bare interpreter, so it
uses the standard library only. Usage: warm_engine.py ADDRESS MODULE ARGUMENT..., the arguments being the agent's.
"""

import ctypes
import json
import os
import signal
import socket
import struct
import sys

NUMBER = struct.Struct("=i")
BOUND = b"\1"
PR_SET_PDEATHSIG = 1
SOCKET, MARK, PARENT = "--socket-fd", "--started-fd", "--parent-pid"


def main(address: str, module: str, arguments: list[str]) -> None:
    """Have the engine started, and end as it does."""
    if os.environ.get("FLUXPOOL_FAULT"):
        # Fault points are bound at import.
        os.execv(sys.executable, [sys.executable, "-m", module, *arguments])  # noqa: S606
    # As an engine: they are sent to the whole process group.
    for ignored in (signal.SIGINT, signal.SIGTERM):
        signal.signal(ignored, signal.SIG_IGN)
    options = dict(zip(arguments[::2], arguments[1::2], strict=True))
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != int(options[PARENT]):
        return
    handed_over = [int(options[name]) for name in (SOCKET, MARK)]
    with socket.socket(socket.AF_UNIX) as server:
        server.connect(f"\0{address}")
        socket.send_fds(server, [BOUND], [1, 2, *handed_over])
        request = {
            "module": module,
            "arguments": [part for option in (options | {PARENT: None}).items() for part in option],
            "environment": dict(os.environ),
            "folder": os.getcwd(),  # noqa: PTH109 - starts faster without pathlib
            "descriptors": [1, 2, *handed_over],
        }
        encoded = json.dumps(request).encode()
        server.sendall(NUMBER.pack(len(encoded)) + encoded)
        # Open here, they would outlive the engine.
        for descriptor in handed_over:
            os.close(descriptor)
        _pid, code = (NUMBER.unpack(_read(server, NUMBER.size))[0] for _ in range(2))
    if code < 0:
        # Those that are ignored here; SIGKILL's handling cannot be set.
        if -code in {signal.SIGINT, signal.SIGTERM}:
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    sys.exit(code)


def _read(server: socket.socket, size: int) -> bytes:
    received = b""
    while len(received) < size:
        part = server.recv(size - len(received))
        if not part:
            sys.exit("the fork server has ended")
        received += part
    return received


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3:])
