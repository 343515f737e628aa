"""Metadata of a pool's children: names, labels, annotations and owner references."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any, Final

from fluxpool_operator.api import API_VERSION, GROUP, KIND, FluxWorkerPool

FIELD_MANAGER: Final = "fluxpool-operator"
"""Field manager of the operator's applies."""

MANAGED_BY: Final = {"app.kubernetes.io/managed-by": FIELD_MANAGER}
"""Label of everything that the operator creates; the watches select by it."""

POOL_LABEL: Final = f"{GROUP}/pool"
TEMPLATE_HASH_ANNOTATION: Final = f"{GROUP}/template-hash"
"""On the Deployment: identifies the pod template."""
SECRETS_CHECKSUM_ANNOTATION: Final = f"{GROUP}/secrets-checksum"
"""On pods: a changed Secret makes new pods."""


def child_name(pool_name: str) -> str:
    """The name that a pool's Deployment, service account, budget and monitor share."""
    return f"{pool_name}-worker"


def selector_labels(pool: FluxWorkerPool) -> dict[str, str]:
    """Labels by which the pool's pods are found. They never change: a Deployment's selector cannot."""
    return {"app.kubernetes.io/name": "fluxpool-worker", POOL_LABEL: pool.name}


def selector_text(pool: FluxWorkerPool) -> str:
    """The label selector as text, for `status.selector`."""
    return ",".join(f"{name}={value}" for name, value in sorted(selector_labels(pool).items()))


def child_labels(pool: FluxWorkerPool) -> dict[str, str]:
    """Labels of every child."""
    return {
        **selector_labels(pool),
        **MANAGED_BY,
        "app.kubernetes.io/component": "worker",
        "app.kubernetes.io/instance": pool.name,
        "app.kubernetes.io/part-of": "fluxpool",
    }


def child_metadata(pool: FluxWorkerPool, *, annotations: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Metadata of a child in the pool's namespace; the garbage collector deletes it with the pool."""
    owner = {
        "apiVersion": API_VERSION,
        "kind": KIND,
        "name": pool.name,
        "uid": pool.metadata.uid,
        "controller": True,
        "blockOwnerDeletion": True,
    }
    return {
        "name": child_name(pool.name),
        "namespace": pool.namespace,
        "labels": child_labels(pool),
        **omit_empty(annotations=dict(annotations or {})),
        "ownerReferences": [owner],
    }


def manifest_hash(manifest: Mapping[str, Any]) -> str:
    """Short hash of a manifest, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()[:16]


def omit_empty(**fields: Any) -> dict[str, Any]:
    """The fields that have a value. Server-side apply would take ownership of an empty one."""
    return {name: value for name, value in fields.items() if value}
