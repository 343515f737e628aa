"""The fields read from a pod, stage by stage."""

from datetime import UTC, datetime
from typing import Any

import pytest

from fluxpool_operator.workload import PodCounts, PodStage, count_pods, summarize_pod
from fluxpool_operator.workload.pods import ContainerExit, PodPhase

CREATED = "2026-05-04T12:00:00Z"
READY_AT = "2026-05-04T12:01:30Z"
NO_GPU = "0/3 nodes are available: 3 Insufficient nvidia.com/gpu."


def _body(*, node: str | None = "gpu-1", deleted: bool = False, **status: Any) -> dict[str, Any]:
    """A worker's pod as the API server returns it."""
    metadata = {
        "name": "standard-worker-5c9f7d-x2x7k",
        "namespace": "images",
        "uid": "7c1f",
        "creationTimestamp": CREATED,
        "labels": {"fluxpool.dev/pool": "standard", "pod-template-hash": "5c9f7d"},
        "ownerReferences": [
            {"kind": "Node", "uid": "other"},
            {"kind": "ReplicaSet", "name": "standard-worker-5c9f7d", "uid": "rs-1", "controller": True},
        ],
    }
    if deleted:
        metadata["deletionTimestamp"] = READY_AT
    return {"metadata": metadata, "spec": {"nodeName": node} if node else {}, "status": status}


def _condition(kind: str, status: str, reason: str = "", message: str = "") -> dict[str, str]:
    return {"type": kind, "status": status, "reason": reason, "message": message, "lastTransitionTime": READY_AT}


def _container(state: dict[str, Any], *, started: bool = False, **fields: Any) -> dict[str, Any]:
    return {"name": "worker", "state": state, "lastState": {}, "started": started, "restartCount": 0, **fields}


RUNNING = {"running": {"startedAt": CREATED}}
NOT_READY = _condition("Ready", "False", "ContainersNotReady")
EXIT = {"terminated": {"exitCode": 137, "reason": "OOMKilled"}}


@pytest.mark.parametrize(
    ("stage", "body"),
    [
        (PodStage.STARTING, _body(node=None)),
        (
            PodStage.GATED,
            _body(node=None, phase="Pending", conditions=[_condition("PodScheduled", "False", "SchedulingGated")]),
        ),
        (
            PodStage.UNSCHEDULABLE,
            _body(node=None, phase="Pending", conditions=[_condition("PodScheduled", "False", "Unschedulable")]),
        ),
        (PodStage.STARTING, _body(phase="Pending", conditions=[_condition("PodScheduled", "True"), NOT_READY])),
        (
            PodStage.STARTING,
            _body(phase="Running", conditions=[NOT_READY], containerStatuses=[_container(RUNNING)]),
        ),
        (
            PodStage.STARTING,
            _body(
                phase="Running",
                conditions=[NOT_READY],
                containerStatuses=[_container(RUNNING, restartCount=1, lastState=EXIT)],
            ),
        ),
        (
            PodStage.READY,
            _body(
                phase="Running",
                conditions=[_condition("Ready", "True")],
                containerStatuses=[_container(RUNNING, started=True)],
            ),
        ),
        (
            PodStage.NOT_READY,
            _body(phase="Running", conditions=[NOT_READY], containerStatuses=[_container(RUNNING, started=True)]),
        ),
        (
            PodStage.NOT_READY,
            _body(
                phase="Running",
                conditions=[NOT_READY],
                containerStatuses=[_container({"waiting": {"reason": "CrashLoopBackOff"}}, lastState=EXIT)],
            ),
        ),
        (PodStage.NOT_READY, _body(phase="Unknown")),
        (PodStage.TERMINATING, _body(deleted=True, phase="Running", conditions=[_condition("Ready", "True")])),
        (PodStage.FINISHED, _body(deleted=True, phase="Succeeded")),
        (PodStage.FINISHED, _body(phase="Failed")),
    ],
)
def test_the_stage_of_a_pod(stage: PodStage, body: dict[str, Any]) -> None:
    assert summarize_pod(body).stage is stage


def test_a_ready_pod_with_all_that_the_replica_set_sorts_by() -> None:
    body = _body(
        phase="Running",
        conditions=[_condition("PodScheduled", "True"), _condition("Ready", "True")],
        containerStatuses=[_container(RUNNING, started=True, restartCount=2, lastState=EXIT)],
    )
    body["metadata"]["annotations"] = {"controller.kubernetes.io/pod-deletion-cost": "-100"}
    pod = summarize_pod(body)
    assert (pod.name, pod.uid) == ("standard-worker-5c9f7d-x2x7k", "7c1f")
    assert (pod.node, pod.phase, pod.template_hash, pod.owner_uid) == ("gpu-1", PodPhase.RUNNING, "5c9f7d", "rs-1")
    assert (pod.deletion_cost, pod.restarts) == (-100, 2)
    assert pod.created_at == datetime(2026, 5, 4, 12, tzinfo=UTC)
    assert pod.ready_since == datetime(2026, 5, 4, 12, 1, 30, tzinfo=UTC)
    assert pod.last_exit == ContainerExit(137, "OOMKilled", count=2)
    assert (pod.unschedulable_message, pod.waiting_reason, pod.waiting_message) == (None, None, None)


def test_the_schedulers_message_is_kept_until_the_pod_has_a_node() -> None:
    refused = [_condition("PodScheduled", "False", "Unschedulable", NO_GPU)]
    assert summarize_pod(_body(node=None, phase="Pending", conditions=refused)).unschedulable_message == NO_GPU
    assert summarize_pod(_body(phase="Pending", conditions=[])).unschedulable_message is None


def test_the_first_waiting_container_gives_the_reason() -> None:
    waiting = {"waiting": {"reason": "ImagePullBackOff", "message": 'Back-off pulling image "fluxpool-worker:dve"'}}
    body = _body(phase="Pending", containerStatuses=[_container(waiting)])
    pod = summarize_pod(body)
    assert pod.waiting_reason == "ImagePullBackOff"
    assert pod.waiting_message == 'Back-off pulling image "fluxpool-worker:dve"'
    body["status"]["initContainerStatuses"] = [_container({"waiting": {"reason": "ErrImagePull"}})]
    assert summarize_pod(body).waiting_reason == "ErrImagePull"


@pytest.mark.parametrize(
    ("text", "cost"), [("7", 7), ("-2147483648", -(2**31)), ("2147483648", 0), ("low", 0), ("1.5", 0)]
)
def test_a_deletion_cost_is_read_as_the_controller_reads_it(text: str, cost: int) -> None:
    body = _body(phase="Pending")
    body["metadata"]["annotations"] = {"controller.kubernetes.io/pod-deletion-cost": text}
    assert summarize_pod(body).deletion_cost == cost


def test_a_pod_that_waits_for_the_gpu_of_a_terminating_one_is_not_unschedulable() -> None:
    refused = [_condition("PodScheduled", "False", "Unschedulable", NO_GPU)]
    pending = summarize_pod(_body(node=None, phase="Pending", conditions=refused))
    stopping = summarize_pod(_body(deleted=True, phase="Running"))
    ready = summarize_pod(_body(phase="Running", conditions=[_condition("Ready", "True")]))
    counts = count_pods([pending, pending, stopping, ready])
    assert counts == PodCounts(ready=1, unschedulable=1, waiting_for_gpu=1, terminating=1)
    assert counts.active == 3


@pytest.mark.parametrize(
    ("state", "last", "restarts", "count"),
    [
        ({"terminated": {"exitCode": 4, "message": "no such\nfolder"}}, {}, 0, 1),
        ({"running": {}}, {"terminated": {"exitCode": 4, "message": "no such folder"}}, 1, 1),
        (
            {"waiting": {"reason": "CrashLoopBackOff"}},
            {"terminated": {"exitCode": 4, "message": "no such folder"}},
            1,
            2,
        ),
        ({"terminated": {"exitCode": 4, "message": "no such folder"}}, {"terminated": {"exitCode": 1}}, 1, 2),
    ],
    ids=["ended once", "runs again", "waits after the second end", "ended twice"],
)
def test_the_last_end_of_a_container_has_its_message_and_its_number(
    state: dict[str, Any], last: dict[str, Any], restarts: int, count: int
) -> None:
    body = _body(phase="Running", containerStatuses=[_container(state, restartCount=restarts, lastState=last)])
    assert summarize_pod(body).last_exit == ContainerExit(4, "", "no such folder", count)


@pytest.mark.parametrize(
    ("message", "words"),
    [
        ('{"event": "a"}\n{"event": "task_taken", "timestamp": "2026-01-02T03:04:05Z"}\n', "task_taken"),
        ('t": "a"}\n{"event": "worker_failed", "error": "no\\ntopic", "level": "error"}', "worker_failed: no topic"),
        (
            '{"event": "a"}\nTraceback (most recent call last):\n  File "x"\nImportError: no torch\n',
            "ImportError: no torch",
        ),
        ('{"event": "a"}\n{"event": "cut of', '{"event": "cut of'),
        ('{"event": "a"}\n["b"]', '["b"]'),
        ('{"event": "a"}\n{"level": "info"}', '{"level": "info"}'),
        ("{}\n" + "[" * 2000, "[" * 1024),
        ("FLUXPOOL_POOL: is blank\nFLUXPOOL_LANES: is blank", "FLUXPOOL_POOL: is blank FLUXPOOL_LANES: is blank"),
    ],
    ids=["an entry", "an error", "a traceback", "half an entry", "a list", "no event", "too deep", "a message"],
)
def test_the_end_of_a_log_is_its_last_entry_without_the_time(message: str, words: str) -> None:
    state = {"terminated": {"exitCode": 137, "reason": "OOMKilled", "message": message}}
    body = _body(phase="Running", containerStatuses=[_container(state, restartCount=0)])
    assert summarize_pod(body).last_exit == ContainerExit(137, "OOMKilled", words, 1)
