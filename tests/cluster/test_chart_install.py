"""The chart on a real API server: install, upgrade and uninstall, for one namespace and for all."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from fluxpool_operator import crd
from fluxpool_operator.access import access_rules
from kit.brokers.kafka import unique_name
from kit.cluster.control_plane import CommandError, ControlPlane
from kit.cluster.fake_nodes import FakeNodes, FakePods
from kit.cluster.helm_chart import CHART
from kit.cluster.kubernetes_api import KubernetesApi
from kit.cluster.kubernetes_node import NodeSpec
from kit.cluster.manifests import create_deployment, deployment, pods_of
from kit.cluster.node_bench import Bench, python_image
from kit.scaling.operator_bench import apply_definitions
from kit.waiting import wait_until

pytestmark = pytest.mark.cluster

DEFINITIONS = CHART.parents[1] / "crds"
WAIT = ("--wait", "--timeout=90s")
RESTRICTED = {f"pod-security.kubernetes.io/{mode}": "restricted" for mode in ("enforce", "audit", "warn")}
VIOLATION = "pod-security.kubernetes.io/audit-violations"
# Objects that Kubernetes creates in every namespace, or keeps there for a while.
NOT_OURS = {"configmap/kube-root-ca.crt", "serviceaccount/default"}
POOL_SPEC = {
    "kafka": {"bootstrapServers": ["kafka:9092"]},
    "scaling": {"maxReplicas": 6},
    "storage": {"url": "s3://images/"},
    "worker": {"image": "fluxpool-worker:dev"},
}


@dataclass(frozen=True, slots=True)
class Release:
    """One release of the chart in its own namespace."""

    control_plane: ControlPlane
    namespace: str
    name: str
    node: str
    brings_definition: bool = False

    async def helm(self, verb: str, values: dict[str, Any], *flags: str) -> str:
        """Install or upgrade with these values and the node's name."""
        on_node = {"nodeSelector": {"kubernetes.io/hostname": self.node}}
        path = self.control_plane.data_dir / f"{self.name}-values.json"
        gateway = {"gateway": on_node | values["gateway"]} if "gateway" in values else {}
        path.write_text(json.dumps(on_node | values | gateway))
        # All tests of a cluster share the CRD.
        place = (
            "--namespace",
            self.namespace,
            "--values",
            str(path),
            *(() if self.brings_definition else ("--skip-crds",)),
        )
        return await self.control_plane.helm(verb, self.name, str(CHART), *place, *flags)

    async def uninstall(self) -> None:
        await self.control_plane.helm("uninstall", self.name, "--namespace", self.namespace, *WAIT)

    async def test(self) -> str:
        """Run `helm test`; raises `CommandError` when the check failed."""
        return await self.control_plane.helm("test", self.name, "--namespace", self.namespace, "--timeout=100s")

    async def objects(self) -> set[str]:
        """All objects of the release in the namespace, except events."""
        kinds = await self.control_plane.kubectl("api-resources", "--namespaced", "--verbs=list", "--output=name")
        wanted = ",".join(kind for kind in kinds.split() if not kind.startswith("events"))
        listed = await self.control_plane.kubectl("get", wanted, "--namespace", self.namespace, "--output=name")
        return set(listed.split()) - NOT_OURS

    async def cluster_objects(self) -> set[str]:
        """Cluster-scoped objects of the release."""
        label = f"--selector=app.kubernetes.io/instance={self.name}"
        kinds = "clusterroles,clusterrolebindings"
        return set((await self.control_plane.kubectl("get", kinds, label, "--output=name")).split())


@pytest.fixture
async def release(control_plane: ControlPlane, api: KubernetesApi, namespace: str) -> AsyncIterator[Release]:
    """A restricted namespace, a name, and a node whose pods only report to run."""
    await api.patch(f"/api/v1/namespaces/{namespace}", {"metadata": {"labels": RESTRICTED}})
    node = NodeSpec(name=unique_name("node"))
    async with FakeNodes(api, [node], pods=FakePods()):
        yield Release(control_plane, namespace, unique_name("r"), node.name)
    await api.delete(f"/api/v1/nodes/{node.name}")


@dataclass(frozen=True, slots=True)
class Checked:
    """A release whose self check really runs, without the operator."""

    release: Release
    bench: Bench

    async def install(self, **values: Any) -> None:
        await self.release.helm("install", {"replicas": 0, **values})

    async def log(self) -> str:
        """Output of the last self check's pod."""
        return self.bench.log(f"{self.release.name}-fluxpool-self-check", "self-check")


@pytest.fixture
async def checked(make_bench: Callable[..., Bench]) -> AsyncIterator[Checked]:
    """A release on a node that runs the programs of pods, with the CRD."""
    bench = make_bench(images={"fluxpool-operator:0.1.0": python_image()})
    await apply_definitions(bench.control_plane, bench.api)
    async with bench.node:
        yield Checked(Release(bench.control_plane, bench.namespace, unique_name("r"), bench.node.name), bench)
    await bench.api.delete(f"/api/v1/nodes/{bench.node.name}")


def _violations(control_plane: ControlPlane, namespace: str) -> list[str]:
    """Violations of the restricted standard in the audit log."""
    return [
        event["annotations"][VIOLATION]
        for event in control_plane.audit_events()
        if event.get("objectRef", {}).get("namespace") == namespace and VIOLATION in event.get("annotations", {})
    ]


async def test_a_restricted_namespace_admits_everything_without_a_warning_and_uninstall_removes_it(
    release: Release, api: KubernetesApi
) -> None:
    gateway = {
        "enabled": True,
        "kafka": {"bootstrapServers": ["kafka:9092"]},
        "storage": {"url": "s3://images/"},
        "persistence": {"enabled": False},
        "ingress": {"enabled": True, "hosts": ["flux.example.com"]},
    }
    before = await release.objects()
    # --wait: the pods were admitted, scheduled and are ready.
    await release.helm("install", {"gateway": gateway, "networkPolicy": {"enabled": True}}, *WAIT)
    pods = {pod["metadata"]["labels"]["app.kubernetes.io/component"] for pod in await pods_of(api, release.namespace)}
    assert pods == {"operator", "gateway"}
    assert _violations(release.control_plane, release.namespace) == []
    await release.helm("upgrade", {"gateway": {"enabled": False}, "podLabels": {"team": "images"}}, *WAIT)
    components = [pod["metadata"]["labels"] for pod in await pods_of(api, release.namespace, label="team=images")]
    assert [labels["app.kubernetes.io/component"] for labels in components] == ["operator"]
    await release.uninstall()

    async def empty() -> bool:
        return await release.objects() <= before and not await release.cluster_objects()

    await wait_until(empty, deadline_seconds=30, what="an empty namespace")
    # A violation would be in the log.
    await create_deployment(api, release.namespace, deployment("rooted", replicas=0))
    assert await wait_until(
        lambda: _violations(release.control_plane, release.namespace), deadline_seconds=10, what="a violation"
    )


async def test_the_claim_of_the_gateways_database_is_deleted_with_the_release(release: Release) -> None:
    kafka_and_storage = {"kafka": {"bootstrapServers": ["kafka:9092"]}, "storage": {"url": "s3://images/"}}
    await release.helm("install", {"replicas": 0, "gateway": {"enabled": True, "replicas": 0, **kafka_and_storage}})
    claims = {found for found in await release.objects() if found.startswith("persistentvolumeclaim/")}
    assert claims == {f"persistentvolumeclaim/{release.name}-fluxpool-gateway"}
    await release.uninstall()

    async def gone() -> bool:
        return not claims & await release.objects()

    await wait_until(gone, deadline_seconds=30, what="the end of the claim")


async def test_two_releases_each_watch_one_namespace(
    release: Release, api: KubernetesApi, control_plane: ControlPlane
) -> None:
    other = unique_name("team")
    await api.create("/api/v1/namespaces", {"metadata": {"name": other}})
    neighbour = Release(control_plane, other, release.name, release.node)
    for one in (release, neighbour):
        await one.helm("install", {}, *WAIT)
    accounts = {
        one.namespace: f"system:serviceaccount:{one.namespace}:{one.name}-fluxpool-operator"
        for one in (release, neighbour)
    }
    for account_namespace, account in accounts.items():
        for namespace in accounts:
            answer = await _can(control_plane, account, "patch", "deployments.apps", namespace)
            assert answer == (namespace == account_namespace)
    for one in (release, neighbour):
        await one.uninstall()
    await api.delete(f"/api/v1/namespaces/{other}")


async def _can(control_plane: ControlPlane, user: str, verb: str, kind: str, namespace: str) -> bool:
    question = ("auth", "can-i", verb, kind, "--namespace", namespace, f"--as={user}")
    try:
        return (await control_plane.kubectl(*question)).strip() == "yes"
    except CommandError:
        return False


async def test_pools_are_aggregated_to_the_default_cluster_roles_on_request(
    release: Release, control_plane: ControlPlane, api: KubernetesApi
) -> None:
    await apply_definitions(control_plane, api)
    users = {role: unique_name(role) for role in ("view", "edit")}
    for role, user in users.items():
        binding = ("rolebinding", user, f"--clusterrole={role}", f"--user={user}", "--namespace", release.namespace)
        await control_plane.kubectl("create", *binding)
    pools = "fluxworkerpools.fluxpool.dev"

    async def rights() -> dict[str, list[bool]]:
        verbs = ("list", "create")
        return {
            role: [await _can(control_plane, user, verb, pools, release.namespace) for verb in verbs]
            for role, user in users.items()
        }

    assert await rights() == {"view": [False, False], "edit": [False, False]}
    await release.helm("install", {"replicas": 0, "rbac": {"aggregateClusterRoles": True}})

    async def learnt() -> bool:
        return await rights() == {"view": [True, False], "edit": [True, True]}

    await wait_until(learnt, deadline_seconds=30, what="the roles to be aggregated")
    await release.uninstall()
    assert await release.cluster_objects() == set()


@pytest.mark.parametrize("cluster_wide", [False, True], ids=["namespaced", "cluster"])
async def test_helm_test_succeeds_and_leaves_nothing(checked: Checked, cluster_wide: bool) -> None:
    server = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with server:
        await checked.install(
            watch={"clusterWide": cluster_wide},
            podMonitors={"enabled": True},
            test={"kafkaBootstrapServers": [f"127.0.0.1:{port}"]},
        )
        printed = await checked.release.test()
    assert "Phase:          Succeeded" in printed
    await checked.release.uninstall()

    async def check_is_gone() -> bool:
        return not any("self-check" in found for found in await checked.release.objects())

    await wait_until(check_is_gone, deadline_seconds=30, what="the end of the pod of a successful check")
    assert await checked.release.cluster_objects() == set()


async def test_helm_test_names_each_missing_permission_and_each_unreachable_broker(checked: Checked) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        broker = f"127.0.0.1:{closed.getsockname()[1]}"
        await checked.install(rbac={"create": False}, test={"kafkaBootstrapServers": [broker]})
        with pytest.raises(CommandError, match="self-check"):
            await checked.release.test()
    lines = (await checked.log()).splitlines()
    place = f"namespace {checked.release.namespace}"
    refused = [
        f"FAILED  {place}: {', '.join(rule.verbs)} {rule.qualified}" for rule in access_rules(pod_monitors=False)
    ]
    failed = [line for line in lines if line.startswith("FAILED")]
    assert [line.split(": ", 2)[:2] for line in failed[:-1]] == [line.split(": ", 1) for line in refused]
    assert failed[-1].startswith(f"FAILED  Kafka listens on {broker}: ")
    assert [line for line in lines if line not in failed] == [
        "ok      fluxworkerpools.fluxpool.dev is served as v1alpha1"
    ]


@pytest.fixture
async def whole(binaries: Path, tmp_path: Path) -> AsyncIterator[Release]:
    """A release that installed the CRD, in a separate cluster."""
    async with ControlPlane(tmp_path, binaries=binaries) as control_plane:
        release = Release(control_plane, "default", "flux", "nowhere", brings_definition=True)
        await release.helm("install", {"replicas": 0})

        async def served() -> bool:
            try:
                await control_plane.kubectl("get", "fluxworkerpools")
            except CommandError:
                return False
            return True

        await wait_until(served, deadline_seconds=60, what="pools to be served")
        yield release


@pytest.mark.parametrize("first", ["release", "definition"])
async def test_release_and_crd_can_be_deleted_in_either_order(whole: Release, first: str) -> None:
    kubectl = whole.control_plane.kubectl
    pool = {"apiVersion": "fluxpool.dev/v1alpha1", "kind": "FluxWorkerPool", "metadata": {"name": "standard"}}
    await kubectl("create", "--filename", "-", input=json.dumps({**pool, "spec": POOL_SPEC}))

    async def delete_definition() -> None:
        await kubectl("delete", "--filename", str(DEFINITIONS), "--timeout=60s")

    if first == "definition":
        await delete_definition()
        await whole.uninstall()
    else:
        await whole.uninstall()
        # Pools belong to users, and are kept.
        assert "fluxworkerpool.fluxpool.dev/standard" in await whole.objects()
        await delete_definition()
    assert await whole.objects() <= {"service/kubernetes"}
    assert await whole.cluster_objects() == set()


async def test_the_command_of_the_notes_updates_a_crd_that_helm_created(whole: Release, tmp_path: Path) -> None:
    newer = yaml.safe_load((DEFINITIONS / crd.FILE_NAME).read_text())
    newer["metadata"]["annotations"][crd.HASH_ANNOTATION] = "of-a-newer-one"
    (tmp_path / "crds").mkdir()
    (tmp_path / "crds" / "newer.yaml").write_text(yaml.safe_dump(newer))
    notes = await whole.control_plane.helm("get", "notes", whole.name)
    (command,) = [line.split() for line in notes.splitlines() if "kubectl apply" in line]
    program, *arguments = command
    assert (program, arguments[-1]) == ("kubectl", "crds/")
    await whole.control_plane.kubectl(*arguments[:-1], str(tmp_path / "crds"))
    found = await whole.control_plane.kubectl("get", f"crd/{newer['metadata']['name']}", "--output=json")
    assert json.loads(found)["metadata"]["annotations"][crd.HASH_ANNOTATION] == "of-a-newer-one"
