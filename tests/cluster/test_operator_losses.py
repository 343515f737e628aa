"""Pools, nodes and pods are removed while they have tasks: no task is lost."""

from collections.abc import Callable

import pytest

from kit.brokers.kafka import unique_name
from kit.cluster.kubernetes_node import NodeSpec
from kit.cluster.node_bench import Bench
from kit.scaling.operator_bench import GPU, WORKER_IMAGE, OperatorBench, worker_image
from kit.waiting import wait_until
from kit.workers.gate import Gate

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600), pytest.mark.usefixtures("shared_operator")]

SCALE_INS = 20


async def test_a_pool_deleted_during_a_task_loses_nothing(fluxpool: OperatorBench) -> None:
    await fluxpool.topics("standard")
    await fluxpool.apply(fluxpool.pool(scaling__minReplicas=1, scaling__maxReplicas=1))
    (pod,) = await fluxpool.wait_pods(1)
    with Gate() as gate:
        ids = await fluxpool.produce(1, prompt=gate.prompt, partition=0)
        await fluxpool.wait_busy()
        ids += await fluxpool.produce(15, start=1)
        await fluxpool.delete("standard")
        name = pod["metadata"]["name"]
        # The garbage collector looks for new kinds every 30 s, so it may find the deleted pool's children that late.
        await wait_until(
            lambda: "drain_requested" in fluxpool.bench.log(name, "worker"),
            deadline_seconds=90,
            what="the busy worker to be told to end",
        )
    await fluxpool.wait_no_pods()
    done = {result["request_id"] for result in await fluxpool.results()}
    assert 0 < len(done) < len(ids), f"the busy worker finishes its task and takes no other: {name}"
    await fluxpool.apply(fluxpool.pool())
    await fluxpool.wait_results(ids)
    assert len(fluxpool.stored_images()) == len(ids)


async def test_a_node_lost_with_a_busy_worker_loses_nothing(
    fluxpool: OperatorBench, make_bench: Callable[..., Bench]
) -> None:
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
    ids = await fluxpool.produce(3, prompt="seconds=4")
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
    await fluxpool.topics("standard", partitions=3)
    await fluxpool.apply(fluxpool.pool(scaling__mode="Manual", replicas=3, scaling__maxReplicas=3))
    await fluxpool.wait_pods(3, deadline_seconds=180)
    ids: list[str] = []
    for number in range(SCALE_INS):
        # One task keeps one worker busy, and the others are idle.
        with Gate() as gate:
            ids += await fluxpool.produce(1, prompt=gate.prompt, start=number, partition=number % 3)
            busy = await fluxpool.wait_busy()
            pods = await fluxpool.pod_names()
            await fluxpool.patch("standard", {"replicas": 2})
            gone = await fluxpool.wait_leaving(pods)
        assert not busy & gone, f"scale-in {number}: {busy} were busy, {gone} were deleted"
        await fluxpool.patch("standard", {"replicas": 3})
        await fluxpool.wait_pods(3, deadline_seconds=180)
        await fluxpool.wait_idle()
    await fluxpool.wait_results(ids)
    assert len(fluxpool.stored_images()) == len(ids)
