"""Waits until the store has something newer of a task, for many requests at once.

The projector is another process, so the store is polled: once for all waiting requests, and only while there are any.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from fluxpool_gateway.store.reading import StoreUnavailableError
from fluxpool_gateway.store.task_state import TaskKey

POLL_SECONDS = 0.05
Versions = Callable[[Sequence[str]], Awaitable[dict[TaskKey, int]]]


@dataclass(frozen=True, slots=True, eq=False)
class _Waiter:
    key: TaskKey
    version: int
    later: asyncio.Future[None]


class TaskWaits:
    """Wakes those who wait for a task; one instance serves one process."""

    def __init__(self, group: asyncio.TaskGroup, *, versions: Versions) -> None:
        """`versions` asks the store, and raises `StoreUnavailableError`.

        The store is asked in `group`, because none of those who wait owns the question.
        """
        self._group = group
        self._versions = versions
        self._waiters: set[_Waiter] = set()
        self._polling = False

    async def later_than(self, key: TaskKey, version: int) -> None:
        """Return once the store has a later version of the task; keeps waiting while the store cannot be read.

        Bound it by a timeout. Any version that the store has is later than -1.
        """
        waiter = _Waiter(key, version, asyncio.get_running_loop().create_future())
        self._waiters.add(waiter)
        # Without an await in between, so that two requests cannot start two.
        if not self._polling:
            self._polling = True
            self._group.create_task(self._poll())
        try:
            await waiter.later
        finally:
            self._waiters.discard(waiter)

    async def _poll(self) -> None:
        try:
            while self._waiters:
                await self._wake()
                await asyncio.sleep(POLL_SECONDS)
        finally:
            self._polling = False

    async def _wake(self) -> None:
        try:
            versions = await self._versions(list({waiter.key.request_id for waiter in self._waiters}))
        except StoreUnavailableError:
            # A waiting request reads the task after its time, and answers with the reason.
            return
        for waiter in self._waiters:
            if versions.get(waiter.key, -1) > waiter.version and not waiter.later.done():
                waiter.later.set_result(None)
