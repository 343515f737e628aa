"""Waits until the store has something newer of a task, or of a tenant's tasks, for many requests at once.

The projector is another process, so the store is polled: once for all waiting requests, and only while there are any.
"""

import asyncio
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from fluxpool_gateway.store.reading import StoreUnavailableError
from fluxpool_gateway.store.task_state import TaskKey

POLL_SECONDS = 0.05
Versions = Callable[[Sequence[str]], Awaitable[dict[TaskKey, int]]]


Key = TypeVar("Key")


@dataclass(frozen=True, slots=True, eq=False)
class _Waiter(Generic[Key]):
    key: Key
    version: int
    later: asyncio.Future[None]


class StoreWaits(Generic[Key]):
    """Wakes those who wait for something that has versions; one instance serves one process."""

    def __init__(
        self, group: asyncio.TaskGroup, latest: Callable[[Collection[Key]], Awaitable[Mapping[Key, int]]]
    ) -> None:
        """`latest` asks the store for versions, and raises `StoreUnavailableError`.

        The store is asked in `group`, because none of those who wait owns the question.
        """
        self._group = group
        self._latest = latest
        self._waiters: set[_Waiter[Key]] = set()
        self._polling = False

    async def later_than(self, key: Key, version: int) -> None:
        """Return once the store has a later version; keeps waiting while the store cannot be read.

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
            versions = await self._latest({waiter.key for waiter in self._waiters})
        except StoreUnavailableError:
            # A waiting request reads the task after its time, and answers with the reason.
            return
        for waiter in self._waiters:
            if versions.get(waiter.key, -1) > waiter.version and not waiter.later.done():
                waiter.later.set_result(None)


class TaskWaits(StoreWaits[TaskKey]):
    """Wakes those who wait for a task."""

    def __init__(self, group: asyncio.TaskGroup, *, versions: Versions) -> None:
        """`versions` asks the store for all tasks with these ids."""
        super().__init__(group, lambda keys: versions(list({key.request_id for key in keys})))
