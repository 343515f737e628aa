"""The one way to wait for something outside that is down: exponential delays with jitter, for as long as it takes.

Owns the delays and what is logged about them. Knows nothing of what is tried; the caller says what counts as down.
"""

import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

import structlog
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type, stop_never, wait_random_exponential

log = structlog.get_logger(__name__)

T = TypeVar("T")

LOG_INTERVAL_SECONDS = 30.0
"""Pods share a log; an outage must not fill it."""


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
    """Call `operation` until it returns, and return what it returned.

    Waits between half of `initial_seconds` and an exponentially growing bound of at most `maximum_seconds`, drawn at
    random, so that many workers do not come back in step. Errors other than `retry_on`, and cancellation, pass through.
    `on_retry` is called before each wait with the error and the delay in seconds. The log says `name` (by default the
    function's own), at the beginning of an outage, every half minute and at its end.
    """
    what = name or getattr(operation, "__qualname__", type(operation).__qualname__)
    began_at = clock()
    logged_at: float | None = None

    def before_sleep(state: RetryCallState) -> None:
        nonlocal logged_at
        now = clock()
        error = state.outcome.exception() if state.outcome is not None else None
        if error is None or state.next_action is None:
            return
        if logged_at is None or now - logged_at >= LOG_INTERVAL_SECONDS:
            logged_at = now
            log.warning(
                "operation_held",
                operation=what,
                attempt=state.attempt_number,
                held_seconds=round(now - began_at, 1),
                error_type=type(error).__name__,
                error=str(error),
            )
        if on_retry is not None:
            on_retry(error, state.next_action.sleep)

    async def call() -> T:
        # tenacity awaits only what it recognises as a coroutine function; a lambda that returns one is none.
        return await operation()

    retrying = AsyncRetrying(
        stop=stop_never,
        wait=wait_random_exponential(multiplier=initial_seconds, min=initial_seconds / 2, max=maximum_seconds),
        retry=retry_if_exception_type(retry_on),
        before_sleep=before_sleep,
        reraise=True,
    )
    result: T = await retrying(call)
    if logged_at is not None:
        log.info("operation_resumed", operation=what, held_seconds=round(clock() - began_at, 1))
    return result
