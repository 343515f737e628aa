"""Waiting for something only as long as it is wanted; knows nothing of what is waited for."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class AbandonedError(Exception):
    """The caller lost interest before there was a result."""


async def run_until(abandoned: asyncio.Event, work: Coroutine[Any, Any, T], *, last_try_seconds: float = 0.0) -> T:
    """The result of `work`, which is cancelled when it is not there soon after `abandoned` is set.

    Raises `AbandonedError` then, and whatever `work` raises.
    """
    working = asyncio.ensure_future(work)
    waiting = asyncio.ensure_future(abandoned.wait())
    try:
        await asyncio.wait({working, waiting}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            await asyncio.wait({working}, timeout=last_try_seconds)
        if not working.done():
            raise AbandonedError
        return working.result()
    finally:
        waiting.cancel()
        working.cancel()
