"""Delays between the tries of something outside that is down: the one backoff of the product.

Owns the delays and what is logged about them. Knows nothing of what is tried; the caller says what counts as down.
"""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TypeVar

import structlog

log = structlog.get_logger(__name__)

T = TypeVar("T")

LOG_INTERVAL_SECONDS = 30.0
"""Pods share a log; an outage must not fill it."""


@dataclass(slots=True, kw_only=True)
class Backoff:
    """The delay before each next try of one operation: `next_seconds` after a failure, `reset` after a success.

    The bound of a delay doubles from `initial_seconds` to `maximum_seconds`, both above 0. `jitter` (0 to 1) is the
    share of the bound that is random: by default a delay is between half of its bound and all of it, so that many pods
    do not come back in step; with 0 it is the bound. Equal `initial_seconds` and `maximum_seconds` do not grow.
    """

    initial_seconds: float
    maximum_seconds: float
    jitter: float = 0.5
    random_fraction: Callable[[], float] = field(default=random.random, repr=False)
    """A number from 0 to 1; an argument for tests."""
    failures: int = field(default=0, init=False)
    """In a row, since the last success."""

    def next_seconds(self) -> float:
        """Count a failure; returns how long to wait before the next try."""
        # 2**64 times any delay is above every maximum, and a float still holds it.
        bound = min(self.maximum_seconds, self.initial_seconds * 2.0 ** min(self.failures, 64))
        self.failures += 1
        return bound * (1 - self.jitter * self.random_fraction())

    def reset(self) -> None:
        """Start over with `initial_seconds`: the operation succeeded."""
        self.failures = 0

    async def sleep(self) -> None:
        """Count a failure and sleep for its delay."""
        await asyncio.sleep(self.next_seconds())


async def retry_forever(
    operation: Callable[[], Awaitable[T]],
    *,
    retry_on: tuple[type[Exception], ...],
    name: str | None = None,
    on_retry: Callable[[BaseException, float], None] | None = None,
    initial_seconds: float = 0.2,
    maximum_seconds: float = 10.0,
    clock: Callable[[], float] = time.monotonic,
) -> T:
    """Call `operation` until it returns, and return what it returned; waits in between as `Backoff` does.

    Errors other than `retry_on`, and cancellation, pass through. `on_retry` is called before each wait with the error
    and the delay in seconds. The log says `name` (by default the function's own) at the beginning of an outage, every
    half minute and at its end.
    """
    what = name or getattr(operation, "__qualname__", type(operation).__qualname__)
    backoff = Backoff(initial_seconds=initial_seconds, maximum_seconds=maximum_seconds)
    began_at = clock()
    logged_at: float | None = None
    while True:
        try:
            result = await operation()
        except retry_on as error:
            now, delay_seconds = clock(), backoff.next_seconds()
            if logged_at is None or now - logged_at >= LOG_INTERVAL_SECONDS:
                logged_at = now
                log.warning(
                    "operation_held",
                    operation=what,
                    attempt=backoff.failures,
                    held_seconds=round(now - began_at, 1),
                    error_type=type(error).__name__,
                    error=str(error),
                )
            if on_retry is not None:
                on_retry(error, delay_seconds)
        else:
            if logged_at is not None:
                log.info("operation_resumed", operation=what, held_seconds=round(clock() - began_at, 1))
            return result
        # Outside the handler, so that the next error has no chain of all the earlier ones behind it.
        await asyncio.sleep(delay_seconds)
