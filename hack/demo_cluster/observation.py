"""Observes the pools: objects of the API server, the groups' lag, the results.

Changes nothing. A failed read is repeated the next time.
"""

from collections import Counter
from collections.abc import Mapping
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Self

from demo_cluster.pools import POOLS, DemoPool
from demo_cluster.view import Observation, PoolObservation
from fluxpool_cli.kafka.results_topic import ResultsTopic
from fluxpool_contract.kafka.connection import KafkaConnection
from fluxpool_operator.children import POOL_LABEL
from fluxpool_transport.kafka.admin import KafkaUnavailableError
from fluxpool_transport.lag.lag_reader import GroupLag, LagReader
from kit.cluster.kubernetes_api import Body
from kit.cluster.manifests import is_ready
from kit.scaling.operator_bench import OperatorBench

_GROUPS: Mapping[str, str] = {pool.group: pool.topics.tasks for pool in POOLS}


class Observer:
    """`async with Observer(bench) as observer`, once the topics exist; then `observe` and `backlogs`."""

    def __init__(self, bench: OperatorBench) -> None:
        self._bench = bench
        connection = KafkaConnection.model_validate({"bootstrap_servers": [bench.bootstrap_servers]})
        self._reader = LagReader(connection)
        self.results = {pool.name: ResultsTopic(connection, pool.topics.results) for pool in POOLS}
        """The results of each pool read so far."""
        self._open = AsyncExitStack()

    async def __aenter__(self) -> Self:
        """Connect."""
        async with AsyncExitStack() as opening:
            await opening.enter_async_context(self._reader)
            for results in self.results.values():
                await opening.enter_async_context(results)
            self._open = opening.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Disconnect."""
        await self._open.aclose()

    async def backlogs(self) -> dict[str, GroupLag]:
        """The lag of each pool's group, by the pool's name; raises `KafkaUnavailableError`."""
        found = await self._reader.read(_GROUPS)
        return {pool.name: found[pool.group] for pool in POOLS}

    async def observe(self) -> Observation:
        """All pools now; raises `ApiUnreachableError` when the API server does not answer."""
        for results in self.results.values():
            await results.read_to_end()
        try:
            backlogs = await self.backlogs()
        except KafkaUnavailableError:
            backlogs = {}
        api, namespace = self._bench.bench.api, self._bench.namespace
        pods = await api.get(f"/api/v1/namespaces/{namespace}/pods", labelSelector=POOL_LABEL)
        pools = await api.get(f"/apis/fluxpool.dev/v1alpha1/namespaces/{namespace}/fluxworkerpools")
        return Observation(
            tuple(
                self._observe_pool(
                    pool,
                    status=_named(pools["items"], pool.name).get("status", {}),
                    pods=[one for one in pods["items"] if one["metadata"]["labels"][POOL_LABEL] == pool.name],
                    backlog=backlogs.get(pool.name),
                )
                for pool in POOLS
            )
        )

    def _observe_pool(
        self, pool: DemoPool, *, status: Body, pods: list[Body], backlog: GroupLag | None
    ) -> PoolObservation:
        ends: Counter[str] = self.results[pool.name].counts()
        plan = status.get("plan", {})
        return PoolObservation(
            name=pool.name,
            lag_records=backlog.lag_records if backlog is not None else None,
            planned=status.get("desiredReplicas"),
            ready=sum(is_ready(one) for one in pods),
            pods=len(pods),
            succeeded=ends["success"],
            failed=ends.total() - ends["success"],
            constraint=plan.get("constraint", ""),
            reason=plan.get("reason", ""),
        )


def _named(items: list[Body], name: str) -> Body:
    """The object of that name; empty when there is none."""
    return next((item for item in items if item["metadata"]["name"] == name), {})
