"""The reconciler of one pool on an API server in memory, a scripted backlog and a clock that the test advances.

Knows the API server's behaviour for an apply as the operator sees it; must not know what a reconcile should do.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

from fluxpool_contract.kafka.connection import KafkaConnection
from fluxpool_operator.api import FluxWorkerPool, FluxWorkerPoolStatus
from fluxpool_operator.api.conditions import Condition
from fluxpool_operator.api.kafka import KafkaSpec
from fluxpool_operator.backlog import BacklogHub, LaneTarget, TopicReport
from fluxpool_operator.backlog.reading import LaneReading
from fluxpool_operator.cluster import ClusterClient, ClusterError
from fluxpool_operator.cluster.client import Body
from fluxpool_operator.reconcile.apply.status_writer import StatusWriter
from fluxpool_operator.reconcile.child_cache import Change, PoolKey
from fluxpool_operator.reconcile.context import OperatorContext
from fluxpool_operator.reconcile.pool_loop import MIN_INTERVAL_SECONDS
from fluxpool_operator.reconcile.pool_reconciler import PoolReconciler
from fluxpool_operator.settings import OperatorSettings
from fluxpool_transport.lag.lag_reader import PartitionLag

NOON: Final = datetime(2026, 5, 4, 12, tzinfo=UTC)


class FakeCluster(ClusterClient):
    """Objects by path. Every request is recorded as its verb and path."""

    def __init__(self) -> None:
        self.objects: dict[str, Body] = {}
        self.requests: list[tuple[str, str]] = []
        self.refusals: dict[str, ClusterError] = {}
        """Errors returned for applies, by path."""
        self._versions = 0

    def writes(self) -> list[str]:
        """Paths that were written to, except events and statuses of pools."""
        return [
            path
            for verb, path in self.requests
            if verb not in ("get", "find") and not path.endswith(("/events", "/status"))
        ]

    def put(self, path: str, body: Mapping[str, Any]) -> Body:
        """Store an object as another client would."""
        return self._store(path, body)

    async def get(self, path: str, *, query: Mapping[str, str] | None = None, accept: str = "") -> Body:
        del query, accept
        self.requests.append(("get", path))
        if path not in self.objects:
            raise ClusterError(request=f"GET {path}", status=404, reason="NotFound", message="not found")
        return copy.deepcopy(self.objects[path])

    async def find(self, path: str) -> Body | None:
        self.requests.append(("find", path))
        return copy.deepcopy(self.objects.get(path))

    async def apply(self, path: str, manifest: Mapping[str, Any], *, field_manager: str) -> Body:
        del field_manager
        self.requests.append(("apply", path))
        if path in self.refusals:
            raise self.refusals[path]
        return self._store(path, manifest)

    async def merge_patch(self, path: str, patch: Mapping[str, Any]) -> Body:
        self.requests.append(("merge_patch", path))
        return dict(patch)

    async def create(self, path: str, body: Mapping[str, Any]) -> Body:
        self.requests.append(("create", path))
        return dict(body)

    async def delete(self, path: str, *, uid: str) -> None:
        del uid
        self.requests.append(("delete", path))
        self.objects.pop(path, None)

    def _store(self, path: str, body: Mapping[str, Any]) -> Body:
        """Merge as an apply does: maps by key, everything else as a whole; the generation counts specs."""
        before = self.objects.get(path)
        merged = _merged(before or {}, body)
        metadata = merged.setdefault("metadata", {})
        if before is None or merged != before:
            self._versions += 1
            metadata["resourceVersion"] = str(self._versions)
        metadata.setdefault("uid", f"uid-{self._versions}")
        if "spec" in merged:
            same = before is not None and before.get("spec") == merged["spec"]
            metadata["generation"] = (before or {}).get("metadata", {}).get("generation", 0) + (not same)
        self.objects[path] = merged
        return copy.deepcopy(merged)


class FakeHub(BacklogHub):
    """A Kafka with a scripted backlog: `pending` records in each lane, or None for one that does not respond."""

    def __init__(self) -> None:
        super().__init__()
        self.pending: int | None = 0
        self.expired = 0
        """Records at the start of each partition that retention deleted."""
        self.connections: list[KafkaConnection] = []
        """Of each reading."""
        self.forgotten: list[str] = []
        self.states: list[tuple[str, str, bytes | None]] = []
        """Topic, key and value of each state that was published."""

    async def read(self, connection: KafkaConnection, targets: Sequence[LaneTarget]) -> tuple[LaneReading, ...]:
        self.connections.append(connection)
        if self.pending is None:
            return tuple(LaneReading(target=target, problem="no answer came") for target in targets)
        return tuple(_reading(target, self.pending, self.expired) for target in targets)

    def wake_when_grown(self, key: str, connection: KafkaConnection, ends: object, wake: object) -> None:
        del key, connection, ends, wake

    def publish(self, connection: KafkaConnection, topic: str, *, key: str, value: bytes | None) -> None:
        del connection
        self.states.append((topic, key, value))

    def unwatch(self, key: str) -> None:
        self.forgotten.append(key)


@dataclass(kw_only=True)
class PoolBench:
    """One pool and its reconciler."""

    body: dict[str, Any]
    folder: Path
    environment: Mapping[str, str] = field(default_factory=dict)
    """Settings of the operator."""
    cluster: FakeCluster = field(default_factory=FakeCluster)
    hub: FakeHub = field(default_factory=FakeHub)
    shared: OperatorContext | None = None
    """The operator context of another pool, to share it."""
    create_time: tuple[str, ...] | None = ()
    """Reported for topics that are only observed."""
    seconds: float = 1000.0
    woken: set[Change] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.context = self.shared or OperatorContext(
            settings=OperatorSettings.from_environment(self.environment),
            cluster=self.cluster,
            hub=self.hub,
            folder=self.folder,
            observe_topics=self._observe_topics,
            clock=lambda: self.seconds,
            utc_now=lambda: NOON + timedelta(seconds=self.seconds - 1000),
        )
        if self.shared:
            self.cluster, self.hub = self.shared.cluster, self.shared.hub  # type: ignore[assignment]
        self.pool = FluxWorkerPool.parse(self.body)
        self.key = PoolKey(self.pool.namespace, self.pool.name)
        self.writer = StatusWriter(self.cluster, written=FluxWorkerPoolStatus(), clock=self.context.clock)
        self.context.cache.subscribe(self.key, self.woken.add)
        self.reconciler = PoolReconciler(
            self.key,
            uid=self.pool.metadata.uid,
            context=self.context,
            writer=self.writer,
            wake=self.woken.add,
            notify_conflicting_pools=lambda _: None,
        )

    async def _observe_topics(self, connection: KafkaConnection, kafka: KafkaSpec) -> TopicReport:
        del connection, kafka
        return TopicReport(create_time=self.create_time)

    @property
    def deployment_path(self) -> str:
        """API path of the pool's Deployment."""
        return f"/apis/apps/v1/namespaces/{self.pool.namespace}/deployments/{self.pool.name}-worker"

    @property
    def replicas(self) -> int | None:
        """`spec.replicas` of the Deployment; None without one."""
        found = self.cluster.objects.get(self.deployment_path)
        return None if found is None else int(found["spec"]["replicas"])

    def condition(self, type_: str) -> Condition:
        """A condition as last written."""
        return next(found for found in self.writer.written.conditions if found.type == type_)

    async def reconcile(self, *changes: Change) -> float:
        """Reconcile once; returns the seconds until the next time."""
        pending = frozenset({*changes, *self.woken})
        self.woken.clear()
        return await self.reconciler.reconcile(self.pool, pending)

    async def run(self, seconds: float) -> int:
        """Reconcile whenever it is due, as the loop does; return how often."""
        ends_at, count = self.seconds + seconds, 0
        while self.seconds < ends_at:
            delay = await self.reconcile()
            count += 1
            self.seconds += MIN_INTERVAL_SECONDS if self.woken else max(delay, MIN_INTERVAL_SECONDS)
        return count


def _reading(target: LaneTarget, pending: int, expired: int) -> LaneReading:
    partitions = tuple(
        PartitionLag(
            partition=number,
            committed_offset=0,
            log_start_offset=expired,
            log_end_offset=expired + pending,
            metadata="",
        )
        for number in range(6)
    )
    return LaneReading(target=target, partitions=partitions, member_count=0, due_retries=0)


def _merged(before: Mapping[str, Any], body: Mapping[str, Any]) -> dict[str, Any]:
    result = copy.deepcopy(dict(before))
    for name, value in body.items():
        known = result.get(name)
        if isinstance(value, Mapping) and isinstance(known, Mapping):
            result[name] = _merged(known, value)
        else:
            result[name] = copy.deepcopy(value)
    return result
