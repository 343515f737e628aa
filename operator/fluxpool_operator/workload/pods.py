"""A pod in a few values: what it is doing, what keeps it from working, and what decides when it is taken away.

Owns how a body of the Kubernetes API is read; must not know what is done about it.
"""

import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any, Final

from fluxpool_operator.children import POOL_LABEL

DELETION_COST_ANNOTATION: Final = "controller.kubernetes.io/pod-deletion-cost"
_TEMPLATE_HASH_LABEL: Final = "pod-template-hash"
_BACK_OFF: Final = "CrashLoopBackOff"
MAX_EXIT_MESSAGE_CHARACTERS: Final = 1024
"""Of a termination message, which is kept for every pod; the kubelet hands out four times as much."""
_LOG_STARTS: Final = ("{", "Traceback (")
"""How lines begin that tell a log from a message: entries are JSON."""
_INT32: Final = range(-(2**31), 2**31)


class PodPhase(StrEnum):
    """Where a pod is in its life, as the node says; the ReplicaSet controller goes by it."""

    PENDING = "Pending"
    UNKNOWN = "Unknown"
    RUNNING = "Running"
    SUCCEEDED = "Succeeded"
    FAILED = "Failed"


class PodStage(StrEnum):
    """What a worker's pod is doing."""

    GATED = "Gated"
    """Held back before scheduling, such as by a quota."""
    UNSCHEDULABLE = "Unschedulable"
    """The scheduler found no node for it."""
    STARTING = "Starting"
    """New, pulling its image or loading its model; also when its container does so once more."""
    READY = "Ready"
    NOT_READY = "NotReady"
    """Its container started and cannot work, or ends again and again."""
    TERMINATING = "Terminating"
    """Being stopped; still holds its GPU."""
    FINISHED = "Finished"
    """Its containers have ended for good; holds no GPU."""

    @property
    def is_active(self) -> bool:
        """Whether the ReplicaSet counts it as one of its replicas."""
        return self not in (PodStage.TERMINATING, PodStage.FINISHED)


@dataclass(frozen=True, slots=True)
class ContainerExit:
    """How a container ended last."""

    code: int
    reason: str
    message: str = ""
    """The termination message; empty when the container left none."""
    count: int = 1
    """How often the container has ended by now."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PodSummary:
    """One pod of a pool."""

    name: str
    uid: str
    pool: str | None
    """Name of the pool that it is labelled with."""
    stage: PodStage
    phase: PodPhase
    node: str | None
    created_at: datetime
    deletion_cost: int = 0
    template_hash: str | None = None
    """Label of its ReplicaSet; pods of one template share it."""
    owner_uid: str | None = None
    """Of the ReplicaSet that controls it."""
    ready_since: datetime | None = None
    """None while it is not ready."""
    restarts: int = 0
    """Of the container that was restarted most often."""
    unschedulable_message: str | None = None
    """The scheduler's words, also about a gate; None once it has a node."""
    waiting_reason: str | None = None
    """Why a container does not run, such as ErrImagePull; `ContainerCreating` is nothing bad."""
    waiting_message: str | None = None
    last_exit: ContainerExit | None = None

    @property
    def is_active(self) -> bool:
        """Whether the ReplicaSet counts it as one of its replicas."""
        return self.stage.is_active


def summarize_pod(body: Mapping[str, Any]) -> PodSummary:
    """Read a pod as the API server hands it out."""
    metadata, spec, status = body["metadata"], body.get("spec") or {}, body.get("status") or {}
    labels = metadata.get("labels") or {}
    conditions = {condition["type"]: condition for condition in status.get("conditions") or ()}
    scheduled, ready = conditions.get("PodScheduled", {}), conditions.get("Ready", {})
    waiting = next(_states(status, "state", "waiting"), {})
    unscheduled = not spec.get("nodeName") and scheduled.get("status") == "False"
    return PodSummary(
        name=metadata["name"],
        uid=metadata["uid"],
        pool=_intern(labels.get(POOL_LABEL)),
        stage=_stage(metadata, status, conditions, waiting_reason=waiting.get("reason", "")),
        phase=_phase(status.get("phase")),
        node=_intern(spec.get("nodeName") or None),
        created_at=datetime.fromisoformat(metadata["creationTimestamp"]),
        deletion_cost=_deletion_cost(metadata.get("annotations") or {}),
        template_hash=_intern(labels.get(_TEMPLATE_HASH_LABEL)),
        owner_uid=_intern(controller_uid(metadata)),
        ready_since=_time(ready.get("lastTransitionTime")) if ready.get("status") == "True" else None,
        restarts=max((one.get("restartCount", 0) for one in status.get("containerStatuses") or ()), default=0),
        unschedulable_message=scheduled.get("message") if unscheduled else None,
        waiting_reason=_intern(waiting.get("reason")),
        waiting_message=waiting.get("message"),
        last_exit=_last_exit(status),
    )


def controller_uid(metadata: Mapping[str, Any]) -> str | None:
    """The uid of the object that controls this one."""
    references = metadata.get("ownerReferences") or ()
    return next((reference["uid"] for reference in references if reference.get("controller")), None)


def _phase(text: str | None) -> PodPhase:
    if not text:
        return PodPhase.PENDING
    return PodPhase(text) if text in set(PodPhase) else PodPhase.UNKNOWN


def _stage(
    metadata: Mapping[str, Any],
    status: Mapping[str, Any],
    conditions: Mapping[str, Mapping[str, Any]],
    *,
    waiting_reason: str,
) -> PodStage:
    # Before deletion: a pod whose containers have ended waits to be removed and has given its GPU back.
    if status.get("phase") in (PodPhase.SUCCEEDED, PodPhase.FAILED):
        return PodStage.FINISHED
    if metadata.get("deletionTimestamp"):
        return PodStage.TERMINATING
    if conditions.get("Ready", {}).get("status") == "True":
        return PodStage.READY
    match conditions.get("PodScheduled", {}):
        case {"status": "False", "reason": "SchedulingGated"}:
            return PodStage.GATED
        case {"status": "False"}:
            return PodStage.UNSCHEDULABLE
    started = any(one.get("started") for one in status.get("containerStatuses") or ())
    if status.get("phase") == PodPhase.RUNNING and (started or waiting_reason == _BACK_OFF):
        return PodStage.NOT_READY
    # A node that fell silent says nothing about its pods any more.
    return PodStage.NOT_READY if status.get("phase") == PodPhase.UNKNOWN else PodStage.STARTING


def _states(status: Mapping[str, Any], which: str, kind: str) -> Iterator[Mapping[str, Any]]:
    """The containers' `state` or `lastState` of one kind; containers that run before the worker's come first."""
    for group in ("initContainerStatuses", "containerStatuses"):
        for container in status.get(group) or ():
            if found := (container.get(which) or {}).get(kind):
                yield found


def _last_exit(status: Mapping[str, Any]) -> ContainerExit | None:
    for which in ("state", "lastState"):
        for container in status.get("containerStatuses") or ():
            if ended := (container.get(which) or {}).get("terminated"):
                # One that runs was restarted as often as it ended; one that waits or has ended, once more than that.
                runs = "running" in (container.get("state") or {})
                return ContainerExit(
                    code=ended.get("exitCode", 0),
                    reason=ended.get("reason") or "",
                    message=sys.intern(_exit_words(ended.get("message") or "")),
                    count=container.get("restartCount", 0) + (not runs),
                )
    return None


def _exit_words(message: str) -> str:
    """A termination message on one line.

    Where the container left none it is the end of its log, of which the last entry is taken without its time: what a
    condition says must not change with every end.
    """
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    if any(line.startswith(_LOG_STARTS) for line in lines):
        lines = [_logged_words(lines[-1])]
    return " ".join(" ".join(lines).split())[:MAX_EXIT_MESSAGE_CHARACTERS]


def _logged_words(line: str) -> str:
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        return line
    words = [str(entry[name]) for name in ("event", "error") if entry.get(name)] if isinstance(entry, dict) else ()
    return ": ".join(words) or line


def _deletion_cost(annotations: Mapping[str, str]) -> int:
    """The cost as the ReplicaSet controller reads it: what is no 32-bit number counts as 0."""
    try:
        cost = int(annotations.get(DELETION_COST_ANNOTATION, "0"))
    except ValueError:
        return 0
    return cost if cost in _INT32 else 0


def _intern(text: str | None) -> str | None:
    """The one copy of a text that many pods have: each decoded object brings its own."""
    return None if text is None else sys.intern(text)


def _time(text: str | None) -> datetime | None:
    return None if text is None else datetime.fromisoformat(text)
