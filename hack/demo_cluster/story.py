"""The steps of the demo: CRD, chart, pools, a burst, images, scale to zero, and the count.

Owns the order and the deadlines. The components run already; the caller stops them.
"""

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from demo_cluster.cluster import DemoCluster
from demo_cluster.count import Count, count
from demo_cluster.observation import Observer
from demo_cluster.pools import NAMESPACE, POOLS, DemoPool, pool_manifest
from demo_cluster.view import Observation
from fluxpool_cli.local.demo.demo import prompts
from fluxpool_cli.watch.display import LiveDisplay
from kit.brokers.kafka import produce
from kit.cluster.kubernetes_api import ApiUnreachableError
from kit.scaling.operator_bench import WORKER_IMAGE, apply_definitions

_INTERVAL_SECONDS: Final = 0.5
_POOL_READY_SECONDS: Final = 300.0
"""Includes the start of the operator."""
_LOG_TAIL_CHARACTERS: Final = 2000


@dataclass(slots=True, kw_only=True)
class Story:
    """One demo on a running cluster; `run` executes it."""

    cluster: DemoCluster
    display: LiveDisplay
    tasks_per_pool: int
    max_replicas: int
    deadline_seconds: float
    """Time from the burst until all pools are scaled to zero."""
    submitted: dict[str, dict[str, Mapping[str, Any]]] = field(default_factory=dict)
    """The tasks that were sent, by pool and `request_id`."""
    peak_replicas: int = 0
    """Maximum of the ready workers of all pools at one time."""
    problems: list[str] = field(default_factory=list)
    """Problems that did not end the demo."""
    _planned: dict[str, int | None] = field(default_factory=dict)
    """The number of replicas that was reported last, by pool."""

    async def run(self) -> Count:
        """Install, send, watch until all pools are at zero, count. Raises the components' errors before the burst."""
        await self._install()
        async with Observer(self.cluster.bench) as observer:
            # The pools before the burst.
            await self._look(observer)
            for pool, bodies in zip(POOLS, self._bodies(), strict=True):
                await self._send(pool, bodies)
            try:
                async with asyncio.timeout(self.deadline_seconds):
                    await self._watch(observer)
            except TimeoutError:
                self.problems.append(f"not finished within {self.deadline_seconds:g} s\n{await self._describe()}")
            return await self._count(observer)

    async def _install(self) -> None:
        bench, note = self.cluster.bench, self.display.note
        await bench.create_bucket_secret()
        note("$ kubectl apply --server-side -f crds/")
        await apply_definitions(bench.bench.control_plane, bench.bench.api)
        note(f"$ helm install fluxpool charts/fluxpool --namespace {NAMESPACE} --skip-crds --set hostPathAllowed=true")
        await bench.install(wait=False, hostPathAllowed=True)
        manifests = [self._manifest(pool) for pool in POOLS]
        path = self.cluster.folder / "pools.json"
        path.write_text(json.dumps({"apiVersion": "v1", "kind": "List", "items": manifests}, indent=2))
        note(f"$ kubectl apply -f {path}")
        await bench.bench.control_plane.kubectl("apply", "-f", str(path))
        for pool in POOLS:
            for condition in ("TopicsReady", "Ready"):
                await bench.wait_condition(condition, "True", name=pool.name, deadline_seconds=_POOL_READY_SECONDS)
        note(f"the pools {' and '.join(pool.name for pool in POOLS)} are ready; their topics were made for them")

    def _manifest(self, pool: DemoPool) -> dict[str, Any]:
        return pool_manifest(
            pool,
            bootstrap_servers=self.cluster.bench.bootstrap_servers,
            storage_endpoint_url=self.cluster.bench.s3.endpoint_url,
            models=self.cluster.models,
            worker_image=WORKER_IMAGE,
            max_replicas=self.max_replicas,
        )

    def _bodies(self) -> list[list[dict[str, Any]]]:
        """The tasks of each pool; all prompts differ."""
        bodies = prompts(self.tasks_per_pool * len(POOLS), tiny=True)
        for body in bodies:
            # The topic determines it.
            body.pop("priority", None)
        return [bodies[number * self.tasks_per_pool :][: self.tasks_per_pool] for number in range(len(POOLS))]

    async def _send(self, pool: DemoPool, bodies: list[dict[str, Any]]) -> None:
        tasks = {f"{pool.name}-{number:03}": body for number, body in enumerate(bodies, start=1)}
        self.submitted[pool.name] = dict(tasks)
        self.display.note(f"sending {len(tasks)} tasks to {pool.topics.tasks}")
        records = [(key.encode(), json.dumps({"request_id": key, **body}).encode()) for key, body in tasks.items()]
        await produce(self.cluster.bench.bootstrap_servers, pool.topics.tasks, list(records))

    async def _watch(self, observer: Observer) -> None:
        """Show observations until every task has a result and every pool is at zero."""
        while True:
            moment = await self._look(observer)
            ended = {name: _ends(observer, name) >= tasks.keys() for name, tasks in self.submitted.items()}
            if moment is not None and all(ended.values()) and all(pool.asleep for pool in moment.pools):
                self.display.note("all pools are back at zero")
                return
            await asyncio.sleep(_INTERVAL_SECONDS)

    async def _look(self, observer: Observer) -> Observation | None:
        """Show one observation and every new plan; None when the API server did not respond."""
        try:
            moment = await observer.observe()
        except ApiUnreachableError:
            return None
        self.peak_replicas = max(self.peak_replicas, sum(pool.ready for pool in moment.pools))
        for pool in moment.pools:
            if pool.planned != self._planned.get(pool.name, 0):
                self.display.note(pool.plan())
                self._planned[pool.name] = pool.planned
        self.display.update(moment)
        return moment

    async def _count(self, observer: Observer) -> Count:
        for results in observer.results.values():
            await results.read_to_end()
        return await count(
            self.submitted,
            result_values={name: results.values for name, results in observer.results.items()},
            backlogs=await observer.backlogs(),
            store=self.cluster.bench.s3,
            folder=self.cluster.folder / "images",
        )

    async def _describe(self) -> str:
        """Diagnostics for a demo that takes too long."""
        bench = self.cluster.bench
        parts = []
        for pool in POOLS:
            parts.append(await bench.describe(pool.name))
            for pod in await bench.pods(pool.name):
                name = pod["metadata"]["name"]
                parts.append(f"{name}: {bench.bench.log(name, 'worker')[-_LOG_TAIL_CHARACTERS:]}")
        return "\n".join(parts)


def _ends(observer: Observer, pool: str) -> set[str]:
    """The tasks of a pool that have a result."""
    return {result.request_id for result in observer.results[pool].records if result.request_id is not None}
