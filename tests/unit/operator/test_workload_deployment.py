"""The fields read from a Deployment, and the width of a rollout."""

import dataclasses
from datetime import UTC, datetime
from typing import Any

import pytest

from fluxpool_operator.workload import (
    DeploymentSummary,
    PodStage,
    PodSummary,
    is_rolling_out,
    rollout_width,
    summarize_deployment,
)
from fluxpool_operator.workload.pods import PodPhase

BODY: dict[str, Any] = {
    "metadata": {
        "name": "standard-worker",
        "uid": "d-1",
        "generation": 7,
        "annotations": {"fluxpool.dev/template-hash": "0f1e"},
        "ownerReferences": [{"kind": "FluxWorkerPool", "name": "standard", "uid": "pool-1", "controller": True}],
        "managedFields": [
            {"manager": "fluxpool-operator", "operation": "Apply", "fieldsV1": {"f:spec": {"f:template": {}}}},
            {
                "manager": "kube-controller-manager",
                "operation": "Update",
                "subresource": "status",
                "fieldsV1": {"f:status": {}},
            },
        ],
    },
    "spec": {"replicas": 8, "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 1}}},
    "status": {
        "observedGeneration": 6,
        "replicas": 8,
        "readyReplicas": 5,
        "updatedReplicas": 3,
        "unavailableReplicas": 3,
        "terminatingReplicas": 1,
        "conditions": [
            {"type": "Available", "status": "False", "reason": "MinimumReplicasUnavailable", "message": ""},
            {"type": "Progressing", "status": "True", "reason": "ReplicaSetUpdated", "message": "is progressing"},
        ],
    },
}


def _managed(*entries: dict[str, Any]) -> dict[str, Any]:
    return {**BODY, "metadata": {**BODY["metadata"], "managedFields": list(entries)}}


def _entry(manager: str, spec: dict[str, Any], **fields: str) -> dict[str, Any]:
    return {"manager": manager, "operation": "Update", "fieldsV1": {"f:spec": spec}, **fields}


def test_a_deployment_with_its_numbers() -> None:
    assert summarize_deployment(BODY) == DeploymentSummary(
        uid="d-1",
        generation=7,
        observed_generation=6,
        spec_replicas=8,
        replicas=8,
        ready=5,
        updated=3,
        template_hash="0f1e",
        progressing=("ReplicaSetUpdated", "is progressing"),
    )
    assert not summarize_deployment(BODY).is_observed


def test_a_deployment_that_its_controller_has_not_observed() -> None:
    summary = summarize_deployment({"metadata": {"name": "a", "uid": "d"}, "spec": {}})
    assert (summary.spec_replicas, summary.observed_generation, summary.is_observed) == (1, 0, False)
    assert (summary.replica_failure, summary.progressing) == (None, None)


def test_pods_that_cannot_be_created_are_reported_with_the_servers_message() -> None:
    words = 'pods "standard-worker-" is forbidden: violates PodSecurity "restricted:latest"'
    failure = {"type": "ReplicaFailure", "status": "True", "reason": "FailedCreate", "message": words}
    body = {**BODY, "status": {**BODY["status"], "conditions": [failure]}}
    assert summarize_deployment(body).replica_failure == ("FailedCreate", words)
    failure["status"] = "False"
    assert summarize_deployment(body).replica_failure is None


@pytest.mark.parametrize(
    ("entries", "managers"),
    [
        ([_entry("kubectl-edit", {"f:template": {"f:spec": {}}})], ("kubectl-edit",)),
        ([_entry("kubectl-rollout", {"f:template": {"f:metadata": {}}})], ("kubectl-rollout",)),
        ([_entry("kubectl", {"f:replicas": {}}, subresource="scale")], ()),
        ([_entry("vpa", {"f:template": {}}), _entry("argocd", {"f:template": {}})], ("argocd", "vpa")),
        ([_entry("fluxpool-operator", {"f:template": {}, "f:replicas": {}})], ()),
        ([_entry("kubectl", {"f:paused": {}})], ()),
    ],
)
def test_other_field_managers_are_named(entries: list[dict[str, Any]], managers: tuple[str, ...]) -> None:
    assert summarize_deployment(_managed(*entries)).foreign_template_managers == managers


def _pod(name: str, stage: PodStage, *, template: str) -> PodSummary:
    without_node = stage in (PodStage.UNSCHEDULABLE, PodStage.GATED)
    return PodSummary(
        name=name,
        uid=name,
        stage=stage,
        phase=PodPhase.PENDING if without_node else PodPhase.RUNNING,
        node=None if without_node else "gpu-1",
        created_at=datetime(2026, 5, 4, tzinfo=UTC),
        template_hash=template,
    )


def _pods(**stages: int) -> list[PodSummary]:
    """This many pods of each stage; those with the prefix `old_` have the former template."""
    return [
        _pod(
            f"{name}-{number}",
            PodStage[name.removeprefix("old_").upper()],
            template="old" if name.startswith("old_") else "new",
        )
        for name, count in stages.items()
        for number in range(count)
    ]


STEADY = DeploymentSummary(uid="d", generation=1, observed_generation=1, spec_replicas=8, replicas=8, updated=8)


@pytest.mark.parametrize(
    ("width", "pods"),
    [
        (1, {"ready": 8}),
        (1, {"ready": 5, "unschedulable": 3}),
        (1, {"old_ready": 7, "starting": 1}),
        (4, {"old_ready": 5, "old_unschedulable": 2, "unschedulable": 1}),
        # One old pod finishes its task: its replacement waits for that GPU, and must not make room for the next.
        (4, {"old_ready": 4, "old_terminating": 1, "unschedulable": 4}),
        (4, {"old_ready": 4, "starting": 1, "unschedulable": 3}),
        (3, {"old_ready": 5, "gated": 2}),
        (1, {"old_terminating": 3, "ready": 5, "unschedulable": 3}),
    ],
)
def test_a_rollout_is_one_wider_than_the_missing_gpus(width: int, pods: dict[str, int]) -> None:
    assert rollout_width(STEADY, _pods(**pods)) == width


def test_the_deployments_status_shows_a_rollout_before_its_pods_do() -> None:
    begun = dataclasses.replace(STEADY, updated=0)
    pods = _pods(ready=5, unschedulable=3)
    assert is_rolling_out(begun, pods)
    assert not is_rolling_out(STEADY, pods)
    assert rollout_width(begun, pods) == 4


def test_foreign_fields_of_the_template_are_named_by_their_paths() -> None:
    template = {
        "f:metadata": {"f:annotations": {".": {}, "f:mesh.io/inject": {}}},
        "f:spec": {"f:containers": {'k:{"name":"worker"}': {".": {}, "f:image": {}}}, "f:nodeSelector": {".": {}}},
    }
    deployment = summarize_deployment(_managed(_entry("mesh", {"f:template": template, "f:replicas": {}})))
    assert deployment.foreign_template_managers == ("mesh",)
    assert deployment.foreign_template_fields == (
        "metadata.annotations.mesh.io/inject",
        'spec.containers[{"name":"worker"}].image',
        "spec.nodeSelector",
    )
    own = _managed(_entry("fluxpool-operator", {"f:template": template}))
    assert summarize_deployment(own).foreign_template_fields == ()


@pytest.mark.parametrize(
    ("message", "is_over"), [('pods "a" is forbidden: exceeded quota: few', True), ("violates PodSecurity", False)]
)
def test_a_quota_is_distinguished_from_other_refusals(message: str, is_over: bool) -> None:
    failure = {"type": "ReplicaFailure", "status": "True", "reason": "FailedCreate", "message": message}
    refused = {**BODY, "status": {**BODY["status"], "conditions": [failure]}}
    assert summarize_deployment(refused).is_over_quota is is_over
    assert not summarize_deployment(BODY).is_over_quota
