"""Events on pods, as `kubectl describe pod` and `kubectl get events` show them."""

import asyncio
import uuid

import structlog

from kit.cluster.kubernetes_api import ApiError, ApiUnreachableError, Body, KubernetesApi
from kit.cluster.kubernetes_node import timestamp

_log = structlog.get_logger(__name__)
_COMPONENT = "process-node"
# The API server's limit of an Event's message.
_MESSAGE_CHARACTERS = 1024


class EventRecorder:
    """Writes Events in the name of one node; an Event that cannot be written is logged, never an error."""

    def __init__(self, api: KubernetesApi, *, node: str) -> None:
        """Take the node's client."""
        self._api = api
        self._node = node

    async def emit(self, pod: Body, *, kind: str, reason: str, message: str) -> None:
        """Write one; `kind` is Normal or Warning."""
        metadata, now = pod["metadata"], timestamp()
        namespace = metadata["namespace"]
        event = {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"name": f"{metadata['name'][:200]}.{uuid.uuid4().hex[:16]}", "namespace": namespace},
            "involvedObject": {
                "apiVersion": "v1",
                "kind": "Pod",
                "name": metadata["name"],
                "namespace": namespace,
                "uid": metadata["uid"],
            },
            "type": kind,
            "reason": reason,
            "message": message[:_MESSAGE_CHARACTERS],
            "source": {"component": _COMPONENT, "host": self._node},
            "reportingComponent": _COMPONENT,
            "reportingInstance": self._node,
            "firstTimestamp": now,
            "lastTimestamp": now,
            "count": 1,
        }
        try:
            # An Event must never delay its subject.
            async with asyncio.timeout(5):
                await self._api.create(f"/api/v1/namespaces/{namespace}/events", event)
        except (ApiError, ApiUnreachableError, TimeoutError) as error:
            _log.warning("event_not_written", pod=metadata["name"], reason=reason, message=message, error=str(error))
