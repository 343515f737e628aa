"""All children of a pool as manifests for server-side apply."""

from dataclasses import dataclass
from typing import Any, Final

from fluxpool_operator.api import FluxWorkerPool
from fluxpool_operator.children.identity import (
    TEMPLATE_HASH_ANNOTATION,
    child_metadata,
    manifest_hash,
    selector_labels,
)
from fluxpool_operator.children.pod_template import PORT_NAME, pod_template

PROGRESS_MARGIN_SECONDS: Final = 600
"""Added to the start-up limit of a worker: for scheduling and pulling an image of several gigabytes."""
REVISIONS_KEPT: Final = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Children:
    """The children that the spec asks for; others are obsolete."""

    deployment: dict[str, Any]
    pod_disruption_budget: dict[str, Any]
    service_account: dict[str, Any] | None
    """None when the pool names a service account."""
    pod_monitor: dict[str, Any] | None

    @property
    def template_hash(self) -> str:
        """Identifies the pod template; a new one makes new pods."""
        return str(self.deployment["metadata"]["annotations"][TEMPLATE_HASH_ANNOTATION])

    def in_order(self) -> tuple[dict[str, Any], ...]:
        """The manifests in the order of their applies: what pods need comes before the Deployment."""
        manifests = (self.service_account, self.pod_disruption_budget, self.pod_monitor, self.deployment)
        return tuple(manifest for manifest in manifests if manifest is not None)


def render_children(
    pool: FluxWorkerPool,
    *,
    replicas: int,
    max_unavailable: int = 1,
    secrets_checksum: str = "",
    host_path_allowed: bool = False,
) -> Children:
    """The children of a pool. Equal arguments give equal manifests, whatever the version of the operator.

    `max_unavailable` is the Deployment's, see `workload.rollout_width`. Raises `InvalidPoolError` for a pool that
    cannot be rendered and `ValueError` for numbers out of range.
    """
    if replicas < 0 or max_unavailable < 1:
        raise ValueError(f"replicas must be at least 0 and max_unavailable 1, got {replicas} and {max_unavailable}")
    template = pod_template(pool, secrets_checksum=secrets_checksum, host_path_allowed=host_path_allowed)
    return Children(
        deployment=_deployment(pool, template=template, replicas=replicas, max_unavailable=max_unavailable),
        pod_disruption_budget=_pod_disruption_budget(pool),
        service_account=None if pool.spec.worker.service_account_name else _service_account(pool),
        pod_monitor=_pod_monitor(pool),
    )


def _deployment(
    pool: FluxWorkerPool, *, template: dict[str, Any], replicas: int, max_unavailable: int
) -> dict[str, Any]:
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": child_metadata(pool, annotations={TEMPLATE_HASH_ANNOTATION: manifest_hash(template)}),
        "spec": {
            "replicas": replicas,
            "revisionHistoryLimit": REVISIONS_KEPT,
            "progressDeadlineSeconds": pool.spec.worker.startup_timeout_seconds + PROGRESS_MARGIN_SECONDS,
            "selector": {"matchLabels": selector_labels(pool)},
            # No surge: a replacement would wait for the GPU of its predecessor.
            "strategy": {
                "type": "RollingUpdate",
                "rollingUpdate": {"maxSurge": 0, "maxUnavailable": max_unavailable},
            },
            "template": template,
        },
    }


def _service_account(pool: FluxWorkerPool) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "ServiceAccount",
        "metadata": child_metadata(pool, annotations=pool.spec.worker.service_account_annotations),
        "automountServiceAccountToken": False,
    }


def _pod_disruption_budget(pool: FluxWorkerPool) -> dict[str, Any]:
    return {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": child_metadata(pool),
        "spec": {
            "maxUnavailable": pool.spec.disruption.max_unavailable,
            "selector": {"matchLabels": selector_labels(pool)},
            # A pod that loads its model holds no task and must not block the drain of a node.
            "unhealthyPodEvictionPolicy": "AlwaysAllow",
        },
    }


def _pod_monitor(pool: FluxWorkerPool) -> dict[str, Any] | None:
    monitor = pool.spec.pod_monitor
    if monitor is None:
        return None
    metadata = child_metadata(pool)
    return {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PodMonitor",
        "metadata": {**metadata, "labels": {**monitor.labels, **metadata["labels"]}},
        "spec": {
            "selector": {"matchLabels": selector_labels(pool)},
            "podMetricsEndpoints": [
                {"port": PORT_NAME, "path": "/metrics", "interval": f"{monitor.interval_seconds}s"}
            ],
        },
    }
