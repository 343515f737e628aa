"""The time of day and the monotonic time as one argument, so that tests bring their own."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final


@dataclass(frozen=True, slots=True, kw_only=True)
class Clock:
    """The clocks of a process."""

    monotonic: Callable[[], float] = time.monotonic
    time: Callable[[], float] = time.time
    """Seconds since 1970."""

    def now(self) -> datetime:
        """The time of day, UTC."""
        return datetime.fromtimestamp(self.time(), UTC)


SYSTEM_CLOCK: Final = Clock()
