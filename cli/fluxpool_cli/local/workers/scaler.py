"""The scaling loop of a local stack: reads the lag, plans, and brings the number of worker processes to the plan.

Owns the rhythm. Reading the lag, remembering it, counting expired tasks and planning are the operator's own code.
"""

import asyncio
import math
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import httpx

from fluxpool_cli.local.state_file import LaneState, PlanSummary
from fluxpool_cli.local.workers.fleet import WorkerFleet
from fluxpool_cli.terminal import worker_count
from fluxpool_contract.kafka import KafkaConnection
from fluxpool_operator.backlog import BacklogHub, LaneReading, LaneTarget, PoolBacklog
from fluxpool_operator.planning import Plan, PlanState, ScalingConfig, Snapshot, plan

INTERVAL_SECONDS = 0.5
_READ_DEADLINE_SECONDS = 5.0
_PROBE_DEADLINE_SECONDS = 2.0


@dataclass(slots=True, eq=False, kw_only=True)
class FleetScaler:
    """Keeps a fleet at the planned size for as long as `run` runs."""

    targets: tuple[LaneTarget, ...]
    config: ScalingConfig
    fleet: WorkerFleet
    report: Callable[[str], None]
    """Gets a sentence about every changed plan."""
    on_round: Callable[[], None]
    """Called after each round."""
    plan: Plan | None = field(default=None, init=False)
    """The last one."""
    _backlog: PoolBacklog = field(init=False)
    _expired: Counter[str] = field(default_factory=Counter, init=False)
    _state: PlanState = field(default_factory=PlanState, init=False)
    _planned_at_seconds: float | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        self._backlog = PoolBacklog(self.targets, {})

    async def run(self, connection: KafkaConnection) -> None:
        """Read, plan and reconcile until cancelled."""
        async with (
            BacklogHub(deadline_seconds=_READ_DEADLINE_SECONDS) as hub,
            httpx.AsyncClient(timeout=_PROBE_DEADLINE_SECONDS, trust_env=False) as http,
        ):
            while True:
                decision = self.decide(await hub.read(connection, self.targets), now_seconds=time.monotonic())
                await self.fleet.reconcile(decision.replicas, http=http)
                self.on_round()
                await asyncio.sleep(INTERVAL_SECONDS)

    def lane_states(self) -> tuple[LaneState, ...]:
        """The lag of each lane as last read."""
        return tuple(
            LaneState(
                name=lane.target.name,
                topic=lane.target.topic,
                group=lane.target.consumer_group,
                lag_records=lane.lag_records,
                expired_records=lane.expired_records_total,
                age_seconds=round(lane.age_seconds, 1) if math.isfinite(lane.age_seconds) else None,
            )
            for lane in self._backlog.observe(time.monotonic(), time.time())
        )

    def summary(self) -> PlanSummary | None:
        """The last plan, for people."""
        if self.plan is None:
            return None
        return PlanSummary(replicas=self.plan.replicas, constraint=self.plan.constraint, reason=self.plan.reason)

    def decide(self, readings: Iterable[LaneReading], *, now_seconds: float) -> Plan:
        """Plan by new readings; `now_seconds` is monotonic. The plan knows the age of lanes that were not read."""
        self._backlog.update(readings, now_seconds)
        lanes = self._backlog.observe(now_seconds, time.time())
        for lane in lanes:
            self._report_expired(lane.target.name, lane.expired_records_total)
        elapsed_seconds = 0.0 if self._planned_at_seconds is None else now_seconds - self._planned_at_seconds
        snapshot = Snapshot(
            lanes=lanes, current_replicas=self.fleet.replicas, elapsed_seconds=elapsed_seconds, state=self._state
        )
        decision = plan(snapshot, self.config)
        before = self.plan
        if before is None or (before.replicas, before.constraint) != (decision.replicas, decision.constraint):
            self.report(f"plan: {worker_count(decision.replicas)} ({decision.constraint}). {decision.reason}")
        self._state, self._planned_at_seconds, self.plan = decision.state, now_seconds, decision
        return decision

    def _report_expired(self, lane: str, total: int) -> None:
        more, self._expired[lane] = total - self._expired[lane], total
        if more > 0:
            self.report(
                f"topic retention deleted {more} {'task' if more == 1 else 'tasks'} of lane {lane} before a worker "
                "consumed them; raise the topic's retention.ms or --max-workers"
            )
