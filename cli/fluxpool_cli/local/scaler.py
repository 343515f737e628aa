"""The scaling loop of a local stack: read the backlog, plan as the operator does, bring the worker processes there.

Owns the rhythm and the memory between plans. The plan itself is `fluxpool_operator.planning`.
"""

import asyncio
import math
import time
from collections.abc import Callable

import httpx

from fluxpool_cli.local.stack_parts import LANES, group_of
from fluxpool_cli.local.state_file import LaneState, PlanSummary
from fluxpool_cli.local.worker_fleet import WorkerFleet
from fluxpool_contract.kafka_connection import KafkaConnection
from fluxpool_operator.planning import LaneBacklog, PartitionBacklog, Plan, PlanState, ScalingConfig, Snapshot, plan
from fluxpool_transport.backlog import BacklogReader, GroupBacklog
from fluxpool_transport.kafka_admin import KafkaUnavailableError

INTERVAL_SECONDS = 0.5
_READ_DEADLINE_SECONDS = 5.0
_PROBE_DEADLINE_SECONDS = 2.0


class Scaler:
    """Keeps a fleet at the planned size for as long as `run` runs."""

    def __init__(
        self,
        *,
        connection: KafkaConnection,
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
        self._lanes: dict[str, LaneBacklog] = {}
        self._read_at_seconds: dict[str, float] = {}
        self._state = PlanState()
        self._planned_at_seconds: float | None = None
        self.plan: Plan | None = None
        """The last one."""

    async def run(self) -> None:
        """Never returns."""
        async with (
            BacklogReader(self._connection, deadline_seconds=_READ_DEADLINE_SECONDS) as reader,
            httpx.AsyncClient(timeout=_PROBE_DEADLINE_SECONDS, trust_env=False) as http,
        ):
            while True:
                await self._observe(reader)
                decision = self._decide()
                await self._fleet.reconcile(decision.replicas, http=http)
                self._on_round()
                await asyncio.sleep(INTERVAL_SECONDS)

    def lane_states(self) -> tuple[LaneState, ...]:
        """The backlog of each lane as last read."""
        now = time.monotonic()
        return tuple(
            LaneState(
                name=lane.name,
                topic=lane.topic,
                group=group_of(lane),
                waiting_records=self._lanes[lane.name].work_records if lane.name in self._lanes else 0,
                age_seconds=round(now - self._read_at_seconds[lane.name], 1)
                if lane.name in self._read_at_seconds
                else None,
            )
            for lane in LANES
        )

    def summary(self) -> PlanSummary | None:
        """The last plan, for people."""
        if self.plan is None:
            return None
        return PlanSummary(replicas=self.plan.replicas, constraint=self.plan.constraint, reason=self.plan.reason)

    async def _observe(self, reader: BacklogReader) -> None:
        try:
            groups = await reader.read({group_of(lane): lane.topic for lane in LANES})
        except KafkaUnavailableError:
            return  # the lanes grow old, and the plan says so
        now = time.monotonic()
        for lane in LANES:
            backlog = groups[group_of(lane)]
            self._lanes[lane.name] = _lane_backlog(lane.name, backlog)
            if not backlog.is_stale:
                self._read_at_seconds[lane.name] = now

    def _decide(self) -> Plan:
        now = time.monotonic()
        lanes = tuple(
            LaneBacklog(
                name=lane.name,
                partitions=self._lanes[lane.name].partitions if lane.name in self._lanes else (),
                age_seconds=now - self._read_at_seconds.get(lane.name, -math.inf),
            )
            for lane in LANES
        )
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


def _lane_backlog(name: str, backlog: GroupBacklog) -> LaneBacklog:
    return LaneBacklog(
        name=name,
        partitions=tuple(
            PartitionBacklog(item.partition, item.waiting_records, len(item.in_flight))
            for item in backlog.readable_partitions
        ),
    )
