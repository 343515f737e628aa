"""The CRD and the children on a real API server: rules, messages, defaults, server-side apply."""

import asyncio
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from fluxpool_operator.api import FluxWorkerPool
from fluxpool_operator.api.pool import MAX_NAME_CHARACTERS, FluxWorkerPoolSpec
from fluxpool_operator.children import FIELD_MANAGER, Children, render_children, selector_text
from fluxpool_operator.crd import FILE_NAME
from kit.cluster.control_plane import CommandError, ControlPlane
from kit.scaling.pool_refusals import RULE_REFUSALS, SCHEMA_REFUSALS, Refusal
from kit.scaling.pools import ACCEPTED, FULL_SPEC, MINIMAL_SPEC, REMOVED, edited, pool_body
from kit.strangers import StrangeManifest, strangers
from kit.waiting import wait_until

pytestmark = pytest.mark.cluster

CRD_FILE = Path(__file__).parents[2] / "crds" / FILE_NAME
SERVER_SIDE = (
    "apply",
    "--server-side",
    f"--field-manager={FIELD_MANAGER}",
    "--force-conflicts",
    "--show-managed-fields",
    "-o",
    "json",
    "-f",
    "-",
)
# Referenced by the fullest pool; admission requires them.
CLASSES = """\
apiVersion: scheduling.k8s.io/v1
kind: PriorityClass
metadata: {name: interactive}
value: 1000
---
apiVersion: node.k8s.io/v1
kind: RuntimeClass
metadata: {name: nvidia}
handler: nvidia
"""


@pytest.fixture(scope="module")
def namespace(control_plane: ControlPlane) -> Iterator[str]:
    """The CRD, and a namespace that enforces the restricted standard."""
    name = f"pools-{uuid4().hex[:8]}"
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    body = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}

    async def served() -> bool:
        # `kubectl wait` fails on a CRD without conditions.
        try:
            await control_plane.kubectl("get", "fluxworkerpools", "-n", "default")
        except CommandError:
            return False
        return True

    async def prepare() -> None:
        await control_plane.kubectl("apply", "--server-side", "-f", str(CRD_FILE))
        await wait_until(served, deadline_seconds=30, what="the CRD is served")
        await control_plane.kubectl("apply", "-f", "-", input=CLASSES)
        await control_plane.kubectl("create", "-f", "-", input=json.dumps(body))

    with asyncio.Runner(loop_factory=asyncio.new_event_loop) as runner:
        runner.run(prepare())
        yield name
        runner.run(control_plane.kubectl("delete", "namespace", name, "--wait=false"))


def _manifest(body: Mapping[str, Any], *, namespace: str) -> dict[str, Any]:
    """The pool as a user writes it, with a unique name; one of maximum length keeps that length."""
    name = body["metadata"]["name"]
    if len(name) <= MAX_NAME_CHARACTERS and "." not in name:
        name = name[: MAX_NAME_CHARACTERS - 8] + uuid4().hex[:8]
    return {**body, "metadata": {"namespace": namespace, "name": name}}


async def _create(control_plane: ControlPlane, body: Mapping[str, Any], *options: str) -> dict[str, Any]:
    output = await control_plane.kubectl("create", "-o", "json", *options, "-f", "-", input=json.dumps(body))
    created = json.loads(output)
    assert isinstance(created, dict)
    return created


async def _refusal_of(control_plane: ControlPlane, *arguments: str, body: Mapping[str, Any] | None = None) -> str:
    with pytest.raises(CommandError) as caught:
        await control_plane.kubectl(*arguments, input=json.dumps(body) if body else None)
    return str(caught.value)


async def _replace(control_plane: ControlPlane, body: Mapping[str, Any]) -> None:
    await control_plane.kubectl("replace", "-f", "-", input=json.dumps(body))


async def _new_pool(
    control_plane: ControlPlane, namespace: str, edits: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    return await _create(control_plane, _manifest(edited(pool_body(), edits or {}), namespace=namespace))


# Validation


@pytest.mark.parametrize("name", ACCEPTED)
async def test_the_server_accepts(control_plane: ControlPlane, namespace: str, name: str) -> None:
    body = _manifest(ACCEPTED[name], namespace=namespace)
    assert await _create(control_plane, body, "--dry-run=server")


async def test_the_server_accepts_every_pool_of_the_docs(control_plane: ControlPlane, namespace: str) -> None:
    pools = [
        text
        for page in (CRD_FILE.parents[1] / "docs").rglob("*.md")
        for text in re.findall(r"^```yaml pool\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)
    ]
    assert len(pools) > 8
    await control_plane.kubectl("create", "-n", namespace, "--dry-run=server", "-f", "-", input="---\n".join(pools))


@pytest.mark.parametrize("stranger", strangers("manifests", StrangeManifest))
async def test_a_foreign_pool_is_accepted_or_refused_by_name(
    control_plane: ControlPlane, namespace: str, stranger: StrangeManifest
) -> None:
    body = edited(pool_body(), {".metadata.namespace": namespace, **stranger.edits})
    if not stranger.refused_with:
        assert await _create(control_plane, body, "--dry-run=server")
        return
    message = await _refusal_of(control_plane, "create", "--dry-run=server", "-f", "-", body=body)
    assert [text for text in stranger.refused_with if text not in message] == []


@pytest.mark.parametrize("refusal", [*RULE_REFUSALS, *SCHEMA_REFUSALS], ids=lambda refusal: refusal.name)
async def test_the_server_refuses_with_the_reason(
    control_plane: ControlPlane, namespace: str, refusal: Refusal
) -> None:
    if refusal.before is None:
        body = _manifest(edited(pool_body(), refusal.edits), namespace=namespace)
        message = await _refusal_of(control_plane, "create", "--dry-run=server", "-f", "-", body=body)
    else:
        before = _manifest(edited(pool_body(), refusal.before), namespace=namespace)
        await _create(control_plane, before)
        message = await _refusal_of(control_plane, "replace", "-f", "-", body=edited(before, refusal.edits))
    assert refusal.message in message


@pytest.mark.parametrize(
    ("before", "edits"),
    [
        ({}, {"kafka.lanes": [FULL_SPEC["kafka"]["lanes"][0], FULL_SPEC["kafka"]["lanes"][1]]}),
        ({"kafka.lanes": FULL_SPEC["kafka"]["lanes"]}, {"kafka.lanes": FULL_SPEC["kafka"]["lanes"][:1]}),
        (
            {"kafka.lanes": FULL_SPEC["kafka"]["lanes"]},
            {"kafka.lanes": [lane | {"preference": 7} for lane in FULL_SPEC["kafka"]["lanes"]]},
        ),
        ({"scaling.mode": "Manual", "replicas": 4}, {"replicas": 2}),
        ({"scaling.mode": "Shadow"}, {"replicas": 3}),
        ({"scaling.mode": "Manual", "replicas": 4}, {"scaling.mode": REMOVED, "replicas": REMOVED}),
        ({}, {"scaling.mode": "Manual", "replicas": 5}),
        ({}, {"kafka.security": FULL_SPEC["kafka"]["security"], "paused": True}),
    ],
    ids=[
        "a lane more",
        "lanes less",
        "other preferences",
        "manual replicas",
        "shadow replicas",
        "from manual to active",
        "from active to manual",
        "security",
    ],
)
async def test_a_pool_may_change(
    control_plane: ControlPlane, namespace: str, before: dict[str, Any], edits: dict[str, Any]
) -> None:
    body = _manifest(edited(pool_body(), before), namespace=namespace)
    await _create(control_plane, body)
    await _replace(control_plane, edited(body, edits))


async def test_unknown_fields_are_pruned_without_strict_validation(control_plane: ControlPlane, namespace: str) -> None:
    edits = {"novel": 1, "worker.tolerations": [{"key": "spot", "novel": 1}], "kafka.security.novel": {"a": 1}}
    body = _manifest(edited(pool_body(), edits), namespace=namespace)
    created = await _create(control_plane, body, "--validate=false")
    assert "novel" not in json.dumps(created["spec"])


@pytest.mark.parametrize("spec", [MINIMAL_SPEC, FULL_SPEC], ids=["minimal", "full"])
async def test_the_servers_defaults_are_the_models(
    control_plane: ControlPlane, namespace: str, spec: dict[str, Any]
) -> None:
    created = await _create(control_plane, _manifest(pool_body(spec), namespace=namespace))
    assert FluxWorkerPool.parse(created).spec == FluxWorkerPoolSpec.model_validate(spec)
    # With the server's defaults, so that the operator relies on no default of its own.
    written = FluxWorkerPoolSpec.model_validate(spec).to_manifest()
    assert created["spec"] == written


# Scale, status, columns, descriptions


async def test_a_new_pool_can_be_scaled_by_hand_only_in_manual_mode(
    control_plane: ControlPlane, namespace: str
) -> None:
    active = (await _new_pool(control_plane, namespace))["metadata"]["name"]
    message = await _refusal_of(control_plane, "scale", "-n", namespace, f"fwp/{active}", "--replicas=3")
    assert "replicas: has no effect in mode Active; change scaling.minReplicas and maxReplicas" in message
    manual = (await _new_pool(control_plane, namespace, {"scaling.mode": "Manual"}))["metadata"]["name"]
    await control_plane.kubectl("scale", "-n", namespace, f"fwp/{manual}", "--replicas=3")
    path = f"/apis/fluxpool.dev/v1alpha1/namespaces/{namespace}/fluxworkerpools/{manual}"
    async with control_plane.api() as api:
        assert (await api.get(path))["spec"]["replicas"] == 3
        assert (await api.get(f"{path}/scale"))["spec"] == {"replicas": 3}


async def test_scale_and_columns_show_the_status(control_plane: ControlPlane, namespace: str) -> None:
    pool = await _new_pool(control_plane, namespace)
    name = pool["metadata"]["name"]
    status = {
        "observedGeneration": 1,
        "conditions": [
            {
                "type": "Ready",
                "status": "False",
                "reason": "WorkersLoading",
                "message": "2 workers load the model.",
                "lastTransitionTime": "2026-05-04T12:00:00Z",
                "observedGeneration": 1,
            }
        ],
        "replicas": 4,
        "readyReplicas": 2,
        "desiredReplicas": 6,
        "selector": selector_text(FluxWorkerPool.parse(pool)),
        "pending": 120,
        "inFlight": 2,
        "oldestAgeSeconds": 45,
        "plan": {"requiredReplicas": 9, "constraint": "maximum", "reason": "The maximum is 6."},
        "novel": 1,
    }
    await control_plane.kubectl(
        "patch",
        "-n",
        namespace,
        f"fwp/{name}",
        "--subresource=status",
        "--type=merge",
        "-p",
        json.dumps({"status": status}),
    )
    header, row = (await control_plane.kubectl("get", "-n", namespace, "fwp", name)).splitlines()
    assert header.split() == ["NAME", "READY", "DESIRED", "PODS", "PENDING", "OLDEST", "AGE"]
    assert row.split()[:-1] == [name, "False", "6", "2", "120", "45"]
    wide = await control_plane.kubectl("get", "-n", namespace, "fwp", name, "-o", "wide")
    assert "maximum" in wide
    assert "2 workers load the model." in wide
    async with control_plane.api() as api:
        path = f"/apis/fluxpool.dev/v1alpha1/namespaces/{namespace}/fluxworkerpools/{name}"
        scale = await api.get(f"{path}/scale")
        assert scale["status"] == {"replicas": 4, "selector": status["selector"]}
        assert (await api.get(path))["status"] == {key: value for key, value in status.items() if key != "novel"}


async def test_a_status_alone_cannot_change_the_spec(control_plane: ControlPlane, namespace: str) -> None:
    name = (await _new_pool(control_plane, namespace))["metadata"]["name"]
    patch = json.dumps({"spec": {"paused": True}, "status": {"pending": 3}})
    await control_plane.kubectl(
        "patch", "-n", namespace, f"fwp/{name}", "--subresource=status", "--type=merge", "-p", patch
    )
    shown = json.loads(await control_plane.kubectl("get", "-n", namespace, f"fwp/{name}", "-o", "json"))
    assert (shown["spec"]["paused"], shown["status"], shown["metadata"]["generation"]) == (False, {"pending": 3}, 1)


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("fwp", "A pool of GPU workers that consume image tasks from Kafka and run a FLUX model."),
        ("fwp.spec.scaling.targetLagPerReplica", "Target lag for each worker."),
        ("fwp.spec.kafka.security.oauth.serviceAccountToken", "Service account token used instead of an OAuth server."),
        ("fwp.spec.worker.affinity.nodeAffinity", "Node affinity scheduling rules."),
        ("fwp.status.plan.constraint", "Constraint that determined the number"),
    ],
)
async def test_explain_shows_the_descriptions(
    control_plane: ControlPlane, namespace: str, path: str, text: str
) -> None:
    assert namespace
    explained = await control_plane.kubectl("explain", path)
    assert text in " ".join(explained.split())


async def test_pools_are_found_by_category_and_by_field(control_plane: ControlPlane, namespace: str) -> None:
    group = f"group-{uuid4().hex[:8]}"
    name = (await _new_pool(control_plane, namespace, {"kafka.consumerGroup": group}))["metadata"]["name"]
    selected = ("-n", namespace, "-o", "name", f"--field-selector=spec.kafka.consumerGroup={group}")
    assert (await control_plane.kubectl("get", "fluxpool", *selected)).split() == [
        f"fluxworkerpool.fluxpool.dev/{name}"
    ]


# Children


async def _apply(control_plane: ControlPlane, manifest: Mapping[str, Any], *options: str) -> dict[str, Any]:
    applied = json.loads(await control_plane.kubectl(*SERVER_SIDE, *options, input=json.dumps(manifest)))
    assert isinstance(applied, dict)
    return applied


def _written_by_operator(applied: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [entry for entry in applied["metadata"]["managedFields"] if entry["manager"] == FIELD_MANAGER]


def _served_here(children: Children) -> list[dict[str, Any]]:
    """All children except the monitor, whose CRD belongs to the Prometheus Operator."""
    return [child for child in children.in_order() if child["kind"] != "PodMonitor"]


@pytest.mark.parametrize("name", ACCEPTED)
async def test_children_can_be_applied_and_again_without_a_change(
    control_plane: ControlPlane, namespace: str, name: str
) -> None:
    pool = FluxWorkerPool.parse(await _create(control_plane, _manifest(ACCEPTED[name], namespace=namespace)))
    children = render_children(pool, replicas=0, host_path_allowed=True)
    for child in _served_here(children):
        first = await _apply(control_plane, child)
        again = await _apply(control_plane, child)
        # Controllers write status meanwhile, so compare only the operator's managed fields and their time.
        assert _written_by_operator(first) == _written_by_operator(again)
        assert first["metadata"].get("generation") == again["metadata"].get("generation")
        assert [owner["uid"] for owner in first["metadata"]["ownerReferences"]] == [pool.metadata.uid]


@pytest.mark.parametrize("name", ACCEPTED)
async def test_pods_meet_the_restricted_standard_unless_they_use_a_folder_of_the_node(
    control_plane: ControlPlane, namespace: str, name: str
) -> None:
    pool = FluxWorkerPool.parse(await _create(control_plane, _manifest(ACCEPTED[name], namespace=namespace)))
    children = render_children(pool, replicas=1, host_path_allowed=True)
    template = children.deployment["spec"]["template"]
    named = {"namespace": namespace, "name": template["spec"]["serviceAccountName"]}
    account = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": named}
    await control_plane.kubectl("apply", "--server-side", "-f", "-", input=json.dumps(account))
    metadata = {**template["metadata"], "namespace": namespace, "generateName": "pod-"}
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template["spec"]}
    if "hostPath" in json.dumps(template):
        message = await _refusal_of(control_plane, "create", "--dry-run=server", "-f", "-", body=pod)
        assert 'violates PodSecurity "restricted' in message
        assert "hostPath" in message
    else:
        admitted = await _create(control_plane, pod, "--dry-run=server")
        assert admitted["spec"]["automountServiceAccountToken"] is False


async def test_children_are_garbage_collected_with_their_pool(control_plane: ControlPlane, namespace: str) -> None:
    pool = FluxWorkerPool.parse(await _new_pool(control_plane, namespace))
    for child in _served_here(render_children(pool, replicas=0)):
        await _apply(control_plane, child)
    selected = ("get", "deployments,serviceaccounts,poddisruptionbudgets", "-n", namespace, "-o", "name")
    selector = f"--selector=fluxpool.dev/pool={pool.name}"
    assert len((await control_plane.kubectl(*selected, selector)).split()) == 3
    await control_plane.kubectl("delete", "-n", namespace, "fwp", pool.name)

    async def gone() -> bool:
        return not (await control_plane.kubectl(*selected, selector)).split()

    await wait_until(gone, deadline_seconds=30, what="the children are collected")


async def test_a_deployment_of_another_owner_is_not_adopted(control_plane: ControlPlane, namespace: str) -> None:
    first, second = [FluxWorkerPool.parse(await _new_pool(control_plane, namespace)) for _ in range(2)]
    deployment = render_children(first, replicas=0).deployment
    await _apply(control_plane, deployment)
    stolen = {**deployment, "metadata": deployment["metadata"] | {"ownerReferences": []}}
    stolen["metadata"]["ownerReferences"] = render_children(second, replicas=0).deployment["metadata"][
        "ownerReferences"
    ]
    message = await _refusal_of(control_plane, *SERVER_SIDE[:2], "--field-manager=other", "-f", "-", body=stolen)
    assert "Only one reference can have Controller set to true" in message
