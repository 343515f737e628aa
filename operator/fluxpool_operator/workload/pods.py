"""Pods in a few values: their stage, why they do not work, and what the ReplicaSet sorts them by at a scale-in.

Owns how a pod's body is read and how pods are counted. `scale_in` and `deployment` decide with it,
`assessment` reports it.
"""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any, Final

DELETION_COST_ANNOTATION: Final = "controller.kubernetes.io/pod-deletion-cost"
_TEMPLATE_HASH_LABEL: Final = "pod-template-hash"
_BACK_OFF: Final = "CrashLoopBackOff"
MAX_EXIT_MESSAGE_CHARACTERS: Final = 1024
"""Of a termination message, which is kept for every pod; the kubelet allows four times as much."""
_LOG_STARTS: Final = ("{", "Traceback (")
"""Beginnings of lines of a log, whose entries are JSON, rather than of a message."""
_INT32: Final = range(-(2**31), 2**31)


class PodPhase(StrEnum):
    """`status.phase`; the ReplicaSet controller sorts by it."""

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
    """Pulling its image or loading its model, for the first time or again."""
    READY = "Ready"
    NOT_READY = "NotReady"
    """Its container started and is not ready, or crashes repeatedly."""
    TERMINATING = "Terminating"
    """Terminating; still holds its GPU."""
    FINISHED = "Finished"
    """Its containers have ended; holds no GPU."""


@dataclass(frozen=True, slots=True)
class ContainerExit:
    """The last termination of a container."""

    code: int
    reason: str
    message: str = ""
    """The termination message; empty when the container left none."""
    count: int = 1
    """How often the container has terminated."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PodSummary:
    """One pod of a pool."""

    name: str
    uid: str
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
    """Of the container with most restarts."""
    unschedulable_message: str | None = None
    """From the scheduler, also about a gate; None once it has a node."""
    waiting_reason: str | None = None
    """Why a container does not run, such as ErrImagePull; `ContainerCreating` is normal."""
    waiting_message: str | None = None
    last_exit: ContainerExit | None = None

    @property
    def is_active(self) -> bool:
        """Whether the ReplicaSet counts it as one of its replicas."""
        return self.stage not in (PodStage.TERMINATING, PodStage.FINISHED)


@dataclass(frozen=True, slots=True, kw_only=True)
class PodCounts:
    """Pods by stage. All but `terminating` and `finished` are replicas; none is counted twice."""

    ready: int = 0
    not_ready: int = 0
    loading: int = 0
    """On a node or about to be, and not started yet."""
    gated: int = 0
    unschedulable: int = 0
    """No node has room, and no terminating pod of the pool will release some."""
    waiting_for_gpu: int = 0
    """No node has room yet: a terminating pod of the pool still holds its GPU."""
    terminating: int = 0
    finished: int = 0

    @property
    def active(self) -> int:
        """Pods that the ReplicaSets count as replicas."""
        return self.ready + self.not_ready + self.loading + self.gated + self.unschedulable + self.waiting_for_gpu


def summarize_pod(body: Mapping[str, Any]) -> PodSummary:
    """Read a pod's body."""
    metadata, spec, status = body["metadata"], body.get("spec") or {}, body.get("status") or {}
    labels = metadata.get("labels") or {}
    conditions = {condition["type"]: condition for condition in status.get("conditions") or ()}
    scheduled, ready = conditions.get("PodScheduled", {}), conditions.get("Ready", {})
    since, waiting = ready.get("lastTransitionTime"), next(_states(status, "state", "waiting"), {})
    unscheduled = not spec.get("nodeName") and scheduled.get("status") == "False"
    return PodSummary(
        name=metadata["name"],
        uid=metadata["uid"],
        stage=_stage(metadata, status, conditions, waiting_reason=waiting.get("reason", "")),
        phase=_phase(status.get("phase")),
        node=spec.get("nodeName") or None,
        created_at=datetime.fromisoformat(metadata["creationTimestamp"]),
        deletion_cost=_deletion_cost(metadata.get("annotations") or {}),
        template_hash=labels.get(_TEMPLATE_HASH_LABEL),
        owner_uid=controller_uid(metadata),
        ready_since=datetime.fromisoformat(since) if since and ready.get("status") == "True" else None,
        restarts=max((one.get("restartCount", 0) for one in status.get("containerStatuses") or ()), default=0),
        unschedulable_message=scheduled.get("message") if unscheduled else None,
        waiting_reason=waiting.get("reason"),
        waiting_message=waiting.get("message"),
        last_exit=_last_exit(status),
    )


def count_pods(pods: Iterable[PodSummary]) -> PodCounts:
    """Count pods of one pool.

    A Deployment creates the replacement of a pod at once, while its predecessor finishes a task and holds the GPU. So
    as many unschedulable pods as there are terminating ones count as waiting for a GPU.
    """
    stages = Counter(pod.stage for pod in pods)
    without_node, terminating = stages[PodStage.UNSCHEDULABLE], stages[PodStage.TERMINATING]
    waiting = min(without_node, terminating)
    return PodCounts(
        ready=stages[PodStage.READY],
        not_ready=stages[PodStage.NOT_READY],
        loading=stages[PodStage.STARTING],
        gated=stages[PodStage.GATED],
        unschedulable=without_node - waiting,
        waiting_for_gpu=waiting,
        terminating=terminating,
        finished=stages[PodStage.FINISHED],
    )


def spans_templates(pods: Sequence[PodSummary]) -> bool:
    """Whether the replicas have more than one template."""
    return len({pod.template_hash for pod in pods if pod.is_active}) > 1


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
    # Before `deletionTimestamp`: a finished pod that waits for its deletion has released its GPU.
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
    # The kubelet of a lost node no longer reports.
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
                # A running container terminated as often as it restarted; any other one once more.
                runs = "running" in (container.get("state") or {})
                return ContainerExit(
                    code=ended.get("exitCode", 0),
                    reason=ended.get("reason") or "",
                    message=_exit_words(ended.get("message") or ""),
                    count=container.get("restartCount", 0) + (not runs),
                )
    return None


def _exit_words(message: str) -> str:
    """A termination message on one line.

    Without a message it is the end of the log, of which the last entry is taken without its time: the text of a
    condition must not change with every crash.
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
    """As the ReplicaSet controller reads it: a value that is no 32-bit integer counts as 0."""
    try:
        cost = int(annotations.get(DELETION_COST_ANNOTATION, "0"))
    except ValueError:
        return 0
    return cost if cost in _INT32 else 0
