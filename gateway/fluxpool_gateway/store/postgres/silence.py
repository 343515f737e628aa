"""Cuts connections to a server that accepts what is sent and answers nothing, as behind a broken proxy or a full disk.

libpq waits for an answer without end, and neither keepalives nor the server's own time limits help: the network is
well, and the server does not work. Owns the deadlines of connections in use. A cut connection raises as one that the
server closed, so that the rest is what happens when a server is away.
"""

import contextlib
import socket
import threading
import time
from dataclasses import dataclass, field
from typing import Any, Final

import structlog
from sqlalchemy import Engine, event

LOOK_SECONDS: Final = 0.5

logger = structlog.stdlib.get_logger(__name__)


@dataclass(slots=True)
class _Watch:
    """The deadlines of this process, and the thread that looks at them, which ends with it."""

    deadlines: dict[int, tuple[Any, float]] = field(default_factory=dict)
    """By the identity of the connection."""
    lock: threading.Lock = field(default_factory=threading.Lock)
    thread: threading.Thread | None = None

    def expect(self, connection: Any, *, within_seconds: float) -> None:
        """The connection is in use, and has an answer within this time."""
        with self.lock:
            self.deadlines[id(connection)] = connection, time.monotonic() + within_seconds
            if self.thread is None or not self.thread.is_alive():
                self.thread = threading.Thread(target=self._run, name="postgres-silence", daemon=True)
                self.thread.start()

    def release(self, connection: Any) -> None:
        """The connection is not in use, or about to be closed."""
        with self.lock:
            self.deadlines.pop(id(connection), None)

    def _run(self) -> None:
        while True:
            time.sleep(LOOK_SECONDS)
            now = time.monotonic()
            # Held while a connection is cut: its owner cannot close it meanwhile, and another socket have its number.
            with self.lock:
                late = [number for number, (_, deadline) in self.deadlines.items() if now >= deadline]
                for number in late:
                    connection, _ = self.deadlines.pop(number)
                    _cut(connection)


def _cut(connection: Any) -> None:
    with contextlib.suppress(Exception):  # of psycopg, for one that is closed
        with socket.socket(fileno=connection.fileno()) as shared:
            try:
                shared.shutdown(socket.SHUT_RDWR)
            finally:
                # The number stays libpq's, which closes it.
                shared.detach()
        logger.warning("database_silent", remedy="see that the server, and what is before it, answers")


_watch: Final = _Watch()


def cut_when_silent(engine: Engine, *, seconds: float) -> None:
    """Cut connections of the engine that are in use and have had no answer for so long."""

    def begin(connection: Any, *_arguments: Any) -> None:
        _watch.expect(connection, within_seconds=seconds)

    def end(connection: Any, *_arguments: Any) -> None:
        if connection is not None:
            _watch.release(connection)

    def step(connection: Any, *_arguments: Any) -> None:
        begin(connection.connection.dbapi_connection)

    # Before all other listeners: they send statements.
    event.listen(engine, "connect", begin, insert=True)
    event.listen(engine, "checkout", begin)
    event.listen(engine, "before_cursor_execute", step)
    # What follows the last statement is the commit.
    event.listen(engine, "after_cursor_execute", step)
    for name in ("checkin", "invalidate", "soft_invalidate", "close", "close_detached", "detach"):
        event.listen(engine, name, end)
