"""Operator, API server, nodes and pools fail at the worst moment: everything converges, nothing is lost."""

import asyncio
import os
import signal

import pytest

from kit.cluster.control_plane import Component
from kit.cluster.manifests import is_ready
from kit.scaling.operator_bench import OperatorBench
from kit.waiting import wait_until

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]

API_DEADLINE_SECONDS = 2
OUTAGE_SECONDS = 4.0 * API_DEADLINE_SECONDS
"""Duration of each outage: several requests time out, and the operator retries after each."""


@pytest.mark.parametrize("point", ["operator-decided", "operator-applied"])
async def test_an_operator_killed_around_its_apply_converges_without_a_duplicate(
    fluxpool: OperatorBench, point: str
) -> None:
    await fluxpool.install(wait=False, extraEnv=[{"name": "FLUXPOOL_FAULT", "value": f"{point}:kill:2"}])
    await fluxpool.topics("standard")
    async with fluxpool.fake_workers() as nodes:
        await fluxpool.apply(fluxpool.pool(**nodes.placement))
        await fluxpool.produce(40)
        # Each process dies when it reaches this point the second time, so each makes one step.
        await fluxpool.wait_pods(4)
        await fluxpool.wait_restarts(2)
        assert await fluxpool.replica_sets() == 1
        await fluxpool.upgrade()
        await fluxpool.wait_operator()
        await fluxpool.wait_condition("Ready", "True")
        await fluxpool.produce(20, start=40)
        await fluxpool.wait_pods(6)
        assert await fluxpool.replica_sets() == 1


async def test_an_operator_killed_twice_in_a_row_continues(fluxpool: OperatorBench) -> None:
    await fluxpool.install()
    await fluxpool.topics("standard")
    async with fluxpool.fake_workers() as nodes:
        await fluxpool.apply(fluxpool.pool(**nodes.placement))
        await fluxpool.produce(20)
        await fluxpool.wait_pods(2)
        for restarts in (1, 2):
            await fluxpool.kill_operator()
            await fluxpool.wait_restarts(restarts)
        await fluxpool.wait_operator()
        await fluxpool.produce(20, start=20)
        await fluxpool.wait_pods(4)
        assert await fluxpool.replica_sets() == 1


async def test_drift_is_repaired_and_foreign_fields_stay_and_a_new_operator_rolls_nothing(
    fluxpool: OperatorBench,
) -> None:
    await fluxpool.install()
    await fluxpool.topics("standard")
    async with fluxpool.fake_workers() as nodes:
        await fluxpool.apply(fluxpool.pool(scaling__minReplicas=2, **nodes.placement))
        await fluxpool.wait_pods(2)
        await fluxpool.wait_condition("Ready", "True")
        path = fluxpool.deployment_path()
        before = await fluxpool.deployment()

        await fluxpool.bench.api.patch(path, {"spec": {"replicas": 5}, "metadata": {"annotations": {"mine": "yes"}}})
        repaired = await fluxpool.wait_replicas(2)
        assert repaired["metadata"]["annotations"]["mine"] == "yes"
        assert repaired["spec"]["template"] == before["spec"]["template"]
        uid = before["metadata"]["uid"]
        await fluxpool.bench.api.delete(path)

        async def made_again() -> bool:
            listed = await fluxpool.bench.api.get(f"/apis/apps/v1/namespaces/{fluxpool.namespace}/deployments")
            uids = {item["metadata"]["name"]: item["metadata"]["uid"] for item in listed["items"]}
            return bool(uids.get("standard-worker", uid) != uid)

        await wait_until(made_again, deadline_seconds=30, what="a new Deployment")
        await fluxpool.wait_pods(2)
        await fluxpool.wait_condition("Ready", "True")

        revision = (await fluxpool.deployment())["metadata"]["generation"]
        pods = {pod["metadata"]["uid"] for pod in await fluxpool.pods()}
        await fluxpool.upgrade(podAnnotations={"upgraded": "yes"})

        async def replaced() -> bool:
            found = [pod for pod in await fluxpool.operator_pods() if is_ready(pod)]
            return len(found) == 1 and found[0]["metadata"].get("annotations", {}).get("upgraded") == "yes"

        await wait_until(replaced, deadline_seconds=90, what="the new operator")
        await fluxpool.patch("standard", {"scaling": {"minReplicas": 3}})
        await fluxpool.wait_pods(3)
        assert pods <= {pod["metadata"]["uid"] for pod in await fluxpool.pods()}
        assert (await fluxpool.deployment())["metadata"]["generation"] == revision + 1


async def test_loops_survive_an_outage_of_the_api_server(fluxpool: OperatorBench) -> None:
    await fluxpool.install(apiDeadlineSeconds=API_DEADLINE_SECONDS)
    await fluxpool.topics("standard")
    control_plane = fluxpool.bench.control_plane
    async with fluxpool.fake_workers() as nodes:
        await fluxpool.apply(fluxpool.pool(**nodes.placement))
        await fluxpool.produce(20)
        await fluxpool.wait_pods(2)
        restarts = await fluxpool.restarts()
        # First it hangs, so that requests time out, then it is down; without etcd it returns 500.
        server = control_plane.process(Component.API_SERVER)
        assert server.pid is not None
        os.kill(server.pid, signal.SIGSTOP)
        try:
            await fluxpool.produce(20, start=20)
            await asyncio.sleep(OUTAGE_SECONDS)  # the outage itself, not a synchronisation
        finally:
            os.kill(server.pid, signal.SIGCONT)
        await control_plane.kill_component(Component.ETCD)
        await asyncio.sleep(OUTAGE_SECONDS)  # the outage itself, not a synchronisation
        await control_plane.kill_component(Component.API_SERVER)
        await asyncio.sleep(OUTAGE_SECONDS)  # the outage itself, not a synchronisation
        await control_plane.start_component(Component.ETCD)
        await control_plane.start_component(Component.API_SERVER)
        await fluxpool.wait_replicas(4, deadline_seconds=30)
        await fluxpool.wait_pods(4)
        assert await fluxpool.restarts() == restarts
        assert await fluxpool.replica_sets() == 1
        # Watches continue, too: an edit arrives before the next resync.
        await fluxpool.patch("standard", {"scaling": {"minReplicas": 5}})
        await fluxpool.wait_replicas(5, deadline_seconds=30)
