"""Read-your-writes: whether the store has seen everything that was in the task topics when a question arrived.

A task that is acknowledged lies below the end of its topic, so once the projector is past that end, what is not in the
store was never accepted. Knows nothing of HTTP or of single tasks.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Final

from fluxpool_gateway.store.task_store import LogPosition, Position

DEADLINE_SECONDS: Final = 2.0
ROUND_INTERVAL_SECONDS: Final = 0.05
"""Questions that arrive within this time share one round, so that unknown ids cannot flood the brokers."""
_POLL_SECONDS: Final = 0.02

Positions = Callable[[], Awaitable[Mapping[Position, LogPosition]]]


class BarrierNotReachedError(Exception):
    """Whether the store is complete could not be found out in time."""


class ProjectionBarrier:
    """Waits, for many questions at once, until the projection has caught up with Kafka."""

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
        if self._next_round is None:
            self._next_round = asyncio.get_running_loop().create_future()
            self._group.create_task(self._round(self._next_round))
        await asyncio.shield(self._next_round)

    async def _round(self, outcome: asyncio.Future[None]) -> None:
        loop = asyncio.get_running_loop()
        try:
            await asyncio.sleep(max(0.0, self._next_start - loop.time()))
            # From here on the ends are read: who asks later may know of a later record and needs a later round.
            self._next_round = None
            self._next_start = loop.time() + ROUND_INTERVAL_SECONDS
            async with asyncio.timeout(self._deadline_seconds):
                before = await self._projected()
                ends = await self._ends()
                # A projection that was further than its log is of a log that was cut since; it will be read again.
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
    """Whether everything before `end` was read; of a topic that had the name before, nothing was."""
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
