"""When a pool's topics are created, configured or only observed. What is done to them is `backlog.topics`.

The work runs in a task beside the loop: slow or refused topic administration must not hold up scaling.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import structlog

from fluxpool_contract.kafka import KafkaConnection
from fluxpool_operator.api import FluxWorkerPool, Reason
from fluxpool_operator.api.kafka import KafkaSpec
from fluxpool_operator.assessment import PoolProblem
from fluxpool_operator.backlog import TopicReport, manage_topics
from fluxpool_operator.reconcile.context import OperatorContext

log = structlog.get_logger(__name__)

INTERVAL_SECONDS: Final = 300.0
RETRY_SECONDS: Final = 15.0
SETTLE_SECONDS: Final = 30.0
"""After topics were created: until their partitions have leaders and every broker knows them."""


class TopicReconciler:
    """The topics of one pool."""

    def __init__(self, *, context: OperatorContext, wake: Callable[[], None]) -> None:
        """`wake` is called when a report of the topics brings something new."""
        self._observe = context.observe_topics
        self._clock = context.clock
        self._wake = wake
        self._reported: _Desired | None = None
        """What the last report is about."""
        self._in_progress: _Desired | None = None
        self._task: asyncio.Task[None] | None = None
        self._next_at = 0.0
        self._settling_until = 0.0
        self._problems: tuple[PoolProblem, ...] = ()
        self.create_time: tuple[str, ...] | None = None
        """Task topics with `message.timestamp.type=CreateTime`; None when unknown."""

    @property
    def is_settling(self) -> bool:
        """Whether topics are being created for the first time, or were created moments ago."""
        is_first = self._task is not None and self._reported is None
        return is_first or self._clock() < self._settling_until

    def reconcile(self, pool: FluxWorkerPool, connection: KafkaConnection | None) -> tuple[PoolProblem, ...]:
        """Start the work when the spec changed or the interval is over; returns the problems of the last report.

        Topics of a pool that is paused, or does not manage them, are only observed.
        """
        spec = pool.spec
        if connection is None:
            self.close()
            self._reported, self._problems, self.create_time = None, (), None
            return ()
        desired = _Desired(kafka=spec.kafka, changes=spec.kafka.manage_topics and not spec.paused)
        if self._in_progress != desired:
            self.close()
        if self._task is None and (desired != self._reported or self._clock() >= self._next_at):
            self._in_progress = desired
            self._task = asyncio.create_task(self._work(desired, connection), name=f"topics {pool.name}")
        return self._problems if desired.changes else ()

    def close(self) -> None:
        """Cancel the work that is under way."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()

    async def _work(self, desired: "_Desired", connection: KafkaConnection) -> None:
        try:
            report = await (manage_topics if desired.changes else self._observe)(connection, desired.kafka)
        except Exception as error:
            # A defect: what Kafka answers is in the report. It is shown like any other problem, and tried again.
            log.exception("topics_reconcile_failed")
            problems = (f"topics could not be managed: {error!r}",) if desired.changes else ()
            report = TopicReport(problems=problems, create_time=None)
        # Nothing is awaited from here on, so `close` cannot come in between: a task that it cancelled never reports.
        is_first = self._reported is None
        self._task, self._reported = None, desired
        # Also after the first report without a creation: another pool may have created the same topics moments ago.
        if desired.changes and (report.created or is_first):
            self._settling_until = self._clock() + SETTLE_SECONDS
        found = tuple(
            PoolProblem(reason=Reason.TOPICS_FAILED, message=problem, stops_scaling=False)
            for problem in report.problems
        )
        is_new = (found, report.create_time) != (self._problems, self.create_time)
        self._problems, self.create_time = found, report.create_time
        self._next_at = self._clock() + (RETRY_SECONDS if report.problems else INTERVAL_SECONDS)
        if is_first or is_new:
            self._wake()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Desired:
    """The topics of a spec, and whether they may be changed."""

    kafka: KafkaSpec
    changes: bool
