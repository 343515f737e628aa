"""Nodes without machines: capacity for the real scheduler, and optionally pods that only report to run.

One task renews all nodes, another one reports the status of all pods, so hundreds of both are cheap. Nothing is
executed: if a pod's program matters, use `kit.process_node`.
"""

import asyncio
import heapq
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from types import TracebackType
from typing import Any, Self

import httpx
import structlog

from kit.cluster.kubernetes_api import ApiError, ApiUnreachableError, Body, KubernetesApi, PatchType
from kit.cluster.kubernetes_node import NodeSpec, register_node, renew_node, timestamp
from kit.cluster.manifests import condition
from kit.cluster.pod_watch import follow_pods

_log = structlog.get_logger(__name__)
_ADDRESS = "127.0.0.1"
_RETRY_SECONDS = 0.5
_REQUESTS_AT_ONCE = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class FakePods:
    """How pods on fake nodes behave: Ready this long after they were bound, removed this long after their deletion."""

    ready_after_seconds: float = 0.2
    terminate_after_seconds: float = 0.1


class _Step(StrEnum):
    BECOME_READY = "become-ready"
    GO_AWAY = "go-away"


@dataclass(order=True, slots=True)
class _Due:
    at: float
    uid: str
    step: _Step = field(compare=False)
    pod: Body = field(compare=False)


class FakeNodes:
    """A set of fake nodes; `async with` registers them, and unregisters nothing.

    Takes the client of an admin, because one user keeps many nodes.
    """

    def __init__(self, api: KubernetesApi, specs: Sequence[NodeSpec], *, pods: FakePods | None = None) -> None:
        """Take the nodes; without `pods`, bound pods stay Pending for ever."""
        self._api = api
        if not specs:
            raise ValueError("specs: name at least one node")
        self._specs = {spec.name: spec for spec in specs}
        self._heartbeat_interval_seconds = min(spec.heartbeat_interval_seconds for spec in specs)
        self._pods = pods
        self._due: list[_Due] = []
        self._planned: set[tuple[str, _Step]] = set()
        self._changed = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        """Register every node and start to keep them alive."""
        for spec in self._specs.values():
            await register_node(self._api, spec, address=_ADDRESS)
        self._tasks = [asyncio.create_task(self._keep_alive(), name="fake-nodes-heartbeat")]
        if self._pods is not None:
            watch = follow_pods(self._api, query={}, on_list=self._on_list, on_change=self._on_change)
            self._tasks += [
                asyncio.create_task(watch, name="fake-pods-watch"),
                asyncio.create_task(self._play(self._pods), name="fake-pods-play"),
            ]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Stop keeping them alive; an error of the tasks is raised here."""
        for task in self._tasks:
            task.cancel()
        for outcome in await asyncio.gather(*self._tasks, return_exceptions=True):
            if isinstance(outcome, BaseException) and not isinstance(outcome, asyncio.CancelledError):
                raise outcome

    async def remove(self, name: str) -> None:
        """Delete one node, as a cloud does when the machine is gone."""
        self._specs.pop(name)
        await self._api.delete(f"/api/v1/nodes/{name}")

    async def _keep_alive(self) -> None:
        while True:
            await asyncio.sleep(self._heartbeat_interval_seconds)
            for spec in list(self._specs.values()):
                try:
                    await renew_node(self._api, spec, address=_ADDRESS)
                except (ApiError, ApiUnreachableError) as error:
                    _log.warning("fake_node_heartbeat_failed", node=spec.name, error=str(error))

    async def _on_list(self, pods: list[Body]) -> None:
        for pod in pods:
            await self._on_change("ADDED", pod)

    async def _on_change(self, event: str, pod: Body) -> None:
        if pod["spec"].get("nodeName") not in self._specs or self._pods is None:
            return
        uid = pod["metadata"]["uid"]
        if event == "DELETED":
            self._planned -= {(uid, step) for step in _Step}
        elif "deletionTimestamp" in pod["metadata"]:
            self._plan(_Step.GO_AWAY, pod, after_seconds=self._pods.terminate_after_seconds)
        elif pod["status"].get("phase", "Pending") == "Pending" or _is_unready(pod):
            self._plan(_Step.BECOME_READY, pod, after_seconds=self._pods.ready_after_seconds)

    def _plan(self, step: _Step, pod: Body, *, after_seconds: float) -> None:
        uid = pod["metadata"]["uid"]
        if (uid, step) in self._planned:
            return
        self._planned.add((uid, step))
        heapq.heappush(self._due, _Due(asyncio.get_running_loop().time() + after_seconds, uid, step, pod))
        self._changed.set()

    async def _play(self, pods: FakePods) -> None:
        loop = asyncio.get_running_loop()
        while True:
            self._changed.clear()
            now = loop.time()
            batch: list[_Due] = []
            while self._due and self._due[0].at <= now and len(batch) < _REQUESTS_AT_ONCE:
                batch.append(heapq.heappop(self._due))
            if batch:
                async with asyncio.TaskGroup() as group:
                    for due in batch:
                        group.create_task(self._take(due, pods))
                continue
            try:
                async with asyncio.timeout(self._due[0].at - now if self._due else None):
                    await self._changed.wait()
            except TimeoutError:
                continue

    async def _take(self, due: _Due, pods: FakePods) -> None:
        metadata = due.pod["metadata"]
        path = f"/api/v1/namespaces/{metadata['namespace']}/pods/{metadata['name']}"
        try:
            match due.step:
                case _Step.BECOME_READY:
                    if (due.uid, _Step.GO_AWAY) not in self._planned:
                        body = {"metadata": {"uid": due.uid}, "status": _ready_status(due.pod)}
                        await self._api.patch(f"{path}/status", body, patch_type=PatchType.STRATEGIC)
                    # The node controller resets it when the node was silent; a node that is back reports it again.
                    self._planned.discard((due.uid, due.step))
                case _Step.GO_AWAY:
                    await self._api.delete(path, grace_period_seconds=0, uid=due.uid)
        except ApiError as error:
            # Deleted or replaced meanwhile: nothing to do.
            if error.status not in (httpx.codes.NOT_FOUND, httpx.codes.CONFLICT):
                _log.warning("fake_pod_step_refused", step=due.step, pod=metadata["name"], error=str(error))
                self._again(due, pods)
        except ApiUnreachableError:
            self._again(due, pods)

    def _again(self, due: _Due, pods: FakePods) -> None:
        self._planned.discard((due.uid, due.step))
        self._plan(due.step, due.pod, after_seconds=max(_RETRY_SECONDS, pods.terminate_after_seconds))


def _is_unready(pod: Body) -> bool:
    """Whether the node controller marked a running pod as not ready, as it does for a silent node."""
    return pod["status"].get("phase") == "Running" and condition(pod, "Ready").get("status") == "False"


def _ready_status(pod: Body) -> dict[str, Any]:
    now = timestamp()
    types = ("PodReadyToStartContainers", "Initialized", "ContainersReady", "Ready")
    return {
        "phase": "Running",
        "startTime": now,
        "podIP": _ADDRESS,
        "podIPs": [{"ip": _ADDRESS}],
        "hostIP": _ADDRESS,
        "conditions": [{"type": name, "status": "True", "lastTransitionTime": now} for name in types],
        "containerStatuses": [
            {
                "name": container["name"],
                "image": container["image"],
                "imageID": "",
                "ready": True,
                "started": True,
                "restartCount": 0,
                "state": {"running": {"startedAt": now}},
            }
            for container in pod["spec"]["containers"]
        ],
    }
