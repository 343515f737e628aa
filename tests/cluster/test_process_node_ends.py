"""How pods of a process node end, also when the agent, the API server or the test run died."""

import asyncio
import os
import signal
import sys
from collections.abc import Callable
from contextlib import aclosing
from typing import Any

import pytest

from kit.brokers.kafka import unique_name
from kit.cluster.control_plane import Component, ControlPlane
from kit.cluster.kubernetes_api import ApiError, Body
from kit.cluster.kubernetes_node import NodeSpec, Taint
from kit.cluster.manifests import (
    container_status,
    create_deployment,
    create_pod,
    deployment,
    get_pod,
    is_ready,
    pod,
    pods_of,
    wait_gone,
)
from kit.cluster.node_bench import POLITE, SLEEP, STUBBORN, Bench
from kit.process_node import NodePolicy, StopScope
from kit.programs.processes import is_alive
from kit.waiting import wait_until

pytestmark = [pytest.mark.cluster, pytest.mark.on_change]


async def child_of(bench: Bench, name: str) -> int:
    log = await bench.wait_log(name, "child=")
    return int(log.split("child=")[1].split()[0])


# Ends


async def test_a_deleted_pod_gets_sigterm_and_can_write_output(bench: Bench) -> None:
    await bench.create("polite", POLITE)
    await bench.wait_log("polite", "serving")
    pid = bench.pid("polite")
    await bench.api.delete(bench.path("polite"))
    await bench.gone("polite", deadline_seconds=20)
    assert bench.log("polite") == "serving\nfarewell\n"
    assert not is_alive(pid)


async def last_status(bench: Bench, name: str) -> Body:
    """Delete a pod and return its last object."""
    last = await get_pod(bench.api, bench.namespace, name)
    version = last["metadata"]["resourceVersion"]
    await bench.api.delete(bench.path(name))
    path, query = f"/api/v1/namespaces/{bench.namespace}/pods", {"fieldSelector": f"metadata.name={name}"}
    async with asyncio.timeout(30), aclosing(bench.api.watch(path, resource_version=version, **query)) as watching:
        async for event, seen in watching:
            if event == "DELETED":
                break
            if event == "MODIFIED":
                last = seen
    return last


async def test_the_terminal_status_is_written_before_the_pod_is_removed(bench: Bench) -> None:
    await bench.create("watched", POLITE)
    await bench.wait_log("watched", "serving")
    last = await last_status(bench, "watched")
    assert last["status"]["phase"] == "Succeeded"
    assert container_status(last)["state"]["terminated"]["exitCode"] == 0
    assert not is_ready(last)


async def test_a_pod_that_never_ran_is_removed_as_failed(bench: Bench) -> None:
    await bench.create("unknown", image="unknown/image:1")
    await bench.wait_waiting("unknown", "ErrImagePull")
    last = await last_status(bench, "unknown")
    assert last["status"]["phase"] == "Failed"


async def test_a_pod_that_ignores_sigterm_is_killed_after_the_grace_period_with_all_its_children(bench: Bench) -> None:
    await bench.create("stubborn", STUBBORN, terminationGracePeriodSeconds=2)
    child, pid = await child_of(bench, "stubborn"), bench.pid("stubborn")
    await bench.api.delete(bench.path("stubborn"))
    found = await get_pod(bench.api, bench.namespace, "stubborn")
    assert found["metadata"]["deletionGracePeriodSeconds"] == 2
    assert is_alive(pid)
    await bench.gone("stubborn", deadline_seconds=20)
    assert [is_alive(pid), is_alive(child)] == [False, False]


async def test_a_later_shorter_grace_is_honoured(bench: Bench) -> None:
    await bench.create("hurried", STUBBORN, terminationGracePeriodSeconds=120)
    await child_of(bench, "hurried")
    await bench.api.delete(bench.path("hurried"))
    await bench.api.delete(bench.path("hurried"), grace_period_seconds=1)
    await bench.gone("hurried", deadline_seconds=20)


async def test_a_pod_that_was_removed_by_force_leaves_no_process(bench: Bench) -> None:
    await bench.create("forced", STUBBORN)
    child, pid = await child_of(bench, "forced"), bench.pid("forced")
    await bench.api.delete(bench.path("forced"), grace_period_seconds=0)
    await wait_until(
        lambda: not is_alive(pid) and not is_alive(child), deadline_seconds=10, what="the processes to be gone"
    )


async def test_before_sigterm_the_pre_stop_hook_runs_inside_the_container(bench: Bench) -> None:
    hook = {"preStop": {"exec": {"command": ["sh", "-c", "echo $HOSTNAME hooked > /kept/hook"]}}}
    volumes = [{"name": "kept", "hostPath": {"path": str(bench.folder)}}]
    mounts = [{"name": "kept", "mountPath": "/kept"}]
    await bench.create("hooked", POLITE, lifecycle=hook, volumes=volumes, volumeMounts=mounts)
    await bench.wait_log("hooked", "serving")
    await bench.api.delete(bench.path("hooked"))
    await bench.gone("hooked")
    assert (bench.folder / "hook").read_text() == "hooked hooked\n"
    assert "farewell" in bench.log("hooked")


@pytest.mark.parametrize(("scope", "told"), [(StopScope.PROCESS_GROUP, True), (StopScope.MAIN_PROCESS, False)])
async def test_children_get_sigterm_only_with_stop_scope_group(
    make_bench: Callable[..., Bench],
    scope: StopScope,
    told: bool,
) -> None:
    script = (
        "import signal, subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', sys.argv[1]])\n"
        "signal.signal(signal.SIGTERM, lambda *_: (time.sleep(0.5), sys.exit(0)))\n"
        "time.sleep(600)\n"
    )
    bench = make_bench(policy=NodePolicy(stop_scope=scope))
    async with bench.node:
        await bench.create("family", command=["python", "-c", script, POLITE])
        await bench.wait_log("family", "serving")
        await bench.api.delete(bench.path("family"))
        await bench.gone("family")
        assert ("farewell" in bench.log("family")) is told


async def test_the_deletion_of_a_namespace_finishes_and_leaves_no_process(bench: Bench) -> None:
    manifest = deployment("doomed", replicas=2, node=bench.node.name, command=["python", "-c", SLEEP])
    await create_deployment(bench.api, bench.namespace, manifest)

    async def both_ready() -> bool:
        return [is_ready(one) for one in await pods_of(bench.api, bench.namespace)] == [True, True]

    await wait_until(both_ready, deadline_seconds=30, what="two ready pods")
    names = [one["metadata"]["name"] for one in await pods_of(bench.api, bench.namespace)]
    pids = [bench.pid(name) for name in names]
    path = f"/api/v1/namespaces/{bench.namespace}"
    await bench.api.delete(path)
    await wait_gone(bench.api, path, deadline_seconds=60)
    assert [is_alive(pid) for pid in pids] == [False, False]


# Failures of agent, API server and test run


async def test_a_new_agent_adopts_running_reports_ended_and_kills_deleted_pods(
    make_bench: Callable[..., Bench],
) -> None:
    first = make_bench()
    await first.node.start()
    await first.create("kept", SLEEP)
    await first.create("unwanted", SLEEP)
    await first.create("ending", "import time, sys; time.sleep(600)", restartPolicy="Never")
    before = {name: await first.wait_ready(name) for name in ("kept", "unwanted", "ending")}
    pids = {name: first.pid(name) for name in before}
    await first.node.crash()
    assert all(is_alive(pid) for pid in pids.values())
    await first.api.delete(first.path("unwanted"), grace_period_seconds=0)
    os.kill(pids["ending"], signal.SIGTERM)
    await wait_until(lambda: not is_alive(pids["ending"]), deadline_seconds=10, what="the end of the first")

    bench = make_bench(first.node.name)
    async with bench.node:
        ended = await bench.wait_phase("ending", "Failed")
        assert container_status(ended)["state"]["terminated"]["exitCode"] == 143
        await wait_until(lambda: not is_alive(pids["unwanted"]), deadline_seconds=10, what="the end of the deleted pod")
        assert bench.pid("kept") == pids["kept"]
        kept = await bench.wait_ready("kept")
        assert kept["status"]["podIP"] == before["kept"]["status"]["podIP"]
        assert container_status(kept)["restartCount"] == 0
        assert container_status(kept)["state"] == container_status(before["kept"])["state"]
        # The new agent has adopted it: it observes the end and restarts it.
        os.kill(pids["kept"], signal.SIGKILL)

        def restarted(found: Body) -> bool:
            return container_status(found)["restartCount"] == 1 and is_ready(found)

        found = await bench.wait("kept", restarted, "a restart")
        assert container_status(found)["lastState"]["terminated"]["exitCode"] == 137
    assert not is_alive(pids["kept"])


async def test_pods_continue_without_an_api_server_and_their_status_is_written_later(bench: Bench) -> None:
    await bench.create("calm", SLEEP)
    await bench.create("ended", SLEEP, restartPolicy="Never")
    await bench.wait_ready("calm")
    await bench.wait_ready("ended")
    pids = {name: bench.pid(name) for name in ("calm", "ended")}
    await bench.control_plane.kill_component(Component.API_SERVER)
    try:
        os.kill(pids["ended"], signal.SIGKILL)
        await wait_until(lambda: not is_alive(pids["ended"]), deadline_seconds=10, what="the end of the first")
    finally:
        await bench.control_plane.start_component(Component.API_SERVER)
    found = await bench.wait_phase("ended", "Failed")
    assert container_status(found)["state"]["terminated"]["exitCode"] == 137
    assert bench.pid("calm") == pids["calm"]
    assert container_status(await bench.wait_ready("calm"))["restartCount"] == 0
    await bench.create("later", SLEEP)
    await bench.wait_ready("later")


async def test_pods_die_with_the_test_run_that_owns_them(
    make_bench: Callable[..., Bench],
) -> None:
    owner = await asyncio.create_subprocess_exec(sys.executable, "-c", SLEEP)
    bench = make_bench(owner_pid=owner.pid)
    async with bench.node:
        await bench.create("owned", STUBBORN, restartPolicy="Never")
        child, pid = await child_of(bench, "owned"), bench.pid("owned")
        owner.kill()
        await owner.wait()
        await wait_until(
            lambda: not is_alive(pid) and not is_alive(child), deadline_seconds=10, what="the processes to be gone"
        )


# Permissions and other nodes


async def test_the_agent_has_the_permissions_of_a_node_only(bench: Bench, control_plane: ControlPlane) -> None:
    secret = {"metadata": {"name": "foreign"}, "stringData": {"key": "value"}}
    await bench.api.create(f"/api/v1/namespaces/{bench.namespace}/secrets", secret)
    login = control_plane.login_as(f"system:node:{bench.node.name}", group="system:nodes")
    async with control_plane.api(login) as node_api:
        with pytest.raises(ApiError) as refused:
            await node_api.get(f"/api/v1/namespaces/{bench.namespace}/secrets/foreign")
        assert refused.value.status == 403
        reserved = {"metadata": {"labels": {"node-restriction.kubernetes.io/trusted": "yes"}}}
        with pytest.raises(ApiError, match="is not allowed to modify labels"):
            await node_api.patch(f"/api/v1/nodes/{bench.node.name}", reserved)


async def test_two_nodes_get_their_own_pods(
    make_bench: Callable[..., Bench],
) -> None:
    names = [unique_name("node"), unique_name("node")]
    taint = Taint(key="dedicated", value=names[1])
    specs: list[dict[str, Any]] = [{"labels": {"group": names[0]}}, {"labels": {"group": names[0]}, "taints": [taint]}]
    plain, tainted = (
        make_bench(name, spec=NodeSpec(name=name, capacity={"nvidia.com/gpu": "1"}, **spec))
        for name, spec in zip(names, specs, strict=True)
    )
    gpu = {"limits": {"nvidia.com/gpu": "1"}}
    tolerations = [{"key": "dedicated", "operator": "Equal", "value": names[1], "effect": "NoSchedule"}]
    async with plain.node, tainted.node:
        selector = {"group": names[0]}
        for name, tolerated in (("a", []), ("b", tolerations)):
            manifest = pod(
                name,
                command=["python", "-c", SLEEP],
                nodeSelector=selector,
                tolerations=tolerated,
                resources=gpu,
            )
            await create_pod(plain.api, plain.namespace, manifest)
            await plain.wait_ready(name)
        placed = {one["metadata"]["name"]: one["spec"]["nodeName"] for one in await pods_of(plain.api, plain.namespace)}
        assert placed == {"a": names[0], "b": names[1]}
        assert plain.node.container_pid(plain.namespace, "b", "main") is None
        assert tainted.node.container_pid(plain.namespace, "b", "main") is not None
