"""Read-your-writes: whether the store has seen everything that was in the task topics when a question arrived.

A task that is acknowledged lies below the end of its topic, so once the projector is past that end, what is not in the
store was never accepted. Knows nothing of HTTP or of single tasks.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Final

from fluxpool_gateway.store.task_store import Position

DEADLINE_SECONDS: Final = 2.0
ROUND_INTERVAL_SECONDS: Final = 0.05
"""Questions that arrive within this time share one round, so that unknown ids cannot flood the brokers."""
_POLL_SECONDS: Final = 0.02

Offsets = Callable[[], Awaitable[Mapping[Position, int]]]


class BarrierNotReachedError(Exception):
    """Whether the store is complete could not be found out in time."""


class ProjectionBarrier:
    """Waits, for many questions at once, until the projection has caught up with Kafka."""

    def __init__(self, group: asyncio.TaskGroup, *, end_offsets: Offsets, projected_offsets: Offsets) -> None:
        """`end_offsets` asks the brokers, `projected_offsets` the store; either may raise, which fails its round.

        Rounds run in `group`, because none of those who wait for a round owns it.
        """
        self._group = group
        self._end_offsets = end_offsets
        self._projected_offsets = projected_offsets
        self._next_round: asyncio.Future[None] | None = None
        self._next_start = 0.0

    async def passed(self) -> None:
        """Return once everything that lay in the task topics when this was called is in the store.

        Raises `BarrierNotReachedError` after about two seconds.
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
            async with asyncio.timeout(DEADLINE_SECONDS):
                ends = await self._end_offsets()
                while not _reached(await self._projected_offsets(), ends):  # noqa: ASYNC110 - another process moves them
                    await asyncio.sleep(_POLL_SECONDS)
        except asyncio.CancelledError:
            outcome.cancel()
            raise
        except Exception as error:  # noqa: BLE001 - whatever failed, those who wait are told and the group lives on
            reason = "timed out" if isinstance(error, TimeoutError) else str(error)
            if not outcome.cancelled():
                outcome.set_exception(BarrierNotReachedError(reason))
                # Whoever asked may have gone away; an exception that nobody takes would be logged as lost.
                outcome.exception()
        else:
            if not outcome.cancelled():
                outcome.set_result(None)


def _reached(projected: Mapping[Position, int], ends: Mapping[Position, int]) -> bool:
    return all(projected.get(position, 0) >= end for position, end in ends.items())
