"""The backlog of one pool, read at its pace: the connection to its Kafka, the last good values, the wake-up when idle.

Owns when Kafka is asked. Must not know what the numbers lead to.
"""

import asyncio
import time
from collections.abc import Callable
from typing import Final

from fluxpool_contract.kafka_connection import KafkaConnection
from fluxpool_contract.retries import scheduler_group
from fluxpool_operator.api import FluxWorkerPool
from fluxpool_operator.backlog import BacklogHub, LaneObservation, LaneTarget, PoolBacklog, RetryTier
from fluxpool_operator.children import worker_settings

SETTLE_INTERVAL_SECONDS: Final = 0.1
"""Between two readings of a burst that is being produced: longer than a producer lingers."""
SETTLE_SECONDS: Final = 0.6
"""The longest wait for a burst to end: one jump to the whole size saves a rebalance, but must not cost a second."""


def lane_targets(pool: FluxWorkerPool) -> tuple[LaneTarget, ...]:
    """The lanes of a pool with their groups as its workers name them; raises `InvalidPoolError`.

    What waits in the pool's retry topics is counted at the first lane.
    """
    settings = worker_settings(pool)
    tiers = tuple(
        RetryTier(topic=topic, scheduler_group=scheduler_group(topic), delay_seconds=delay_seconds)
        for topic, delay_seconds in zip(settings.topics.retry, settings.retry_delays_seconds, strict=True)
    )
    return tuple(
        LaneTarget(
            name=lane.name,
            topic=lane.topic,
            consumer_group=settings.group_of(lane),
            retry_tiers=tiers if lane == settings.lanes[0] else (),
        )
        for lane in settings.lanes
    )


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

    def aim(
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
        """Until the next reading; zero or less when it is due."""
        return 0.0 if self._read_at is None else self._read_at + interval_seconds - self._clock()

    async def read(self, *, is_burst: bool) -> None:
        """Read the backlog; one that is growing at this moment (`is_burst`) is read until it stands still."""
        if self._connection is None:
            return
        ends_at = self._clock() + SETTLE_SECONDS
        await self._read_once(self._connection)
        while is_burst and self._clock() < ends_at:
            before = self._records()
            await asyncio.sleep(SETTLE_INTERVAL_SECONDS)
            await self._read_once(self._connection)
            if self._records() == before:
                break

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

    async def _read_once(self, connection: KafkaConnection) -> None:
        readings = await self._hub.read(connection, self._targets)
        self._read_at = self._clock()
        self._backlog.update(readings, self._read_at)

    def _records(self) -> int:
        return sum(lane.waiting_records + len(lane.in_flight) for lane in self.observe())
