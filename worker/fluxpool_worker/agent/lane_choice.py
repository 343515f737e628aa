"""Which lane is served next. Pure.

The preferred lane goes first, but not always: every fifth task is the oldest that waits anywhere, so that a stream of
VIP tasks slows the others down and never stops them; and a lane whose oldest task has waited for too long has every
second turn, so that being slow has a limit as long as the workers can keep up at all.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

SHARED_TURN: Final = 5
OVERDUE_TURN: Final = 2
"""Not every turn: with more work than workers all lanes are overdue, and preference must still mean something."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WaitingLane:
    """A lane that has a record waiting."""

    index: int
    preference: int
    oldest_head_ms: int
    """Timestamp of its oldest waiting record."""


def choose_lane(waiting: Sequence[WaitingLane], *, turn: int, now_ms: float, wait_limit_seconds: float) -> int | None:
    """Index of the lane to serve on this turn (counted from 1); None when nothing waits.

    `now_ms` and the heads' timestamps are milliseconds since 1970; a head is overdue past the limit.
    """
    if not waiting:
        return None
    preferred = min(waiting, key=lambda lane: (-lane.preference, lane.oldest_head_ms))
    if turn % SHARED_TURN == 0:
        return min(waiting, key=lambda lane: lane.oldest_head_ms).index
    overdue = [
        lane
        for lane in waiting
        if lane.preference < preferred.preference and now_ms - lane.oldest_head_ms > wait_limit_seconds * 1000
    ]
    if overdue and turn % OVERDUE_TURN == 0:
        return min(overdue, key=lambda lane: lane.oldest_head_ms).index
    return preferred.index
