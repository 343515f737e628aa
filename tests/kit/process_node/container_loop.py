"""The lifecycle of one container of a pod: start, watch, and restart by the restart policy.

Owns attempts and their order, the effects of probes and the memory limit. Publishes by callback; uses the API only
through `PodReferences`.
"""

import asyncio
import shutil
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path, PurePosixPath
from typing import Any, assert_never

from kit.cluster.kubernetes_api import Body
from kit.process_node.container import (
    ContainerExit,
    ContainerProcess,
    ContainerRequest,
    ContainerStartError,
    Mount,
    StopScope,
    log_path,
)
from kit.process_node.environment import ProcessImage, command_line, container_variables, whole_environment
from kit.process_node.pod_references import MissingReferenceError, PodReferences, parse_amount
from kit.process_node.probes import Prober
from kit.process_node.status import ContainerRecord, Running, Terminated, Waiting
from kit.process_node.termination import Termination
from kit.process_node.volumes import PodVolumes

_MEMORY_INTERVAL_SECONDS = 0.25


class RestartPolicy(StrEnum):
    """When an ended container is restarted."""

    ALWAYS = "Always"
    ON_FAILURE = "OnFailure"
    NEVER = "Never"

    def restarts(self, exit_code: int) -> bool:
        """Whether it is restarted after this exit code."""
        match self:
            case RestartPolicy.ALWAYS:
                return True
            case RestartPolicy.ON_FAILURE:
                return exit_code != 0
            case RestartPolicy.NEVER:
                return False
            case _:
                assert_never(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class NodePolicy:
    """How a node treats containers; the kubelet's values except `retry_seconds`, which is 10 there."""

    retry_seconds: float = 1.0
    restart_backoff_seconds: float = 10.0
    restart_backoff_limit_seconds: float = 300.0
    restart_backoff_reset_seconds: float = 600.0
    stop_scope: StopScope = StopScope.PROCESS_GROUP


@dataclass(frozen=True, slots=True, kw_only=True)
class PodScene:
    """What the containers of one pod share."""

    references: PodReferences
    volumes: PodVolumes
    images: Mapping[str, ProcessImage]
    policy: NodePolicy
    termination: Termination
    pod_ip: str
    api_server: str
    owner_pid: int
    publish: Callable[[], None]
    emit: Callable[[str, str, str], Coroutine[Any, Any, None]]
    """(type, reason, message) of an Event on the pod."""


class ContainerLoop:
    """One container from its first attempt to its last."""

    def __init__(self, container: Body, *, folder: Path, scene: PodScene, restart_policy: RestartPolicy) -> None:
        """Find the attempts of an earlier agent in `folder`, so that `run` continues with the last one."""
        self.record = ContainerRecord(name=container["name"], image=container["image"])
        self._container = container
        self._folder = folder
        self._scene = scene
        self._restart_policy = restart_policy
        self._restarts_in_a_row = 0
        numbers = [int(path.name) for path in folder.iterdir()] if folder.is_dir() else []
        self._attempt = max(numbers, default=0)

    @property
    def will_restart(self) -> bool:
        """Whether this container is restarted once it has ended."""
        if self._scene.termination.requested:
            return False
        state = self.record.state
        return not isinstance(state, Terminated) or self._restart_policy.restarts(state.exit_code)

    async def run(self) -> None:
        """Return when the container has ended for good; `record.state` then has its end, unless it never started."""
        process = ContainerProcess.attach(self._folder / str(self._attempt))
        await self._recall_last_state()
        while True:
            if process is None:
                process = await self._start()
            if process is None:
                return
            ended = await self._run_one(process)
            self.record.state = ended
            self.record.started = self.record.ready = False
            if not self.will_restart:
                self._scene.publish()
                return
            await self._back_off(ended)
            if self._scene.termination.requested:
                # It ended and is not restarted: its state is Terminated, not Waiting.
                self.record.state = ended
                return
            self.record.restart_count += 1
            self._attempt += 1
            process = None

    async def _recall_last_state(self) -> None:
        self.record.restart_count = self._attempt
        earlier = ContainerProcess.attach(self._folder / str(self._attempt - 1))
        if earlier is not None and not earlier.running:
            self.record.last_state = _as_terminated(await earlier.wait())

    async def _start(self) -> ContainerProcess | None:
        """Start the next attempt, retrying until it succeeds; None when the pod has to end first."""
        while not self._scene.termination.requested:
            folder = self._folder / str(self._attempt)
            try:
                request = await self._request()
                process = await ContainerProcess.start(folder, request, owner_pid=self._scene.owner_pid)
            except _NoImageError as error:
                await self._wait_with("ErrImagePull", str(error))
            except (MissingReferenceError, ValueError) as error:
                await self._wait_with("CreateContainerConfigError", str(error))
            except ContainerStartError as error:
                # Not a run: the next try replaces it, and it counts as no restart.
                await asyncio.to_thread(shutil.rmtree, folder)
                await self._wait_with("CreateContainerError", str(error))
            else:
                await self._scene.emit(
                    "Normal",
                    "Started",
                    f"Container {self.record.name} started, pid {process.pid}; its output is in {log_path(folder)}",
                )
                return process
        return None

    async def _wait_with(self, reason: str, message: str) -> None:
        state = Waiting(reason=reason, message=message)
        if self.record.state != state:
            self.record.state = state
            self._scene.publish()
            await self._scene.emit("Warning", "Failed", f"Container {self.record.name}: {reason}: {message}")
        await self._scene.termination.pause(self._scene.policy.retry_seconds)

    async def _request(self) -> ContainerRequest:
        container, scene = self._container, self._scene
        image = scene.images.get(container["image"])
        if image is None:
            known = ", ".join(sorted(scene.images)) or "none"
            raise _NoImageError(f"image {container['image']!r} is not one of this node's: {known}")
        variables = await container_variables(container, scene.references, api_server=scene.api_server)
        hostname = str(scene.references.pod["metadata"]["name"])
        mounts = scene.volumes.mounts(container)
        return ContainerRequest(
            argv=command_line(container, image, variables),
            forked=image.forked,
            environment=whole_environment(variables, image, hostname=hostname),
            working_dir=container.get("workingDir") or image.working_dir,
            mounts=[*mounts, *_hidden_folders(image, mounts)],
            read_only_root=bool(container.get("securityContext", {}).get("readOnlyRootFilesystem")),
            # The kernel's limit.
            hostname=hostname[:63],
        )

    async def _run_one(self, process: ContainerProcess) -> Terminated:
        self.record.state = Running(started_at=process.started_at)
        self.record.started = "startupProbe" not in self._container
        self.record.ready = self.record.started and "readinessProbe" not in self._container
        self._scene.publish()
        async with asyncio.TaskGroup() as group:
            watchers = [
                group.create_task(self._watch_health(process)),
                group.create_task(self._end_when_asked(process)),
            ]
            limit = ((self._container.get("resources") or {}).get("limits") or {}).get("memory")
            if limit is not None:
                watchers.append(group.create_task(_watch_memory(process, limit_bytes=int(parse_amount(limit)))))
            ended = await process.wait()
            for watcher in watchers:
                watcher.cancel()
        return _as_terminated(ended)

    async def _watch_health(self, process: ContainerProcess) -> None:
        if (probe := self._container.get("startupProbe")) is not None:
            verdict = await self._prober(probe, process).verdict()
            if self._scene.termination.requested:
                return
            if not verdict.healthy:
                await self._kill_unhealthy(process, probe, kind="Startup", message=verdict.message)
                return
            self.record.started = True
            self.record.ready = "readinessProbe" not in self._container
            self._scene.publish()
        async with asyncio.TaskGroup() as group:
            if (probe := self._container.get("readinessProbe")) is not None:
                group.create_task(self._watch_readiness(probe, process))
            if (probe := self._container.get("livenessProbe")) is not None:
                group.create_task(self._watch_liveness(probe, process))

    async def _watch_readiness(self, probe: Body, process: ContainerProcess) -> None:
        prober = self._prober(probe, process)
        while True:
            verdict = await prober.verdict()
            if verdict.healthy != self.record.ready:
                self.record.ready = verdict.healthy
                self._scene.publish()
                if not verdict.healthy:
                    await self._scene.emit("Warning", "Unhealthy", f"Readiness probe failed: {verdict.message}")

    async def _watch_liveness(self, probe: Body, process: ContainerProcess) -> None:
        prober = self._prober(probe, process)
        while True:
            verdict = await prober.verdict()
            # Do not kill a terminating pod for slow probes.
            if self._scene.termination.requested:
                return
            if not verdict.healthy:
                await self._kill_unhealthy(process, probe, kind="Liveness", message=verdict.message)
                return

    def _prober(self, probe: Body, process: ContainerProcess) -> Prober:
        return Prober(probe, container=self._container, process=process, pod_ip=self._scene.pod_ip)

    async def _kill_unhealthy(self, process: ContainerProcess, probe: Body, *, kind: str, message: str) -> None:
        name = self.record.name
        await self._scene.emit("Warning", "Unhealthy", f"{kind} probe failed: {message}")
        await self._scene.emit("Normal", "Killing", f"Container {name} failed {kind.lower()} probe, will be restarted")
        own = self._scene.references.pod["spec"].get("terminationGracePeriodSeconds", 30)
        process.terminate(self._scene.policy.stop_scope)
        await asyncio.sleep(float(probe.get("terminationGracePeriodSeconds", own)))
        process.kill()

    async def _end_when_asked(self, process: ContainerProcess) -> None:
        termination = self._scene.termination
        await termination.wait_requested()
        async with asyncio.TaskGroup() as group:
            farewell = group.create_task(self._say_farewell(process))
            await termination.wait_expired()
            farewell.cancel()
        process.kill()

    async def _say_farewell(self, process: ContainerProcess) -> None:
        hook = (self._container.get("lifecycle") or {}).get("preStop") or {}
        if "sleep" in hook:
            await asyncio.sleep(float(hook["sleep"]["seconds"]))
        elif "exec" in hook:
            # The grace period cancels this.
            await process.execute(hook["exec"]["command"], timeout_seconds=None)
        process.terminate(self._scene.policy.stop_scope)

    async def _back_off(self, ended: Terminated) -> None:
        policy = self._scene.policy
        self.record.last_state = ended
        if ended.finished_at - ended.started_at >= policy.restart_backoff_reset_seconds:
            self._restarts_in_a_row = 0
        # The first restart is immediate, as with the kubelet.
        seconds = 0.0
        if self._restarts_in_a_row:
            doubled = policy.restart_backoff_seconds * 2 ** (self._restarts_in_a_row - 1)
            seconds = min(doubled, policy.restart_backoff_limit_seconds)
        self._restarts_in_a_row += 1
        if seconds:
            message = f"back-off {seconds:g}s restarting failed container={self.record.name}"
            self.record.state = Waiting(reason="CrashLoopBackOff", message=message)
            self._scene.publish()
            await self._scene.emit("Warning", "BackOff", message)
            await self._scene.termination.pause(seconds)


class _NoImageError(Exception):
    """The image map has no such name."""


async def _watch_memory(process: ContainerProcess, *, limit_bytes: int) -> None:
    while True:
        # Reading a tree of processes reads many small files.
        if await asyncio.to_thread(process.resident_bytes) > limit_bytes:
            process.kill_for_memory()
            return
        await asyncio.sleep(_MEMORY_INTERVAL_SECONDS)


def _hidden_folders(image: ProcessImage, mounts: Sequence[Mount]) -> list[Mount]:
    """Folders of the image that a volume would hide, such as a program below /tmp."""
    targets = [PurePosixPath(mount.target) for mount in mounts]
    return [
        Mount(source=folder, target=folder, read_only=True)
        for folder in image.folders
        if any(target in PurePosixPath(folder).parents for target in targets)
    ]


def _as_terminated(ended: ContainerExit) -> Terminated:
    if ended.out_of_memory:
        reason = "OOMKilled"
    elif not ended.known:
        reason = "ContainerStatusUnknown"
    else:
        reason = "Error" if ended.exit_code else "Completed"
    return Terminated(
        exit_code=ended.exit_code, reason=reason, started_at=ended.started_at, finished_at=ended.finished_at
    )
