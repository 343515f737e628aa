"""Publishes the state of one pool to Kafka when it changed, and as a heartbeat.

Owns what was published last. What a state says is `assessment`'s; `backlog` writes it in the background.
"""

import math

from fluxpool_contract.kafka import KafkaConnection
from fluxpool_contract.messages import PoolState
from fluxpool_operator.api import FluxWorkerPool
from fluxpool_operator.assessment import worth_publishing
from fluxpool_operator.reconcile.context import OperatorContext


class StateReporter:
    """The state of one pool."""

    def __init__(self, context: OperatorContext) -> None:
        self._hub = context.hub
        self._clock = context.clock
        self._published: tuple[KafkaConnection, str, PoolState] | None = None
        self._published_at = -math.inf

    def report(self, pool: FluxWorkerPool, state: PoolState, connection: KafkaConnection) -> None:
        """Publish the state if it is worth a record. Never waits, and never raises for Kafka."""
        topic = pool.spec.kafka.topics.pools
        before = None
        if self._published is not None and self._published[:2] == (connection, topic):
            before = self._published[2]
        now = self._clock()
        if worth_publishing(before, state, seconds_since_write=now - self._published_at):
            self._hub.publish(connection, topic, key=state.key, value=state.to_json())
            self._published, self._published_at = (connection, topic, state), now

    def withdraw(self) -> None:
        """Publish that the pool was deleted."""
        if self._published is not None:
            connection, topic, state = self._published
            self._hub.publish(connection, topic, key=state.key, value=None)
            self._published = None
