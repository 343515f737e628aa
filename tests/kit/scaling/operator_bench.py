"""A complete Fluxpool for one test: the operator as the chart's pod, pools, topics on the real broker.

Knows the interfaces of users (kubectl, helm, a Kafka producer) and what they show, but no expectations of tests.
"""

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from kit.brokers.kafka import unique_name
from kit.cluster.control_plane import CommandError, ControlPlane
from kit.cluster.fake_nodes import FakeNodes, FakePods
from kit.cluster.kubernetes_api import ApiError, Body, KubernetesApi
from kit.cluster.kubernetes_node import NodeSpec
from kit.cluster.manifests import condition, container_status, is_ready, pods_of
from kit.cluster.node_bench import Bench
from kit.process_node import ProcessImage
from kit.programs.warm_start import warm_engine
from kit.scaling.pool_tasks import BUCKET, PoolTasks
from kit.scaling.pools import edited, pool_body
from kit.waiting import wait_until

ROOT: Final = Path(__file__).parents[3]
CHART: Final = ROOT / "charts" / "fluxpool"
RELEASE: Final = "fluxpool"
OPERATOR: Final = f"{RELEASE}-operator"
WORKER_IMAGE: Final = "fluxpool-worker:dev"
GPU: Final = "nvidia.com/gpu"
START_SECONDS: Final = 90.0
"""A pod's program imports for seconds, and many on a busy machine."""


def operator_image(*, forked: bool = True) -> ProcessImage:
    """The command of the operator's Dockerfile, in the environment of the tests."""
    return ProcessImage(
        entrypoint=(sys.executable, "-m", "fluxpool_operator"),
        environment=_environment(),
        folders=(str(ROOT),),
        forked=forked,
    )


def worker_image(*, stand_in: bool = True) -> ProcessImage:
    """The command of the worker's Dockerfile; with the stand-in engine, the prompt sets the duration of an image.

    With a real engine everything is executed.
    """
    engine = {"FLUXPOOL_ENGINE_COMMAND": ",".join(warm_engine(stand_in=True))} if stand_in else {}
    return ProcessImage(
        forked=stand_in,
        entrypoint=(sys.executable, "-m", "fluxpool_worker"),
        environment=_environment() | engine,
        folders=(str(ROOT),),
    )


def _environment() -> dict[str, str]:
    return {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT / "tests"), "OMP_NUM_THREADS": "1"}


@dataclass(frozen=True, slots=True)
class FakeWorkers:
    """Nodes whose pods only report to run."""

    labels: dict[str, str]

    @property
    def placement(self) -> dict[str, Any]:
        """Edits of a pool that schedule its pods there."""
        return {"worker__nodeSelector": self.labels}


class ReplicaWatch:
    """Every value of a Deployment's `spec.replicas`, in order."""

    def __init__(self, api: KubernetesApi, path: str) -> None:
        self._api = api
        self._path = path
        self._seen: list[int] = []
        self._task = asyncio.create_task(self._follow(), name=f"replicas of {path}")

    async def stop(self) -> list[int]:
        """The observed values, without consecutive duplicates."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        return self._seen

    async def _follow(self) -> None:
        collection, _, name = self._path.rpartition("/")
        version = (await self._api.get(self._path))["metadata"]["resourceVersion"]
        self._note(await self._api.get(self._path))
        changes = self._api.watch(collection, resource_version=version, fieldSelector=f"metadata.name={name}")
        async for event, found in changes:
            if event != "BOOKMARK":  # a bookmark: no object, but with a number of replicas
                self._note(found)

    def _note(self, found: Body) -> None:
        replicas = found.get("spec", {}).get("replicas")
        if replicas is not None and self._seen[-1:] != [replicas]:
            self._seen.append(replicas)


@dataclass(slots=True, kw_only=True)
class OperatorBench(PoolTasks):
    """One operator's release, and the pools and topics of one test."""

    bench: Bench
    operator: Bench | None = None
    """Bench of the shared operator, if this test does not install one."""

    @property
    def namespace(self) -> str:
        """Namespace of the pools."""
        return self.bench.namespace

    def on(self, bootstrap_servers: str) -> "OperatorBench":
        """The same bench on another Kafka."""
        return replace(self, bootstrap_servers=bootstrap_servers, groups={})

    async def restrict(self) -> None:
        """Enforce the restricted Pod Security Standard in the namespace."""
        enforced = {"pod-security.kubernetes.io/enforce": "restricted", "pod-security.kubernetes.io/warn": "restricted"}
        await self.bench.api.patch(f"/api/v1/namespaces/{self.namespace}", {"metadata": {"labels": enforced}})

    @asynccontextmanager
    async def fake_workers(self, *, gpus: int = 32, pods: FakePods | None = None) -> AsyncIterator[FakeWorkers]:
        """A node with this many GPUs whose pods only report to run; it is removed afterwards."""
        name = unique_name("fake")
        labels = {"kit.fluxpool.dev/fake": name}
        spec = NodeSpec(name=name, capacity={GPU: str(gpus)}, labels=labels)
        async with FakeNodes(self.bench.api, [spec], pods=pods or FakePods()):
            yield FakeWorkers(labels)
        await self.bench.api.delete(f"/api/v1/nodes/{name}")

    # The operator

    async def install(self, *, wait: bool = True, **values: Any) -> None:
        """`helm install` on the process node, with values by their dotted paths; waits until it is ready."""
        await self._helm("install", values)
        if wait:
            await self.wait_operator()

    async def upgrade(self, **values: Any) -> None:
        """`helm upgrade` with new values."""
        await self._helm("upgrade", values)

    async def uninstall(self) -> None:
        """`helm uninstall`."""
        await self.bench.control_plane.helm("uninstall", RELEASE, "--namespace", self.bench.namespace, "--wait")

    async def wait_operator(self) -> Body:
        """Wait for the ready operator and return its pod."""

        async def ready() -> Body | None:
            pods = [pod for pod in await self.operator_pods() if is_ready(pod)]
            return pods[0] if len(pods) == 1 else None

        try:
            found = await wait_until(ready, deadline_seconds=START_SECONDS, what="the operator to be ready")
        except AssertionError as error:
            error.add_note(await self._last_lines())
            raise
        assert found is not None
        return found

    async def operator_pods(self) -> list[Body]:
        """The operator's pods; one, except during a change."""
        return await pods_of(
            self.bench.api,
            (self.operator or self.bench).namespace,
            label="app.kubernetes.io/name=fluxpool,app.kubernetes.io/component=operator",
        )

    async def operator_logs(self) -> dict[str, str]:
        """Output of the operator's pods, by name."""
        return {
            pod["metadata"]["name"]: (self.operator or self.bench).log(pod["metadata"]["name"], "operator")
            for pod in await self.operator_pods()
        }

    async def kill_operator(self) -> None:
        """SIGKILL; the node restarts it."""
        (pod,) = await self.operator_pods()
        os.kill(self.bench.pid(pod["metadata"]["name"], "operator"), signal.SIGKILL)

    async def restarts(self) -> int:
        """Restart count of the operator's container."""
        return sum(container_status(pod, "operator").get("restartCount", 0) for pod in await self.operator_pods())

    async def wait_restarts(self, count: int) -> None:
        """Wait until the operator's container was restarted at least this often."""

        async def reached() -> bool:
            return await self.restarts() >= count

        await wait_until(reached, deadline_seconds=START_SECONDS, what=f"{count} restarts of the operator")

    # Pools

    def pool(self, name: str = "standard", **edits: Any) -> Body:
        """A pool on this bench, after `topics(name)`; edits by dotted paths, dots as double underscores."""
        prefix = self.groups[name]
        body = pool_body(name=name, namespace=self.namespace)
        del body["metadata"]["uid"]
        return edited(
            body,
            {
                "model": {"id": "stand-in", "device": "cpu"},
                "kafka": {
                    "bootstrapServers": [self.bootstrap_servers],
                    "consumerGroup": prefix,
                    "lanes": [{"name": "standard", "topic": f"{prefix}-tasks"}],
                    "topics": {
                        "results": f"{prefix}-results",
                        "progress": f"{prefix}-progress",
                        "control": f"{prefix}-control",
                        "deadLetters": f"{prefix}-dlq",
                        "retry": [f"{prefix}-retry-15s"],
                        "pools": f"{prefix}-pools",
                    },
                },
                "scaling": {
                    "maxReplicas": 6,
                    "targetLagPerReplica": 10,
                    "pollIntervalSeconds": 1,
                    "idleGracePeriodSeconds": 3,
                    "scaleDown": {"stabilizationWindowSeconds": 2},
                    "onLagUnavailable": {"staleAfterSeconds": 5},
                },
                "storage": {
                    "url": f"s3://{BUCKET}/{prefix}/",
                    "endpointUrl": self.s3.endpoint_url,
                    "region": "us-east-1",
                    "credentialsSecretRef": {"name": "bucket"},
                },
                "worker": {
                    "image": WORKER_IMAGE,
                    "nodeSelector": {"kubernetes.io/hostname": self.bench.node.name},
                    "terminationGracePeriodSeconds": 60,
                },
                **{path.replace("__", "."): value for path, value in edits.items()},
            },
        )

    async def create_bucket_secret(self) -> None:
        """The Secret with the object store's key."""
        await self.bench.api.create(
            f"/api/v1/namespaces/{self.namespace}/secrets",
            {
                "metadata": {"name": "bucket"},
                "stringData": {"access-key-id": "testing", "secret-access-key": "testing"},
            },
        )

    async def apply(self, *pools: Body) -> None:
        """`kubectl apply`."""
        listed = {"apiVersion": "v1", "kind": "List", "items": list(pools)}
        await self.bench.control_plane.kubectl("apply", "-f", "-", input=json.dumps(listed))

    async def patch(self, name: str, spec: Mapping[str, Any]) -> None:
        """Change a pool's spec."""
        await self.bench.api.patch(self.path(name), {"spec": spec})

    async def delete(self, name: str) -> None:
        """Delete a pool."""
        await self.bench.api.delete(self.path(name))

    def path(self, name: str) -> str:
        """A pool's API path."""
        return f"/apis/fluxpool.dev/v1alpha1/namespaces/{self.namespace}/fluxworkerpools/{name}"

    async def get(self, name: str = "standard") -> Body:
        """A pool; its status is empty until one is written."""
        return {"status": {}, **await self.bench.api.get(self.path(name))}

    async def wait_pool(
        self, what: str, reached: Callable[[Body], Any], *, name: str = "standard", deadline_seconds: float = 60
    ) -> Body:
        """Wait until a pool satisfies the predicate and return it."""

        async def check() -> Body | None:
            found = await self.get(name)
            return found if reached(found) else None

        found = await self.wait(check, what=f"pool {name}: {what}", name=name, deadline_seconds=deadline_seconds)
        assert found is not None
        return found

    async def wait_condition(
        self,
        type_: str,
        status: str,
        *,
        reason: str | None = None,
        name: str = "standard",
        deadline_seconds: float = 60,
    ) -> Body:
        """Wait for a condition of a pool, of its newest generation, and return it."""

        def reached(pool: Body) -> bool:
            found = condition(pool, type_)
            return (
                found.get("status") == status
                and reason in (None, found.get("reason"))
                and found.get("observedGeneration") == pool["metadata"]["generation"]
            )

        what = f"{type_}={status}{f' ({reason})' if reason else ''}"
        return condition(await self.wait_pool(what, reached, name=name, deadline_seconds=deadline_seconds), type_)

    async def deployment(self, name: str = "standard") -> Body:
        """A pool's Deployment."""
        return await self.bench.api.get(self.deployment_path(name))

    def deployment_path(self, name: str = "standard") -> str:
        """Its API path."""
        return f"/apis/apps/v1/namespaces/{self.namespace}/deployments/{name}-worker"

    async def wait_replicas(self, count: int, *, name: str = "standard", deadline_seconds: float = 60) -> Body:
        """Wait until the Deployment requests this many pods."""

        async def reached() -> Body | None:
            try:
                found = await self.deployment(name)
            except ApiError as error:
                if error.status == 404:
                    return None
                raise
            return found if found["spec"]["replicas"] == count else None

        found = await self.wait(
            reached, what=f"{count} replicas of {name}", name=name, deadline_seconds=deadline_seconds
        )
        assert found is not None
        return found

    async def pods(self, name: str = "standard") -> list[Body]:
        """A pool's pods."""
        return await pods_of(self.bench.api, self.namespace, label=f"fluxpool.dev/pool={name}")

    async def wait_pods(
        self, count: int, *, name: str = "standard", deadline_seconds: float = START_SECONDS
    ) -> list[Body]:
        """Wait for exactly this many pods, all ready and none terminating."""

        async def reached() -> list[Body] | None:
            pods = await self.pods(name)
            good = [pod for pod in pods if is_ready(pod) and "deletionTimestamp" not in pod["metadata"]]
            return pods or [{}] if len(pods) == len(good) == count else None

        found = await self.wait(
            reached, what=f"{count} ready pods of {name}", name=name, deadline_seconds=deadline_seconds
        )
        assert found is not None
        return found

    async def replica_sets(self, name: str = "standard") -> int:
        """Number of ReplicaSets of a pool's Deployment: one for each template it ever had."""
        path = f"/apis/apps/v1/namespaces/{self.namespace}/replicasets"
        return len((await self.bench.api.get(path, labelSelector=f"fluxpool.dev/pool={name}"))["items"])

    async def wait_busy(self, name: str = "standard") -> frozenset[str]:
        """Wait until a pod holds a task; returns those that do."""
        return await wait_until(lambda: self.busy_pods(name), deadline_seconds=60, what=f"a busy pod of {name}")

    async def wait_idle(self, name: str = "standard") -> None:
        """Wait until no pod holds a task."""

        async def idle() -> bool:
            return not await self.busy_pods(name)

        await wait_until(idle, deadline_seconds=60, what=f"no busy pod of {name}")

    async def pod_names(self, name: str = "standard") -> frozenset[str]:
        """Names of a pool's pods that are not terminating."""
        return frozenset(
            pod["metadata"]["name"] for pod in await self.pods(name) if "deletionTimestamp" not in pod["metadata"]
        )

    async def wait_leaving(self, before: frozenset[str], *, name: str = "standard") -> frozenset[str]:
        """Wait until at least one of those pods is terminating; return the names of all that are."""

        async def leaving() -> frozenset[str]:
            return before - await self.pod_names(name)

        return await wait_until(leaving, deadline_seconds=60, what=f"a pod of {name} to leave")

    def watch_replicas(self, name: str = "standard") -> ReplicaWatch:
        """Record every number of replicas from now on."""
        return ReplicaWatch(self.bench.api, self.deployment_path(name))

    async def wait_no_pods(self, name: str = "standard") -> None:
        """Wait until a pool has no pod at all."""

        async def none() -> bool:
            return not await self.pods(name)

        await wait_until(none, deadline_seconds=90, what=f"the pods of {name} to go")

    async def events(self, name: str = "standard") -> list[tuple[str, str, str]]:
        """(type, reason, message) of each Event on a pool, in order."""
        listed = await self.bench.api.get(
            f"/api/v1/namespaces/{self.namespace}/events",
            fieldSelector=f"involvedObject.name={name},involvedObject.kind=FluxWorkerPool",
        )
        ordered = sorted(listed["items"], key=lambda event: event["metadata"]["creationTimestamp"])
        return [(event["type"], event["reason"], event["message"]) for event in ordered]

    async def wait_events(self, reason: str, *, name: str = "standard") -> None:
        """Wait until a pool has an Event with that reason; it follows what it tells of."""

        async def told() -> bool:
            return reason in [found for _, found, _ in await self.events(name)]

        await wait_until(told, deadline_seconds=30, what=f"an event {reason} of {name}")

    async def clean_up(self) -> None:
        """Remove this test's release and pools, if they still exist; pods are removed with the node."""
        await asyncio.to_thread(self.reader.close)
        await asyncio.to_thread(self.offsets.close)
        if self.operator is None:
            with contextlib.suppress(CommandError):
                await self.uninstall()
        await self.bench.control_plane.kubectl(
            "delete", "fluxworkerpools", "--all", "--namespace", self.namespace, "--ignore-not-found", "--wait=false"
        )

    async def describe(self, name: str) -> str:
        """The pool's status, its pods, and the end of the operator's log."""
        status = (await self.get(name)).get("status")
        pods = [(pod["metadata"]["name"], pod["status"]) for pod in await self.pods(name)]
        return f"{json.dumps(status, indent=1)}\n{json.dumps(pods)[:4000]}\n{await self._last_lines()}"

    async def _last_lines(self) -> str:
        return "\n".join(text[-5000:] for text in (await self.operator_logs()).values())

    async def _helm(self, verb: str, values: Mapping[str, Any]) -> None:
        node = {"nodeSelector": {"kubernetes.io/hostname": self.bench.node.name}}
        merged = edited({"spec": node}, {path.replace("__", "."): value for path, value in values.items()})["spec"]
        path = self.bench.folder / "values.json"
        path.write_text(json.dumps(merged))
        await self.bench.control_plane.helm(
            verb, RELEASE, str(CHART), "--namespace", self.bench.namespace, "--values", str(path), "--skip-crds"
        )


async def apply_definitions(control_plane: ControlPlane, api: KubernetesApi) -> None:
    """`kubectl apply -f crds/`, and wait until pools are served."""
    await control_plane.kubectl("apply", "--server-side", "-f", str(ROOT / "crds"))

    async def served() -> bool:
        try:
            found = await api.get("/apis/fluxpool.dev/v1alpha1")
        except ApiError as error:
            if error.status == 404:
                return False
            raise
        return any(resource["name"] == "fluxworkerpools" for resource in found["resources"])

    await wait_until(served, deadline_seconds=30, what="pools to be served")
