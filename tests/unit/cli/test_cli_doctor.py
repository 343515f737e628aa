"""`fluxpool doctor` with parts that are absent, broken or hang; the plugin of kubectl by a stand-in of kubectl."""

import json
import os
import socket
import stat
from pathlib import Path
from typing import Any

import pytest

from fluxpool_cli.doctor.checking import Finding, State, run_checks
from fluxpool_cli.exit_codes import ExitCode
from fluxpool_cli.main import PLUGIN, run

POOL = {
    "metadata": {"namespace": "images", "name": "flux"},
    "status": {
        "readyReplicas": 2,
        "desiredReplicas": 5,
        "pending": 24,
        "plan": {"reason": "The lag is 24; at 5 per replica it requires 5 replicas.\x1b[2J"},
        "conditions": [
            {"type": "Ready", "status": "False", "message": "3 workers are starting"},
            {"type": "OffsetsRetained", "status": "True", "message": "fine"},
        ],
    },
}
CRD = {"spec": {"versions": [{"name": "v1alpha1"}]}}
OPERATOR = {"items": [{"metadata": {"namespace": "fluxpool", "name": "op"}, "status": {"readyReplicas": 1}}]}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    for name in [name for name in os.environ if name.startswith("FLUXPOOL_")]:
        monkeypatch.delenv(name)
    # No kubectl, until a test makes one.
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    return tmp_path


def kubectl(folder: Path, script: str) -> Path:
    """A program in the place of kubectl, which keeps its arguments; returns their file."""
    program, told = folder / "bin" / "kubectl", folder / "told"
    program.parent.mkdir(exist_ok=True)
    program.write_text(f'#!/bin/sh\necho "$@" >> {told}\n{script}\n')
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    return told


def answering(**documents: Any) -> str:
    """A script that answers by the kind that is asked for."""
    cases = (f"*{kind}*) echo '{json.dumps(document)}';;" for kind, document in documents.items())
    return f'case "$*" in {" ".join(cases)} *) exit 9;; esac'


def doctor(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, dict[str, list[tuple[str, str]]]]:
    code = run(["doctor", "--json", *arguments])
    found: dict[str, list[tuple[str, str]]] = {}
    for check in json.loads(capsys.readouterr().out)["checks"]:
        found.setdefault(check["part"], []).append((check["state"], check["found"]))
        assert check["state"] == "ok" or check["remedy"], check
    return code, found


def test_what_is_not_configured_is_skipped(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLUXPOOL_KAFKA_LIBS", "/nonexistent")
    # Another gateway may listen where one does by default.
    monkeypatch.setattr("fluxpool_cli.gateway.DEFAULT_URL", "http://127.0.0.1:1")
    code, found = doctor(capsys)
    assert code == ExitCode.OK
    assert {part: [state for state, _ in states] for part, states in found.items()} == {
        part: ["skipped"] for part in ("kafka", "storage", "model", "gateway", "cluster")
    }


def test_what_hangs_or_is_broken_is_reported_with_the_remedy_and_holds_up_nothing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    monkeypatch.setenv("FLUXPOOL_STORAGE_URL", (folder / "images").as_uri())
    kubectl(folder, "echo 'a log line' >&2; echo 'Error from server (Forbidden): no' >&2; exit 1")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        code, found = doctor(
            capsys, "--bootstrap-servers", address, "--url", f"http://{address}", "--model", ".", "--timeout", "2"
        )
    assert code == ExitCode.FAILED
    assert found["kafka"] == found["gateway"] == [("failed", "no answer within 2 s")]
    assert found["storage"][0][0] == "ok"
    assert found["model"][0][0] == "failed"
    assert "model_index.json" in found["model"][0][1]
    assert found["cluster"] == [("failed", "kubectl: Error from server (Forbidden): no")]


def test_a_check_that_raises_is_a_finding() -> None:
    def broken() -> list[Finding]:
        raise ZeroDivisionError("the cause")

    found = run_checks({"a": broken, "b": lambda: [Finding(State.OK, "fine")]}, deadline_seconds=30)
    assert (found["a"][0].found, found["b"]) == ("ZeroDivisionError: the cause", [Finding(State.OK, "fine")])


def test_the_cluster_is_asked_for_its_crd_operator_and_pools(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    script = answering(customresourcedefinitions=CRD, deployments=OPERATOR, fluxworkerpools={"items": [POOL]})
    told = kubectl(folder, script)
    code, found = doctor(capsys, "--context", "prod")
    assert (code, [state for state, _ in found["cluster"]]) == (ExitCode.OK, ["ok", "ok", "warning"])
    assert "3 workers are starting" in found["cluster"][2][1]
    assert all("--context=prod" in line for line in told.read_text().splitlines())

    kubectl(folder, answering(customresourcedefinitions=CRD, deployments={"items": []}, fluxworkerpools={"items": []}))
    code, found = doctor(capsys)
    assert (code, ("failed", "no operator runs") in found["cluster"]) == (ExitCode.FAILED, True)


def test_the_plugin_of_kubectl_shows_pools_and_why(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    told = kubectl(folder, answering(fluxworkerpools={"items": [POOL]}))
    assert run(["pools", "-n", "images", "--kubeconfig", "file"], program=PLUGIN) == ExitCode.OK
    out = capsys.readouterr().out
    assert "flux: The lag is 24; at 5 per replica it requires 5 replicas.\\x1b[2J" in out
    assert "flux: Ready=False, 3 workers are starting" in out
    assert "OffsetsRetained" not in out
    assert "--namespace=images --kubeconfig=file" in told.read_text()
    assert run(["pools", "-A", "-o", "name"], program=PLUGIN) == ExitCode.OK
    assert capsys.readouterr().out == "flux\n"
    twin = POOL | {"metadata": {"namespace": "video", "name": "flux"}}
    kubectl(folder, answering(fluxworkerpools={"items": [POOL, twin]}))
    assert run(["pools", "-A"], program=PLUGIN) == ExitCode.OK
    out = capsys.readouterr().out
    assert "images/flux: Ready=False" in out
    assert "video/flux: Ready=False" in out
    assert run(["--help"], program=PLUGIN) == ExitCode.OK
    assert "Usage: kubectl fluxpool" in capsys.readouterr().out


POD: dict[str, Any] = {
    "metadata": {
        "namespace": "images",
        "name": "flux-worker-6d9c7b5d8f-x2v5p",
        "uid": "1",
        "creationTimestamp": "2026-04-05T10:00:00Z",
        "labels": {"fluxpool.dev/pool": "flux"},
    },
    "spec": {"nodeName": "gpu-1"},
    "status": {
        "phase": "Running",
        "conditions": [{"type": "Ready", "status": "True", "lastTransitionTime": "2026-04-05T10:01:00Z"}],
        "containerStatuses": [{"restartCount": 2}],
    },
}
PENDING = {
    "metadata": POD["metadata"] | {"name": "flux-worker-6d9c7b5d8f-zzzzz", "uid": "2"},
    "status": {
        "phase": "Pending",
        "conditions": [
            {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "no GPU is free\x1b[2J"}
        ],
    },
}


def test_the_plugin_of_kubectl_shows_workers_and_why_they_do_not_work(
    capsys: pytest.CaptureFixture[str], folder: Path
) -> None:
    told = kubectl(folder, answering(pods={"items": [PENDING, POD]}))
    assert run(["workers", "flux", "-n", "images"], program=PLUGIN) == ExitCode.OK
    asked = told.read_text()
    assert "get pods --selector=app.kubernetes.io/name=fluxpool-worker,fluxpool.dev/pool=flux" in asked
    assert "--namespace=images" in asked
    head, ready, pending, why = capsys.readouterr().out.splitlines()
    assert head.split() == ["NAMESPACE", "POOL", "WORKER", "STAGE", "SINCE", "RESTARTS", "NODE"]
    assert ready.split()[:4] == ["images", "flux", "flux-worker-6d9c7b5d8f-x2v5p", "Ready"]
    assert ready.split()[5:] == ["2", "gpu-1"]
    assert "Unschedulable" in pending
    assert why == "flux-worker-6d9c7b5d8f-zzzzz: no GPU is free\\x1b[2J"
    assert run(["workers", "-A", "--json"], program=PLUGIN) == ExitCode.OK
    found = json.loads(capsys.readouterr().out)["workers"]
    assert [(item["stage"], item["restarts"], item["why"]) for item in found] == [
        ("Ready", 2, None),
        ("Unschedulable", 0, "no GPU is free\x1b[2J"),
    ]
    assert "--selector=app.kubernetes.io/name=fluxpool-worker,fluxpool.dev/pool " in told.read_text()


@pytest.mark.parametrize(
    ("script", "code", "words"),
    [
        ("echo 'error: You must be logged in' >&2; exit 1", ExitCode.UNAUTHORIZED, "must be logged in"),
        ("echo 'error: the server does not have it: NotFound' >&2; exit 1", ExitCode.USAGE, "NotFound"),
        ("echo 'was refused' >&2; exit 1", ExitCode.UNREACHABLE, "kubectl: was refused"),
        ("", ExitCode.UNREACHABLE, "there is no kubectl"),
    ],
)
def test_a_failure_of_kubectl_is_told_apart(
    script: str, code: ExitCode, words: str, capsys: pytest.CaptureFixture[str], folder: Path
) -> None:
    if script:
        kubectl(folder, script)
    assert run(["pools"], program=PLUGIN) == code
    assert words in capsys.readouterr().err
