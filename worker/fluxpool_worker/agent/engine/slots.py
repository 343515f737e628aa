"""Who may have a job with the engine: a few tasks at a time, or one alone that is suspected of having killed one.

Knows neither tasks nor the engine. A task must not hold a turn while it waits for another.
"""

import asyncio
from dataclasses import dataclass


@dataclass(slots=True, eq=False)
class EngineTurn:
    """The right to have one job with the engine."""

    turns: "EngineTurns"
    alone: bool
    is_over: bool = False

    def end(self) -> None:
        """Give the turn back; any further call does nothing."""
        if not self.is_over:
            self.is_over = True
            self.turns._leave(self)  # noqa: SLF001 - the other half of this module


class EngineTurns:
    """Hands out turns."""

    def __init__(self, *, jobs: int) -> None:
        self._jobs = jobs
        self._running = 0
        self._is_alone = False
        self._alone_waiting = 0
        self._changed = asyncio.Event()

    async def enter(self, *, alone: bool = False) -> EngineTurn:
        """Wait for a turn; one that is alone goes before all others that wait, and nobody else has one beside it."""
        self._alone_waiting += alone
        try:
            while not self._admits(alone=alone):
                self._changed.clear()
                await self._changed.wait()
        finally:
            self._alone_waiting -= alone
            self._changed.set()
        self._running += 1
        self._is_alone = alone
        return EngineTurn(turns=self, alone=alone)

    def _admits(self, *, alone: bool) -> bool:
        if alone:
            return self._running == 0
        return not self._is_alone and self._alone_waiting == 0 and self._running < self._jobs

    def _leave(self, turn: EngineTurn) -> None:
        self._running -= 1
        if turn.alone:
            self._is_alone = False
        self._changed.set()
