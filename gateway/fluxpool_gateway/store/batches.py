"""Batches for a thread: what is asked for while one batch is worked on is the next one."""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Generic, TypeVar

Item = TypeVar("Item")
T = TypeVar("T")


class Batches(Generic[Item, T]):
    """Work of one event loop, done in one thread; close it at the end."""

    def __init__(self, work: Callable[[Sequence[Item]], Sequence[T]], *, name: str, error: type[Exception]) -> None:
        """`work` returns the outcome of each item, in order, or raises `error` for all."""
        self._work = work
        self._error = error
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix=name)
        self._waiting: list[tuple[Item, asyncio.Future[T]]] = []
        self._working: asyncio.Future[None] | None = None

    def add(self, item: Item) -> asyncio.Future[T]:
        """Its outcome; the future raises the error of its batch. It need not be awaited."""
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._waiting.append((item, future))
        if self._working is None:
            self._working = asyncio.ensure_future(self._work_off())
        return future

    async def close(self, last: Callable[[], None]) -> None:
        """Work off what is waiting, call `last` in the thread, and end it."""
        while self._working is not None:
            await self._working
        await asyncio.get_running_loop().run_in_executor(self._executor, last)
        self._executor.shutdown(wait=False)

    async def _work_off(self) -> None:
        loop = asyncio.get_running_loop()
        while self._waiting:
            batch, self._waiting = self._waiting, []
            items = [item for item, _ in batch]
            try:
                outcomes = await loop.run_in_executor(self._executor, self._work, items)
            except self._error as error:
                for _, future in batch:
                    if not future.done():
                        future.set_exception(error)
                        # Some outcomes are not waited for.
                        future.exception()
            else:
                for (_, future), outcome in zip(batch, outcomes, strict=True):
                    if not future.done():
                        future.set_result(outcome)
        self._working = None
