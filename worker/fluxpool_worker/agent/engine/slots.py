"""Slots of the engine: a few jobs at a time, or one alone that is suspected of having killed an engine.

Knows neither tasks nor the engine. `service` acquires a slot before it claims a record, so that slots have the order
of the records; `task.attempts` submits its job in this order, however long each task takes to prepare, and releases the
slot when the device is free, so that the next job begins while this one's images are stored. A task must not hold a
slot while it waits for another.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Final

PREPARATION_SECONDS: Final = 5.0
"""For how long after its acquisition a slot precedes later ones without a job. Claim and ledger entry take some ten
milliseconds, an input image from a slow store seconds; beyond that, an idle device costs more than order is worth."""


@dataclass(slots=True, eq=False)
class EngineSlot:
    """The right to have one job on the engine."""

    slots: "EngineSlots"
    alone: bool
    precedes_until: float
    """Time of the event loop."""
    is_released: bool = False
    no_longer_precedes: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when the job is submitted, or there will be none."""

    @contextlib.asynccontextmanager
    async def in_order(self) -> AsyncIterator[None]:
        """Enter after all slots acquired earlier: each has left its block, is released, or took too long.

        The block submits the job.
        """
        await self.slots._wait_for_earlier(self)  # noqa: SLF001 - the other half of this module
        try:
            yield
        finally:
            self.slots._leave_order(self)  # noqa: SLF001

    def release(self) -> None:
        """Free the slot; any further call does nothing."""
        if not self.is_released:
            self.is_released = True
            self.slots._release(self)  # noqa: SLF001


class EngineSlots:
    """Hands out slots."""

    def __init__(self, *, jobs: int) -> None:
        self._jobs = jobs
        self._running = 0
        self._is_alone = False
        self._alone_waiting = 0
        self._changed = asyncio.Event()
        self._preceding: dict[EngineSlot, None] = {}
        """Slots without a job yet, in the order of their acquisition."""

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
        slot = EngineSlot(
            slots=self, alone=alone, precedes_until=asyncio.get_running_loop().time() + PREPARATION_SECONDS
        )
        self._preceding[slot] = None
        return slot

    def _admits(self, *, alone: bool) -> bool:
        if alone:
            return self._running == 0
        return not self._is_alone and self._alone_waiting == 0 and self._running < self._jobs

    async def _wait_for_earlier(self, slot: EngineSlot) -> None:
        for earlier in list(self._preceding):
            if earlier is slot:
                break
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(earlier.precedes_until):
                    await earlier.no_longer_precedes.wait()

    def _leave_order(self, slot: EngineSlot) -> None:
        self._preceding.pop(slot, None)
        slot.no_longer_precedes.set()

    def _release(self, slot: EngineSlot) -> None:
        self._leave_order(slot)
        self._running -= 1
        if slot.alone:
            self._is_alone = False
        self._changed.set()
