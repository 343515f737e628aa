"""What a pool's children are called: names, labels, annotations and the reference to their owner."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any, Final

from fluxpool_operator.api import API_VERSION, GROUP, KIND, FluxWorkerPool

FIELD_MANAGER: Final = "fluxpool-operator"
"""Under which the operator applies children."""

MANAGED_BY: Final = {"app.kubernetes.io/managed-by": FIELD_MANAGER}
"""Label of everything that the operator makes; watches ask for it."""

POOL_LABEL: Final = f"{GROUP}/pool"
TEMPLATE_HASH_ANNOTATION: Final = f"{GROUP}/template-hash"
"""On the Deployment: identifies the pod template."""
SECRETS_CHECKSUM_ANNOTATION: Final = f"{GROUP}/secrets-checksum"
"""On pods: new secrets make new pods."""


def child_name(pool: FluxWorkerPool) -> str:
    """The name that the Deployment, its service account, budget and monitor share."""
    return child_name_of(pool.name)


def child_name_of(pool_name: str) -> str:
    """The same by the name of the pool."""
    return f"{pool_name}-worker"


def selector_labels(pool: FluxWorkerPool) -> dict[str, str]:
    """Labels by which the pool's pods are found. They never change: a Deployment's selector cannot."""
    return {"app.kubernetes.io/name": "fluxpool-worker", POOL_LABEL: pool.name}


def selector_text(pool: FluxWorkerPool) -> str:
    """The same as text, for `status.selector`."""
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
    """Metadata of a child: in the pool's namespace, deleted with the pool."""
    owner = {
        "apiVersion": API_VERSION,
        "kind": KIND,
        "name": pool.name,
        "uid": pool.metadata.uid,
        "controller": True,
        "blockOwnerDeletion": True,
    }
    return {
        "name": child_name(pool),
        "namespace": pool.namespace,
        "labels": child_labels(pool),
        **({"annotations": dict(annotations)} if annotations else {}),
        "ownerReferences": [owner],
    }


def manifest_hash(manifest: Mapping[str, Any]) -> str:
    """Short name of a manifest's content, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()[:16]
