"""Kubernetes objects as dictionaries: the few that nearly every cluster test creates.

They comply with `restricted` Pod Security only where a test says so. Knows nothing of Fluxpool.
"""

from typing import Any

from kit.cluster.kubernetes_api import ApiError, Body, KubernetesApi
from kit.waiting import wait_until

_POD_KEYS = (
    "automountServiceAccountToken",
    "containers",
    "enableServiceLinks",
    "initContainers",
    "nodeSelector",
    "restartPolicy",
    "serviceAccountName",
    "terminationGracePeriodSeconds",
    "tolerations",
    "volumes",
)


def pod(name: str, *, node: str | None = None, image: str = "python", **spec: Any) -> Body:
    """Return a pod of one container `main`; keys of the container go to it, all others to the pod's spec.

    `node` pins it by the node selector, so that the real scheduler binds it.
    """
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": pod_spec(node, image, **spec)}


def pod_spec(node: str | None, image: str, **spec: Any) -> Body:
    """Return the spec of such a pod, for templates."""
    of_pod = {key: spec.pop(key) for key in _POD_KEYS if key in spec}
    container = {"name": "main", "image": image, **spec}
    selector = {} if node is None else {"nodeSelector": {"kubernetes.io/hostname": node}}
    # Without tokens, unless a test needs them: each costs a request.
    return {"containers": [container], "automountServiceAccountToken": False, **selector, **of_pod}


def deployment(name: str, *, replicas: int, node: str | None = None, image: str = "python", **spec: Any) -> Body:
    """Return a Deployment of such pods, labelled `app: <name>`."""
    labels = {"app": name}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": pod_spec(node, image, **spec)},
        },
    }


async def create_pod(api: KubernetesApi, namespace: str, manifest: Body) -> Body:
    """Create a pod."""
    return await api.create(f"/api/v1/namespaces/{namespace}/pods", manifest)


async def get_pod(api: KubernetesApi, namespace: str, name: str) -> Body:
    """Return a pod."""
    return await api.get(f"/api/v1/namespaces/{namespace}/pods/{name}")


async def pods_of(api: KubernetesApi, namespace: str, *, label: str = "") -> list[Body]:
    """Return the pods of a namespace, of a label selector when one is given."""
    listed = await api.get(f"/api/v1/namespaces/{namespace}/pods", labelSelector=label)
    items: list[Body] = listed["items"]
    return items


async def create_deployment(api: KubernetesApi, namespace: str, manifest: Body) -> Body:
    """Create a Deployment."""
    return await api.create(f"/apis/apps/v1/namespaces/{namespace}/deployments", manifest)


def is_ready(pod_object: Body) -> bool:
    """Whether the pod's Ready condition is True."""
    return condition(pod_object, "Ready").get("status") == "True"


def condition(owner: Body, kind: str) -> Body:
    """Return a condition of an object by its type; empty when there is none."""
    found = (one for one in owner.get("status", {}).get("conditions", []) if one["type"] == kind)
    return next(found, {})


def container_status(pod_object: Body, name: str = "main", *, kind: str = "containerStatuses") -> Body:
    """Return the status of a container; empty when there is none."""
    return next((one for one in pod_object["status"].get(kind, []) if one["name"] == name), {})


async def wait_exists(api: KubernetesApi, path: str, *, deadline_seconds: float = 30) -> Body:
    """Wait until an object exists and return it."""

    async def found() -> Body:
        try:
            return await api.get(path)
        except ApiError as error:
            if error.status != 404:
                raise
            return {}

    return await wait_until(found, deadline_seconds=deadline_seconds, what=f"{path} to exist")


async def wait_gone(api: KubernetesApi, path: str, *, deadline_seconds: float = 30) -> None:
    """Wait until an object does not exist any more."""

    async def gone() -> bool:
        try:
            await api.get(path)
        except ApiError as error:
            return error.status == 404
        return False

    await wait_until(gone, deadline_seconds=deadline_seconds, what=f"{path} to be gone")


async def events_of(api: KubernetesApi, namespace: str, name: str) -> list[tuple[str, str]]:
    """Return (reason, message) of each Event on an object."""
    listed = await api.get(f"/api/v1/namespaces/{namespace}/events", fieldSelector=f"involvedObject.name={name}")
    return [(event["reason"], event["message"]) for event in listed["items"]]
