"""Numbers as a status shows them: coarse enough to stand still while nothing happens that matters."""

from typing import Final

_AGE_STEPS: Final = ((60, 5), (300, 15), (3600, 60), (86_400, 600))
"""Below so many seconds, steps of so many; an hour above the last."""


def coarse_count(count: int) -> int:
    """Two significant digits, rounded half up; what is not zero stays so."""
    if count < 100:
        return count
    unit = int(10 ** (len(str(count)) - 2))
    return (count + unit // 2) // unit * unit


def coarse_seconds(seconds: float) -> int:
    """Whole steps, rounded down: finer for what is young."""
    step = next((step for below, step in _AGE_STEPS if seconds < below), 3600)
    return int(max(0.0, seconds) // step) * step


def duration_text(seconds: float) -> str:
    """`45 s`, `10 min`, `3 h`, from a coarse number of seconds."""
    whole = coarse_seconds(seconds)
    if whole < 300:
        return f"{whole} s"
    return f"{whole // 60} min" if whole < 7200 else f"{whole // 3600} h"
