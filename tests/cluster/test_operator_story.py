"""End to end on real components: CRD, chart, two pools, a burst, images, scale to zero, uninstall."""

import pytest

from fluxpool_operator.planning import ScalingConfig, Snapshot, plan
from kit.cluster.kubernetes_api import ApiError, Body
from kit.cluster.manifests import condition, pods_of, wait_gone
from kit.scaling.lanes import lane_of
from kit.scaling.operator_bench import OperatorBench
from kit.waiting import wait_until

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]

TASKS = 60
PARTITIONS = 6
MAX_REPLICAS = 2


async def test_two_pools_scale_out_at_once_finish_all_tasks_and_scale_to_zero(fluxpool: OperatorBench) -> None:
    await fluxpool.restrict()
    await fluxpool.install()
    for name in ("standard", "vip"):
        await fluxpool.topics(name, partitions=PARTITIONS)
    scaling = {"scaling__maxReplicas": MAX_REPLICAS, "scaling__targetLagPerReplica": 10}
    pools = [fluxpool.pool(name, **scaling) for name in ("standard", "vip")]
    await fluxpool.apply(*pools)
    for name in ("standard", "vip"):
        await fluxpool.wait_condition("Ready", "True", name=name)
        assert (await fluxpool.deployment(name))["spec"]["replicas"] == 0

    sizes = {name: fluxpool.watch_replicas(name) for name in ("standard", "vip")}
    ids = {name: await _burst(fluxpool, name) for name in ("standard", "vip")}
    for name in ("standard", "vip"):
        await fluxpool.wait_results(ids[name], name=name, deadline_seconds=240)
    for name in ("standard", "vip"):
        await fluxpool.wait_replicas(0, name=name, deadline_seconds=90)
        await fluxpool.wait_no_pods(name)

    lanes = (lane_of(*[TASKS // PARTITIONS] * PARTITIONS),)
    planned = plan(
        Snapshot(lanes=lanes, current_replicas=0, elapsed_seconds=0.0),
        ScalingConfig(max_replicas=MAX_REPLICAS, target_lag_per_replica=10),
    ).replicas
    for name in ("standard", "vip"):
        seen = await sizes[name].stop()
        # Scaled out in one step, in by any number of steps, never out again.
        assert seen[:2] == [0, planned], (name, seen)
        assert seen[1:] == sorted(seen[1:], reverse=True), (name, seen)
        assert seen[-1] == 0
        # Events and status follow the Deployment, in other requests of the operator.
        await fluxpool.wait_events("ScaledToZero", name=name)
        told = [reason for _, reason, _ in await fluxpool.events(name)]
        assert told.count("ScaledUp") + told.count("Activated") >= 1, told
        await fluxpool.wait_pool("rest", _is_at_rest, name=name)
        assert len(fluxpool.stored_images(name)) == TASKS
        assert await fluxpool.lag(name) == 0


@pytest.mark.parametrize("release_first", [True, False])
async def test_deletion_in_either_order_leaves_nothing(fluxpool: OperatorBench, release_first: bool) -> None:
    await fluxpool.install()
    await fluxpool.topics("standard")
    await fluxpool.apply(fluxpool.pool(scaling__minReplicas=1))
    await fluxpool.wait_pods(1)
    if release_first:
        await fluxpool.uninstall()
        await fluxpool.delete("standard")
    else:
        await fluxpool.delete("standard")
        await wait_gone(fluxpool.bench.api, fluxpool.deployment_path())
        await fluxpool.uninstall()
    await wait_gone(fluxpool.bench.api, fluxpool.path("standard"))

    async def left() -> list[str]:
        return [
            f"{item['kind']} {item['metadata']['name']}"
            for item in await _everything(fluxpool)
            if not _is_of_kubernetes(item)
        ]

    async def nothing() -> bool:
        return await left() == []

    try:
        await wait_until(nothing, deadline_seconds=90, what="nothing to be left")
    except AssertionError as error:
        error.add_note(str(await left()))
        raise
    assert await pods_of(fluxpool.bench.api, fluxpool.namespace) == []


async def _burst(fluxpool: OperatorBench, name: str) -> list[str]:
    """Tasks that the operator sees all at once: a reading of a topic that is being written counts some of them."""
    await fluxpool.patch(name, {"paused": True})
    await fluxpool.wait_condition("ScalingActive", "False", reason="Paused", name=name)
    ids = await fluxpool.produce(TASKS, name=name)
    await fluxpool.wait_pool("the whole burst", lambda pool: pool["status"].get("pending") == TASKS, name=name)
    await fluxpool.patch(name, {"paused": False})
    return ids


def _is_at_rest(pool: Body) -> bool:
    status = pool["status"]
    numbers = (status["replicas"], status["desiredReplicas"], status["pending"])
    return numbers == (0, 0, 0) and condition(pool, "Ready")["status"] == "True"


async def _everything(fluxpool: OperatorBench) -> list[Body]:
    """Every object of the namespace that a release or a pool could have created."""
    found: list[Body] = []
    for kind, path in {
        "Deployment": "/apis/apps/v1",
        "ReplicaSet": "/apis/apps/v1",
        "Pod": "/api/v1",
        "ServiceAccount": "/api/v1",
        "Secret": "/api/v1",
        "ConfigMap": "/api/v1",
        "Service": "/api/v1",
        "PersistentVolumeClaim": "/api/v1",
        "PodDisruptionBudget": "/apis/policy/v1",
        "Role": "/apis/rbac.authorization.k8s.io/v1",
        "RoleBinding": "/apis/rbac.authorization.k8s.io/v1",
        "Lease": "/apis/coordination.k8s.io/v1",
        "NetworkPolicy": "/apis/networking.k8s.io/v1",
        "FluxWorkerPool": "/apis/fluxpool.dev/v1alpha1",
    }.items():
        plural = "networkpolicies" if kind == "NetworkPolicy" else f"{kind.lower()}s"
        try:
            listed = await fluxpool.bench.api.get(f"{path}/namespaces/{fluxpool.namespace}/{plural}")
        except ApiError as error:
            raise AssertionError(f"{kind}: {error}") from error
        found += [{"kind": kind, **item} for item in listed["items"]]
    return found


def _is_of_kubernetes(item: Body) -> bool:
    """Objects of every namespace, and those of the test itself."""
    return (item["kind"], item["metadata"]["name"]) in {
        ("ServiceAccount", "default"),
        ("ConfigMap", "kube-root-ca.crt"),
        ("Secret", "bucket"),
    }
