"""When the lag of one pool is read: at its interval, in quick succession during a burst, and when an idle topic grows.

Owns the last good readings. `backlog` reads Kafka, `apply.scaler` plans by what is observed.
"""

import asyncio
import random
import time
from collections.abc import Callable
from typing import Final

from fluxpool_contract.kafka import KafkaConnection
from fluxpool_operator.backlog import BacklogHub, LaneObservation, LaneTarget, PoolBacklog

SETTLE_INTERVAL_SECONDS: Final = 0.1
"""Between two readings of a burst that is being produced: longer than a producer lingers."""
SETTLE_SECONDS: Final = 0.6
"""The longest wait for the end of a burst: scaling once to the whole size saves a rebalance."""
GROWING_INTERVAL_SECONDS: Final = 0.5
"""Between readings of a burst that did not end within that."""
BURST_SECONDS: Final = 10.0
"""What grows for longer is steady traffic, which is read at the pool's interval."""
JITTER: Final = 0.05
"""Each interval is shorter by up to this random share, so that the readings of many pools spread."""
TICK_SECONDS: Final = 0.05
"""Readings are due at multiples of this: of a thousand pools ten then share requests, which halves their cost. With
larger ticks a pool that wakes up would wait for many others."""


class LagWatch:
    """Reads the lag of one pool."""

    def __init__(
        self,
        hub: BacklogHub,
        *,
        key: str,
        wake: Callable[[], None],
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        """`key` identifies the pool; `wake` is called when an idle topic gets a record."""
        self._hub = hub
        self._key = key
        self._wake = wake
        self._clock = clock
        self._wall_clock = wall_clock
        self._connection: KafkaConnection | None = None
        self._targets: tuple[LaneTarget, ...] = ()
        self._backlog = PoolBacklog((), {})
        self._read_at: float | None = None
        self._interval_share = 1.0
        self._burst_until = float("-inf")
        self._is_growing = False

    def configure(
        self, connection: KafkaConnection | None, targets: tuple[LaneTarget, ...], *, expired_before: dict[str, int]
    ) -> None:
        """Set what is read; None without a connection. Readings of unchanged targets are kept."""
        if targets != self._targets:
            self._backlog = PoolBacklog(targets, expired_before)
        if (connection, targets) != (self._connection, self._targets):
            # The watch is about the old topics or brokers; `wake_when_grown` sets the next after a reading of the new.
            self._hub.unwatch(self._key)
            self._read_at = None
        self._connection, self._targets = connection, targets

    def seconds_until_due(self, interval_seconds: float) -> float:
        """Until the next reading; zero or less when it is due. Without a connection none ever is."""
        if self._connection is None:
            return interval_seconds
        if self._read_at is None:
            return 0.0
        due_at = (self._read_at + interval_seconds * self._interval_share) // TICK_SECONDS * TICK_SECONDS
        if self._is_growing:
            due_at = min(due_at, self._read_at + GROWING_INTERVAL_SECONDS)
        return due_at - self._clock()

    async def read(self, *, is_burst: bool) -> None:
        """Read the lag; the first records after an idle time are read until no more arrive.

        `is_burst` says that such records caused this reading.
        """
        if self._connection is None:
            return
        began_at = self._clock()
        was_idle = self._backlog.lag_records == 0
        await self._read_once(self._connection)
        if is_burst or (was_idle and self._backlog.lag_records > 0):
            self._burst_until = began_at + BURST_SECONDS
        self._is_growing = began_at < self._burst_until and await self._grows(
            self._connection, ends_at=began_at + SETTLE_SECONDS
        )

    def observe(self) -> tuple[LaneObservation, ...]:
        """The last readings, with their age."""
        return self._backlog.observe(self._clock(), self._wall_clock())

    def wake_when_grown(self) -> None:
        """Register for a wake-up when a topic without pending tasks gets one."""
        if self._connection is None:
            return
        if ends := self._backlog.idle_ends():
            self._hub.wake_when_grown(self._key, self._connection, ends, self._wake)

    def close(self) -> None:
        """End the registration."""
        self._hub.unwatch(self._key)

    async def _grows(self, connection: KafkaConnection, *, ends_at: float) -> bool:
        """Read until the lag no longer grows or the time is over; returns whether it still grew."""
        while True:
            before = self._backlog.lag_records
            if self._clock() >= ends_at:
                return True
            await asyncio.sleep(SETTLE_INTERVAL_SECONDS)
            await self._read_once(connection)
            if self._backlog.lag_records == before:
                return False

    async def _read_once(self, connection: KafkaConnection) -> None:
        readings = await self._hub.read(connection, self._targets)
        self._read_at = self._clock()
        self._interval_share = random.uniform(1 - JITTER, 1)  # noqa: S311 - spreads readings
        self._backlog.update(readings, self._read_at)
