"""A pod's status from the states of its containers: phase, conditions with kept transition times, container statuses.

Pure: plain values in, plain values out. The rules are the kubelet's (pkg/kubelet/kubelet_pods.go, getPhase; and
pkg/kubelet/status/generate.go of Kubernetes).
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, assert_never

from kit.cluster.kubernetes_api import Body


class PodPhase(StrEnum):
    """Phase of a pod."""

    PENDING = "Pending"
    RUNNING = "Running"
    SUCCEEDED = "Succeeded"
    FAILED = "Failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Waiting:
    """Not started or restarted yet."""

    reason: str
    message: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """Its main process runs; Unix seconds."""

    started_at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Terminated:
    """Its processes have ended; Unix seconds."""

    exit_code: int
    reason: str
    started_at: float
    finished_at: float
    message: str = ""


ContainerState = Waiting | Running | Terminated


@dataclass(slots=True, kw_only=True)
class ContainerRecord:
    """The state of one container; changed by its loop, read for the status."""

    name: str
    image: str
    state: ContainerState = field(default_factory=lambda: Waiting(reason="ContainerCreating"))
    last_state: Terminated | None = None
    restart_count: int = 0
    started: bool = False
    ready: bool = False


def pod_phase(
    init_containers: Sequence[ContainerRecord], containers: Sequence[ContainerRecord], *, will_restart: bool
) -> PodPhase:
    """Return the phase; `will_restart`: whether an ended container is restarted."""
    if any(_failed(record) for record in init_containers) and not will_restart:
        return PodPhase.FAILED
    if not all(_succeeded(record) for record in init_containers):
        return PodPhase.PENDING
    if all(isinstance(record.state, Terminated) for record in containers) and not will_restart:
        return PodPhase.FAILED if any(_failed(record) for record in containers) else PodPhase.SUCCEEDED
    # Waiting for the first time, as opposed to waiting between two runs.
    if any(isinstance(record.state, Waiting) and record.last_state is None for record in containers):
        return PodPhase.PENDING
    return PodPhase.RUNNING


def pod_status(
    *,
    phase: PodPhase,
    init_containers: Sequence[ContainerRecord],
    containers: Sequence[ContainerRecord],
    previous_conditions: Iterable[Body],
    pod_ip: str,
    host_ip: str,
    start_time: float,
    generation: int,
    volumes_ready: bool,
    now: float,
) -> Body:
    """Return the status to patch; conditions of other writers, such as PodScheduled, are omitted and so kept."""
    done = phase in (PodPhase.SUCCEEDED, PodPhase.FAILED)
    unready = [record.name for record in containers if not record.ready]
    if phase is PodPhase.SUCCEEDED:
        why = ("PodCompleted", "")
    elif phase is PodPhase.FAILED:
        why = ("PodFailed", "")
    else:
        why = ("ContainersNotReady", f"containers with unready status: [{' '.join(unready)}]") if unready else ("", "")
    wanted = {
        "PodReadyToStartContainers": (volumes_ready and not done, "", ""),
        "Initialized": (all(_succeeded(record) for record in init_containers), "", ""),
        "ContainersReady": (not unready and not done, *why),
        "Ready": (not unready and not done, *why),
    }
    return {
        "observedGeneration": generation,
        "phase": phase,
        "hostIP": host_ip,
        "hostIPs": [{"ip": host_ip}],
        "podIP": pod_ip,
        "podIPs": [{"ip": pod_ip}],
        "startTime": as_timestamp(start_time),
        "conditions": _conditions(wanted, previous_conditions, now=now, generation=generation),
        "initContainerStatuses": [_container_status(record) for record in init_containers],
        "containerStatuses": [_container_status(record) for record in containers],
    }


def as_timestamp(unix_seconds: float) -> str:
    """Return a time as the API server writes it."""
    return datetime.fromtimestamp(unix_seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _conditions(
    wanted: Mapping[str, tuple[bool, str, str]], previous: Iterable[Body], *, now: float, generation: int
) -> list[Body]:
    known = {condition["type"]: condition for condition in previous}
    conditions: list[Body] = []
    for kind, (holds, reason, message) in wanted.items():
        status = "True" if holds else "False"
        before = known.get(kind, {})
        kept = before.get("lastTransitionTime") if before.get("status") == status else None
        conditions.append(
            {
                "type": kind,
                "status": status,
                # Null removes what an earlier patch wrote.
                "reason": reason or None,
                "message": message or None,
                "lastTransitionTime": kept or as_timestamp(now),
                "observedGeneration": generation,
            }
        )
    return conditions


def _container_status(record: ContainerRecord) -> Body:
    return {
        "name": record.name,
        "image": record.image,
        "imageID": f"process://{record.image}",
        "restartCount": record.restart_count,
        "started": record.started,
        "ready": record.ready,
        "state": _state(record.state),
        "lastState": {} if record.last_state is None else _state(record.last_state),
    }


def _state(state: ContainerState) -> dict[str, Any]:
    match state:
        case Waiting(reason=reason, message=message):
            return {"waiting": {"reason": reason, "message": message}}
        case Running(started_at=started_at):
            return {"running": {"startedAt": as_timestamp(started_at)}}
        case Terminated():
            return {
                "terminated": {
                    "exitCode": state.exit_code,
                    "reason": state.reason,
                    "message": state.message,
                    "startedAt": as_timestamp(state.started_at),
                    "finishedAt": as_timestamp(state.finished_at),
                }
            }
        case _:
            assert_never(state)


def _succeeded(record: ContainerRecord) -> bool:
    return isinstance(record.state, Terminated) and record.state.exit_code == 0


def _failed(record: ContainerRecord) -> bool:
    return isinstance(record.state, Terminated) and record.state.exit_code != 0
