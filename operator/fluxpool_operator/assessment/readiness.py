"""The condition `Ready`: whether as many workers are ready as desired, and otherwise the first cause.

Owns the order of causes: those that need a remedy come before those that resolve themselves.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Final

from fluxpool_contract.settings import EXIT_MODEL_LOAD_FAILED
from fluxpool_operator.api import ConditionStatus, ConditionType, Reason, Verdict
from fluxpool_operator.assessment.view import PoolView, false, true
from fluxpool_operator.workload import PodStage, PodSummary, is_rolling_out

_IMAGE_REASONS: Final = frozenset(
    {
        "ErrImageNeverPull",
        "ErrImagePull",
        "ImageInspectError",
        "ImagePullBackOff",
        "InvalidImageName",
        "RegistryUnavailable",
        "SignatureValidationFailed",
    }
)
_CRASH_REASON: Final = "CrashLoopBackOff"
_CRASH_EXITS: Final = 2
"""One exit may be chance: the worker exits when its engine fails repeatedly."""
_FIELDS_SHOWN: Final = 5
_DEADLINE_REASON: Final = "ProgressDeadlineExceeded"
_HARMLESS_REASONS: Final = frozenset({"ContainerCreating", "PodInitializing"})
"""Every other waiting reason, such as CreateContainerConfigError, is a fault."""


def readiness(view: PoolView) -> Verdict:
    """Status, reason and message of `Ready`."""
    return _problems(view) or _deployment_fault(view) or _workers(view) or _ready(view)


def _problems(view: PoolView) -> Verdict | None:
    if not view.problems:
        return None
    return false(view.problems[0].reason, " ".join(_sentence(problem.message) for problem in view.problems))


def _deployment_fault(view: PoolView) -> Verdict | None:
    deployment = view.deployment
    if deployment is None:
        if view.pool.spec.paused:
            return false(Reason.PAUSED, "The pool is paused and has no Deployment yet; set paused to false.")
        return false(Reason.CHILD_FAILED, "The Deployment does not exist; it is being created.")
    if deployment.replica_failure is not None:
        reason, message = deployment.replica_failure
        return false(
            Reason.QUOTA_EXCEEDED if deployment.is_over_quota else Reason.CHILD_FAILED,
            f"Kubernetes refuses to create pods: {_sentence(message or reason)}",
        )
    return None


def _workers(view: PoolView) -> Verdict | None:
    """Why fewer workers are ready than desired; None when as many are."""
    deployment = view.deployment
    if deployment is None or view.desired_replicas == 0:
        return None
    tally = f"{deployment.ready} of {view.desired_replicas} workers are ready."
    if deployment.ready < view.desired_replicas:
        reason, cause = _pod_fault(view) or _pod_wait(view)
        stalled, message = deployment.progressing or ("", "")
        if stalled == _DEADLINE_REASON:
            cause += f" {_sentence(message)}"
        return false(reason, f"{tally} {cause}")
    if is_rolling_out(deployment, view.pods) or not _counts_are_about_the_template(view):
        updated = min(deployment.updated, deployment.replicas)
        return false(Reason.ROLLING_OUT, f"{updated} of {deployment.replicas} workers have the current template.")
    return None


def _counts_are_about_the_template(view: PoolView) -> bool:
    """Whether the Deployment's status is about the pod template of the pool."""
    deployment, before = view.deployment, view.pool.status
    if deployment is None or view.pool.spec.paused:
        return True
    if view.template_hash not in (None, deployment.template_hash):
        return False
    if deployment.is_observed:
        return True
    # A new number of workers alone does not end readiness before Kubernetes has observed it.
    was_ready = any(
        condition.type is ConditionType.READY
        and condition.status is ConditionStatus.TRUE
        and condition.observed_generation == view.pool.metadata.generation
        for condition in before.conditions
    )
    return was_ready and before.template_hash == deployment.template_hash


def _pod_fault(view: PoolView) -> tuple[Reason, str] | None:
    """A fault of pods that does not resolve itself."""
    pods = sorted((pod for pod in view.pods if pod.is_active), key=lambda pod: pod.name)
    if unloadable := _model_fault(pods):
        return Reason.MODEL_LOAD_FAILED, unloadable
    crashing = [pod for pod in pods if _is_crashing(pod)]
    if crashing:
        ends = Counter(_end_of(pod) for pod in crashing)
        return Reason.WORKER_CRASH_LOOPING, (
            f"{_names(crashing)}: the worker crashes repeatedly ({', '.join(sorted(ends))});"
            " see kubectl logs --previous."
        )
    unpulled = [pod for pod in pods if pod.waiting_reason in _IMAGE_REASONS]
    if unpulled:
        return Reason.IMAGE_PULL_FAILED, f"worker.image: {_waiting_text(unpulled)}"
    failed = [pod for pod in pods if pod.waiting_reason and pod.waiting_reason not in _HARMLESS_REASONS]
    if failed:
        is_secret = "secret" in (failed[0].waiting_message or "").lower()
        return Reason.SECRET_NOT_FOUND if is_secret else Reason.CONTAINER_FAILED, _waiting_text(failed)
    return None


def _model_fault(pods: Sequence[PodSummary]) -> str | None:
    """Why the model cannot be loaded, once two attempts ended with the same message; None until then."""
    failed: dict[str, list[PodSummary]] = {}
    for pod in pods:
        if pod.stage is not PodStage.READY and pod.last_exit and pod.last_exit.code == EXIT_MODEL_LOAD_FAILED:
            failed.setdefault(pod.last_exit.message, []).append(pod)
    for message, those in failed.items():
        if sum(pod.last_exit.count for pod in those if pod.last_exit) >= _CRASH_EXITS:
            why = _sentence(message or "see kubectl logs --previous")
            return f"{_names(those)}: the model cannot be loaded: {why}"
    return None


def _is_crashing(pod: PodSummary) -> bool:
    """Also between two crashes, so that the reason does not change with each of them."""
    if pod.waiting_reason == _CRASH_REASON:
        return True
    ended = pod.last_exit
    return (
        pod.stage is not PodStage.READY
        and ended is not None
        and ended.code != 0
        and max(pod.restarts, ended.count) >= _CRASH_EXITS
    )


def _pod_wait(view: PoolView) -> tuple[Reason, str]:
    """What pods wait for, the scarcest resource first."""
    counts = view.counts
    if counts.unschedulable:
        message = _scheduler_message(view.pods, PodStage.UNSCHEDULABLE)
        return Reason.PODS_UNSCHEDULABLE, f"{counts.unschedulable} unschedulable: {message}"
    if counts.gated:
        return Reason.PODS_GATED, f"{counts.gated} gated: {_scheduler_message(view.pods, PodStage.GATED)}"
    if counts.waiting_for_gpu:
        return Reason.WAITING_FOR_GPU, (
            f"{counts.waiting_for_gpu} waiting for the GPUs of {counts.terminating} terminating workers,"
            " which finish their tasks first."
        )
    if counts.loading:
        return Reason.WORKERS_LOADING, f"{counts.loading} starting."
    if counts.not_ready:
        return Reason.WORKERS_NOT_READY, f"{counts.not_ready} running but not ready; see kubectl describe and logs."
    return Reason.WORKERS_LOADING, "The other pods are being created."


def _ready(view: PoolView) -> Verdict:
    deployment = view.deployment
    if view.desired_replicas == 0:
        text = "The pool is scaled to zero: no worker is required."
    else:
        ready = deployment.ready if deployment else 0
        text = f"{ready} {'worker is' if ready == 1 else 'workers are'} ready."
    if deployment is not None and deployment.foreign_template_managers:
        managers = ", ".join(deployment.foreign_template_managers)
        fields = deployment.foreign_template_fields
        more = f" and {len(fields) - _FIELDS_SHOWN} more" if len(fields) > _FIELDS_SHOWN else ""
        shown = f"{', '.join(fields[:_FIELDS_SHOWN])}{more}"
        return true(
            Reason.FOREIGN_FIELDS, f"{text} The pod template has fields of {managers}; remove them there: {shown}."
        )
    return true(Reason.READY, text)


def _end_of(pod: PodSummary) -> str:
    ended = pod.last_exit
    if ended is None:
        return "no exit code is known"
    reason = f", {ended.reason}" if ended.reason else ""
    return f"exit code {ended.code}{reason}{f': {ended.message}' if ended.message else ''}"


def _waiting_text(pods: list[PodSummary]) -> str:
    first = pods[0]
    more = f" ({len(pods)} pods)" if len(pods) > 1 else ""
    return _sentence(f"{first.name}{more}: {first.waiting_reason}: {first.waiting_message or 'no message'}")


def _scheduler_message(pods: Iterable[PodSummary], stage: PodStage) -> str:
    """The most frequent message of the scheduler about such pods."""
    messages = Counter(pod.unschedulable_message or "no message" for pod in pods if pod.stage is stage)
    return _sentence(min(messages, key=lambda message: (-messages[message], message), default="no message"))


def _names(pods: list[PodSummary]) -> str:
    shown = ", ".join(pod.name for pod in pods[:3])
    return f"{shown} and {len(pods) - 3} more" if len(pods) > 3 else shown


def _sentence(text: str) -> str:
    return text if text.endswith((".", "!", "?")) else f"{text}."
