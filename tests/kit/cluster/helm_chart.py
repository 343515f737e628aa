"""The chart rendered by Helm without a cluster, and queries of the rendered objects.

Knows Helm and Kubernetes' pod fields, but not the expected content of Fluxpool's chart.
"""

import json
import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml

from kit.cluster.control_plane_binaries import BinariesMissingError, control_plane_binaries
from kit.cluster.kubernetes_api import Body
from kit.waiting import PATIENCE

CHART: Final = Path(__file__).parents[3] / "charts" / "fluxpool"
CI_VALUES: Final = tuple(sorted((CHART / "ci").glob("*-values.yaml")))
"""One values file for each supported kind of installation."""

RELEASE: Final = "demo"
NAMESPACE: Final = "images"

_ALLOWED_VOLUMES: Final = frozenset(
    {
        "configMap",
        "csi",
        "downwardAPI",
        "emptyDir",
        "ephemeral",
        "persistentVolumeClaim",
        "projected",
        "secret",
    }
)


class HelmError(Exception):
    """Helm failed; the message is its output."""


def helm_program() -> Path:
    """Helm of the control plane's build, else one on the PATH; raises `BinariesMissingError`."""
    try:
        return control_plane_binaries() / "helm"
    except BinariesMissingError as error:
        if found := shutil.which("helm"):
            return Path(found)
        raise BinariesMissingError(f"{error}; or put helm on the PATH") from None


@dataclass(frozen=True, slots=True)
class Helm:
    """A Helm client without a cluster, with folders of its own."""

    program: Path
    home: Path

    def run(self, *arguments: str) -> str:
        """Run a command; returns its standard output, raises `HelmError`."""
        finished = subprocess.run(
            [str(self.program), *arguments],
            env={"PATH": os.environ["PATH"], "HOME": str(self.home)},
            capture_output=True,
            text=True,
            check=False,
            timeout=60 * PATIENCE,
        )
        if finished.returncode:
            raise HelmError(f"{finished.stderr}{finished.stdout}".strip())
        return finished.stdout

    def render(
        self,
        *files: Path,
        values: Mapping[str, Any] | None = None,
        release: str = RELEASE,
        namespace: str = NAMESPACE,
    ) -> list[Body]:
        """All objects of the chart with values files and, over them, values."""
        output = self.run("template", release, str(CHART), "--namespace", namespace, *_flags(files, values))
        return [found for found in yaml.safe_load_all(output) if found]

    @staticmethod
    def flags(values: Mapping[str, Any]) -> list[str]:
        """Values as arguments of a command."""
        return _flags((), values)

    def notes(self, *files: Path, values: Mapping[str, Any] | None = None) -> str:
        """The notes printed after an installation."""
        arguments = ("--dry-run=client", "--namespace", NAMESPACE, *_flags(files, values))
        return self.run("install", RELEASE, str(CHART), *arguments).partition("\nNOTES:\n")[2]


def _flags(files: Sequence[Path], values: Mapping[str, Any] | None) -> list[str]:
    flags = [f"--values={path}" for path in files]
    return [*flags, *(f"--set-json={name}={json.dumps(value)}" for name, value in (values or {}).items())]


def of_kind(objects: Sequence[Body], kind: str) -> list[Body]:
    """The objects of a kind."""
    return [found for found in objects if found["kind"] == kind]


def only(objects: Sequence[Body], kind: str, *, suffix: str = "") -> Body:
    """The one object of a kind, or the one whose name ends so."""
    (found,) = [found for found in of_kind(objects, kind) if found["metadata"]["name"].endswith(suffix)]
    return found


def containers_of(objects: list[Body], component: str) -> list[Body]:
    """The containers of a component's Deployment."""
    return list(only(objects, "Deployment", suffix=f"-{component}")["spec"]["template"]["spec"]["containers"])


def pod_specs(objects: Sequence[Body]) -> dict[str, Body]:
    """The specs of all pods and pod templates, by kind and name."""
    specs = {}
    for found in objects:
        name = f"{found['kind']}/{found['metadata']['name']}"
        if found["kind"] == "Pod":
            specs[name] = found["spec"]
        elif "template" in found.get("spec", {}):
            specs[name] = found["spec"]["template"]["spec"]
    return specs


def environment(container: Body) -> dict[str, str]:
    """A container's variables; one that comes from elsewhere has the name of its kind of source as value."""
    return {
        variable["name"]: variable.get("value") or next(iter(variable["valueFrom"]))
        for variable in container.get("env", ())
    }


def restricted_violations(spec: Body) -> list[str]:
    """Violations of the restricted Pod Security Standard in a pod's spec.

    https://kubernetes.io/docs/concepts/security/pod-security-standards/
    """
    return [*_pod_violations(spec), *(found for one in _containers(spec) for found in _container_violations(spec, one))]


def _containers(spec: Body) -> list[Body]:
    return [*spec["containers"], *spec.get("initContainers", ())]


def _pod_violations(spec: Body) -> Iterator[str]:
    for field in ("hostNetwork", "hostPID", "hostIPC"):
        if spec.get(field):
            yield field
    if spec.get("securityContext", {}).get("sysctls"):
        yield "securityContext.sysctls"
    for volume in spec.get("volumes", ()):
        if not volume.keys() - {"name"} <= _ALLOWED_VOLUMES:
            yield f"volumes[{volume['name']}]"


def _container_violations(spec: Body, container: Body) -> Iterator[str]:
    name = container["name"]
    own = container.get("securityContext", {})
    effective = {**spec.get("securityContext", {}), **own}
    if own.get("privileged"):
        yield f"{name}: privileged"
    if own.get("allowPrivilegeEscalation") is not False:
        yield f"{name}: allowPrivilegeEscalation"
    capabilities = own.get("capabilities", {})
    if "ALL" not in capabilities.get("drop", ()) or not set(capabilities.get("add", ())) <= {"NET_BIND_SERVICE"}:
        yield f"{name}: capabilities"
    if effective.get("runAsNonRoot") is not True:
        yield f"{name}: runAsNonRoot"
    if effective.get("runAsUser") == 0:
        yield f"{name}: runAsUser"
    if effective.get("seccompProfile", {}).get("type") not in ("RuntimeDefault", "Localhost"):
        yield f"{name}: seccompProfile"
    if any(port.get("hostPort") for port in container.get("ports", ())):
        yield f"{name}: hostPort"
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        if container.get(probe, {}).get("httpGet", {}).get("host"):
            yield f"{name}: {probe} host"
