"""One reader, one wake-up and one publisher of states for each Kafka cluster, shared by all pools of the cluster.

Owns their lifetime: created when a connection is first used, closed after a while without use. `reconcile.kafka` calls
it. Must not know what is read or what a woken pool does.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Self

import structlog

from fluxpool_contract.kafka import KafkaConnection
from fluxpool_operator.backlog.cluster_reader import ClusterReader
from fluxpool_operator.backlog.observation import LaneTarget
from fluxpool_operator.backlog.reading import LaneReading
from fluxpool_operator.backlog.state_publisher import CountStates, StatePublisher
from fluxpool_operator.backlog.wakeup import Ends, WakeUp

log = structlog.get_logger(__name__)

UNUSED_SECONDS: Final = 900.0
"""Longer than the longest poll interval of a pool. Changed credentials are a new connection; the old one expires."""


@dataclass(slots=True)
class _Cluster:
    reader: ClusterReader
    wakeup: WakeUp
    states: StatePublisher
    used_at_seconds: float

    @property
    def is_busy(self) -> bool:
        return self.reader.is_busy or not self.wakeup.is_idle or self.states.is_busy

    async def close(self) -> None:
        await self.states.close()
        await self.wakeup.close()
        await self.reader.close()


class BacklogHub:
    """Reads backlogs, wakes pools, publishes their states: `async with BacklogHub() as hub`."""

    def __init__(
        self,
        *,
        deadline_seconds: float = 10.0,
        unused_seconds: float = UNUSED_SECONDS,
        count_states: CountStates = lambda _written, _failed: None,
    ) -> None:
        """`deadline_seconds` limits one reading; `count_states` is told how many states were written and failed."""
        self._count_states = count_states
        self._deadline_seconds = deadline_seconds
        self._unused_seconds = unused_seconds
        self._clusters: dict[KafkaConnection, _Cluster] = {}
        self._watched: dict[str, KafkaConnection] = {}
        self._tasks = asyncio.TaskGroup()

    async def __aenter__(self) -> Self:
        """Connections are opened on first use."""
        await self._tasks.__aenter__()
        return self

    async def __aexit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _traceback: TracebackType | None
    ) -> None:
        """Close every connection."""
        clusters, self._clusters = self._clusters, {}
        self._watched.clear()
        try:
            for cluster in clusters.values():
                await cluster.close()
        finally:
            # Without the error: a task group would wrap the caller's error in an ExceptionGroup.
            await self._tasks.__aexit__(None, None, None)

    async def read(self, connection: KafkaConnection, targets: Sequence[LaneTarget]) -> tuple[LaneReading, ...]:
        """One reading for each target, in their order; errors are in the readings. Never raises for Kafka."""
        self._close_unused()
        return await self._cluster(connection).reader.read(targets)

    def wake_when_grown(self, key: str, connection: KafkaConnection, ends: Ends, wake: Callable[[], None]) -> None:
        """Call `wake` once when a record appears at one of the `ends` or beyond; replaces the watch of `key`."""
        if self._watched.get(key, connection) != connection:
            self.unwatch(key)
        self._watched[key] = connection
        self._cluster(connection).wakeup.watch(key, ends, wake)

    def publish(self, connection: KafkaConnection, topic: str, *, key: str, value: bytes | None) -> None:
        """Write the state of a pool, or None for a deleted one, in the background: what fails is logged and counted."""
        self._cluster(connection).states.put(topic, key=key, value=value)

    def unwatch(self, key: str) -> None:
        """Remove the watch of `key`."""
        connection = self._watched.pop(key, None)
        if connection is not None and (cluster := self._clusters.get(connection)) is not None:
            cluster.wakeup.unwatch(key)

    def _cluster(self, connection: KafkaConnection) -> _Cluster:
        now = asyncio.get_running_loop().time()
        cluster = self._clusters.get(connection)
        if cluster is None:
            wakeup = WakeUp(connection, self._tasks)
            reader = ClusterReader(
                connection, self._tasks, deadline_seconds=self._deadline_seconds, on_lost=wakeup.reconnect
            )
            states = StatePublisher(connection, self._tasks, count=self._count_states)
            cluster = self._clusters[connection] = _Cluster(reader, wakeup, states, now)
        cluster.used_at_seconds = now
        return cluster

    def _close_unused(self) -> None:
        oldest = asyncio.get_running_loop().time() - self._unused_seconds
        for connection, cluster in list(self._clusters.items()):
            # A busy one stays: closing would cancel the readings and watches of pools that still use it.
            if cluster.used_at_seconds < oldest and not cluster.is_busy:
                # Removed before it closes: a pool that reads meanwhile gets a new one.
                del self._clusters[connection]
                log.info("backlog_connection_closed", bootstrap_servers=connection.bootstrap_servers)
                self._tasks.create_task(cluster.close(), name="backlog-close")
