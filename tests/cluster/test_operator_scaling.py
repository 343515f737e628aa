"""What sets the number of workers: the plan, a user, an autoscaler; and scaling while Kafka is unavailable."""

import asyncio
import json
import os
from pathlib import Path

import pytest

from kit.brokers.kafka import KafkaFactory, unique_name
from kit.cluster.control_plane import CommandError
from kit.cluster.fake_nodes import FakeNodes, FakePods
from kit.cluster.kubernetes_node import NodeSpec
from kit.cluster.manifests import condition, is_ready
from kit.commands.command import PROGRAM, Ended
from kit.commands.command import fluxpool as run_fluxpool
from kit.scaling.operator_bench import GPU, OperatorBench
from kit.waiting import wait_until

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600), pytest.mark.usefixtures("shared_operator")]


async def test_a_user_scales_a_manual_pool_and_the_plan_is_only_shown(fluxpool: OperatorBench) -> None:
    await fluxpool.topics("standard")
    async with fluxpool.fake_workers() as nodes:
        await fluxpool.apply(fluxpool.pool(scaling__mode="Manual", replicas=1, **nodes.placement))
        await fluxpool.wait_replicas(1)
        await fluxpool.wait_condition("ScalingActive", "False", reason="ManualMode")
        await fluxpool.bench.control_plane.kubectl(
            "-n", fluxpool.namespace, "scale", "fluxworkerpool/standard", "--replicas=3"
        )
        await fluxpool.wait_replicas(3)
        await fluxpool.produce(40)
        await fluxpool.wait_pool("the pending tasks observed", lambda pool: pool["status"].get("pending") == 40)
        pool = await fluxpool.wait_pool("the plan shown", lambda pool: pool["status"]["plan"]["requiredReplicas"] == 4)
        assert pool["status"]["desiredReplicas"] == 3
        scale = await fluxpool.bench.api.get(f"{fluxpool.path('standard')}/scale")
        assert scale["spec"]["replicas"] == 3
        assert scale["status"]["selector"] == pool["status"]["selector"]
        state = await fluxpool.wait_state(lambda state: state.get("ready_replicas") == 3)
        assert (state["pool"], state["desired_replicas"]) == ("standard", 3)
        assert state["reason"].startswith("The lag is 40;")
        await fluxpool.delete("standard")
        await fluxpool.wait_state(lambda state: not state)


async def test_kubectl_fluxpool_and_doctor_show_a_pool_its_plan_and_what_it_lacks(
    fluxpool: OperatorBench, binaries: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    control_plane = fluxpool.bench.control_plane
    # kubectl finds its plugin there, and the plugin kubectl.
    monkeypatch.setenv("PATH", f"{binaries}{os.pathsep}{Path(PROGRAM).parent}")
    await fluxpool.topics("standard")
    async with fluxpool.fake_workers() as nodes:
        await fluxpool.apply(fluxpool.pool(scaling__mode="Manual", replicas=1, **nodes.placement))
        await fluxpool.wait_condition("ScalingActive", "False", reason="ManualMode")
        pool = await fluxpool.wait_pool("a plan", lambda pool: pool["status"].get("readyReplicas") == 1)

        shown = await control_plane.kubectl("fluxpool", "pools", "-n", fluxpool.namespace)
        (columns, row, *why) = shown.splitlines()
        assert columns.split()[:4] == ["NAMESPACE", "POOL", "READY", "DESIRED"]
        assert row.split()[:4] == [fluxpool.namespace, "standard", "1", "1"]
        reason = condition(pool, "ScalingActive")["message"]
        assert f"standard: ScalingActive=False, {reason}" in why
        assert any(line.startswith("standard: The lag is ") for line in why)

        async def run(*arguments: str, kubeconfig: Path = control_plane.admin_kubeconfig) -> Ended:
            return await run_fluxpool(*arguments, folder=tmp_path, environment={"KUBECONFIG": str(kubeconfig)})

        found = [check for check in (await run("doctor", "--json")).document["checks"] if check["part"] == "cluster"]
        (crd, operator, pools) = [(check["state"], check["found"]) for check in found]
        assert crd == ("ok", "CRD fluxworkerpools.fluxpool.dev (v1alpha1)")
        assert (operator[0], operator[1].startswith("operator ")) == ("ok", True)
        assert pools[0] == "warning"
        assert f"standard: ScalingActive=False, {reason}" in pools[1]

        with pytest.raises(CommandError, match=r'NotFound.*"absent" not found'):
            await control_plane.kubectl("fluxpool", "pools", "absent", "-n", fluxpool.namespace)
        stranger = control_plane.kubeconfig_of(control_plane.login_as("stranger"), name="stranger")
        ended = await run("doctor", "--json", kubeconfig=stranger)
        (refused,) = [check for check in ended.document["checks"] if check["part"] == "cluster"]
        assert (refused["state"], "Forbidden" in refused["found"]) == ("failed", True)


async def test_an_autoscaler_drives_a_manual_pool_through_the_scale_subresource(fluxpool: OperatorBench) -> None:
    await fluxpool.topics("standard")
    async with fluxpool.fake_workers() as nodes:
        await fluxpool.apply(fluxpool.pool(scaling__mode="Manual", replicas=1, **nodes.placement))
        await fluxpool.wait_replicas(1)
        await fluxpool.wait_pool("a selector", lambda pool: pool["status"].get("selector"))
        # Without metrics it still keeps the number within its bounds.
        await fluxpool.bench.control_plane.kubectl("apply", "-f", "-", input=json.dumps(_autoscaler(fluxpool, 3, 5)))
        await fluxpool.wait_replicas(3, deadline_seconds=90)
        await fluxpool.bench.control_plane.kubectl("apply", "-f", "-", input=json.dumps(_autoscaler(fluxpool, 1, 2)))
        await fluxpool.wait_replicas(2, deadline_seconds=90)


async def test_a_shadow_pool_reports_its_plan_and_a_paused_one_is_left_unchanged(fluxpool: OperatorBench) -> None:
    await fluxpool.topics("standard")
    async with fluxpool.fake_workers() as nodes:
        await fluxpool.apply(fluxpool.pool(scaling__mode="Shadow", replicas=1, **nodes.placement))
        await fluxpool.wait_replicas(1)
        await fluxpool.produce(30)
        await fluxpool.wait_condition("ScalingActive", "False", reason="ShadowMode")
        pool = await fluxpool.wait_pool("the plan shown", lambda pool: pool["status"]["plan"]["requiredReplicas"] == 3)
        assert (await fluxpool.deployment())["spec"]["replicas"] == 1

        await fluxpool.patch("standard", {"paused": True})
        await fluxpool.wait_condition("ScalingActive", "False", reason="Paused")
        await fluxpool.patch("standard", {"replicas": None, "scaling": {"mode": "Active"}})
        # Changes by others are not reverted while the pool is paused.
        await fluxpool.bench.api.patch(fluxpool.deployment_path(), {"spec": {"replicas": 2}})
        pool = await fluxpool.wait_pool(
            "the new spec observed", lambda pool: pool["status"]["observedGeneration"] == pool["metadata"]["generation"]
        )
        assert condition(pool, "ScalingActive")["reason"] == "Paused"
        assert (await fluxpool.deployment())["spec"]["replicas"] == 2
        await fluxpool.patch("standard", {"paused": False})
        await fluxpool.wait_replicas(3)
        await fluxpool.wait_condition("ScalingActive", "True")


async def test_replicas_are_held_while_kafka_is_unavailable_and_then_follow_the_lag(
    fluxpool: OperatorBench, kafka_factory: KafkaFactory
) -> None:
    kafka = await kafka_factory()
    own = fluxpool.on(kafka.bootstrap_servers)
    await own.topics("standard")
    async with own.fake_workers() as nodes:
        await own.apply(own.pool(**nodes.placement))
        await own.produce(30)
        await own.wait_replicas(3)
        await own.wait_condition("LagAvailable", "True")
        await kafka.brokers[0].kill()
        lost = await own.wait_condition("LagAvailable", "False")
        assert lost["message"]
        assert (await own.deployment())["spec"]["replicas"] == 3
        # Longer than the idle grace and the cool-down together: an unknown lag is not idle.
        await asyncio.sleep(8)
        assert (await own.deployment())["spec"]["replicas"] == 3
        await own.wait_events("LagUnavailable")
        assert [reason for _, reason, _ in await own.events()].count("LagUnavailable") == 1
        await kafka.brokers[0].start()
        await kafka.wait_ready()
        await own.wait_condition("LagAvailable", "True")
        # The event follows the condition.
        await own.wait_events("LagRestored")
        reasons = [reason for _, reason, _ in await own.events()]
        assert [reasons.count(reason) for reason in ("LagUnavailable", "LagRestored")] == [1, 1]
        await own.produce(30, start=30)
        await own.wait_replicas(6)


async def test_without_enough_gpus_replicas_do_not_grow_and_a_new_node_helps(fluxpool: OperatorBench) -> None:
    await fluxpool.topics("standard", partitions=8)
    async with fluxpool.fake_workers(gpus=5) as nodes:
        await fluxpool.apply(fluxpool.pool(scaling__maxReplicas=8, **nodes.placement))
        await fluxpool.produce(80)
        await fluxpool.wait_condition("ScalingLimited", "True", reason="CapacityShort")
        # It may be limited before it has read all lag.
        await fluxpool.wait_pool("the plan", lambda pool: pool["status"]["plan"]["requiredReplicas"] == 8)
        ready = await fluxpool.wait_condition("Ready", "False", reason="PodsUnschedulable")
        assert "Insufficient nvidia.com/gpu" in ready["message"]
        asked = (await fluxpool.deployment())["spec"]["replicas"]
        assert 5 <= asked <= 8
        # More lag creates no more pods than can be scheduled.
        await fluxpool.produce(40, start=80)
        await fluxpool.wait_pool("the new pending tasks", lambda pool: pool["status"]["pending"] == 120)
        assert (await fluxpool.deployment())["spec"]["replicas"] <= asked

        # A new image is rolled out although some pods are unschedulable.
        old = {pod["metadata"]["uid"] for pod in await fluxpool.pods() if is_ready(pod)}
        await fluxpool.patch("standard", {"worker": {"image": "fluxpool-worker:next"}})

        async def renewed() -> bool:
            running = [pod for pod in await fluxpool.pods() if is_ready(pod)]
            images = {pod["spec"]["containers"][0]["image"] for pod in running}
            return (
                len(running) == 5
                and images == {"fluxpool-worker:next"}
                and not old & {pod["metadata"]["uid"] for pod in running}
            )

        await wait_until(renewed, deadline_seconds=90, what="five running pods of the new image")

        more = unique_name("fake")
        async with FakeNodes(
            fluxpool.bench.api,
            [NodeSpec(name=more, capacity={GPU: "3"}, labels=nodes.labels)],
            pods=FakePods(),
        ):
            await fluxpool.wait_pods(8)
            await fluxpool.wait_condition("Ready", "True")
            await fluxpool.wait_condition("ScalingLimited", "True", reason="AtMaxReplicas")
        await fluxpool.bench.api.delete(f"/api/v1/nodes/{more}")


def _autoscaler(fluxpool: OperatorBench, lowest: int, highest: int) -> dict[str, object]:
    return {
        "apiVersion": "autoscaling/v2",
        "kind": "HorizontalPodAutoscaler",
        "metadata": {"name": "by-hand", "namespace": fluxpool.namespace},
        "spec": {
            "scaleTargetRef": {
                "apiVersion": "fluxpool.dev/v1alpha1",
                "kind": "FluxWorkerPool",
                "name": "standard",
            },
            "minReplicas": lowest,
            "maxReplicas": highest,
        },
    }
