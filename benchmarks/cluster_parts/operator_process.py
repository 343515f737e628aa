"""The operator as a process on a control plane of this machine.

Owns its start, user, log and end. Must not know what is measured.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psutil

from fluxpool_cli.local.loopback import HOST, free_port
from kit.cluster.control_plane import ControlPlane

OPERATOR_USER: Final = "fluxpool-operator-benchmark"
STOP_SECONDS: Final = 30.0
LOG_CHARACTERS: Final = 4000
"""Lines of the log's end that are shown when the process ended by itself."""


@dataclass(frozen=True, slots=True)
class Operator:
    """The operator's process and the address of its metrics."""

    process: psutil.Process
    metrics_url: str


@contextmanager
def running_operator(control_plane: ControlPlane, folder: Path, *, namespace: str) -> Iterator[Operator]:
    """Run the operator for the pools of one namespace, with its log in `folder`, until the context ends."""
    login = control_plane.login_as(OPERATOR_USER, group="system:masters")
    port = free_port()
    log_path = folder / "operator.log"
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": os.environ["HOME"],
        "KUBECONFIG": str(control_plane.kubeconfig_of(login, name="operator")),
        "FLUXPOOL_WATCH_NAMESPACES": namespace,
        "FLUXPOOL_HEALTH_HOST": HOST,
        "FLUXPOOL_HEALTH_PORT": str(port),
        # As in the operator's image.
        "MALLOC_ARENA_MAX": "1",
        "MALLOC_MMAP_THRESHOLD_": "131072",
    }
    with log_path.open("wb") as log:
        started = subprocess.Popen(
            [sys.executable, "-m", "fluxpool_operator"], env=environment, stdout=log, stderr=subprocess.STDOUT
        )
    try:
        yield Operator(psutil.Process(started.pid), f"http://{HOST}:{port}/metrics")
    finally:
        if started.poll() is not None:
            sys.stderr.write(log_path.read_text()[-LOG_CHARACTERS:])
        started.send_signal(signal.SIGTERM)
        try:
            started.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            started.kill()
            started.wait()
