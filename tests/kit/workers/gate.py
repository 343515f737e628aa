"""A gate that holds tasks of the stand-in engine at their first step until a test opens it.

A task that lasts until the test has seen what it waits for is neither too short for a busy machine nor too long for an
idle one. The engine connects to a port that never accepts; the connections end, or are refused, once the gate is open.
Pods reach it, too.
"""

import socket
from types import TracebackType
from typing import Final, Self

from kit.ports import own_port

_HOST: Final = "127.0.0.1"
_HELD_AT_MOST: Final = 128
"""Connections in the queue of a listening socket."""


class Gate:
    """Closed at first; the end of a `with` block opens it, so that no task of a failed test waits for ever."""

    def __init__(self) -> None:
        """Listen at a port of its own."""
        self._port = own_port()
        self._listener = socket.create_server((_HOST, self._port), backlog=_HELD_AT_MOST)

    @property
    def prompt(self) -> str:
        """Prompt of a task that waits here."""
        return f"until={_HOST}:{self._port}"

    def open(self) -> None:
        """Let all tasks pass, those that come later too."""
        self._listener.close()

    def __enter__(self) -> Self:
        """Return the closed gate."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Open it."""
        self.open()
