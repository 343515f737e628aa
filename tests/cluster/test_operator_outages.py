"""Operator, API server, nodes and pools fail at the worst moment: everything converges, nothing is lost."""

import asyncio
import os
import signal
from collections.abc import Callable

import pytest

from kit.control_plane import Component
from kit.kafka import unique_name
from kit.kubernetes_node import NodeSpec
from kit.node_bench import Bench
from kit.operator_bench import GPU, WORKER_IMAGE, OperatorBench, worker_image

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]

API_DEADLINE_SECONDS = 2
OUTAGE_SECONDS = 4.0 * API_DEADLINE_SECONDS
"""Duration of each outage: several requests time out, and the operator retries after each."""
SCALE_INS = 20


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


async def test_a_pool_deleted_during_a_task_loses_nothing(fluxpool: OperatorBench) -> None:
    await fluxpool.install()
    await fluxpool.topics("standard")
    await fluxpool.apply(fluxpool.pool(scaling__minReplicas=1, scaling__maxReplicas=1))
    (pod,) = await fluxpool.wait_pods(1)
    # The garbage collector looks for new kinds every 30 s, so it may find the deleted pool's children that late.
    ids = await fluxpool.produce(16, seconds=3)
    await fluxpool.wait_busy()
    await fluxpool.delete("standard")
    await fluxpool.wait_no_pods()
    done = {result["request_id"] for result in await fluxpool.results()}
    assert 0 < len(done) < len(ids), f"the busy worker finishes its task and takes no other: {pod['metadata']['name']}"
    await fluxpool.apply(fluxpool.pool())
    await fluxpool.wait_results(ids)
    assert len(fluxpool.stored_images()) == len(ids)


async def test_a_node_lost_with_a_busy_worker_loses_nothing(
    fluxpool: OperatorBench, make_bench: Callable[..., Bench]
) -> None:
    await fluxpool.install()
    await fluxpool.topics("standard")
    name = unique_name("lost")
    labels = {"kit.fluxpool.dev/lost": name}
    lost = make_bench(
        name, spec=NodeSpec(name=name, capacity={GPU: "1"}, labels=labels), images={WORKER_IMAGE: worker_image()}
    )
    await lost.node.start()
    pool = fluxpool.pool(scaling__minReplicas=1, scaling__maxReplicas=1, worker__nodeSelector=labels)
    await fluxpool.apply(pool)
    await fluxpool.wait_pods(1)
    ids = await fluxpool.produce(3, seconds=4)
    await fluxpool.wait_busy()
    # The machine fails with everything on it; the cloud provider removes its Node, and with it the pods.
    await lost.node.stop()
    await fluxpool.bench.api.delete(f"/api/v1/nodes/{name}")
    unready = await fluxpool.wait_condition("Ready", "False", deadline_seconds=120)
    assert unready["message"]
    at_home = {"kubernetes.io/hostname": fluxpool.bench.node.name, "kit.fluxpool.dev/lost": None}
    await fluxpool.patch("standard", {"worker": {"nodeSelector": at_home}})
    await fluxpool.wait_results(ids, deadline_seconds=180)
    assert len(fluxpool.stored_images()) == len(ids)
    await fluxpool.wait_condition("Ready", "True", deadline_seconds=90)


async def test_twenty_scale_ins_remove_no_busy_worker_and_lose_no_task(fluxpool: OperatorBench) -> None:
    await fluxpool.install()
    await fluxpool.topics("standard", partitions=3)
    await fluxpool.apply(fluxpool.pool(scaling__mode="Manual", replicas=3, scaling__maxReplicas=3))
    await fluxpool.wait_pods(3, deadline_seconds=180)
    ids: list[str] = []
    for number in range(SCALE_INS):
        # One task keeps one worker busy, and the others are idle.
        ids += await fluxpool.produce(1, seconds=4, start=number, partition=number % 3)
        busy = await fluxpool.wait_busy()
        pods = await fluxpool.pod_names()
        await fluxpool.patch("standard", {"replicas": 2})
        gone = await fluxpool.wait_leaving(pods)
        assert not busy & gone, f"scale-in {number}: {busy} were busy, {gone} were deleted"
        await fluxpool.patch("standard", {"replicas": 3})
        await fluxpool.wait_pods(3, deadline_seconds=180)
    await fluxpool.wait_results(ids)
    assert len(fluxpool.stored_images()) == len(ids)
