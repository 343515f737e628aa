"""The requested end of a pod, with a deadline that later requests can only shorten.

Knows nothing of processes or of the API.
"""

import asyncio


class Termination:
    """One pod's; used within one event loop."""

    def __init__(self) -> None:
        """Not requested."""
        self._requested = asyncio.Event()
        self._changed = asyncio.Event()
        self._deadline = float("inf")

    @property
    def requested(self) -> bool:
        """Whether the pod has to end."""
        return self._requested.is_set()

    def request(self, grace_seconds: float) -> None:
        """Request the end within a grace period from now, which replaces an earlier one only if it is shorter."""
        self._deadline = min(self._deadline, asyncio.get_running_loop().time() + grace_seconds)
        self._requested.set()
        self._changed.set()

    async def wait_requested(self) -> None:
        """Return once the end is requested."""
        await self._requested.wait()

    async def pause(self, seconds: float) -> None:
        """Sleep, but not beyond the request."""
        try:
            async with asyncio.timeout(seconds):
                await self._requested.wait()
        except TimeoutError:
            return

    async def wait_expired(self) -> None:
        """Return once the deadline of the shortest grace is over."""
        loop = asyncio.get_running_loop()
        while (left := self._deadline - loop.time()) > 0:
            self._changed.clear()
            try:
                async with asyncio.timeout(None if left == float("inf") else left):
                    await self._changed.wait()
            except TimeoutError:
                continue
