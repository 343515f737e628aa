"""Node objects like those of a kubelet: registration, status and the Lease as heartbeat.

Knows nothing of pods. Without a renewed Lease the node controller taints a node after 50 s and its pods turn NotReady.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

import httpx

from kit.cluster.kubernetes_api import ApiError, Body, KubernetesApi, PatchType

_LEASE_SECONDS = 40
_LEASES = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases"
_DEFAULT_CAPACITY = {"cpu": "64", "memory": "512Gi", "ephemeral-storage": "1Ti", "pods": "250"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Taint:
    """A taint of a node; `effect` is NoSchedule, PreferNoSchedule or NoExecute."""

    key: str
    value: str = ""
    effect: str = "NoSchedule"


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeSpec:
    """Labels, taints and capacity of a node; `capacity` is added to generous amounts of cpu, memory and pods."""

    name: str
    capacity: Mapping[str, str] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
    taints: Sequence[Taint] = ()
    heartbeat_interval_seconds: float = 10.0
    """The kubelet's own: a quarter of the Lease."""

    @property
    def full_capacity(self) -> dict[str, str]:
        """Every resource with its amount."""
        return _DEFAULT_CAPACITY | dict(self.capacity)


def timestamp() -> str:
    """Return the present time as the API server writes it, in whole seconds."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


async def register_node(api: KubernetesApi, spec: NodeSpec, *, address: str) -> None:
    """Create the Node when it is not there, then report it Ready with its capacity.

    An existing Node keeps its labels and taints, as with a restarted kubelet.
    """
    node = {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {
            "name": spec.name,
            "labels": {"kubernetes.io/hostname": spec.name, "kubernetes.io/os": "linux", **spec.labels},
        },
        "spec": {"taints": [{"key": taint.key, "value": taint.value, "effect": taint.effect} for taint in spec.taints]},
    }
    try:
        await api.create("/api/v1/nodes", node)
    except ApiError as error:
        if error.status != httpx.codes.CONFLICT:
            raise
    await renew_node(api, spec, address=address)


async def renew_node(api: KubernetesApi, spec: NodeSpec, *, address: str) -> None:
    """Renew the Lease and report the status; one heartbeat."""
    await _renew_lease(api, spec.name)
    now = timestamp()
    ready = {
        "type": "Ready",
        "status": "True",
        "reason": "KubeletReady",
        "message": "the test kit's node agent is posting ready status",
        "lastHeartbeatTime": now,
    }
    status: Body = {
        "capacity": spec.full_capacity,
        "allocatable": spec.full_capacity,
        "conditions": [ready],
        "addresses": [{"type": "InternalIP", "address": address}, {"type": "Hostname", "address": spec.name}],
        "nodeInfo": {
            "kubeletVersion": "v1.36.3",
            "operatingSystem": "linux",
            "architecture": "amd64",
            "containerRuntimeVersion": "process://1",
            "kernelVersion": "",
            "osImage": "",
            "machineID": "",
            "systemUUID": "",
            "bootID": "",
            "kubeProxyVersion": "",
        },
    }
    await api.patch(f"/api/v1/nodes/{spec.name}/status", {"status": status}, patch_type=PatchType.STRATEGIC)


async def _renew_lease(api: KubernetesApi, node: str) -> None:
    spec = {
        "holderIdentity": node,
        "leaseDurationSeconds": _LEASE_SECONDS,
        "renewTime": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
    }
    try:
        await api.patch(f"{_LEASES}/{node}", {"spec": spec})
    except ApiError as error:
        if error.status != httpx.codes.NOT_FOUND:
            raise
        lease = {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": node}, "spec": spec}
        await api.create(_LEASES, lease)
