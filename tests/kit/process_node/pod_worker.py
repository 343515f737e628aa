"""One pod on this node from its binding to its removal.

Owns the order: admission, volumes, init containers, containers, the terminal status, the removal from the API; and
publishes the newest status, also after outages of the API server.
"""

import asyncio
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx
import structlog

from kit.cluster.kubernetes_api import ApiError, ApiUnreachableError, Body, KubernetesApi, PatchType
from kit.process_node.admission import refused_fields, unhonoured_fields
from kit.process_node.container_loop import ContainerLoop, NodePolicy, PodScene, RestartPolicy
from kit.process_node.environment import ProcessImage
from kit.process_node.events import EventRecorder
from kit.process_node.pod_references import MissingReferenceError, PodPlace, PodReferences
from kit.process_node.status import PodPhase, Terminated, Waiting, pod_phase, pod_status
from kit.process_node.termination import Termination
from kit.process_node.volumes import PodVolumes

_log = structlog.get_logger(__name__)
_RETRY_SECONDS = 0.5
_GONE = (httpx.codes.NOT_FOUND, httpx.codes.CONFLICT)


@dataclass(frozen=True, slots=True, kw_only=True)
class PodHost:
    """The environment of all pods of a node."""

    api: KubernetesApi
    api_server: str
    events: EventRecorder
    images: Mapping[str, ProcessImage]
    policy: NodePolicy
    owner_pid: int


class PodWorker:
    """The pod with one uid; `run` is its task, `update` passes changes of the object."""

    def __init__(self, pod: Body, *, host: PodHost, folder: Path, place: PodPlace) -> None:
        """Take the pod, also one that an earlier agent started in the same folder."""
        metadata = pod["metadata"]
        self.uid = str(metadata["uid"])
        self.name = str(metadata["name"])
        self.pod_ip = place.pod_ip
        self._pod = pod
        self.namespace = str(metadata["namespace"])
        self._path = f"/api/v1/namespaces/{self.namespace}/pods/{self.name}"
        self._host = host
        self._place = place
        self._folder = folder
        self._termination = Termination()
        self._vanished = False
        self._dirty = asyncio.Event()
        self._settled = asyncio.Event()
        self._volumes_ready = False
        self._ended = False
        self._start_time = time.time()
        self._conditions: list[Body] = (pod.get("status") or {}).get("conditions") or []
        self._scene = self._make_scene()
        policy = RestartPolicy(pod["spec"].get("restartPolicy", RestartPolicy.ALWAYS))
        # Init containers run to success; "Always" would start them again after it.
        init_policy = RestartPolicy.NEVER if policy is RestartPolicy.NEVER else RestartPolicy.ON_FAILURE
        self._init_loops = self._loops("initContainers", init_policy)
        self._loops_of_pod = self._loops("containers", policy)
        self.update(pod)

    def update(self, pod: Body) -> None:
        """Read the new object: whether and when it has to end."""
        self._pod = pod
        if "deletionTimestamp" in pod["metadata"]:
            # The grace period counts from here, as with the kubelet: clocks may differ.
            self._termination.request(float(pod["metadata"].get("deletionGracePeriodSeconds", 0)))

    def vanish(self) -> None:
        """The object was deleted: kill all processes without a status update."""
        self._vanished = True
        self._termination.request(0)
        self._dirty.set()

    async def run(self) -> None:
        """Return when the pod has ended and its object is removed."""
        was_over = (self._pod.get("status") or {}).get("phase") in (PodPhase.SUCCEEDED, PodPhase.FAILED)
        if was_over and not self._folder.exists():
            # It ended under an agent whose folder was deleted: never run it twice.
            await self._termination.wait_requested()
            await self._remove_object()
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        self._remember_start()
        publisher = asyncio.create_task(self._keep_publishing(), name=f"publish-{self.name}")
        try:
            await self._live()
            await self._termination.wait_requested()
            self._ended = True
            self._publish()
            await self._settled.wait()
            await self._remove_object()
        finally:
            publisher.cancel()
            await asyncio.gather(publisher, return_exceptions=True)
        await self._scene.volumes.remove()

    def _make_scene(self) -> PodScene:
        references = PodReferences(self._host.api, self._pod, self._place)
        return PodScene(
            references=references,
            volumes=PodVolumes(self._folder / "volumes", references),
            images=self._host.images,
            policy=self._host.policy,
            termination=self._termination,
            pod_ip=self._place.pod_ip,
            api_server=self._host.api_server,
            owner_pid=self._host.owner_pid,
            publish=self._publish,
            emit=self._emit,
        )

    def _loops(self, kind: str, policy: RestartPolicy) -> Sequence[ContainerLoop]:
        return [
            ContainerLoop(
                container,
                folder=self._folder / "containers" / container["name"],
                scene=self._scene,
                restart_policy=policy,
            )
            for container in self._pod["spec"].get(kind, [])
        ]

    def _remember_start(self) -> None:
        """Store address and start time for a later agent."""
        path = self._folder / "pod.json"
        if path.exists():
            self._start_time = float(json.loads(path.read_bytes())["start_time"])
        else:
            path.write_text(
                json.dumps(
                    {
                        "name": self.name,
                        "namespace": self.namespace,
                        "pod_ip": self._place.pod_ip,
                        "start_time": self._start_time,
                    }
                )
            )

    async def _live(self) -> None:
        """Run the pod until nothing of it runs any more."""
        if refused := refused_fields(self._pod):
            await self._refuse(refused)
            return
        if ignored := unhonoured_fields(self._pod):
            message = f"this node runs plain processes and does not honour: {', '.join(ignored)}"
            await self._emit("Warning", "NotHonoured", message)
        self._publish()
        if not await self._prepare_volumes():
            return
        for loop in self._init_loops:
            await loop.run()
            state = loop.record.state
            if not (isinstance(state, Terminated) and state.exit_code == 0):
                self._publish()
                return
            loop.record.ready = True
            self._publish()
        async with asyncio.TaskGroup() as group:
            for loop in self._loops_of_pod:
                group.create_task(loop.run())
        self._publish()

    async def _refuse(self, fields: Sequence[str]) -> None:
        """Report unsupported fields and leave the pod Pending: a Failed one would be replaced again and again."""
        message = f"this node cannot honour {', '.join(fields)}: leave them out, or run the pod on another node"
        for loop in [*self._init_loops, *self._loops_of_pod]:
            loop.record.state = Waiting(reason="UnsupportedPodSpec", message=message)
        self._publish()
        await self._emit("Warning", "UnsupportedPodSpec", message)

    async def _prepare_volumes(self) -> bool:
        told = ""
        while not self._termination.requested:
            try:
                await self._scene.volumes.prepare()
            except (MissingReferenceError, OSError) as error:
                if str(error) != told:
                    told = str(error)
                    await self._emit("Warning", "FailedMount", told)
                await self._termination.pause(self._host.policy.retry_seconds)
            else:
                self._volumes_ready = True
                return True
        return False

    async def _emit(self, kind: str, reason: str, message: str) -> None:
        await self._host.events.emit(self._pod, kind=kind, reason=reason, message=message)

    def _publish(self) -> None:
        self._settled.clear()
        self._dirty.set()

    async def _keep_publishing(self) -> None:
        while True:
            await self._dirty.wait()
            self._dirty.clear()
            if self._vanished or await self._published(self._status()):
                if not self._dirty.is_set():
                    self._settled.set()
            else:
                self._dirty.set()
                await asyncio.sleep(_RETRY_SECONDS)

    async def _published(self, status: Body) -> bool:
        body = {"metadata": {"uid": self.uid}, "status": status}
        try:
            await self._host.api.patch(f"{self._path}/status", body, patch_type=PatchType.STRATEGIC)
        except ApiUnreachableError:
            return False
        except ApiError as error:
            if error.status in _GONE:
                self.vanish()
                return True
            _log.warning("pod_status_refused", pod=self.name, error=str(error))
            return False
        return True

    def _status(self) -> Body:
        init_records = [loop.record for loop in self._init_loops]
        records = [loop.record for loop in self._loops_of_pod]
        phase = self._phase_of_ended_pod() if self._ended else self._phase_of_living_pod()
        status = pod_status(
            phase=phase,
            init_containers=init_records,
            containers=records,
            previous_conditions=self._conditions,
            pod_ip=self._place.pod_ip,
            host_ip=self._place.host_ip,
            start_time=self._start_time,
            generation=int(self._pod["metadata"].get("generation", 0)),
            volumes_ready=self._volumes_ready,
            now=time.time(),
        )
        self._conditions = status["conditions"]
        return status

    def _phase_of_living_pod(self) -> PodPhase:
        failed = [
            loop
            for loop in self._init_loops
            if isinstance(loop.record.state, Terminated) and loop.record.state.exit_code != 0
        ]
        return pod_phase(
            [loop.record for loop in self._init_loops],
            [loop.record for loop in self._loops_of_pod],
            will_restart=any(loop.will_restart for loop in failed or self._loops_of_pod),
        )

    def _phase_of_ended_pod(self) -> PodPhase:
        """Return the terminal phase of a pod that was asked to end; one that never ran counts as failed."""
        states = [loop.record.state for loop in self._loops_of_pod]
        succeeded = all(isinstance(state, Terminated) and state.exit_code == 0 for state in states)
        return PodPhase.SUCCEEDED if succeeded else PodPhase.FAILED

    async def _remove_object(self) -> None:
        while not self._vanished:
            try:
                await self._host.api.delete(self._path, grace_period_seconds=0, uid=self.uid)
            except ApiError as error:
                if error.status in _GONE:
                    return
                _log.warning("pod_removal_refused", pod=self.name, error=str(error))
            except ApiUnreachableError:
                _log.info("pod_removal_waits_for_api_server", pod=self.name)
            else:
                return
            await asyncio.sleep(_RETRY_SECONDS)
