"""When a pool's topics are created and looked after, if it asks for that. What is done to them is `backlog.topics`."""

import time
from collections.abc import Callable
from typing import Final

from fluxpool_contract.kafka_connection import KafkaConnection
from fluxpool_operator.api import FluxWorkerPool, Reason
from fluxpool_operator.api.kafka import KafkaSpec
from fluxpool_operator.assessment import PoolProblem
from fluxpool_operator.backlog import manage_topics

INTERVAL_SECONDS: Final = 300.0
RETRY_SECONDS: Final = 15.0


class TopicKeeper:
    """The topics of one pool."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._spec: KafkaSpec | None = None
        self._next_at = 0.0
        self._problems: tuple[PoolProblem, ...] = ()

    async def keep(self, pool: FluxWorkerPool, connection: KafkaConnection | None) -> tuple[PoolProblem, ...]:
        """Create and widen topics when the spec changed or the time has come; returns what stands in the way."""
        if not pool.spec.kafka.manage_topics or connection is None:
            self._spec, self._problems = None, ()
            return ()
        now = self._clock()
        if pool.spec.kafka == self._spec and now < self._next_at:
            return self._problems
        report = await manage_topics(connection, pool.spec.kafka)
        self._spec = pool.spec.kafka
        self._next_at = self._clock() + (RETRY_SECONDS if report.problems else INTERVAL_SECONDS)
        self._problems = tuple(PoolProblem(reason=Reason.TOPICS_FAILED, message=problem) for problem in report.problems)
        return self._problems
