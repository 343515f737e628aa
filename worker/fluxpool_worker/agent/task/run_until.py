"""Awaits a coroutine until an event is set."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class AbandonedError(Exception):
    """The event was set before there was a result."""


async def run_until(event: asyncio.Event, work: Coroutine[Any, Any, T], *, last_try_seconds: float = 0.0) -> T:
    """The result of `work`, which is cancelled `last_try_seconds` after `event` is set.

    Raises `AbandonedError` then, and whatever `work` raises.
    """
    working = asyncio.ensure_future(work)
    waiting = asyncio.ensure_future(event.wait())
    try:
        await asyncio.wait({working, waiting}, return_when=asyncio.FIRST_COMPLETED)
        # A result that is there counts, also when the event was set at the same moment.
        if not working.done():
            await asyncio.wait({working}, timeout=last_try_seconds)
        if not working.done():
            raise AbandonedError
        return working.result()
    finally:
        waiting.cancel()
        working.cancel()
