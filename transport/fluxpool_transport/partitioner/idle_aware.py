"""A partitioner for senders that are idle most of the time: it reads loads only while a record is about to be sent.

Owns when a `LoadAwarePartitioner` reads. One that always reads asks the group's coordinator at least once a second:
cheap for a gateway, too much for a thousand agents of which a few have a retry to send.
"""

import asyncio
import contextlib
from typing import Final

from fluxpool_transport.partitioner.load_aware import READ_DEADLINE_SECONDS, LoadAwarePartitioner

AHEAD_SECONDS: Final = 3.0
"""How long before it sends a sender should call `expect`: time to connect and for a few readings."""
LINGER_SECONDS: Final = 10.0
"""How long reading continues after the last `expect`: the next sender needs no new connection."""


class IdleAwarePartitioner:
    """Runs a partitioner while it is needed: give `run()` a task, call `expect` ahead of time, `ready` before choosing.

    Not thread-safe: all of it belongs to one event loop.
    """

    def __init__(self, partitioner: LoadAwarePartitioner, *, linger_seconds: float = LINGER_SECONDS) -> None:
        """`linger_seconds` is above `AHEAD_SECONDS`."""
        self.partitioner = partitioner
        self._linger_seconds = linger_seconds
        self._needed = asyncio.Event()
        self.is_reading = False
        """Whether loads are read at this time."""

    def expect(self) -> None:
        """Announce that a record will be sent soon; may be repeated."""
        self._needed.set()

    async def ready(self) -> None:
        """Wait for the first reading since the last pause, at most 3 s; without it the choice is round robin."""
        self.expect()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(READ_DEADLINE_SECONDS):
                await self.partitioner.has_read.wait()

    async def run(self) -> None:
        """Read whenever it is needed, until cancelled."""
        while True:
            await self._needed.wait()
            self.is_reading = True
            reading = asyncio.create_task(self.partitioner.run(), name="partition-loads")
            try:
                await self._until_idle()
            finally:
                reading.cancel()
                await asyncio.wait({reading})
                self.is_reading = False

    async def _until_idle(self) -> None:
        while self._needed.is_set():
            self._needed.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._linger_seconds):
                    await self._needed.wait()
