"""The control plane of the tests is real: admission, scheduling, garbage collection, restarts, clean shutdown."""

import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import psutil
import pytest

from kit.brokers.kafka import unique_name
from kit.cluster.control_plane import CommandError, Component, ControlPlane, ControlPlaneError
from kit.cluster.fake_nodes import FakeNodes, FakePods
from kit.cluster.kubernetes_api import ApiError, ApiUnreachableError, KubernetesApi, PatchType
from kit.cluster.kubernetes_node import NodeSpec, Taint
from kit.cluster.manifests import (
    condition,
    create_deployment,
    create_pod,
    deployment,
    get_pod,
    is_ready,
    pod,
    pods_of,
    wait_gone,
)
from kit.programs.processes import is_alive
from kit.waiting import WaitExpiredError, wait_until, wait_until_blocking

pytestmark = [pytest.mark.cluster, pytest.mark.on_change]

CHART = """\
apiVersion: v2
name: trivial
version: 0.1.0
"""
TEMPLATE = """\
apiVersion: v1
kind: ServiceAccount
metadata: {name: "{{ .Release.Name }}-account"}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: "{{ .Release.Name }}"}
spec:
  replicas: {{ .Values.replicas }}
  selector: {matchLabels: {app: trivial}}
  template:
    metadata: {labels: {app: trivial}}
    spec:
      serviceAccountName: "{{ .Release.Name }}-account"
      nodeSelector: {kubernetes.io/hostname: "{{ .Values.node }}"}
      containers: [{name: main, image: nothing}]
"""


async def test_kubectl_and_the_server_are_the_same_release(control_plane: ControlPlane) -> None:
    versions = json.loads(await control_plane.kubectl("version", "--output=json"))
    client, server = (versions[f"{end}Version"]["gitVersion"] for end in ("client", "server"))
    assert client == server != "v0.0.0-master+$Format:%H$"


async def test_kubectl_errors_are_raised_with_their_message(control_plane: ControlPlane) -> None:
    with pytest.raises(CommandError, match=r"kubectl get pod unknown.*not found"):
        await control_plane.kubectl("get", "pod", "unknown")


async def test_a_pod_without_enough_gpus_stays_pending_with_the_schedulers_reason(
    api: KubernetesApi, namespace: str
) -> None:
    node = NodeSpec(name=unique_name("gpu"), capacity={"nvidia.com/gpu": "5"})
    async with FakeNodes(api, [node], pods=FakePods()):
        limits = {"limits": {"nvidia.com/gpu": "1"}}
        await create_deployment(api, namespace, deployment("eight", replicas=8, node=node.name, resources=limits))

        async def five_ready() -> bool:
            return sum(map(is_ready, await pods_of(api, namespace))) == 5

        await wait_until(five_ready, deadline_seconds=30, what="five ready pods")

        async def refused() -> list[str]:
            scheduled = [condition(one, "PodScheduled") for one in await pods_of(api, namespace)]
            messages = [one["message"] for one in scheduled if one.get("reason") == "Unschedulable"]
            return messages if len(messages) == 3 else []

        messages = await wait_until(refused, deadline_seconds=30, what="three pods without a node")
        assert all("Insufficient nvidia.com/gpu" in message for message in messages)


async def test_a_tainted_node_takes_only_pods_that_tolerate_it(api: KubernetesApi, namespace: str) -> None:
    node = NodeSpec(name=unique_name("tainted"), labels={"pool": "gpus"}, taints=[Taint(key="gpu", value="h200")])
    async with FakeNodes(api, [node], pods=FakePods()):
        await create_pod(api, namespace, pod("stranger", node=node.name))
        tolerations = [{"key": "gpu", "operator": "Equal", "value": "h200", "effect": "NoSchedule"}]
        await create_pod(api, namespace, pod("guest", nodeSelector={"pool": "gpus"}, tolerations=tolerations))

        async def guest_ready() -> bool:
            return is_ready(await get_pod(api, namespace, "guest"))

        await wait_until(guest_ready, deadline_seconds=30, what="the guest")

        async def stranger_refused() -> bool:
            stranger = await get_pod(api, namespace, "stranger")
            return condition(stranger, "PodScheduled").get("reason") == "Unschedulable"

        await wait_until(stranger_refused, deadline_seconds=30, what="the refusal of the stranger")


async def test_a_fake_nodes_lease_is_renewed_and_the_node_stays_ready(api: KubernetesApi) -> None:
    node = NodeSpec(name=unique_name("node"), heartbeat_interval_seconds=0.1)
    async with FakeNodes(api, [node]):

        async def renewed_at() -> str:
            lease = await api.get(f"/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/{node.name}")
            return str(lease["spec"]["renewTime"])

        first = await renewed_at()

        async def renewed() -> bool:
            return await renewed_at() > first

        await wait_until(renewed, deadline_seconds=20, what="a renewed Lease")
        assert is_ready(await api.get(f"/api/v1/nodes/{node.name}"))


async def test_a_rollout_replaces_every_pod(control_plane: ControlPlane, api: KubernetesApi, namespace: str) -> None:
    node = NodeSpec(name=unique_name("node"))
    async with FakeNodes(api, [node], pods=FakePods()):
        await create_deployment(api, namespace, deployment("rolling", replicas=3, node=node.name))
        rollout = ("-n", namespace, "rollout")
        await control_plane.kubectl(*rollout, "status", "deployment/rolling", "--timeout=60s")
        before = {one["metadata"]["uid"] for one in await pods_of(api, namespace)}
        await control_plane.kubectl(*rollout, "restart", "deployment/rolling")
        await control_plane.kubectl(*rollout, "status", "deployment/rolling", "--timeout=60s")

        async def replaced() -> bool:
            pods = await pods_of(api, namespace)
            return len(pods) == 3 and not before & {one["metadata"]["uid"] for one in pods}

        await wait_until(replaced, deadline_seconds=30, what="three new pods alone")


async def test_two_hundred_pods_run_on_twenty_fake_nodes(api: KubernetesApi, namespace: str) -> None:
    label = unique_name("wide")
    nodes = [NodeSpec(name=unique_name("n"), labels={"group": label}, capacity={"pods": "10"}) for _ in range(20)]
    async with FakeNodes(api, nodes, pods=FakePods(ready_after_seconds=0)):
        wide = deployment("wide", replicas=200, nodeSelector={"group": label})
        await create_deployment(api, namespace, wide)

        async def all_ready() -> bool:
            return sum(map(is_ready, await pods_of(api, namespace))) == 200

        await wait_until(all_ready, deadline_seconds=90, what="200 ready pods")
        assert len({one["spec"]["nodeName"] for one in await pods_of(api, namespace)}) == 20


async def test_helm_installs_and_uninstalls_a_chart(
    control_plane: ControlPlane, api: KubernetesApi, namespace: str, tmp_path: Path
) -> None:
    (tmp_path / "templates").mkdir()
    (tmp_path / "Chart.yaml").write_text(CHART)
    (tmp_path / "templates" / "all.yaml").write_text(TEMPLATE)
    node = NodeSpec(name=unique_name("node"))
    async with FakeNodes(api, [node], pods=FakePods()):
        values = ("--set", "replicas=2", "--set", f"node={node.name}")
        wait = ("--wait", "--timeout", "60s")
        await control_plane.helm("install", "demo", str(tmp_path), "--namespace", namespace, *values, *wait)
        assert [is_ready(one) for one in await pods_of(api, namespace)] == [True, True]
        assert "demo-account" in await control_plane.kubectl("-n", namespace, "get", "serviceaccounts")
        await control_plane.helm("uninstall", "demo", "--namespace", namespace, *wait)
        await wait_gone(api, f"/apis/apps/v1/namespaces/{namespace}/deployments/demo")


async def test_rbac_refuses_an_unknown_user_and_the_audit_log_has_it_without_bodies(
    control_plane: ControlPlane, api: KubernetesApi, namespace: str
) -> None:
    secret = {"metadata": {"name": "kept"}, "stringData": {"password": "only-for-its-owner"}}
    await api.create(f"/api/v1/namespaces/{namespace}/secrets", secret)
    user = unique_name("stranger")
    async with control_plane.api(control_plane.login_as(user, group="strangers")) as stranger:
        with pytest.raises(ApiError, match=f'User "{user}" cannot get resource "secrets"') as refused:
            await stranger.get(f"/api/v1/namespaces/{namespace}/secrets/kept")
    assert refused.value.status == 403

    def seen() -> list[tuple[str, str, int]]:
        return [
            (event["verb"], event["objectRef"]["resource"], event["responseStatus"]["code"])
            for event in control_plane.audit_events()
            if event["user"]["username"] == user
        ]

    found = await wait_until(seen, deadline_seconds=10, what="the refusal in the audit log")
    assert found == [("get", "secrets", 403)]
    assert "only-for-its-owner" not in control_plane.audit_log_path.read_text()
    assert {event["level"] for event in control_plane.audit_events()} == {"Metadata"}


async def test_restricted_pod_security_refuses_a_pod_that_may_be_root(api: KubernetesApi, namespace: str) -> None:
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    await api.patch(f"/api/v1/namespaces/{namespace}", {"metadata": {"labels": labels}})
    with pytest.raises(ApiError, match=r'violates PodSecurity "restricted:latest".*runAsNonRoot'):
        await create_pod(api, namespace, pod("rooted"))


async def test_objects_of_a_deleted_owner_are_collected(api: KubernetesApi, namespace: str) -> None:
    path = f"/apis/apps/v1/namespaces/{namespace}/deployments"
    await create_deployment(api, namespace, deployment("owner", replicas=0))

    async def replica_sets() -> list[str]:
        listed = await api.get(f"/apis/apps/v1/namespaces/{namespace}/replicasets")
        return [one["metadata"]["name"] for one in listed["items"]]

    await wait_until(replica_sets, deadline_seconds=20, what="a ReplicaSet")
    await api.delete(f"{path}/owner")

    async def collected() -> bool:
        return not await replica_sets()

    await wait_until(collected, deadline_seconds=30, what="the ReplicaSet to be collected")


async def test_the_deletion_of_a_namespace_with_running_pods_finishes(api: KubernetesApi) -> None:
    name, node = unique_name("doomed"), NodeSpec(name=unique_name("node"))
    await api.create("/api/v1/namespaces", {"metadata": {"name": name}})
    async with FakeNodes(api, [node], pods=FakePods()):
        await create_deployment(api, name, deployment("some", replicas=3, node=node.name))

        async def all_ready() -> bool:
            return sum(map(is_ready, await pods_of(api, name))) == 3

        await wait_until(all_ready, deadline_seconds=30, what="three ready pods")
        await api.delete(f"/api/v1/namespaces/{name}")
        await wait_gone(api, f"/api/v1/namespaces/{name}", deadline_seconds=60)


async def test_a_killed_api_server_restarts_at_its_address_and_work_continues(
    control_plane: ControlPlane, api: KubernetesApi, namespace: str
) -> None:
    node = NodeSpec(name=unique_name("node"))
    async with FakeNodes(api, [node], pods=FakePods()):
        await create_deployment(api, namespace, deployment("kept", replicas=1, node=node.name))
        await control_plane.kill_component(Component.API_SERVER)
        try:
            with pytest.raises(ApiUnreachableError):
                await api.get("/api")
        finally:
            await control_plane.start_component(Component.API_SERVER)
        scale = f"/apis/apps/v1/namespaces/{namespace}/deployments/kept/scale"
        await api.patch(scale, {"spec": {"replicas": 3}}, patch_type=PatchType.MERGE)

        async def all_ready() -> bool:
            return sum(map(is_ready, await pods_of(api, namespace))) == 3

        # Scheduler, controllers and fake nodes have to reconnect, too.
        await wait_until(all_ready, deadline_seconds=60, what="three ready pods after the outage")


async def test_a_clean_stop_leaves_no_process_and_the_next_start_finds_everything_again(
    binaries: Path, tmp_path: Path
) -> None:
    async with ControlPlane(tmp_path, binaries=binaries) as first:
        pids = [first.process(component).pid for component in Component]
        await first.kubectl("create", "configmap", "kept", "--from-literal=a=b")
    assert None not in pids
    assert [pid for pid in pids if pid is not None and psutil.pid_exists(pid)] == []
    async with ControlPlane(tmp_path, binaries=binaries) as second:
        assert await second.kubectl("get", "configmap", "kept", "-o", "jsonpath={.data.a}") == "b"


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a child that its parent was SIGKILLed")
def test_a_control_plane_dies_with_the_program_that_started_it(binaries: Path, tmp_path: Path) -> None:
    program = textwrap.dedent(
        """
        import asyncio, sys
        from pathlib import Path
        from kit.cluster.control_plane import Component, ControlPlane

        async def main():
            control_plane = ControlPlane(Path(sys.argv[1]), binaries=Path(sys.argv[2]))
            await control_plane.start()
            print(*(control_plane.process(component).pid for component in Component), flush=True)
            await asyncio.Event().wait()

        asyncio.run(main())
        """
    )
    arguments = [sys.executable, "-c", program, str(tmp_path), str(binaries)]
    tests = Path(__file__).parents[1]
    environment = {**os.environ, "PYTHONPATH": str(tests)}
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True, env=environment) as parent:
        assert parent.stdout is not None
        children = [psutil.Process(int(pid)) for pid in parent.stdout.readline().split()]
        assert len(children) == len(Component)
        os.kill(parent.pid, signal.SIGKILL)

    def all_gone() -> bool:
        return not any(is_alive(one) for one in children)

    wait_until_blocking(all_gone, deadline_seconds=10, what="the end of the orphaned programs")


async def test_a_program_that_dies_at_start_is_reported_with_the_end_of_its_log(binaries: Path, tmp_path: Path) -> None:
    wrong = ControlPlane(tmp_path, binaries=binaries, extra_flags={Component.API_SERVER: ["--no-such-flag"]})
    with pytest.raises(ControlPlaneError, match=r"(?s)kube-apiserver ended with status.*unknown flag: --no-such-flag"):
        await wrong.start()
    assert [wrong.process(component).pid for component in Component] == [None] * len(Component)


async def test_a_paused_scheduler_binds_nothing_until_it_is_resumed(
    control_plane: ControlPlane, api: KubernetesApi, namespace: str
) -> None:
    node = NodeSpec(name=unique_name("node"))
    scheduler = control_plane.process(Component.SCHEDULER)
    async with FakeNodes(api, [node], pods=FakePods()):
        scheduler.pause()
        try:
            await create_pod(api, namespace, pod("waiting", node=node.name))

            async def bound() -> bool:
                return "nodeName" in (await get_pod(api, namespace, "waiting"))["spec"]

            with pytest.raises(WaitExpiredError):
                await wait_until(bound, deadline_seconds=1, what="a binding")
        finally:
            scheduler.resume()

        async def ready() -> bool:
            return is_ready(await get_pod(api, namespace, "waiting"))

        await wait_until(ready, deadline_seconds=30, what="the pod after the pause")
