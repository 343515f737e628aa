"""Stands for a program that a fork server has started; a command for engines and servers, of `kit.programs.warm_start`.

To who starts it this process is the program: it ends as the program does, with the same exit code, and the program ends
with it. The program has another pid, so a test that pauses one needs an executed one. It runs in a bare interpreter, so
it uses the standard library only. Usage: warm_program.py ADDRESS MODULE ARGUMENT..., for an engine those of its agent.
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
SIGNALS = {signal.SIGINT, signal.SIGTERM}
SOCKET, MARK, PARENT = "--socket-fd", "--started-fd", "--parent-pid"


def main(address: str, module: str, arguments: list[str]) -> None:
    """Have the program started, and end as it does."""
    # Until it is known to whom they are passed on.
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    given: list[str | None] = [*arguments]
    handed_over = []
    is_engine = SOCKET in arguments
    if is_engine:
        # As an engine: they are sent to the whole process group.
        for ignored in SIGNALS:
            signal.signal(ignored, signal.SIG_IGN)
        options = dict(zip(arguments[::2], arguments[1::2], strict=True))
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != int(options[PARENT]):
            return
        handed_over = [int(options[name]) for name in (SOCKET, MARK)]
        given = [part for option in (options | {PARENT: None}).items() for part in option]
    with socket.socket(socket.AF_UNIX) as server:
        server.connect(f"\0{address}")
        socket.send_fds(server, [BOUND], [1, 2, *handed_over])
        umask = os.umask(0o077)
        os.umask(umask)
        request = {
            "module": module,
            "arguments": given,
            "environment": dict(os.environ),
            "folder": os.getcwd(),  # noqa: PTH109 - starts faster without pathlib
            "umask": umask,
            "descriptors": [1, 2, *handed_over],
        }
        encoded = json.dumps(request).encode()
        server.sendall(NUMBER.pack(len(encoded)) + encoded)
        # Open here, they would outlive the program.
        for descriptor in handed_over:
            os.close(descriptor)
        (pid,) = NUMBER.unpack(_read(server, NUMBER.size))
        if not is_engine:
            for passed_on in SIGNALS:
                # It stays a zombie until this connection ends, so the pid is its own.
                signal.signal(passed_on, lambda number, _: os.kill(pid, number))
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        (code,) = NUMBER.unpack(_read(server, NUMBER.size))
    if code < 0:
        # Those that are handled here; SIGKILL's handling cannot be set.
        if -code in SIGNALS:
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
