"""When a soak is over: all is done, or nothing changes any more. `kit.faults.offset_watch` owns the observations."""

import asyncio
import contextlib
import time
from typing import Final

from kit.faults.offset_watch import OffsetWatch
from kit.workers.worker import WorkerBench

INTERVAL_SECONDS: Final = 1.0
"""Interval of the observations, of which a soak makes thousands."""
STUCK_SECONDS: Final = 240.0
"""Time without a new result or commit; several times that of a killed broker and an expired session together."""


class SoakWatch(OffsetWatch):
    """Use with `async with`, once the tasks have their offsets."""

    def __init__(self, bench: WorkerBench) -> None:
        """Add the tasks with `expect`."""
        super().__init__(bench, interval_seconds=INTERVAL_SECONDS)
        self._began_at = self.moved_at

    @property
    def is_over(self) -> bool:
        """Whether all is done, or nothing has changed for so long that nothing will."""
        return self.is_done or time.monotonic() - self.moved_at > STUCK_SECONDS

    @property
    def working_seconds(self) -> float:
        """From the begin until the last new result or commit."""
        return self.moved_at - self._began_at

    async def wait_over(self, *, deadline_seconds: float | None = None) -> None:
        """Return when it is over or the deadline passes."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(deadline_seconds):
                while not self.is_over:
                    self.check_watching()
                    await asyncio.sleep(0.1)
