"""The barrier before "no such task": the projection has read the topics to their end."""

import asyncio
from collections.abc import Mapping

import pytest

from fluxpool_gateway.projection.barrier import BarrierNotReachedError, ProjectionBarrier
from fluxpool_gateway.store.task_state import Position
from fluxpool_gateway.store.task_store import LogPosition

PLACE = ("tasks", 0)
OLD, NEW = "old-topic", "new-topic"


async def passes(ends: LogPosition, *projected: LogPosition | None, deadline_seconds: float) -> bool:
    """Whether a round passes when the store has these positions in order, the last one for ever."""
    answers = list(projected)

    async def positions() -> Mapping[Position, LogPosition]:
        position = answers.pop(0) if len(answers) > 1 else answers[0]
        return {} if position is None else {PLACE: position}

    async def log_ends() -> Mapping[Position, LogPosition]:
        return {PLACE: ends}

    async with asyncio.TaskGroup() as group:
        barrier = ProjectionBarrier(group, ends=log_ends, projected=positions, deadline_seconds=deadline_seconds)
        try:
            await barrier.passed()
        except BarrierNotReachedError:
            return False
    return True


@pytest.mark.parametrize(
    ("end", "projected", "passed"),
    [
        (LogPosition(5, NEW), [LogPosition(5, NEW)], True),
        (LogPosition(5, NEW), [LogPosition(4, NEW), LogPosition(7, NEW)], True),
        (LogPosition(5, NEW), [LogPosition(4, NEW)], False),
        (LogPosition(5, NEW), [None], False),
        (LogPosition(0, NEW), [None], True),
        # A recreated topic: offsets of its predecessor do not count, however high they are.
        (LogPosition(5, NEW), [LogPosition(20, OLD)], False),
        (LogPosition(5, NEW), [LogPosition(20, OLD), None, LogPosition(5, NEW)], True),
        # A truncated log is read once more.
        (LogPosition(5, NEW), [LogPosition(20, NEW)], False),
        # Brokers without topic ids.
        (LogPosition(5), [LogPosition(5)], True),
        (LogPosition(5), [LogPosition(5, OLD)], True),
    ],
)
async def test_a_request_passes_once_the_same_log_was_read_to_its_end(
    end: LogPosition, projected: list[LogPosition | None], passed: bool
) -> None:
    # Only what never passes may meet its deadline, also where the test is stopped between two looks at the store.
    assert await passes(end, *projected, deadline_seconds=60 if passed else 0.2) is passed
