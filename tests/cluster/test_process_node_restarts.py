"""A process node restarts, limits and probes real programs like a kubelet."""

import pytest

from kit.cluster.kubernetes_api import Body
from kit.cluster.manifests import container_status, events_of, is_ready
from kit.cluster.node_bench import POD_IP, SERVER, STATE_MOUNT, STATE_VOLUME, Bench
from kit.programs.processes import is_alive
from kit.waiting import wait_until

pytestmark = [pytest.mark.cluster, pytest.mark.on_change]


# Restarts


async def test_an_ended_container_is_restarted_with_growing_backoff(bench: Bench) -> None:
    await bench.create("crashing", "raise SystemExit(7)")
    await bench.wait_waiting("crashing", "CrashLoopBackOff")

    def restarted_three_times(found: Body) -> bool:
        return int(container_status(found)["restartCount"]) >= 3

    found = await bench.wait("crashing", restarted_three_times, "three restarts")
    last = container_status(found)["lastState"]["terminated"]
    assert (last["exitCode"], last["reason"]) == (7, "Error")
    assert found["status"]["phase"] == "Running"
    messages = [
        message for reason, message in await events_of(bench.api, bench.namespace, "crashing") if reason == "BackOff"
    ]
    assert {"back-off 0.5s restarting failed container=main", "back-off 1s restarting failed container=main"} <= set(
        messages
    )


@pytest.mark.parametrize(
    ("policy", "exit_code", "phase"), [("Never", 0, "Succeeded"), ("Never", 5, "Failed"), ("OnFailure", 0, "Succeeded")]
)
async def test_a_pod_that_is_not_restarted_ends_with_its_exit_code(
    bench: Bench, policy: str, exit_code: int, phase: str
) -> None:
    await bench.create("once", f"raise SystemExit({exit_code})", restartPolicy=policy)
    found = await bench.wait_phase("once", phase)
    status = container_status(found)
    assert (status["state"]["terminated"]["exitCode"], status["restartCount"]) == (exit_code, 0)
    assert not is_ready(found)


async def test_on_failure_restarts_until_success(bench: Bench) -> None:
    script = (
        "import pathlib\n"
        "path = pathlib.Path('/state/count')\n"
        "count = int(path.read_text()) if path.exists() else 0\n"
        "path.write_text(str(count + 1))\n"
        "raise SystemExit(0 if count == 2 else 1)\n"
    )
    mounts = {"volumes": [STATE_VOLUME], "volumeMounts": [STATE_MOUNT]}
    await bench.create("retrying", script, restartPolicy="OnFailure", **mounts)
    found = await bench.wait_phase("retrying", "Succeeded")
    assert container_status(found)["restartCount"] == 2


async def test_a_container_over_its_memory_limit_is_killed(bench: Bench) -> None:
    greedy = "import time\nheld = b'x' * (200 << 20)\ntime.sleep(600)"
    await bench.create("greedy", greedy, resources={"limits": {"memory": "100Mi"}}, restartPolicy="Never")
    found = await bench.wait_phase("greedy", "Failed")
    ended = container_status(found)["state"]["terminated"]
    assert (ended["exitCode"], ended["reason"]) == (137, "OOMKilled")


# Probes


async def test_readiness_follows_the_probe_and_the_transition_time_is_kept(bench: Bench) -> None:
    probe = {"httpGet": {"port": 8080}, "periodSeconds": 1, "failureThreshold": 1}
    state = bench.folder / "state"
    volumes = [{"name": "state", "hostPath": {"path": str(state), "type": "DirectoryOrCreate"}}]
    await bench.create("moody", SERVER, env=[POD_IP], readinessProbe=probe, volumes=volumes, volumeMounts=[STATE_MOUNT])
    ready = await bench.wait_ready("moody")
    (state / "broken").touch()
    unready = await bench.wait("moody", lambda found: not is_ready(found), "unready")
    by_type = {one["type"]: one for one in unready["status"]["conditions"]}
    assert by_type["Ready"]["message"] == "containers with unready status: [main]"
    before = {one["type"]: one["lastTransitionTime"] for one in ready["status"]["conditions"]}
    assert by_type["Initialized"]["lastTransitionTime"] == before["Initialized"]
    assert by_type["PodScheduled"]["status"] == "True"
    (state / "broken").unlink()
    found = await bench.wait_ready("moody")
    assert container_status(found)["restartCount"] == 0


async def test_a_container_that_fails_its_liveness_probe_is_restarted(bench: Bench) -> None:
    # Starting Python takes longer than a second on a busy machine.
    alive = {"exec": {"command": ["python", "-c", "open('/state/alive')"]}, "timeoutSeconds": 10}
    script = "import time; open('/state/alive', 'w'); time.sleep(600)"
    state = bench.folder / "state"
    volumes = [{"name": "state", "hostPath": {"path": str(state), "type": "DirectoryOrCreate"}}]
    liveness = alive | {"periodSeconds": 1, "failureThreshold": 2}
    # The liveness probe begins only after the program has written its file.
    startup = {"exec": {"command": ["test", "-e", "/state/alive"]}, "periodSeconds": 1, "failureThreshold": 60}
    probes = {"livenessProbe": liveness, "startupProbe": startup}
    await bench.create("dying", script, **probes, volumes=volumes, volumeMounts=[STATE_MOUNT])
    await bench.wait("dying", is_ready, "its start")
    first = bench.pid("dying")
    (state / "alive").unlink()

    def restarted(found: Body) -> bool:
        return container_status(found)["restartCount"] == 1 and is_ready(found)

    found = await bench.wait("dying", restarted, "one restart")
    assert container_status(found)["lastState"]["terminated"]["exitCode"] == 143
    assert not is_alive(first)
    assert "Killing" in dict(await events_of(bench.api, bench.namespace, "dying"))


async def test_the_other_probes_wait_for_the_startup_probe(bench: Bench) -> None:
    startup = {"exec": {"command": ["test", "-e", "/state/started"]}, "periodSeconds": 1, "failureThreshold": 60}
    never = {"exec": {"command": ["false"]}, "periodSeconds": 1, "failureThreshold": 1}
    state = bench.folder / "state"
    volumes = [{"name": "state", "hostPath": {"path": str(state), "type": "DirectoryOrCreate"}}]
    await bench.create(
        "slow",
        startupProbe=startup,
        livenessProbe=never,
        volumes=volumes,
        volumeMounts=[STATE_MOUNT],
        terminationGracePeriodSeconds=1,
    )
    running = await bench.wait("slow", lambda found: container_status(found).get("state", {}).get("running"), "running")
    assert (container_status(running)["started"], is_ready(running)) == (False, False)
    (state / "started").touch()

    def restarted(found: Body) -> bool:
        return bool(container_status(found)["restartCount"])

    # The liveness probe, which never succeeds, was not run before.
    await bench.wait("slow", restarted, "a restart by the liveness probe")


async def test_a_tcp_probe_uses_the_pods_address(bench: Bench) -> None:
    probe = {"tcpSocket": {"port": 8080}, "periodSeconds": 1}
    await bench.create("listening", SERVER, env=[POD_IP], readinessProbe=probe)
    await bench.create("elsewhere", SERVER, env=[{"name": "POD_IP", "value": "127.63.0.1"}], startupProbe=probe)
    await bench.wait_ready("listening")

    async def refused() -> bool:
        events = await events_of(bench.api, bench.namespace, "elsewhere")
        return any(reason == "Unhealthy" and "Connect call failed" in message for reason, message in events)

    await wait_until(refused, deadline_seconds=20, what="the probe's complaint")
