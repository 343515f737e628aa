"""A container's command line and environment as Kubernetes defines them, from the pod and its image only.

Owns `$(VAR)` expansion, the order of sources and the variables of Services. Nothing of the agent's own environment is
passed on.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from kit.cluster.kubernetes_api import Body
from kit.process_node.pod_references import MissingReferenceError, PodReferences

_EXPANSION = re.compile(r"\$(?:\$|\(([^)]*)\))")
_DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessImage:
    """An image: a program on this machine, in the fields of an image configuration."""

    entrypoint: Sequence[str] = ()
    cmd: Sequence[str] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    working_dir: str = "/"
    forked: bool = False
    """Whether its containers are forked from a process that has imported their program (`kit.programs.warm_start`)."""
    folders: Sequence[str] = ()
    """Folders of this machine that belong to the image: visible, read-only, when a volume is mounted above them."""


def command_line(container: Body, image: ProcessImage, variables: Mapping[str, str]) -> list[str]:
    """Return the arguments to execute: `command` replaces both of the image's parts, `args` the second one.

    Only `variables`, those of the container without its image's, are expanded. Raises `ValueError` when there is
    nothing to execute.
    """
    head = [expand(text, variables) for text in container.get("command") or ()] or list(image.entrypoint)
    tail = [expand(text, variables) for text in container.get("args") or ()]
    if not (tail or container.get("command")):
        tail = list(image.cmd)
    if not (head or tail):
        raise ValueError(f"container {container['name']!r}: neither the pod nor the image says what to execute")
    return head + tail


async def container_variables(container: Body, references: PodReferences, *, api_server: str) -> dict[str, str]:
    """Return the variables that the pod defines for a container; raises `MissingReferenceError`."""
    known: dict[str, str] = {}
    if references.pod["spec"].get("enableServiceLinks", True):
        for service in await references.services():
            known |= service_variables(service)
    known |= api_server_variables(api_server)
    for source in container.get("envFrom", []):
        known |= await _whole_source(source, references)
    for entry in container.get("env", []):
        value = await _one_value(entry, known, references, container=container)
        if value is not None:
            known[entry["name"]] = value
    return known


def whole_environment(variables: Mapping[str, str], image: ProcessImage, *, hostname: str) -> dict[str, str]:
    """Return the environment of the process: the runtime's variables, overridden by the image's and the container's."""
    return {"PATH": _DEFAULT_PATH, "HOSTNAME": hostname, "HOME": "/root", **image.environment, **variables}


def expand(text: str, known: Mapping[str, str]) -> str:
    """Replace `$(NAME)` by a known variable; `$$` is a dollar sign, unknown names stay as they are."""

    def replacement(found: re.Match[str]) -> str:
        if found[0] == "$$":
            return "$"
        return known.get(found[1], found[0])

    return _EXPANSION.sub(replacement, text)


def api_server_variables(server: str) -> dict[str, str]:
    """Return the variables from which a client in the cluster gets the API server's address."""
    parts = urlsplit(server)
    port = str(parts.port or 443)
    return {
        "KUBERNETES_SERVICE_HOST": parts.hostname or "",
        "KUBERNETES_SERVICE_PORT": port,
        "KUBERNETES_SERVICE_PORT_HTTPS": port,
    }


def service_variables(service: Body) -> dict[str, str]:
    """Return the Docker-style variables of a Service; they can collide with settings of the same prefix."""
    address, ports = service["spec"].get("clusterIP"), service["spec"].get("ports") or []
    if not ports or address in (None, "", "None"):
        return {}
    prefix = service["metadata"]["name"].upper().replace("-", "_")
    first = ports[0]
    protocol = first.get("protocol", "TCP").lower()
    values = {
        f"{prefix}_SERVICE_HOST": address,
        f"{prefix}_SERVICE_PORT": str(first["port"]),
        f"{prefix}_PORT": f"{protocol}://{address}:{first['port']}",
    }
    for port in ports:
        number, kind = port["port"], port.get("protocol", "TCP")
        if port.get("name"):
            values[f"{prefix}_SERVICE_PORT_{port['name'].upper().replace('-', '_')}"] = str(number)
        link = f"{prefix}_PORT_{number}_{kind}"
        values |= {
            link: f"{kind.lower()}://{address}:{number}",
            f"{link}_PROTO": kind.lower(),
            f"{link}_PORT": str(number),
            f"{link}_ADDR": address,
        }
    return values


async def _whole_source(source: Body, references: PodReferences) -> dict[str, str]:
    if "secretRef" in source:
        reference = source["secretRef"]
        found = await references.secret(reference["name"], optional=bool(reference.get("optional")))
    else:
        reference = source["configMapRef"]
        found = await references.config_map(reference["name"], optional=bool(reference.get("optional")))
    prefix = source.get("prefix", "")
    return {f"{prefix}{key}": value.decode() for key, value in (found or {}).items()}


async def _one_value(
    entry: Body, known: Mapping[str, str], references: PodReferences, *, container: Body
) -> str | None:
    source = entry.get("valueFrom")
    if source is None:
        return expand(entry.get("value", ""), known)
    if "fieldRef" in source:
        return references.field(source["fieldRef"]["fieldPath"])
    if "resourceFieldRef" in source:
        return references.resource_field(source["resourceFieldRef"], container=container)
    if "secretKeyRef" in source:
        kind, reference = "secret", source["secretKeyRef"]
        found = await references.secret(reference["name"], optional=bool(reference.get("optional")))
    else:
        kind, reference = "configmap", source["configMapKeyRef"]
        found = await references.config_map(reference["name"], optional=bool(reference.get("optional")))
    value = (found or {}).get(reference["key"])
    if value is not None:
        return value.decode()
    if reference.get("optional"):
        return None
    raise MissingReferenceError(f"couldn't find key {reference['key']} in {kind} {reference['name']}")
