"""Pure decisions of a process node: command lines, phases, refused fields, deadlines."""

import asyncio
from typing import Any

import pytest

from kit.cluster.kubernetes_api import Body
from kit.cluster.manifests import pod
from kit.process_node.admission import refused_fields, unhonoured_fields
from kit.process_node.container_loop import RestartPolicy
from kit.process_node.environment import ProcessImage, command_line, expand, service_variables
from kit.process_node.status import ContainerRecord, ContainerState, Running, Terminated, Waiting, pod_phase
from kit.process_node.termination import Termination

pytestmark = pytest.mark.on_change

IMAGE = ProcessImage(entrypoint=("entry",), cmd=("default",), environment={"OF_IMAGE": "x"})
ENDED = Terminated(exit_code=0, reason="Completed", started_at=0, finished_at=1)
BROKEN = Terminated(exit_code=1, reason="Error", started_at=0, finished_at=1)
RUNNING = Running(started_at=0)
CREATING = Waiting(reason="ContainerCreating")


@pytest.mark.parametrize(
    ("text", "expanded"),
    [
        ("$(A)", "1"),
        ("$$(A)", "$(A)"),
        ("$$$(A)", "$1"),
        ("$(B)-$(A)", "$(B)-1"),
        ("$A ${A} $", "$A ${A} $"),
        ("$(A", "$(A"),
        ("$()", "$()"),
    ],
)
def test_references_are_expanded_as_kubernetes_does(text: str, expanded: str) -> None:
    assert expand(text, {"A": "1"}) == expanded


@pytest.mark.parametrize(
    ("command", "args", "argv"),
    [
        ([], [], ["entry", "default"]),
        ([], ["a"], ["entry", "a"]),
        (["c"], [], ["c"]),
        (["c"], ["a", "$(V)", "$(OF_IMAGE)"], ["c", "a", "v", "$(OF_IMAGE)"]),
    ],
)
def test_command_and_args_replace_their_part_of_the_image(command: list[str], args: list[str], argv: list[str]) -> None:
    assert command_line({"name": "main", "command": command, "args": args}, IMAGE, {"V": "v"}) == argv


def test_nothing_to_execute_is_an_error() -> None:
    with pytest.raises(ValueError, match="'main': neither the pod nor the image says what to execute"):
        command_line({"name": "main"}, ProcessImage(), {})


def test_a_headless_service_has_no_variables() -> None:
    assert service_variables({"metadata": {"name": "a"}, "spec": {"clusterIP": "None", "ports": [{"port": 1}]}}) == {}


@pytest.mark.parametrize(
    ("init", "states", "will_restart", "phase"),
    [
        ([], [CREATING], True, "Pending"),
        ([RUNNING], [CREATING], True, "Pending"),
        ([BROKEN], [CREATING], True, "Pending"),
        ([BROKEN], [CREATING], False, "Failed"),
        ([ENDED], [RUNNING], True, "Running"),
        ([], [RUNNING, CREATING], True, "Pending"),
        ([], [RUNNING, ENDED], False, "Running"),
        ([], [ENDED, ENDED], False, "Succeeded"),
        ([], [ENDED, BROKEN], False, "Failed"),
        ([], [BROKEN], True, "Running"),
    ],
)
def test_the_phase_follows_from_the_containers(
    init: list[ContainerState], states: list[ContainerState], will_restart: bool, phase: str
) -> None:
    init_records = [ContainerRecord(name="i", image="x", state=state) for state in init]
    records = [ContainerRecord(name="c", image="x", state=state) for state in states]
    assert pod_phase(init_records, records, will_restart=will_restart) == phase


def test_a_container_between_two_runs_counts_as_running() -> None:
    waiting = ContainerRecord(name="c", image="x", state=Waiting(reason="CrashLoopBackOff"), last_state=BROKEN)
    assert pod_phase([], [waiting], will_restart=True) == "Running"


@pytest.mark.parametrize(
    ("policy", "restarts"), [("Always", (True, True)), ("OnFailure", (False, True)), ("Never", (False, False))]
)
def test_the_restart_policy_decides_by_the_exit_code(policy: str, restarts: tuple[bool, bool]) -> None:
    assert (RestartPolicy(policy).restarts(0), RestartPolicy(policy).restarts(1)) == restarts


@pytest.mark.parametrize(
    ("container", "path"),
    [
        ({"stdin": True}, "spec.containers[main].stdin"),
        ({"tty": True}, "spec.containers[main].tty"),
        ({"securityContext": {"privileged": True}}, "spec.containers[main].securityContext.privileged"),
        ({"livenessProbe": {"grpc": {"port": 1}}}, "spec.containers[main].livenessProbe.grpc"),
        (
            {"readinessProbe": {"httpGet": {"host": "elsewhere", "port": 1}}},
            "spec.containers[main].readinessProbe.httpGet.host",
        ),
        ({"lifecycle": {"postStart": {"exec": {}}}}, "spec.containers[main].lifecycle.postStart"),
        (
            {"volumeMounts": [{"name": "a", "mountPath": "/a", "subPathExpr": "$(X)"}]},
            "spec.containers[main].volumeMounts[a].subPathExpr",
        ),
        (
            {"env": [{"name": "A", "valueFrom": {"fileKeyRef": {"key": "k"}}}]},
            "spec.containers[main].env[A].valueFrom.fileKeyRef",
        ),
    ],
)
def test_fields_of_a_container_that_are_not_honoured_are_refused(container: dict[str, Any], path: str) -> None:
    assert refused_fields(pod("a", **container)) == [path]


@pytest.mark.parametrize("field", ["hostNetwork", "hostPID", "shareProcessNamespace", "hostname", "runtimeClassName"])
def test_fields_of_a_pod_that_are_not_honoured_are_refused(field: str) -> None:
    manifest = pod("a")
    manifest["spec"][field] = "x"
    assert refused_fields(manifest) == [f"spec.{field}"]


def test_fields_with_empty_values_are_not_refused() -> None:
    manifest: Body = pod("a", stdin=False)
    manifest["spec"] |= {"hostNetwork": False, "securityContext": {}, "hostAliases": []}
    assert (refused_fields(manifest), unhonoured_fields(manifest)) == ([], [])


async def test_a_termination_is_shortened_by_a_later_request_and_never_prolonged() -> None:
    termination = Termination()
    assert not termination.requested
    termination.request(600)
    waiting = asyncio.create_task(termination.wait_expired())
    termination.request(0.01)
    termination.request(600)
    async with asyncio.timeout(5):
        await waiting
    assert termination.requested
