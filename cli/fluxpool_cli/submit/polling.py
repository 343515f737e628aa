"""Repeats requests while the gateway is away, until the deadline of a command; owns the pauses between them."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Self, TypeVar

import httpx

from fluxpool_cli.gateway import is_passing, reason_of
from fluxpool_cli.terminal import say
from fluxpool_client import FluxpoolError, NotFoundError, RefusedError, UnreachableError

T = TypeVar("T")

INTERVAL_SECONDS: Final = 0.25
"""Between two looks at a task, and before the first repetition."""
_LONGEST_PAUSE_SECONDS: Final = 5.0
_MAX_RETRY_AFTER_SECONDS: Final = 30.0
_UNKNOWN_SECONDS: Final = 15.0
"""Another replica of the gateway may not have consumed the task yet."""


@dataclass(frozen=True, slots=True)
class Deadline:
    """The end of all waiting of a command."""

    timeout_seconds: float
    at_seconds: float
    """Of the monotonic clock."""

    @classmethod
    def after(cls, timeout_seconds: float) -> Self:
        """So many seconds from now."""
        return cls(timeout_seconds, time.monotonic() + timeout_seconds)

    @property
    def remaining_seconds(self) -> float:
        """Never below zero."""
        return max(0.0, self.at_seconds - time.monotonic())


class TimeIsOverError(UnreachableError):
    """The deadline cut the last request short; those before it did not fail."""


def patiently(call: Callable[[], T], *, deadline: Deadline) -> T:
    """What `call` returns, repeated while the gateway is away, until the deadline; then its error is raised."""
    pause_seconds = INTERVAL_SECONDS
    unknown_until_seconds = time.monotonic() + _UNKNOWN_SECONDS
    failed: FluxpoolError | None = None
    while True:
        wanted_seconds = None
        try:
            return call()
        except NotFoundError:
            if deadline.remaining_seconds == 0.0 or time.monotonic() > unknown_until_seconds:
                raise
        except FluxpoolError as error:
            if not is_passing(error):
                raise
            if deadline.remaining_seconds == 0.0:
                if not isinstance(error.__cause__, httpx.TimeoutException):
                    raise
                # A last request that was cut short says less than those before it.
                if failed is not None:
                    raise failed from failed.__cause__
                raise TimeIsOverError(str(error)) from error.__cause__
            if failed is None or reason_of(error) != reason_of(failed):
                say(f"{reason_of(error)}; retrying until --timeout")
            failed = error
            if isinstance(error, RefusedError) and error.retry_after_seconds is not None:
                wanted_seconds = min(error.retry_after_seconds, _MAX_RETRY_AFTER_SECONDS)
        time.sleep(min(pause_seconds if wanted_seconds is None else wanted_seconds, deadline.remaining_seconds))
        pause_seconds = min(2 * pause_seconds, _LONGEST_PAUSE_SECONDS)
