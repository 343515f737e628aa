"""Paths of objects in the Kubernetes API, and Event objects about pools."""

import uuid
from collections.abc import Mapping
from datetime import datetime
from enum import StrEnum
from typing import Any, Final

from fluxpool_operator.api import API_VERSION, KIND, PLURAL, FluxWorkerPool
from fluxpool_operator.cluster.client import Body

_COMPONENT: Final = "fluxpool-operator"
_MAX_EVENT_MESSAGE_BYTES: Final = 1024
"""The API server refuses longer ones."""


class KindPath(StrEnum):
    """The kinds that the operator touches: API path and plural, with a place for the namespace."""

    POOL = f"/apis/{API_VERSION}/namespaces/{{}}/{PLURAL}"
    DEPLOYMENT = "/apis/apps/v1/namespaces/{}/deployments"
    POD = "/api/v1/namespaces/{}/pods"
    SERVICE_ACCOUNT = "/api/v1/namespaces/{}/serviceaccounts"
    POD_DISRUPTION_BUDGET = "/apis/policy/v1/namespaces/{}/poddisruptionbudgets"
    POD_MONITOR = "/apis/monitoring.coreos.com/v1/namespaces/{}/podmonitors"
    SECRET = "/api/v1/namespaces/{}/secrets"  # noqa: S105 - a path
    EVENT = "/api/v1/namespaces/{}/events"

    def collection(self, namespace: str | None) -> str:
        """All of them in a namespace, or in the cluster."""
        return self.format(namespace) if namespace else self.replace("/namespaces/{}", "")

    def object(self, namespace: str, name: str) -> str:
        """One of them."""
        return f"{self.format(namespace)}/{name}"


_OF_MANIFEST: Final = {
    "Deployment": KindPath.DEPLOYMENT,
    "ServiceAccount": KindPath.SERVICE_ACCOUNT,
    "PodDisruptionBudget": KindPath.POD_DISRUPTION_BUDGET,
    "PodMonitor": KindPath.POD_MONITOR,
}


def child_path(manifest: Mapping[str, Any]) -> str:
    """The path of a child by its manifest."""
    metadata = manifest["metadata"]
    return _OF_MANIFEST[manifest["kind"]].object(metadata["namespace"], metadata["name"])


def pool_event(pool: FluxWorkerPool, *, type: str, reason: str, message: str, now: datetime) -> Body:  # noqa: A002
    """An Event object about a pool; `type` is Normal or Warning."""
    time = now.strftime("%Y-%m-%dT%H:%M:%SZ")
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": f"{pool.name}.{uuid.uuid4().hex[:16]}", "namespace": pool.namespace},
        "involvedObject": {
            "apiVersion": API_VERSION,
            "kind": KIND,
            "name": pool.name,
            "namespace": pool.namespace,
            "uid": pool.metadata.uid,
        },
        "type": type,
        "reason": reason,
        "message": message.encode()[:_MAX_EVENT_MESSAGE_BYTES].decode(errors="ignore"),
        "firstTimestamp": time,
        "lastTimestamp": time,
        "count": 1,
        "source": {"component": _COMPONENT},
        "reportingComponent": _COMPONENT,
    }
