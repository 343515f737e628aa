"""Who may have a job with the engine: a few tasks at a time, or one alone that is suspected of having killed one.

Knows neither tasks nor the engine. A task must not hold a slot while it waits for another.
"""

import asyncio
from dataclasses import dataclass


@dataclass(slots=True, eq=False)
class EngineSlot:
    """The right to have one job with the engine."""

    slots: "EngineSlots"
    alone: bool
    is_released: bool = False

    def release(self) -> None:
        """Give the slot back; any further call does nothing."""
        if not self.is_released:
            self.is_released = True
            self.slots._release(self)  # noqa: SLF001 - the other half of this module


class EngineSlots:
    """Hands out slots."""

    def __init__(self, *, jobs: int) -> None:
        self._jobs = jobs
        self._running = 0
        self._is_alone = False
        self._alone_waiting = 0
        self._changed = asyncio.Event()

    async def acquire(self, *, alone: bool = False) -> EngineSlot:
        """Wait for a slot; one that is alone goes before all others that wait, and nobody else has one beside it."""
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
        return EngineSlot(slots=self, alone=alone)

    def _admits(self, *, alone: bool) -> bool:
        if alone:
            return self._running == 0
        return not self._is_alone and self._alone_waiting == 0 and self._running < self._jobs

    def _release(self, slot: EngineSlot) -> None:
        self._running -= 1
        if slot.alone:
            self._is_alone = False
        self._changed.set()
