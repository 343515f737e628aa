"""Polls a task until it has ended or the deadline passes; retries while the gateway is away.

Owns the interval and what is shown meanwhile.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Self, TypeVar

import httpx

from fluxpool_cli.exit_codes import CommandError, ExitCode
from fluxpool_cli.gateway import is_passing, reason_of
from fluxpool_cli.progress_bar import counting_bar
from fluxpool_cli.terminal import say
from fluxpool_client import AcceptedTask, Client, FluxpoolError, NotFoundError, RefusedError, Task, UnreachableError

T = TypeVar("T")

_INTERVAL_SECONDS: Final = 0.25
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
    pause_seconds = _INTERVAL_SECONDS
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


def wait_until_ended(
    gateway: Client, accepted: AcceptedTask | Task, *, deadline: Deadline, hopeless: Callable[[], str | None]
) -> Task:
    """The task once it has ended, showing every change.

    `hopeless` says why nothing can come of it, if that is so. Raises `CommandError`: 5 when the time is over, 1 when it
    is hopeless; and what the gateway refuses.
    """

    def ask() -> Task:
        return gateway.get(accepted.request_id, timeout_seconds=max(1.0, deadline.remaining_seconds))

    task: AcceptedTask | Task = accepted
    shown = ""
    with counting_bar(accepted.status) as bar:
        while True:
            try:
                task = patiently(ask, deadline=deadline)
            except TimeIsOverError:
                raise _still_unfinished(task, deadline) from None
            progress = None if task.ended or not task.progress or task.progress.total_steps <= 0 else task.progress
            bar.show(task.status, *((progress.step, progress.total_steps) if progress else (0, None)))
            line = task.status + (f" step {progress.step} of {progress.total_steps}" if progress else "")
            if line != shown:
                bar.say_where_hidden(line)
            shown = line
            if task.ended:
                return task
            if (why := hopeless()) is not None:
                raise CommandError(ExitCode.FAILED, f"{task.request_id} waits, but the workers cannot start: {why}")
            if deadline.remaining_seconds == 0.0:
                raise _still_unfinished(task, deadline)
            time.sleep(min(_INTERVAL_SECONDS, deadline.remaining_seconds))


def _still_unfinished(task: AcceptedTask | Task, deadline: Deadline) -> CommandError:
    return CommandError(
        ExitCode.TIMED_OUT,
        f"{task.request_id} is still {task.status} after {deadline.timeout_seconds:g} s and continues; "
        f"see {task.status_url} for its result, or wait longer with --timeout",
    )
