"""Ports for servers that a test starts; no two tests on this machine have the same one at a time."""

import fcntl
import os
import tempfile
from collections.abc import Container
from pathlib import Path
from typing import Final

from fluxpool_cli.local.loopback import free_port

_LOCKS: Final = Path(tempfile.gettempdir()) / "fluxpool-test-ports"
_PORTS: Final = range(10_000, 20_000)
"""Apart from those of `fluxpool_cli.local.loopback`, which programs under test choose for themselves."""

_owned: Final[set[int]] = set()


def own_port(taken: Container[int] = ()) -> int:
    """A free port that is not in `taken` and that no other caller gets while this process lives.

    A program listens only seconds after its port was chosen. Until then a port looks free to everyone else.
    """
    global _locks_fd  # noqa: PLW0603 - closing any descriptor of the file would release all its locks
    _locks_fd = _locks_fd or os.open(_LOCKS, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    while True:
        port = free_port(taken=_owned, among=_PORTS)
        if port in taken:
            continue
        _owned.add(port)
        try:
            fcntl.lockf(_locks_fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, port)
        except OSError:  # another process owns it
            continue
        return port


_locks_fd = 0
