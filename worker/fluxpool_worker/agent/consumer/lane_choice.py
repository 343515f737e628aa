"""Which lane is served next, and since when a record waits. Pure.

The preferred lane comes first, with two exceptions. Every fifth task is the oldest that waits anywhere, so that a
stream of VIP tasks slows the others down and never stops them. Every second task is one of a lane whose oldest task has
waited too long, so that slowness has a limit as long as the workers can keep up at all.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

SHARED_EVERY: Final = 5
LOG_APPEND_TIME: Final = 1
"""`timestamp_type` of records that the broker gave their time (KIP-32)."""
LONGEST_WAIT_MS: Final = 30 * 24 * 3600 * 1000
"""Four times what task topics keep."""
OVERDUE_EVERY: Final = 2
"""Not every task: with more work than workers all lanes are overdue, and preference must still mean something."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WaitingLane:
    """A lane that has a record waiting."""

    index: int
    preference: int
    oldest_head_ms: float
    """When its oldest waiting record arrived."""


def arrived_ms(timestamp_ms: int, timestamp_type: int | None, *, seen_ms: float) -> float:
    """When a record arrived in its topic, as far as that can be known, milliseconds since 1970.

    Only a broker's time (LogAppendTime) tells. A producer may write any number, in seconds, microseconds or a clock of
    its own: then the record counts from when this worker saw it, so that no producer overtakes another one.
    """
    return min(max(0, timestamp_ms), seen_ms) if timestamp_type == LOG_APPEND_TIME else seen_ms


def waited_ms(timestamp_ms: int, *, now_ms: float) -> float | None:
    """For how long a record has waited by its own time; None for a time that cannot be that of a record in a topic.

    Good enough to be shown, and for nothing else.
    """
    waited = now_ms - timestamp_ms
    return waited if 0 <= waited <= LONGEST_WAIT_MS else None


def choose_lane(waiting: Sequence[WaitingLane], *, number: int, now_ms: float, wait_limit_seconds: float) -> int | None:
    """Index of the lane of the next task, `number` counted from 1; None when nothing waits.

    `now_ms` and the heads' arrivals are milliseconds since 1970; a head is overdue past the limit.
    """
    if not waiting:
        return None
    preferred = min(waiting, key=lambda lane: (-lane.preference, lane.oldest_head_ms))
    if number % SHARED_EVERY == 0:
        return min(waiting, key=lambda lane: lane.oldest_head_ms).index
    overdue = [
        lane
        for lane in waiting
        if lane.preference < preferred.preference and now_ms - lane.oldest_head_ms > wait_limit_seconds * 1000
    ]
    if overdue and number % OVERDUE_EVERY == 0:
        return min(overdue, key=lambda lane: lane.oldest_head_ms).index
    return preferred.index
