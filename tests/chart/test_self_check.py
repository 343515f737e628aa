"""The self check without a cluster: brokers, an unreachable API server and invalid settings."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

# Port 1 is unused.
KUBECONFIG = """\
apiVersion: v1
kind: Config
clusters: [{name: away, cluster: {server: "https://127.0.0.1:1"}}]
contexts: [{name: away, context: {cluster: away, user: none}}]
users: [{name: none, user: {}}]
current-context: away
"""


def self_check(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("FLUXPOOL_", "KUBE"))}
    return subprocess.run(
        [sys.executable, "-m", "fluxpool_operator.self_check", *arguments],
        env={**kept, **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


@pytest.fixture
def listening() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@pytest.mark.parametrize("text", ["", KUBECONFIG], ids=["no-kubeconfig", "no-server"])
def test_without_a_cluster_it_reports_that_and_still_checks_the_brokers(
    listening: int, tmp_path: Path, text: str
) -> None:
    kubeconfig = tmp_path / "kubeconfig"
    if text:
        kubeconfig.write_text(text)
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        away = f"127.0.0.1:{closed.getsockname()[1]}"
        finished = self_check("--kafka-bootstrap-servers", f"127.0.0.1:{listening}, {away}", KUBECONFIG=str(kubeconfig))
    assert finished.returncode == 1, finished.stderr
    api, well, failed = finished.stdout.splitlines()
    assert api.startswith("FAILED  the Kubernetes API answers: ")
    assert well == f"ok      Kafka listens on 127.0.0.1:{listening}"
    assert failed.startswith(f"FAILED  Kafka listens on {away}: ")
    assert failed.endswith("check the address, the brokers' listeners and the network policies")


@pytest.mark.parametrize(
    ("arguments", "environment", "named"),
    [
        (["--kafka-bootstrap-servers", "kafka"], {}, "--kafka-bootstrap-servers"),
        ([], {"FLUXPOOL_API_DEADLINE_SECONDS": "soon"}, "FLUXPOOL_API_DEADLINE_SECONDS"),
        ([], {"FLUXPOOL_WATCH_NAMESPACE": "images"}, "FLUXPOOL_WATCH_NAMESPACES"),
    ],
)
def test_wrong_settings_are_named_and_end_it_with_2(
    arguments: list[str], environment: dict[str, str], named: str
) -> None:
    finished = self_check(*arguments, **environment)
    assert finished.returncode == 2
    assert finished.stderr.startswith("self_check: ")
    assert named in finished.stderr
