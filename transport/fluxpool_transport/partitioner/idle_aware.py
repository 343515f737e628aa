"""Partition choice for senders that rest most of the time: loads are read only while a record is about to be sent.

Owns when a chooser reads. A chooser that always reads asks the group's coordinator once a second, which a gateway is
worth; a thousand agents, of which a few have a retry waiting, are not.
"""

import asyncio
import contextlib
from typing import Final

from fluxpool_transport.partitioner.load_aware import READ_DEADLINE_SECONDS, PartitionChooser

AHEAD_SECONDS: Final = 3.0
"""So long before it sends a sender should say so: time to connect, and for a few readings, which tell more than one."""
LINGER_SECONDS: Final = 10.0
"""Reading goes on for so long after the last word of a sender: those behind it need no connection of their own."""


class ChoiceOnDemand:
    """Runs a chooser while it is needed: give `run()` a task, call `expect` ahead of time and `ready` before choosing.

    All of it belongs to one event loop.
    """

    def __init__(self, chooser: PartitionChooser, *, linger_seconds: float = LINGER_SECONDS) -> None:
        """`linger_seconds` is above `AHEAD_SECONDS`."""
        self.chooser = chooser
        self._linger_seconds = linger_seconds
        self._needed = asyncio.Event()
        self.is_reading = False
        """Whether loads are read at this time."""

    def expect(self) -> None:
        """Say that a record will be sent soon; as often as one likes."""
        self._needed.set()

    async def ready(self) -> None:
        """Wait for the first reading, if there was none since the rest; without an answer for 3 s at the most.

        After that nobody waits: while loads cannot be read, partitions take turns.
        """
        self.expect()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(READ_DEADLINE_SECONDS):
                await self.chooser.has_read.wait()

    async def run(self) -> None:
        """Read whenever it is needed, until cancelled."""
        while True:
            await self._needed.wait()
            self.is_reading = True
            reading = asyncio.create_task(self.chooser.run(), name="partition-loads")
            try:
                await self._until_rest()
            finally:
                reading.cancel()
                await asyncio.wait({reading})
                self.is_reading = False

    async def _until_rest(self) -> None:
        while self._needed.is_set():
            self._needed.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._linger_seconds):
                    await self._needed.wait()
