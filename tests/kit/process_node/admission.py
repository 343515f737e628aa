"""Which fields of a pod this node supports, which it ignores on purpose, and which it refuses.

An allowlist: unknown fields are refused, because tests of a pod that silently ignores its spec would prove nothing.
"""

from collections.abc import Iterator, Mapping

from kit.cluster.kubernetes_api import Body


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


_POD = _names(
    "affinity automountServiceAccountToken containers dnsPolicy enableServiceLinks imagePullSecrets initContainers "
    "nodeName nodeSelector preemptionPolicy priority priorityClassName restartPolicy schedulerName schedulingGates "
    "securityContext serviceAccount serviceAccountName terminationGracePeriodSeconds tolerations "
    "topologySpreadConstraints volumes"
)
_CONTAINER = _names(
    "args command env envFrom image imagePullPolicy lifecycle livenessProbe name ports readinessProbe resizePolicy "
    "resources securityContext startupProbe terminationMessagePath terminationMessagePolicy volumeMounts "
    "workingDir"
)
_INIT_CONTAINER = _CONTAINER - {"lifecycle", "livenessProbe", "readinessProbe", "startupProbe"}
_VOLUMES = _names("configMap downwardAPI emptyDir hostPath projected secret")
_PROJECTED = _names("configMap downwardAPI secret serviceAccountToken")
_MOUNT = _names("mountPath name readOnly subPath")
_PROBE = _names(
    "exec failureThreshold httpGet initialDelaySeconds periodSeconds successThreshold tcpSocket "
    "terminationGracePeriodSeconds timeoutSeconds"
)
_HTTP_GET = _names("httpHeaders path port scheme")
_TCP_SOCKET = frozenset({"port"})
_VALUE_SOURCES = _names("configMapKeyRef fieldRef resourceFieldRef secretKeyRef")
_PROBES = ("startupProbe", "readinessProbe", "livenessProbe")
# Programs run as the user of the agent, with the machine's own kernel settings.
_UNHONOURED_SECURITY = _names(
    "allowPrivilegeEscalation appArmorProfile capabilities fsGroup fsGroupChangePolicy procMount runAsGroup "
    "runAsNonRoot runAsUser seLinuxOptions seccompProfile supplementalGroups supplementalGroupsPolicy sysctls"
)
_UNHONOURED_RESOURCES = frozenset({"cpu", "ephemeral-storage"})


def refused_fields(pod: Body) -> list[str]:
    """Return the paths of fields that this node neither supports nor may ignore; empty when the pod may run."""
    return sorted(set(_refused(pod["spec"])))


def unhonoured_fields(pod: Body) -> list[str]:
    """Return the paths of fields that are accepted without effect on this node."""
    return sorted(set(_unhonoured(pod["spec"])))


def _refused(spec: Body) -> Iterator[str]:
    yield from _beyond("spec", spec, _POD)
    for volume in spec.get("volumes", []):
        path = f"spec.volumes[{volume['name']}]"
        yield from _beyond(path, volume, _VOLUMES | {"name"})
        for number, source in enumerate(volume.get("projected", {}).get("sources", [])):
            yield from _beyond(f"{path}.projected.sources[{number}]", source, _PROJECTED)
    for container in spec.get("initContainers", []):
        yield from _refused_container(f"spec.initContainers[{container['name']}]", container, _INIT_CONTAINER)
    for container in spec["containers"]:
        yield from _refused_container(f"spec.containers[{container['name']}]", container, _CONTAINER)


def _refused_container(path: str, container: Body, known: frozenset[str]) -> Iterator[str]:
    yield from _beyond(path, container, known)
    if container.get("securityContext", {}).get("privileged"):
        yield f"{path}.securityContext.privileged"
    for mount in container.get("volumeMounts", []):
        yield from _beyond(f"{path}.volumeMounts[{mount['name']}]", mount, _MOUNT)
    for entry in container.get("env", []):
        yield from _beyond(f"{path}.env[{entry['name']}].valueFrom", entry.get("valueFrom", {}), _VALUE_SOURCES)
    for name in _PROBES:
        probe = container.get(name, {})
        yield from _beyond(f"{path}.{name}", probe, _PROBE)
        # A `host` would send the request to another machine than the pod.
        yield from _beyond(f"{path}.{name}.httpGet", probe.get("httpGet", {}), _HTTP_GET)
        yield from _beyond(f"{path}.{name}.tcpSocket", probe.get("tcpSocket", {}), _TCP_SOCKET)
    lifecycle = container.get("lifecycle", {})
    yield from _beyond(f"{path}.lifecycle", lifecycle, frozenset({"preStop"}))
    yield from _beyond(f"{path}.lifecycle.preStop", lifecycle.get("preStop", {}), frozenset({"exec", "sleep"}))


def _unhonoured(spec: Body) -> Iterator[str]:
    yield from _within("spec.securityContext", spec.get("securityContext") or {}, _UNHONOURED_SECURITY)
    for volume in spec.get("volumes", []):
        # Memory is an ordinary folder here, and folders have no size limit.
        empty_dir = volume.get("emptyDir") or {}
        yield from _within(f"spec.volumes[{volume['name']}].emptyDir", empty_dir, frozenset({"medium", "sizeLimit"}))
    for kind in ("initContainers", "containers"):
        for container in spec.get(kind, []):
            path = f"spec.{kind}[{container['name']}]"
            security = container.get("securityContext") or {}
            yield from _within(f"{path}.securityContext", security, _UNHONOURED_SECURITY)
            limits = (container.get("resources") or {}).get("limits") or {}
            yield from _within(f"{path}.resources.limits", limits, _UNHONOURED_RESOURCES)


def _beyond(path: str, found: Mapping[str, object], known: frozenset[str]) -> Iterator[str]:
    # False and empty equal an absent field.
    yield from (f"{path}.{name}" for name, value in found.items() if name not in known and value)


def _within(path: str, found: Mapping[str, object], known: frozenset[str]) -> Iterator[str]:
    yield from (f"{path}.{name}" for name in found if name in known)
