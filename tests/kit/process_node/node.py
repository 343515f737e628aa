"""The node agent: registers a Node, renews it, and runs a `PodWorker` for every pod bound to it.

Owns the data folder of one node and the tasks of its pods. It uses the node's own credentials, so the Node authorizer
and NodeRestriction apply as to a kubelet.
"""

import asyncio
import contextlib
import json
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

import structlog

from kit.cluster.control_plane_credentials import ClientLogin
from kit.cluster.kubernetes_api import ApiError, ApiUnreachableError, Body, KubernetesApi
from kit.cluster.kubernetes_node import NodeSpec, register_node, renew_node
from kit.cluster.pod_watch import follow_pods
from kit.process_node.container import ContainerProcess, check_isolation, log_path
from kit.process_node.container_loop import NodePolicy
from kit.process_node.environment import ProcessImage
from kit.process_node.events import EventRecorder
from kit.process_node.pod_references import PodPlace
from kit.process_node.pod_worker import PodHost, PodWorker

_log = structlog.get_logger(__name__)
_HOST_IP = "127.0.0.1"
_HEARTBEAT_RETRY_SECONDS = 1.0


class ProcessNode:
    """One node whose pods are processes of this machine; `async with` registers it and ends its pods afterwards.

    Pods share the machine's network: each has its own loopback address as `podIP`, on which its servers must listen.
    Their output is written to files, whose paths are in an Event on the pod and in `container_log`; the API server's
    log endpoint does not work. Pods die with the process `owner_pid` at the latest.
    """

    def __init__(
        self,
        login: ClientLogin,
        spec: NodeSpec,
        *,
        images: Mapping[str, ProcessImage],
        data_dir: Path,
        policy: NodePolicy | None = None,
        owner_pid: int | None = None,
    ) -> None:
        """Take the login of user `system:node:<name>` in group `system:nodes`, and the images by name.

        `images` is read for every start, so names can be added while the node runs. Raises
        `IsolationUnavailableError` where pods cannot have separate mount namespaces.
        """
        check_isolation()
        self.name = spec.name
        self._spec = spec
        self._pods_dir = data_dir.resolve() / "pods"
        self._api = KubernetesApi(login)
        self._host = PodHost(
            api=self._api,
            api_server=login.server,
            events=EventRecorder(self._api, node=spec.name),
            images=images,
            policy=policy or NodePolicy(),
            owner_pid=owner_pid or os.getpid(),
        )
        self._workers: dict[str, tuple[PodWorker, asyncio.Task[None]]] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self._failures: list[Exception] = []
        self._listed = asyncio.Event()

    async def start(self) -> None:
        """Register the node; pods of an earlier agent on the same folder are adopted or, if unwanted, killed."""
        self._pods_dir.mkdir(parents=True, exist_ok=True)
        await register_node(self._api, self._spec, address=_HOST_IP)
        watch = follow_pods(
            self._api,
            query={"fieldSelector": f"spec.nodeName={self.name}"},
            on_list=self._on_list,
            on_change=self._on_change,
        )
        self._tasks = [
            asyncio.create_task(self._keep_alive(), name=f"heartbeat-{self.name}"),
            asyncio.create_task(watch, name=f"pods-of-{self.name}"),
        ]
        for task in self._tasks:
            task.add_done_callback(self._note_failure)

    async def stop(self) -> None:
        """End every pod's processes at once without a status update; errors of the agent's tasks are raised here."""
        await self.crash()
        for folder in self._pods_dir.iterdir():
            await _end_processes(folder)
        if self._failures:
            raise ExceptionGroup(f"node {self.name}", self._failures)

    async def crash(self) -> None:
        """Stop the agent as SIGKILL would: pods continue, and a new agent on the same folder adopts them."""
        tasks = [*self._tasks, *(task for _, task in self._workers.values())]
        for task in tasks:
            task.cancel()
        # The tasks' callbacks record failures.
        await asyncio.gather(*tasks, return_exceptions=True)
        self._tasks, self._workers = [], {}
        await self._api.close()

    async def __aenter__(self) -> Self:
        """Start."""
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Stop."""
        await self.stop()

    def container_pid(self, namespace: str, pod: str, container: str) -> int | None:
        """Return the process id of a container's main process while it runs."""
        attempt = self._newest_attempt(namespace, pod, container)
        process = ContainerProcess.attach(attempt) if attempt is not None else None
        return process.pid if process is not None and process.running else None

    def container_log(self, namespace: str, pod: str, container: str) -> str:
        """Return the output of a container's newest run, also after its pod was removed; empty before the first one."""
        attempt = self._newest_attempt(namespace, pod, container)
        if attempt is None or not log_path(attempt).exists():
            return ""
        return log_path(attempt).read_text(errors="replace")

    def _newest_attempt(self, namespace: str, pod: str, container: str) -> Path | None:
        newest: tuple[float, Path] | None = None
        for folder in self._pods_dir.iterdir():
            known = _kept(folder)
            if (known.get("namespace"), known.get("name")) == (namespace, pod):
                # A StatefulSet reuses pod names.
                candidate = (float(known["start_time"]), folder)
                newest = max(newest, candidate) if newest else candidate
        if newest is None:
            return None
        attempts = _attempts(newest[1] / "containers" / container)
        return attempts[-1] if attempts else None

    async def _keep_alive(self) -> None:
        while True:
            await asyncio.sleep(self._spec.heartbeat_interval_seconds)
            while True:
                try:
                    await renew_node(self._api, self._spec, address=_HOST_IP)
                    break
                except (ApiError, ApiUnreachableError) as error:
                    _log.warning("node_heartbeat_failed", node=self.name, error=str(error))
                await asyncio.sleep(_HEARTBEAT_RETRY_SECONDS)

    async def _on_list(self, pods: list[Body]) -> None:
        alive = {pod["metadata"]["uid"] for pod in pods}
        for uid, (worker, _) in self._workers.items():
            if uid not in alive:
                worker.vanish()
        if not self._listed.is_set():
            self._listed.set()
            for folder in self._pods_dir.iterdir():
                if folder.name not in alive:
                    await _end_processes(folder)
        for pod in pods:
            self._take(pod)

    async def _on_change(self, event: str, pod: Body) -> None:
        if event != "DELETED":
            self._take(pod)
        elif (known := self._workers.get(pod["metadata"]["uid"])) is not None:
            known[0].vanish()

    def _take(self, pod: Body) -> None:
        uid = str(pod["metadata"]["uid"])
        if (known := self._workers.get(uid)) is not None:
            known[0].update(pod)
            return
        folder = self._pods_dir / uid
        place = PodPlace(
            node_name=self.name,
            node_capacity=self._spec.full_capacity,
            host_ip=_HOST_IP,
            pod_ip=str(_kept(folder).get("pod_ip") or _new_pod_ip()),
        )
        worker = PodWorker(pod, host=self._host, folder=folder, place=place)
        task = asyncio.create_task(worker.run(), name=f"pod-{worker.name}")
        self._workers[uid] = (worker, task)
        task.add_done_callback(lambda done: self._forget(uid, done))

    def _forget(self, uid: str, task: asyncio.Task[None]) -> None:
        self._workers.pop(uid, None)
        self._note_failure(task)

    def _note_failure(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and isinstance(failure := task.exception(), Exception):
            _log.error("node_task_failed", node=self.name, task=task.get_name(), exc_info=failure)
            self._failures.append(failure)


def _new_pod_ip() -> str:
    """Return one of twelve million loopback addresses, so that a collision with another pod is unlikely."""
    return f"127.{64 + secrets.randbelow(190)}.{secrets.randbelow(256)}.{1 + secrets.randbelow(254)}"


def _kept(pod_folder: Path) -> Body:
    try:
        found: Body = json.loads((pod_folder / "pod.json").read_bytes())
    except FileNotFoundError:
        return {}
    return found


def _attempts(container_folder: Path) -> list[Path]:
    if not container_folder.is_dir():
        return []
    return sorted(container_folder.iterdir(), key=lambda path: int(path.name))


async def _end_processes(pod_folder: Path) -> None:
    containers = pod_folder / "containers"
    for container in containers.iterdir() if containers.is_dir() else ():
        for attempt in _attempts(container)[-1:]:
            process = ContainerProcess.attach(attempt)
            if process is not None and process.running:
                process.kill()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(10):
                        await process.wait()
