"""Holds: during an outage of the infrastructure the worker keeps its tasks, takes no more, and resumes afterwards.

Owns what is away, since when, and for how long in all. A hold costs no task an attempt. A worker in a hold stays ready:
Kubernetes removes pods that are not ready first, and this one has tasks.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, TypeVar

import structlog
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from fluxpool_transport.process import retry_forever
from fluxpool_worker.agent.task.run_until import run_until

LAST_TRY_SECONDS: Final = 1.0
"""For an operation under way when it is no longer wanted; one that is not held by an outage takes milliseconds."""

log = structlog.get_logger(__name__)
T = TypeVar("T")


class HoldCause(StrEnum):
    """What is away."""

    OBJECT_STORE = "object-store"
    DISK = "disk"
    KAFKA = "kafka"
    SIGNING = "signing"
    """The key or certificate for image files cannot sign."""


class HoldExpiredError(Exception):
    """An outage outlasted `infra_hold_limit_seconds`; the worker releases its tasks and ends."""


@dataclass(slots=True, eq=False)
class Hold:
    """One thing that waits."""

    cause: HoldCause
    began_at: float


class Holds(Collector):
    """All that waits in this worker; also its metrics."""

    def __init__(
        self, *, limit_seconds: float, outage_seconds: float = 0.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`outage_seconds` is for how long something must be away to count in `seconds_since_outage`."""
        self._limit_seconds = limit_seconds
        self._outage_seconds = outage_seconds
        self._clock = clock
        self._standing: set[Hold] = set()
        self._since: dict[HoldCause, float] = {}
        """When what is away now went away."""
        self._past_seconds = dict.fromkeys(HoldCause, 0.0)
        self._outage_ended_at: dict[HoldCause, float] = {}
        self._clear = asyncio.Event()
        self._clear.set()

    @property
    def causes(self) -> frozenset[HoldCause]:
        """What is away now."""
        return frozenset(self._since)

    async def wait_clear(self) -> None:
        """Return when nothing is held."""
        await self._clear.wait()

    def begin(self, cause: HoldCause) -> Hold:
        """Something waits from now on."""
        hold = Hold(cause, self._clock())
        if cause not in self._since:
            self._since[cause] = hold.began_at
            log.warning("outage_started", cause=cause)
        self._standing.add(hold)
        self._clear.clear()
        return hold

    def begin_apart(self, cause: HoldCause) -> Hold:
        """Something waits from now on that holds up nothing else: only its time is limited, by `check`."""
        return Hold(cause, self._clock())

    def end(self, hold: Hold | None) -> None:
        """What waited resumes; a hold that has ended, or none, is ignored."""
        if hold is None or hold not in self._standing:
            return
        self._standing.discard(hold)
        if any(other.cause is hold.cause for other in self._standing):
            return
        now = self._clock()
        seconds = now - self._since.pop(hold.cause)
        self._past_seconds[hold.cause] += seconds
        if seconds >= self._outage_seconds:
            self._outage_ended_at[hold.cause] = now
        log.info("outage_ended", cause=hold.cause, seconds=round(seconds, 1))
        if not self._standing:
            self._clear.set()

    def note_outage(self, cause: HoldCause) -> None:
        """There was an outage until now, although nothing had to wait for its end."""
        self._outage_ended_at[cause] = self._clock()

    def check(self, hold: Hold, reason: object) -> None:
        """Raise `HoldExpiredError` when the hold has lasted too long."""
        held_seconds = self._clock() - hold.began_at
        if held_seconds >= self._limit_seconds:
            raise HoldExpiredError(
                f"{hold.cause} was unavailable for {held_seconds:.0f} s, longer than infra_hold_limit_seconds: {reason}"
            )

    async def through(
        self,
        operation: Callable[[], Awaitable[T]],
        *,
        cause: HoldCause,
        retry_on: tuple[type[Exception], ...],
        abandoned: asyncio.Event | None = None,
    ) -> T:
        """The operation's result, however long an outage lasts.

        Raises `HoldExpiredError` past the limit, and `AbandonedError` soon after `abandoned` is set.
        """
        hold: Hold | None = None

        def on_retry(error: BaseException, _delay_seconds: float) -> None:
            nonlocal hold
            hold = hold or self.begin(cause)
            self.check(hold, error)

        trying = retry_forever(operation, name=cause, retry_on=retry_on, on_retry=on_retry)
        try:
            if abandoned is None:
                return await trying
            return await run_until(abandoned, trying, last_try_seconds=LAST_TRY_SECONDS)
        finally:
            self.end(hold)

    def collect(self) -> Iterator[Metric]:
        """`fluxpool_held` and `fluxpool_hold_seconds_total`, by cause."""
        held = GaugeMetricFamily("fluxpool_held", "1 while work waits because of this cause.", labels=["cause"])
        seconds = CounterMetricFamily("fluxpool_hold_seconds", "Seconds that work waited.", labels=["cause"])
        causes = self.causes
        for cause in HoldCause:
            held.add_metric([cause], float(cause in causes))
            seconds.add_metric([cause], self.seconds(cause))
        yield held
        yield seconds

    def seconds(self, cause: HoldCause) -> float:
        """For how long this cause has held work, the present outage included."""
        now = self._clock()
        return self._past_seconds[cause] + now - self._since.get(cause, now)

    def seconds_since_outage(self, cause: HoldCause) -> float | None:
        """How long ago the last outage by this cause ended: 0 while it lasts, None when there was none."""
        now = self._clock()
        if now - self._since.get(cause, now) >= self._outage_seconds and cause in self._since:
            return 0.0
        ended_at = self._outage_ended_at.get(cause)
        return None if ended_at is None else now - ended_at
