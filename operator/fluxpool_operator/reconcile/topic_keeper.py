"""When a pool's topics are created and looked after, if it asks for that. What is done to them is `backlog.topics`.

The work runs beside the turns: slow or refused topic administration must not hold up scaling.
"""

import asyncio
import time
from collections.abc import Callable
from typing import Final

from fluxpool_contract.kafka_connection import KafkaConnection
from fluxpool_operator.api import FluxWorkerPool, Reason
from fluxpool_operator.api.kafka import KafkaSpec
from fluxpool_operator.assessment import PoolProblem
from fluxpool_operator.backlog import TopicReport, manage_topics

INTERVAL_SECONDS: Final = 300.0
RETRY_SECONDS: Final = 15.0
SETTLE_SECONDS: Final = 30.0
"""After topics were created: until their partitions have leaders and every broker knows them."""


class TopicKeeper:
    """The topics of one pool."""

    def __init__(self, *, wake: Callable[[], None], clock: Callable[[], float] = time.monotonic) -> None:
        """`wake` is called when the topics were looked after."""
        self._wake = wake
        self._clock = clock
        self._spec: KafkaSpec | None = None
        self._task: asyncio.Task[TopicReport] | None = None
        self._next_at = 0.0
        self._settling_until = 0.0
        self._problems: tuple[PoolProblem, ...] = ()

    @property
    def is_settling(self) -> bool:
        """Whether topics are being created for the first time, or were created a moment ago."""
        is_first = self._task is not None and self._spec is None
        return is_first or self._clock() < self._settling_until

    def keep(self, pool: FluxWorkerPool, connection: KafkaConnection | None) -> tuple[PoolProblem, ...]:
        """Look after the topics when the spec changed or the time has come; returns what stood in the way last."""
        kafka = pool.spec.kafka
        if not kafka.manage_topics or connection is None:
            self.close()
            self._spec, self._problems = None, ()
            return ()
        if self._task is None and (kafka != self._spec or self._clock() >= self._next_at):
            self._task = asyncio.create_task(manage_topics(connection, kafka), name=f"topics {pool.name}")
            self._task.add_done_callback(lambda ended: self._finished(kafka, ended))
        return self._problems

    def close(self) -> None:
        """End what is under way."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()

    def _finished(self, kafka: KafkaSpec, task: asyncio.Task[TopicReport]) -> None:
        if task is not self._task:
            # Cancelled, and maybe replaced; looking at the outcome keeps asyncio from complaining.
            if not task.cancelled():
                task.exception()
            return
        is_first = self._spec is None
        self._task, self._spec = None, kafka
        error = None if task.cancelled() else task.exception()
        if task.cancelled() or error is not None:
            problems: tuple[str, ...] = (f"topics could not be looked after: {error!r}",)
        else:
            report = task.result()
            problems = report.problems
            # Another pool of the same topics may have created them a moment ago.
            if report.created or is_first:
                self._settling_until = self._clock() + SETTLE_SECONDS
        self._problems = tuple(
            PoolProblem(reason=Reason.TOPICS_FAILED, message=problem, stops_scaling=False) for problem in problems
        )
        self._next_at = self._clock() + (RETRY_SECONDS if problems else INTERVAL_SECONDS)
        self._wake()
