"""Read-your-writes: waits until the store has everything that was in the task topics when the wait began.

An acknowledged task lies below the end offset of its topic, so once the projector is past that end, what is not in the
store was never accepted. Knows nothing of HTTP or of single tasks; used by `tasks.lookup` and `tasks.idempotency`.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Final

from fluxpool_gateway.store.task_state import Position
from fluxpool_gateway.store.task_store import LogPosition

DEADLINE_SECONDS: Final = 2.0
ROUND_INTERVAL_SECONDS: Final = 0.05
"""Callers within this time share one round, so that unknown ids cannot flood the brokers."""
_POLL_SECONDS: Final = 0.02

Positions = Callable[[], Awaitable[Mapping[Position, LogPosition]]]


class BarrierNotReachedError(Exception):
    """The store did not catch up in time, or its state could not be read."""


class ProjectionBarrier:
    """Waits, for many callers at once, until the projection has caught up with Kafka."""

    def __init__(
        self,
        group: asyncio.TaskGroup,
        *,
        ends: Positions,
        projected: Positions,
        deadline_seconds: float = DEADLINE_SECONDS,
    ) -> None:
        """`ends` asks the brokers, `projected` the store; either may raise, which fails its round.

        Rounds run in `group`, because none of those who wait for a round owns it.
        """
        self._group = group
        self._ends = ends
        self._projected = projected
        self._deadline_seconds = deadline_seconds
        self._next_round: asyncio.Future[None] | None = None
        self._next_start = 0.0

    async def passed(self) -> None:
        """Return once everything that lay in the task topics when this was called is in the store.

        Raises `BarrierNotReachedError` after `deadline_seconds`.
        """
        # Without an await in between, so that two callers cannot start two rounds.
        if self._next_round is None:
            self._next_round = asyncio.get_running_loop().create_future()
            self._group.create_task(self._round(self._next_round))
        # A caller that is cancelled must not cancel the round of the others.
        await asyncio.shield(self._next_round)

    async def _round(self, outcome: asyncio.Future[None]) -> None:
        loop = asyncio.get_running_loop()
        try:
            await asyncio.sleep(max(0.0, self._next_start - loop.time()))
            # The ends are read from here on: a later caller may know of a later record and needs the next round.
            self._next_round = None
            self._next_start = loop.time() + ROUND_INTERVAL_SECONDS
            async with asyncio.timeout(self._deadline_seconds):
                # In this order: read after the ends, a position could be ahead of them by records produced meanwhile.
                before = await self._projected()
                ends = await self._ends()
                # A position past the end belongs to a log that was truncated since; the projector reads it again.
                if _is_ahead(before, ends):
                    raise BarrierNotReachedError("the log of a topic was cut")
                while not _reached(await self._projected(), ends):  # noqa: ASYNC110 - another process moves them
                    await asyncio.sleep(_POLL_SECONDS)
        except asyncio.CancelledError:
            outcome.cancel()
            raise
        except Exception as error:  # noqa: BLE001 - whatever failed, those who wait are told and the group lives on
            reason = "timed out" if isinstance(error, TimeoutError) else str(error)
            if not outcome.cancelled():
                outcome.set_exception(BarrierNotReachedError(reason))
                # All waiters may have been cancelled; mark the exception as retrieved, or asyncio logs it as lost.
                outcome.exception()
        else:
            if not outcome.cancelled():
                outcome.set_result(None)


def _reached(projected: Mapping[Position, LogPosition], ends: Mapping[Position, LogPosition]) -> bool:
    return all(_is_past(projected.get(position), end) for position, end in ends.items())


def _is_past(projected: LogPosition | None, end: LogPosition) -> bool:
    """Whether everything before `end` was read; a position of a deleted topic of the same name counts for nothing."""
    if end.offset == 0:
        return True
    if projected is None or projected.offset < end.offset:
        return False
    return end.topic_id is None or projected.topic_id == end.topic_id


def _is_ahead(projected: Mapping[Position, LogPosition], ends: Mapping[Position, LogPosition]) -> bool:
    known = ((projected.get(position), end) for position, end in ends.items())
    return any(
        place is not None and place.topic_id == end.topic_id and place.offset > end.offset for place, end in known
    )
