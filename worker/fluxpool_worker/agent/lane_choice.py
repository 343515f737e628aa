"""Which lane is served next. Pure.

The preferred lane goes first, but every fifth task is the oldest that waits anywhere, so that a stream of VIP tasks
slows the others down and never stops them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

SHARED_TURN: Final = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class WaitingLane:
    """A lane that has a record waiting."""

    index: int
    preference: int
    oldest_head_ms: int
    """Timestamp of its oldest waiting record."""


def choose_lane(waiting: Sequence[WaitingLane], *, turn: int) -> int | None:
    """Index of the lane to serve on this turn (counted from 1); None when nothing waits."""
    if not waiting:
        return None
    if turn % SHARED_TURN == 0:
        return min(waiting, key=lambda lane: lane.oldest_head_ms).index
    return min(waiting, key=lambda lane: (-lane.preference, lane.oldest_head_ms)).index
