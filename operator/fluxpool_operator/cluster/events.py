"""Events about pools, as `kubectl describe` shows them."""

import uuid
from datetime import datetime
from typing import Final

from fluxpool_operator.api import API_VERSION, KIND, FluxWorkerPool
from fluxpool_operator.cluster.client import Body

COMPONENT: Final = "fluxpool-operator"
MAX_MESSAGE_BYTES: Final = 1024
"""The API server refuses longer ones."""


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
        "message": message.encode()[:MAX_MESSAGE_BYTES].decode(errors="ignore"),
        "firstTimestamp": time,
        "lastTimestamp": time,
        "count": 1,
        "source": {"component": COMPONENT},
        "reportingComponent": COMPONENT,
    }
