"""Slots of the engine: a few jobs at a time, or one alone that is suspected of having killed an engine.

Knows neither tasks nor the engine. `service` acquires a slot before it claims a record; `task.attempts` releases it
when the device is free, so that the next job begins while this one's images are stored. A task must not hold a slot
while it waits for another.
"""

import asyncio
from dataclasses import dataclass


@dataclass(slots=True, eq=False)
class EngineSlot:
    """The right to have one job on the engine."""

    slots: "EngineSlots"
    alone: bool
    is_released: bool = False

    def release(self) -> None:
        """Free the slot; any further call does nothing."""
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
        """Wait for a slot; one that is `alone` precedes all others that wait, and has the whole engine."""
        self._alone_waiting += alone
        try:
            while not self._admits(alone=alone):
                self._changed.clear()
                await self._changed.wait()
        finally:
            # Cancelled or admitted, it holds up the others no more: wake them. Nothing is awaited between the check in
            # `_admits` and the count below, so no other task takes the same slot.
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
