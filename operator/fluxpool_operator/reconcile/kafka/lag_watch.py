"""The backlog of one pool, read at its pace: the connection to its Kafka, the last good values, the wake-up when idle.

Owns when Kafka is asked. Must not know what the numbers lead to.
"""

import asyncio
import random
import time
from collections.abc import Callable
from typing import Final

from fluxpool_contract.kafka import KafkaConnection
from fluxpool_operator.api import FluxWorkerPool
from fluxpool_operator.backlog import BacklogHub, LaneObservation, LaneTarget, PoolBacklog, lane_targets_of
from fluxpool_operator.children import worker_settings

SETTLE_INTERVAL_SECONDS: Final = 0.1
"""Between two readings of a burst that is being produced: longer than a producer lingers."""
SETTLE_SECONDS: Final = 0.6
"""The longest wait for a burst to end: one jump to the whole size saves a rebalance, but must not cost a second."""
GROWING_INTERVAL_SECONDS: Final = 0.5
"""Between readings of a burst that did not end within that."""
BURST_SECONDS: Final = 10.0
"""What still grows after so long is no burst but traffic, which is read at the pool's pace."""
JITTER: Final = 0.05
"""An interval is shorter by up to this share, each time anew: so that the readings of many pools spread."""
TICK_SECONDS: Final = 0.05
"""A reading is due at a multiple of this, the last one within the interval: of a thousand pools ten are then read by
the same requests, which halves what they cost. With larger ticks a pool that wakes would wait for many others."""


def lane_targets(pool: FluxWorkerPool) -> tuple[LaneTarget, ...]:
    """The lanes of a pool with their groups as its workers name them; raises `InvalidPoolError`.

    What waits in the pool's retry topics is counted at the first lane.
    """
    return lane_targets_of(worker_settings(pool))


class LagWatch:
    """One pool's eyes on Kafka."""

    def __init__(
        self,
        hub: BacklogHub,
        *,
        key: str,
        wake: Callable[[], None],
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        """`key` tells the pool from others; `wake` is called when an idle topic gets a record."""
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
        """Say what is to be read; None when there is no way to connect. Without a change nothing is forgotten."""
        if targets != self._targets:
            self._backlog = PoolBacklog(targets, expired_before)
        if (connection, targets) != (self._connection, self._targets):
            self._hub.forget(self._key)
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
        """Read the backlog; the first tasks after a rest are read until no more come, whether or not they woke us.

        `is_burst` says that they did.
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
        """What is known now, with its age."""
        return self._backlog.observe(self._clock(), self._wall_clock())

    def wake_when_grown(self) -> None:
        """Ask to be woken when a topic without waiting tasks gets one."""
        if self._connection is None:
            return
        if ends := self._backlog.idle_ends():
            self._hub.wake_when_grown(self._key, self._connection, ends, self._wake)

    def close(self) -> None:
        """Stop being woken."""
        self._hub.forget(self._key)

    async def _grows(self, connection: KafkaConnection, *, ends_at: float) -> bool:
        """Read until the backlog stands still or the time is over; whether it grew to the last."""
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
