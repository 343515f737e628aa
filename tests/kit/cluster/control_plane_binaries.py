"""The folder of the control plane's programs: KUBEBUILDER_ASSETS, or where `make control-plane` builds them.

Builds nothing itself, because that takes minutes.
"""

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

PROGRAMS = ("etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubectl", "helm")
BUILD_SCRIPT = Path(__file__).resolve().parents[3] / "hack" / "control-plane" / "build"


class BinariesMissingError(Exception):
    """Programs of the control plane are missing; the message names them and the remedy."""


def control_plane_binaries(*, environment: Mapping[str, str] = os.environ) -> Path:
    """Return the folder with all programs; raises `BinariesMissingError` when one is not there."""
    located = subprocess.run(
        [sys.executable, str(BUILD_SCRIPT), "--where"],
        env=dict(environment),
        capture_output=True,
        text=True,
        check=True,
    )
    folder = Path(located.stdout.strip())
    missing = [program for program in PROGRAMS if not os.access(folder / program, os.X_OK)]
    if not missing:
        return folder
    if environment.get("KUBEBUILDER_ASSETS"):
        raise BinariesMissingError(
            f"KUBEBUILDER_ASSETS={folder} lacks {', '.join(missing)}: put them there, or unset KUBEBUILDER_ASSETS and "
            "run `make control-plane`"
        )
    raise BinariesMissingError("the Kubernetes control plane is not built: run `make control-plane` (minutes, once)")
