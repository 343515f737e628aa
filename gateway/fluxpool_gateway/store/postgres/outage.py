"""Remembers for a moment that the server cannot be reached, so that requests need not all find out by waiting."""

import time
from collections.abc import Callable
from typing import Final

from sqlalchemy.exc import InterfaceError, OperationalError

RETRY_SECONDS: Final = 1.0


class Outage:
    """What is known of an outage, for several threads."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """`clock` is monotonic, in seconds."""
        self._clock = clock
        self._reason = ""
        self._until = 0.0

    def note(self, error: Exception, reason: str) -> None:
        """Begin or prolong it when a connection could not be made or was lost, which has no SQLSTATE."""
        if isinstance(error, (OperationalError, InterfaceError)) and getattr(error.orig, "sqlstate", None) is None:
            self._reason, self._until = reason, self._clock() + RETRY_SECONDS

    def reason(self) -> str | None:
        """Why not to try now; None when to try."""
        return self._reason if self._clock() < self._until else None
