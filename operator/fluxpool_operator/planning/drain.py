"""How long a backlog will last at the pace at which it shrinks.

Arrivals are unknown, so this is about the difference between what is done and what comes: a backlog that grows has no
end that could be told.
"""

from dataclasses import dataclass
from typing import Final

WINDOW_SECONDS: Final = 120.0
"""About so long ago the pace is measured from: some tasks of every replica, yet the pace of the present size."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Drain:
    """A backlog that did not grow: how many tasks there were at the beginning, and how long ago that was."""

    from_records: float
    lag_records: int
    """As last seen."""
    seconds: float = 0.0

    @property
    def eta_seconds(self) -> float | None:
        """Until nothing is left; null when the backlog did not shrink."""
        done = self.from_records - self.lag_records
        return self.lag_records * self.seconds / done if done > 0 and self.seconds > 0 else None


def drained(before: Drain | None, *, lag_records: int, elapsed_seconds: float) -> Drain | None:
    """The drain after one more look; null when there is no work."""
    if lag_records == 0:
        return None
    if before is None or lag_records > before.from_records:
        return Drain(from_records=lag_records, lag_records=lag_records)
    seconds = before.seconds + max(0.0, elapsed_seconds)
    from_records = before.from_records
    if seconds > WINDOW_SECONDS:
        # The older part is forgotten at its own pace, so that the rate changes smoothly.
        done = (from_records - lag_records) * WINDOW_SECONDS / seconds
        from_records, seconds = lag_records + done, WINDOW_SECONDS
    return Drain(from_records=from_records, lag_records=lag_records, seconds=seconds)
