"""Waiting for a condition with a deadline, instead of sleeping.

On expiry the error has the caller's description. Deadlines suit a machine that runs one test at a time; where it runs
several, `TEST_PATIENCE` multiplies them.
"""

import asyncio
import inspect
import os
import time
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar, overload

_SHORTEST_INTERVAL_SECONDS = 0.02
_LONGEST_INTERVAL_SECONDS = 0.2
_INTERVALS_PER_WAIT = 20
"""What is waited for needs the cores that look for it. A look comes late by a twentieth of the wait at most."""
PATIENCE: Final = float(os.environ.get("TEST_PATIENCE", "1"))
T = TypeVar("T")


class WaitExpiredError(AssertionError):
    """The condition did not come true in time; an assertion, so that pytest shows it as a failed test."""


@overload
async def wait_until(predicate: Callable[[], Awaitable[T]], *, deadline_seconds: float, what: str) -> T: ...
@overload
async def wait_until(predicate: Callable[[], T], *, deadline_seconds: float, what: str) -> T: ...
async def wait_until(predicate: Callable[[], Awaitable[T] | T], *, deadline_seconds: float, what: str) -> T:
    """Return the first true value of `predicate`, which may be a coroutine function; it is called every 20 ms, in
    waits of seconds every 200 ms.

    Its exceptions pass through. Raises `WaitExpiredError` with `what` and the last value when the deadline passes, also
    when the predicate itself hangs.
    """
    deadline_seconds *= PATIENCE
    value: T | None = None
    began = time.monotonic()
    deadline = asyncio.timeout(deadline_seconds)
    try:
        async with deadline:
            while True:
                answer = predicate()
                value = await answer if inspect.isawaitable(answer) else answer
                if value:
                    return value
                await asyncio.sleep(_interval_seconds(time.monotonic() - began))
    except TimeoutError:
        # A timeout of the predicate's own is its error, not ours.
        if not deadline.expired():
            raise
        raise WaitExpiredError(_expiry(what, deadline_seconds, value)) from None


def wait_until_blocking(predicate: Callable[[], T], *, deadline_seconds: float, what: str) -> T:
    """Do the same outside an event loop; a predicate that hangs is not interrupted."""
    deadline_seconds *= PATIENCE
    began = time.monotonic()
    while not (value := predicate()):
        if time.monotonic() >= began + deadline_seconds:
            raise WaitExpiredError(_expiry(what, deadline_seconds, value))
        time.sleep(_interval_seconds(time.monotonic() - began))
    return value


def _interval_seconds(waited_seconds: float) -> float:
    return min(max(_SHORTEST_INTERVAL_SECONDS, waited_seconds / _INTERVALS_PER_WAIT), _LONGEST_INTERVAL_SECONDS)


def _expiry(what: str, deadline_seconds: float, value: object) -> str:
    return f"not within {deadline_seconds:g} s: {what} (last seen: {value!r})"
