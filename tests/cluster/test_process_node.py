"""A process node runs bound pods like a kubelet: starts and files of real programs."""

import json
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from kit.cluster.kubernetes_api import Body
from kit.cluster.manifests import container_status, create_deployment, create_pod, deployment, events_of, pod, pods_of
from kit.cluster.node_bench import POD_IP, SERVER, STATE_MOUNT, STATE_VOLUME, Bench, python_image
from kit.process_node import ProcessImage
from kit.waiting import wait_until

pytestmark = [pytest.mark.cluster, pytest.mark.on_change]


def exists(path: str) -> bool:
    return Path(path).exists()


# Starting


async def test_a_deployment_rolls_out_and_every_pod_serves_the_same_port_at_its_own_address(bench: Bench) -> None:
    probe = {"httpGet": {"path": "/", "port": "web"}, "periodSeconds": 1}
    manifest = deployment(
        "web",
        replicas=2,
        node=bench.node.name,
        command=["python", "-c", SERVER],
        env=[POD_IP],
        ports=[{"name": "web", "containerPort": 8080}],
        readinessProbe=probe,
        terminationGracePeriodSeconds=5,
    )
    await create_deployment(bench.api, bench.namespace, manifest)
    rollout = ("-n", bench.namespace, "rollout")
    await bench.control_plane.kubectl(*rollout, "status", "deployment/web", "--timeout=60s")
    before = await pods_of(bench.api, bench.namespace)
    async with httpx.AsyncClient(timeout=60) as client:
        answers = {(await client.get(f"http://{one['status']['podIP']}:8080/")).text for one in before}
    assert answers == {one["metadata"]["name"] for one in before}
    await bench.control_plane.kubectl(*rollout, "restart", "deployment/web")
    await bench.control_plane.kubectl(*rollout, "status", "deployment/web", "--timeout=60s")

    async def replaced() -> bool:
        pods = await pods_of(bench.api, bench.namespace)
        uids = {one["metadata"]["uid"] for one in pods}
        return len(pods) == 2 and not uids & {one["metadata"]["uid"] for one in before}

    await wait_until(replaced, deadline_seconds=30, what="only two new pods")


async def test_a_container_sees_its_own_variables_from_every_source_and_none_of_the_agents(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OF_THE_AGENT", "secret")
    core = f"/api/v1/namespaces/{bench.namespace}"
    await bench.api.create(f"{core}/secrets", {"metadata": {"name": "s"}, "stringData": {"password": "hunter2"}})
    await bench.api.create(f"{core}/configmaps", {"metadata": {"name": "c"}, "data": {"COLOUR": "red"}})
    ports = [{"name": "http", "port": 80}]
    await bench.api.create(f"{core}/services", {"metadata": {"name": "my-svc"}, "spec": {"ports": ports}})

    def field(name: str, path: str) -> Body:
        return {"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}}

    def resource(name: str, of: str, divisor: str) -> Body:
        return {"name": name, "valueFrom": {"resourceFieldRef": {"resource": of, "divisor": divisor}}}

    env = [
        {"name": "PLAIN", "value": "one"},
        {"name": "JOINED", "value": "$(PLAIN)-$(P_COLOUR)-$$(PLAIN)-$(UNKNOWN)"},
        {"name": "SECRET", "valueFrom": {"secretKeyRef": {"name": "s", "key": "password"}}},
        {"name": "ABSENT", "valueFrom": {"configMapKeyRef": {"name": "no", "key": "no", "optional": True}}},
        field("POD_NAME", "metadata.name"),
        field("POD_UID", "metadata.uid"),
        field("POD_NODE", "spec.nodeName"),
        field("POD_LABEL", "metadata.labels['app']"),
        POD_IP,
        resource("MEMORY_MI", "limits.memory", "1Mi"),
        resource("CPU_M", "limits.cpu", "1m"),
    ]
    manifest = pod(
        "env",
        node=bench.node.name,
        command=["python", "-c", "import json, os, sys; print(json.dumps([dict(os.environ), sys.argv[1:]]))"],
        args=["$(PLAIN)", "$$(PLAIN)", "$(FROM_IMAGE)"],
        env=env,
        envFrom=[{"prefix": "P_", "configMapRef": {"name": "c"}}],
        resources={"limits": {"memory": "512Mi", "cpu": "1500m"}},
        restartPolicy="Never",
    )
    manifest["metadata"]["labels"] = {"app": "shown"}
    created = await create_pod(bench.api, bench.namespace, manifest)
    done = await bench.wait_phase("env", "Succeeded")
    seen, arguments = json.loads(bench.log("env"))
    assert arguments == ["one", "$(PLAIN)", "$(FROM_IMAGE)"]
    assert "OF_THE_AGENT" not in seen
    assert "ABSENT" not in seen
    assert seen["MY_SVC_SERVICE_PORT_HTTP"] == "80"
    assert seen["MY_SVC_PORT"].startswith("tcp://10.0.0.")
    server = f"https://{seen['KUBERNETES_SERVICE_HOST']}:{seen['KUBERNETES_SERVICE_PORT']}"
    assert server == bench.control_plane.server
    expected = {
        "FROM_IMAGE": "yes",
        "PLAIN": "one",
        "JOINED": "one-red-$(PLAIN)-$(UNKNOWN)",
        "SECRET": "hunter2",
        "POD_NAME": "env",
        "HOSTNAME": "env",
        "POD_UID": created["metadata"]["uid"],
        "POD_NODE": bench.node.name,
        "POD_LABEL": "shown",
        "POD_IP": done["status"]["podIP"],
        "MEMORY_MI": "512",
        "CPU_M": "1500",
    }
    assert {name: seen.get(name) for name in expected} == expected


async def test_without_a_command_the_images_command_runs(bench: Bench) -> None:
    bare = pod("bare", node=bench.node.name, restartPolicy="Never")
    await create_pod(bench.api, bench.namespace, bare)
    arguments = pod("arguments", node=bench.node.name, args=["-c", "print('of the pod')"], restartPolicy="Never")
    await create_pod(bench.api, bench.namespace, arguments)
    await bench.wait_phase("bare", "Succeeded")
    await bench.wait_phase("arguments", "Succeeded")
    assert (bench.log("bare"), bench.log("arguments")) == ("of the image\n", "of the pod\n")


async def test_an_unknown_image_is_not_pulled_and_the_event_names_the_known_ones(bench: Bench) -> None:
    await bench.create("unknown", image="unknown/image:1")
    found = await bench.wait_waiting("unknown", "ErrImagePull")
    message = container_status(found)["state"]["waiting"]["message"]
    assert message == "image 'unknown/image:1' is not one of this node's: python"
    assert found["status"]["phase"] == "Pending"


async def test_a_missing_program_is_a_create_error(bench: Bench) -> None:
    await bench.create("absent", command=["no-such-program"])
    found = await bench.wait_waiting("absent", "CreateContainerError")
    assert "No such file" in container_status(found)["state"]["waiting"]["message"]


async def test_a_missing_secret_is_waited_for(bench: Bench) -> None:
    env = [{"name": "KEY", "valueFrom": {"secretKeyRef": {"name": "late", "key": "key"}}}]
    await bench.create("patient", "import os; print(os.environ['KEY'])", env=env, restartPolicy="Never")
    waiting = await bench.wait_waiting("patient", "CreateContainerConfigError")
    assert 'secret "late"' in container_status(waiting)["state"]["waiting"]["message"]
    secret = {"metadata": {"name": "late"}, "stringData": {"key": "arrived"}}
    await bench.api.create(f"/api/v1/namespaces/{bench.namespace}/secrets", secret)
    await bench.wait_phase("patient", "Succeeded")
    assert bench.log("patient") == "arrived\n"


async def test_unsupported_fields_are_refused_by_name_and_nothing_runs(bench: Bench) -> None:
    claim = {"name": "disk", "persistentVolumeClaim": {"claimName": "disk"}}
    claim_object = {
        "metadata": {"name": "disk"},
        "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}},
    }
    await bench.api.create(f"/api/v1/namespaces/{bench.namespace}/persistentvolumeclaims", claim_object)
    manifest = pod("refused", node=None, volumes=[claim])
    # Bound by the test: the scheduler waits for the claim for ever.
    manifest["spec"]["nodeName"] = bench.node.name
    await create_pod(bench.api, bench.namespace, manifest)
    found = await bench.wait_waiting("refused", "UnsupportedPodSpec")
    assert found["status"]["phase"] == "Pending"
    assert bench.node.container_pid(bench.namespace, "refused", "main") is None

    async def told() -> bool:
        events = await events_of(bench.api, bench.namespace, "refused")
        return any(
            reason == "UnsupportedPodSpec" and "spec.volumes[disk].persistentVolumeClaim" in message
            for reason, message in events
        )

    # The event follows the status.
    await wait_until(told, deadline_seconds=20, what="an event about the volume")


async def test_events_name_ignored_fields_and_the_output_file(bench: Bench) -> None:
    memory = {"name": "m", "emptyDir": {"medium": "Memory"}}
    await bench.create("secured", securityContext={"runAsUser": 1000}, volumes=[memory])
    await bench.wait_ready("secured")
    events = dict(await events_of(bench.api, bench.namespace, "secured"))
    assert "spec.containers[main].securityContext.runAsUser" in events["NotHonoured"]
    assert "spec.volumes[m].emptyDir.medium" in events["NotHonoured"]
    assert exists(events["Started"].split()[-1])


async def test_init_containers_run_one_after_the_other_before_the_others(bench: Bench) -> None:
    def writer(name: str) -> Body:
        script = f"open('/state/order', 'a').write('{name} ')"
        command = ["python", "-c", script]
        return {"name": name, "image": "python", "command": command, "volumeMounts": [STATE_MOUNT]}

    await bench.create(
        "prepared",
        "print(open('/state/order').read())",
        initContainers=[writer("first"), writer("second")],
        volumes=[STATE_VOLUME],
        volumeMounts=[STATE_MOUNT],
        restartPolicy="Never",
    )
    await bench.wait_phase("prepared", "Succeeded")
    assert bench.log("prepared") == "first second \n"


async def test_a_failed_init_container_keeps_the_others_from_starting(bench: Bench) -> None:
    broken = {"name": "broken", "image": "python", "command": ["python", "-c", "raise SystemExit(3)"]}
    await bench.create("unprepared", initContainers=[broken], restartPolicy="Never")
    found = await bench.wait_phase("unprepared", "Failed")
    ended = container_status(found, "broken", kind="initContainerStatuses")["state"]["terminated"]
    assert (ended["exitCode"], ended["reason"]) == (3, "Error")
    assert bench.node.container_pid(bench.namespace, "unprepared", "main") is None


# Files


async def test_secrets_and_config_maps_are_files_with_their_keys_paths_and_modes(bench: Bench) -> None:
    core = f"/api/v1/namespaces/{bench.namespace}"
    await bench.api.create(f"{core}/secrets", {"metadata": {"name": "s"}, "stringData": {"a": "alpha", "b": "beta"}})
    await bench.api.create(f"{core}/configmaps", {"metadata": {"name": "c"}, "data": {"k": "kappa"}})
    script = (
        "import json, os, pathlib\n"
        "root = pathlib.Path('/etc/pod/given')\n"
        "files = [path for path in root.rglob('*') if path.is_file()]\n"
        "print(json.dumps({str(p.relative_to(root)): [p.read_text(), oct(p.stat().st_mode)[-3:]] for p in files}))\n"
    )
    sources = [
        {"secret": {"name": "s", "items": [{"key": "a", "path": "deep/a.txt", "mode": 0o400}]}},
        {"configMap": {"name": "c"}},
        {"configMap": {"name": "absent", "optional": True}},
        {"downwardAPI": {"items": [{"path": "name", "fieldRef": {"fieldPath": "metadata.name"}}]}},
    ]
    volumes = [
        {"name": "given", "projected": {"defaultMode": 0o640, "sources": sources}},
        {"name": "whole", "secret": {"secretName": "s"}},
    ]
    mounts = [
        {"name": "given", "mountPath": "/etc/pod/given", "readOnly": True},
        {"name": "whole", "mountPath": "/etc/pod/one", "subPath": "b"},
    ]
    script += "print(open('/etc/pod/one').read())"
    await bench.create("files", script, volumes=volumes, volumeMounts=mounts, restartPolicy="Never")
    await bench.wait_phase("files", "Succeeded")
    listed, one = bench.log("files").splitlines()
    assert json.loads(listed) == {
        "deep/a.txt": ["alpha", "400"],
        "k": ["kappa", "640"],
        "name": ["files", "640"],
    }
    assert one == "beta"
    assert not exists("/etc/pod")


async def test_a_volume_of_a_missing_config_map_is_waited_for(bench: Bench) -> None:
    volumes = [{"name": "late", "configMap": {"name": "late"}}]
    mounts = [{"name": "late", "mountPath": "/late"}]
    script = "print(open('/late/key').read())"
    await bench.create("mounting", script, volumes=volumes, volumeMounts=mounts, restartPolicy="Never")

    async def reported() -> bool:
        events = await events_of(bench.api, bench.namespace, "mounting")
        return any(reason == "FailedMount" and 'configmap "late"' in message for reason, message in events)

    await wait_until(reported, deadline_seconds=20, what="an event about the mount")
    config_map = {"metadata": {"name": "late"}, "data": {"key": "value"}}
    await bench.api.create(f"/api/v1/namespaces/{bench.namespace}/configmaps", config_map)
    await bench.wait_phase("mounting", "Succeeded")
    assert bench.log("mounting") == "value\n"


async def test_writes_of_a_container_stay_in_it_except_in_volumes(bench: Bench) -> None:
    kept = bench.folder / "kept"
    script = (
        "import pathlib\n"
        "pathlib.Path('/models').mkdir(exist_ok=True)\n"
        "pathlib.Path('/models/of-the-container').write_text('x')\n"
        "pathlib.Path('/kept/of-the-volume').write_text('y')\n"
        "pathlib.Path('/dev/shm/of-the-container').write_text('z')\n"
    )
    volumes = [{"name": "kept", "hostPath": {"path": str(kept), "type": "DirectoryOrCreate"}}]
    mounts = [{"name": "kept", "mountPath": "/kept"}]
    await bench.create("writer", script, volumes=volumes, volumeMounts=mounts, restartPolicy="Never")
    await bench.wait_phase("writer", "Succeeded")
    assert (kept / "of-the-volume").read_text() == "y"
    assert not exists("/models/of-the-container")
    assert not exists("/dev/shm/of-the-container")  # noqa: S108 - of the machine


async def test_a_read_only_root_and_a_read_only_mount_refuse_writes_and_an_empty_dir_takes_them(bench: Bench) -> None:
    script = (
        "for path in ('/of-a-test', '/tmp/of-a-test', '/fixed/x', '/state/x'):\n"
        "    try:\n"
        "        open(path, 'w').close()\n"
        "        print(path, 'written')\n"
        "    except OSError as error:\n"
        "        print(path, error.strerror)\n"
    )
    await bench.create(
        "locked",
        script,
        securityContext={"readOnlyRootFilesystem": True},
        volumes=[STATE_VOLUME, {"name": "fixed", "emptyDir": {}}],
        volumeMounts=[STATE_MOUNT, {"name": "fixed", "mountPath": "/fixed", "readOnly": True}],
        restartPolicy="Never",
    )
    await bench.wait_phase("locked", "Succeeded")
    assert bench.log("locked").splitlines() == [
        "/of-a-test Read-only file system",
        "/tmp/of-a-test Read-only file system",  # noqa: S108 - inside the container
        "/fixed/x Read-only file system",
        "/state/x written",
    ]


async def test_a_program_stays_reachable_when_a_volume_is_mounted_above_it(
    make_bench: Callable[..., Bench], tmp_path: Path
) -> None:
    program = tmp_path / "image" / "program.py"
    program.parent.mkdir()
    program.write_text("print('runs')\nopen(__file__, 'a')\n")
    image = replace(python_image(), folders=(str(program.parent),))
    bench = make_bench(images={"python": image})
    async with bench.node:
        await bench.create(
            "above",
            command=["python", str(program)],
            volumes=[STATE_VOLUME],
            volumeMounts=[{"name": "state", "mountPath": str(tmp_path)}],
            restartPolicy="Never",
        )
        await bench.wait_phase("above", "Failed")
        log = bench.log("above")
    assert log.startswith("runs\n")
    assert "Read-only file system" in log
    await bench.api.delete(f"/api/v1/nodes/{bench.node.name}")


async def test_a_service_account_token_authenticates_the_pod_and_is_bound_to_it(bench: Bench) -> None:
    script = (
        "import json, os, ssl, urllib.request\n"
        "folder = '/var/run/secrets/kubernetes.io/serviceaccount'\n"
        "token, namespace = open(f'{folder}/token').read(), open(f'{folder}/namespace').read()\n"
        "host, port = os.environ['KUBERNETES_SERVICE_HOST'], os.environ['KUBERNETES_SERVICE_PORT']\n"
        "url = f'https://{host}:{port}/apis/authentication.k8s.io/v1/selfsubjectreviews'\n"
        "body = json.dumps({'apiVersion': 'authentication.k8s.io/v1', 'kind': 'SelfSubjectReview'}).encode()\n"
        "headers = {'Authorization': f'Bearer {token}', 'Content-Type': 'application/json'}\n"
        "context = ssl.create_default_context(cafile=f'{folder}/ca.crt')\n"
        "answer = urllib.request.urlopen(urllib.request.Request(url, body, headers), context=context)\n"
        "print(json.dumps([namespace, json.load(answer)['status']['userInfo']]))\n"
    )
    created = await bench.create("speaker", script, automountServiceAccountToken=True, restartPolicy="Never")
    await bench.wait_phase("speaker", "Succeeded")
    namespace, user = json.loads(bench.log("speaker"))
    assert namespace == bench.namespace
    assert user["username"] == f"system:serviceaccount:{bench.namespace}:default"
    assert user["extra"]["authentication.kubernetes.io/pod-uid"] == [created["metadata"]["uid"]]


async def test_a_forked_program_sees_itself_and_ends_as_an_executed_one(make_bench: Callable[..., Bench]) -> None:
    # Without a locale, an executed Python adds one to its environment.
    of_tests = {"PATH": os.environ["PATH"], "PYTHONPATH": str(Path(__file__).parents[1]), "LC_ALL": "C.UTF-8"}
    image = ProcessImage(
        entrypoint=(sys.executable, "-m", "kit.programs.warm_probe"),
        environment=of_tests,
        folders=(str(Path(__file__).parents[2]),),
    )
    bench = make_bench(images={"executed": image, "forked": replace(image, forked=True)})
    endings = {"nothing": 0, "code": 7, "raise": 1}
    seen: dict[str, list[Body]] = {"executed": [], "forked": []}
    async with bench.node:
        for kind, states in seen.items():
            for ends_by, code in endings.items():
                name = f"{kind}-{ends_by}"
                manifest = pod(
                    name,
                    node=bench.node.name,
                    image=kind,
                    env=[{"name": "ENDS", "value": ends_by}],
                    restartPolicy="Never",
                )
                await create_pod(bench.api, bench.namespace, manifest)
                ended = await bench.wait_phase(name, "Failed" if code else "Succeeded")
                assert container_status(ended)["state"]["terminated"]["exitCode"] == code
                log = bench.log(name)
                states.append(next(json.loads(line) for line in log.splitlines() if line.startswith("{")))
                assert states[-1]["environment"].pop("HOSTNAME") == name
                group, session = states[-1].pop("group")
                assert group == session
                assert ("last words" in log, "no such pool" in log) == (True, ends_by == "raise")
    await bench.api.delete(f"/api/v1/nodes/{bench.node.name}")
    assert seen["forked"] == seen["executed"]
