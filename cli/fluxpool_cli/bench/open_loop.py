"""Offers tasks to a gateway at a constant rate, whatever it answers: an open loop.

A closed loop sends the next request after the answer to the last one, so a gateway that stalls is asked less and looks
better than it is. Here each request has its time, and its latency counts from then on. Owns the clock of the run and
the counts; knows nothing of how they are shown, or of canceling.
"""

import asyncio
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

from fluxpool_client import (
    AsyncClient,
    FluxpoolError,
    OptionalFields,
    RefusedError,
    UnexpectedResponseError,
    UnreachableError,
)

MAX_OPEN: Final = 500
"""Requests under way: each has a connection, and 1,024 open files are a usual limit of a process."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What is offered."""

    rate_per_second: float
    duration_seconds: float
    prompt: str
    fields: OptionalFields

    @property
    def requests(self) -> int:
        """How many in all."""
        return max(1, round(self.rate_per_second * self.duration_seconds))


@dataclass(slots=True)
class Tally:
    """What became of the requests so far."""

    sent: int = 0
    unsent: int = 0
    """Those that were due while `MAX_OPEN` were under way."""
    accepted_seconds: list[float] = field(default_factory=list)
    """Latency of each accepted one, from when it was due to its answer."""
    late_seconds: list[float] = field(default_factory=list)
    """How long after its time each was sent: what this machine adds to the latency."""
    refused: Counter[str] = field(default_factory=Counter)
    """By the code of the refusal."""
    unanswered: Counter[str] = field(default_factory=Counter)
    """By the reason; the gateway may have accepted them."""
    elapsed_seconds: float = 0.0
    """From the time of the first request to the last answer."""

    @property
    def accepted(self) -> int:
        """How many tasks were accepted."""
        return len(self.accepted_seconds)

    @property
    def open(self) -> int:
        """How many are under way."""
        return self.sent - self.accepted - self.refused.total() - self.unanswered.total()


async def offer(client: AsyncClient, load: Load, tally: Tally, *, on_sent: Callable[[], None]) -> None:
    """Send the requests, each at its time, and wait for their answers; the counts are in `tally` even when cancelled.

    The client must not repeat requests: a repeat would hide a refusal.
    """
    clock = asyncio.get_running_loop().time
    start = clock()
    try:
        async with asyncio.TaskGroup() as requests:
            for number in range(load.requests):
                due = start + number / load.rate_per_second
                # Also when it is late: answers are read only while this waits.
                await asyncio.sleep(max(0.0, due - clock()))
                if tally.open >= MAX_OPEN:
                    tally.unsent += 1
                    continue
                tally.sent += 1
                tally.late_seconds.append(clock() - due)
                requests.create_task(_send(client, load, tally, due_at=due, clock=clock))
                on_sent()
    finally:
        tally.elapsed_seconds = clock() - start


async def _send(client: AsyncClient, load: Load, tally: Tally, *, due_at: float, clock: Callable[[], float]) -> None:
    try:
        await client.submit(load.prompt, **load.fields)
    except RefusedError as error:
        tally.refused[error.code or f"HTTP {error.status}"] += 1
    except UnreachableError as error:
        cause = error.__cause__
        tally.unanswered["no answer in time" if _is_timeout(cause) else "no connection, or a broken one"] += 1
    except UnexpectedResponseError:
        tally.unanswered["no answer of a gateway"] += 1
    except FluxpoolError as error:
        tally.unanswered[type(error).__name__] += 1
    except asyncio.CancelledError:
        tally.unanswered["interrupted"] += 1
        raise
    else:
        tally.accepted_seconds.append(clock() - due_at)


def _is_timeout(cause: BaseException | None) -> bool:
    return "Timeout" in type(cause).__name__


def percentile(values: Sequence[float], percent: float) -> float | None:
    """The value that so many percent of the values do not exceed (nearest rank); None without values."""
    if not values:
        return None
    ordered = sorted(values)
    return ordered[max(0, math.ceil(percent / 100 * len(ordered)) - 1)]
