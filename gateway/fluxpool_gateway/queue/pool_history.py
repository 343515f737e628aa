"""The last hour of the pools: lag, rate and ready workers, as one process of the gateway read them.

Kept in memory: a process that starts has a plot that begins with it, and every process fills its own from the same
readings. What the operator decided is read again from its topic (`pool_states`), and so outlives a restart.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

HISTORY_SECONDS: Final = 3600.0
SAMPLE_SECONDS: Final = 15.0
"""240 points an hour: more than a small plot has room for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolSample:
    """One pool at one moment; numbers are None where they were not known."""

    pool: str
    """Consumer group of its first lane."""
    at: float
    """Seconds since 1970."""
    ready: int | None
    lag: int | None
    """Tasks that are not done."""
    completed_per_minute: float | None


class PoolHistory:
    """The samples of one process."""

    def __init__(self) -> None:
        self._samples: dict[str, deque[PoolSample]] = {}

    def add(self, samples: Iterable[PoolSample]) -> None:
        """Keep the samples of one moment."""
        for sample in samples:
            kept = self._samples.setdefault(sample.pool, deque(maxlen=int(HISTORY_SECONDS / SAMPLE_SECONDS) + 1))
            kept.append(sample)

    def of_pool(self, pool: str) -> Sequence[PoolSample]:
        """Its samples, the oldest first; at most an hour's."""
        return tuple(self._samples.get(pool, ()))

    async def run(self, read: Callable[[float], Iterable[PoolSample]]) -> None:
        """Keep what `read` tells of now, until cancelled."""
        while True:
            self.add(read(time.time()))
            await asyncio.sleep(SAMPLE_SECONDS)
