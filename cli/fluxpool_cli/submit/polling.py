"""Polls a task until it has ended or the deadline passes; retries while the gateway is away.

Owns the interval and what is shown meanwhile.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Self, TypeVar

from fluxpool_cli.exit_codes import CommandError, ExitCode
from fluxpool_cli.progress_bar import counting_bar
from fluxpool_cli.submit.gateway_answers import Generation
from fluxpool_cli.submit.gateway_client import GatewayAwayError, GatewayClient, NotFoundError, TimeIsOverError
from fluxpool_cli.terminal import say

T = TypeVar("T")

_INTERVAL_SECONDS: Final = 0.25
_LONGEST_PAUSE_SECONDS: Final = 5.0
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


def patiently(ask: Callable[[], T], *, deadline: Deadline) -> T:
    """What `ask` returns, repeated while the gateway is away, until the deadline; then its error is raised."""
    pause_seconds = _INTERVAL_SECONDS
    unknown_until_seconds = time.monotonic() + _UNKNOWN_SECONDS
    failed: GatewayAwayError | None = None
    while True:
        try:
            return ask()
        except GatewayAwayError as error:
            if deadline.remaining_seconds == 0.0:
                # A last request that was cut short says less than those before it.
                raise (failed or error) if isinstance(error, TimeIsOverError) else error from None
            if str(error) != str(failed):
                say(f"{error}; retrying until --timeout")
            failed = error
            wanted_seconds = error.retry_after_seconds
        except NotFoundError:
            if deadline.remaining_seconds == 0.0 or time.monotonic() > unknown_until_seconds:
                raise
            wanted_seconds = None
        time.sleep(min(pause_seconds if wanted_seconds is None else wanted_seconds, deadline.remaining_seconds))
        pause_seconds = min(2 * pause_seconds, _LONGEST_PAUSE_SECONDS)


def wait_until_finished(
    gateway: GatewayClient, generation: Generation, *, deadline: Deadline, hopeless: Callable[[], str | None]
) -> Generation:
    """The task once it has ended, showing every change.

    `hopeless` says why nothing can come of it, if that is so. Raises `CommandError`: 5 when the time is over, 1 when it
    is hopeless, and what the gateway refuses.
    """
    request_id, shown = generation.request_id, ""
    with counting_bar(generation.status) as bar:
        while True:
            try:
                generation = patiently(
                    lambda: gateway.generation(request_id, within_seconds=deadline.remaining_seconds), deadline=deadline
                )
            except TimeIsOverError:
                raise _still_unfinished(gateway, generation, deadline) from None
            steps = generation.steps_done
            bar.show(generation.status, *(steps or (0, None)))
            line = generation.status + (f" step {steps[0]} of {steps[1]}" if steps and not generation.finished else "")
            if line != shown:
                bar.say_where_hidden(line)
            shown = line
            if generation.finished:
                return generation
            if (why := hopeless()) is not None:
                raise CommandError(ExitCode.FAILED, f"{request_id} waits, but the workers cannot start: {why}")
            if deadline.remaining_seconds == 0.0:
                raise _still_unfinished(gateway, generation, deadline)
            time.sleep(min(_INTERVAL_SECONDS, deadline.remaining_seconds))


def _still_unfinished(gateway: GatewayClient, generation: Generation, deadline: Deadline) -> CommandError:
    request_id = generation.request_id
    return CommandError(
        ExitCode.TIMED_OUT,
        f"{request_id} is still {generation.status} after {deadline.timeout_seconds:g} s and continues; "
        f"see {gateway.url}/v1/generations/{request_id} for its result, or wait longer with --timeout",
    )
