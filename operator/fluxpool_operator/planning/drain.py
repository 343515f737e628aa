"""Estimated time until the lag is zero, from the rate at which it shrinks.

Arrivals are unknown, so the rate is the difference of completed and new tasks: a growing lag has no estimate.
"""

from dataclasses import dataclass
from typing import Final

WINDOW_SECONDS: Final = 120.0
"""Window of the rate: some tasks of every replica, yet mostly at the current number of replicas."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Drain:
    """A lag that did not grow: its size at the start of the window, and how long ago that was."""

    from_records: float
    lag_records: int
    """As last observed."""
    seconds: float = 0.0

    @property
    def eta_seconds(self) -> float | None:
        """Time until the lag is zero; None when it did not shrink."""
        done = self.from_records - self.lag_records
        return self.lag_records * self.seconds / done if done > 0 and self.seconds > 0 else None


def drained(before: Drain | None, *, lag_records: int, elapsed_seconds: float) -> Drain | None:
    """The drain after one more observation; None when there is no lag."""
    if lag_records == 0:
        return None
    if before is None or lag_records > before.from_records:
        return Drain(from_records=lag_records, lag_records=lag_records)
    seconds = before.seconds + max(0.0, elapsed_seconds)
    from_records = before.from_records
    if seconds > WINDOW_SECONDS:
        # The older part leaves the window at its own rate, so that the estimate changes smoothly.
        done = (from_records - lag_records) * WINDOW_SECONDS / seconds
        from_records, seconds = lag_records + done, WINDOW_SECONDS
    return Drain(from_records=from_records, lag_records=lag_records, seconds=seconds)
