"""The scaling loop of a local stack: read the backlog, plan as the operator does, bring the worker processes there.

Owns the rhythm. Reading the backlog, remembering it and planning are the operator's own code.
"""

import asyncio
import math
import time
from collections.abc import Callable

import httpx

from fluxpool_cli.local.state_file import LaneState, PlanSummary
from fluxpool_cli.local.workers.fleet import WorkerFleet
from fluxpool_contract.kafka import KafkaConnection
from fluxpool_operator.backlog import BacklogHub, LaneObservation, LaneTarget, PoolBacklog
from fluxpool_operator.planning import Plan, PlanState, ScalingConfig, Snapshot, plan

INTERVAL_SECONDS = 0.5
_READ_DEADLINE_SECONDS = 5.0
_PROBE_DEADLINE_SECONDS = 2.0


class Scaler:
    """Keeps a fleet at the planned size for as long as `run` runs."""

    def __init__(
        self,
        *,
        connection: KafkaConnection,
        targets: tuple[LaneTarget, ...],
        config: ScalingConfig,
        fleet: WorkerFleet,
        report: Callable[[str], None],
        on_round: Callable[[], None],
    ) -> None:
        """`report` gets a sentence about every changed plan, `on_round` is called after each round."""
        self._connection = connection
        self._config = config
        self._fleet = fleet
        self._report = report
        self._on_round = on_round
        self._targets = targets
        self._backlog = PoolBacklog(targets, {})
        self._state = PlanState()
        self._planned_at_seconds: float | None = None
        self.plan: Plan | None = None
        """The last one."""

    async def run(self) -> None:
        """Never returns."""
        async with (
            BacklogHub(deadline_seconds=_READ_DEADLINE_SECONDS) as hub,
            httpx.AsyncClient(timeout=_PROBE_DEADLINE_SECONDS, trust_env=False) as http,
        ):
            while True:
                # What cannot be read makes the lanes old, and the plan says so.
                self._backlog.update(await hub.read(self._connection, self._targets), time.monotonic())
                decision = self._decide()
                await self._fleet.reconcile(decision.replicas, http=http)
                self._on_round()
                await asyncio.sleep(INTERVAL_SECONDS)

    def lane_states(self) -> tuple[LaneState, ...]:
        """The backlog of each lane as last read."""
        return tuple(
            LaneState(
                name=lane.target.name,
                topic=lane.target.topic,
                group=lane.target.consumer_group,
                lag_records=lane.lag_records,
                age_seconds=round(lane.age_seconds, 1) if math.isfinite(lane.age_seconds) else None,
            )
            for lane in self._observe()
        )

    def _observe(self) -> tuple[LaneObservation, ...]:
        return self._backlog.observe(time.monotonic(), time.time())

    def summary(self) -> PlanSummary | None:
        """The last plan, for people."""
        if self.plan is None:
            return None
        return PlanSummary(replicas=self.plan.replicas, constraint=self.plan.constraint, reason=self.plan.reason)

    def _decide(self) -> Plan:
        now = time.monotonic()
        lanes = self._observe()
        elapsed_seconds = 0.0 if self._planned_at_seconds is None else now - self._planned_at_seconds
        snapshot = Snapshot(
            lanes=lanes, current_replicas=self._fleet.replicas, elapsed_seconds=elapsed_seconds, state=self._state
        )
        decision = plan(snapshot, self._config)
        before = self.plan
        if before is None or (before.replicas, before.constraint) != (decision.replicas, decision.constraint):
            self._report(f"plan: {worker_count(decision.replicas)} ({decision.constraint}). {decision.reason}")
        self._state, self._planned_at_seconds, self.plan = decision.state, now, decision
        return decision


def worker_count(count: int) -> str:
    """`1 worker`, `2 workers`."""
    return f"{count} worker{'' if count == 1 else 's'}"
