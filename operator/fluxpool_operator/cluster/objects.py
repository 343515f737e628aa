"""Where objects live in the Kubernetes API."""

from collections.abc import Mapping
from enum import StrEnum
from typing import Any, Final

from fluxpool_operator.api import API_VERSION, PLURAL

POOLS_PATH: Final = f"/apis/{API_VERSION}"


class KindPath(StrEnum):
    """The kinds that the operator touches beside pools: API path and plural, with a place for the namespace."""

    DEPLOYMENT = "/apis/apps/v1/namespaces/{}/deployments"
    POD = "/api/v1/namespaces/{}/pods"
    SERVICE_ACCOUNT = "/api/v1/namespaces/{}/serviceaccounts"
    POD_DISRUPTION_BUDGET = "/apis/policy/v1/namespaces/{}/poddisruptionbudgets"
    POD_MONITOR = "/apis/monitoring.coreos.com/v1/namespaces/{}/podmonitors"
    SECRET = "/api/v1/namespaces/{}/secrets"  # noqa: S105 - a path
    EVENT = "/api/v1/namespaces/{}/events"

    def collection(self, namespace: str) -> str:
        """All of them in a namespace."""
        return self.format(namespace)

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


def pool_path(namespace: str, name: str, *, subresource: str = "") -> str:
    """The path of a pool, or of its status."""
    path = f"{POOLS_PATH}/namespaces/{namespace}/{PLURAL}/{name}"
    return f"{path}/{subresource}" if subresource else path


def listing_path(path: str, *, namespace: str | None) -> str:
    """A collection's path for one namespace, or for all of the cluster."""
    return path.format(namespace) if namespace else path.replace("/namespaces/{}", "")
