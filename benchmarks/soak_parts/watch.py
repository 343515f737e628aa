"""When a soak is over: all is done, or nothing moves any more. What a look sees is `kit.offset_watch`'s business."""

import asyncio
import contextlib
import time
from typing import Final

from kit.offset_watch import OffsetWatch
from kit.worker import WorkerBench

INTERVAL_SECONDS: Final = 1.0
"""Between two looks, of which a soak makes thousands."""
STUCK_SECONDS: Final = 240.0
"""Without any new answer or commit; several times what a killed broker and a lost session take together."""


class SoakWatch(OffsetWatch):
    """Use with `async with`, once the tasks have their places."""

    def __init__(self, bench: WorkerBench) -> None:
        """Tell it the tasks by `expect`."""
        super().__init__(bench, interval_seconds=INTERVAL_SECONDS)
        self._began_at = self.moved_at

    @property
    def is_over(self) -> bool:
        """Whether all is done, or nothing has moved for so long that nothing will."""
        return self.is_done or time.monotonic() - self.moved_at > STUCK_SECONDS

    @property
    def working_seconds(self) -> float:
        """From the begin until the last new answer or commit."""
        return self.moved_at - self._began_at

    async def wait_over(self, *, deadline_seconds: float | None = None) -> None:
        """Return when it is over or the deadline passes."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(deadline_seconds):
                while not self.is_over:
                    self.check_watching()
                    await asyncio.sleep(0.1)
