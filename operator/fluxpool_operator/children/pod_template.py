"""The pod template of a worker. Conforms to the restricted Pod Security Standard."""

from typing import Any, Final

from fluxpool_operator.api import FluxWorkerPool
from fluxpool_operator.api.worker import WorkerSpec
from fluxpool_operator.children.identity import (
    SECRETS_CHECKSUM_ANNOTATION,
    child_labels,
    child_name,
    omit_empty,
    selector_labels,
)
from fluxpool_operator.children.volumes import worker_volumes
from fluxpool_operator.children.worker_settings import HEALTH_PORT, container_environment

CONTAINER_NAME: Final = "worker"
PORT_NAME: Final = "http"

STARTUP_PERIOD_SECONDS: Final = 5
LIVENESS_PERIOD_SECONDS: Final = 10
LIVENESS_FAILURES: Final = 6
"""A minute: the probe shares the worker's event loop, which a busy processor can delay."""
READINESS_PERIOD_SECONDS: Final = 5


def pod_template(
    pool: FluxWorkerPool, *, secrets_checksum: str = "", host_path_allowed: bool = False
) -> dict[str, Any]:
    """Metadata and spec of the pool's pods; raises `InvalidPoolError`."""
    worker = pool.spec.worker
    volumes = worker_volumes(pool.spec, host_path_allowed=host_path_allowed)
    checksum = {SECRETS_CHECKSUM_ANNOTATION: secrets_checksum} if secrets_checksum else {}
    annotations = {**worker.pod_annotations, **checksum}
    container = {
        "name": CONTAINER_NAME,
        "image": worker.image,
        **omit_empty(imagePullPolicy=worker.image_pull_policy),
        "env": container_environment(pool),
        "ports": [{"name": PORT_NAME, "containerPort": HEALTH_PORT, "protocol": "TCP"}],
        "resources": _resources(worker),
        "volumeMounts": [volume.to_mount() for volume in volumes],
        **_probes(worker),
        # A container that is killed or fails early writes no message: the end of its log is taken.
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "readOnlyRootFilesystem": True,
        },
    }
    spec = {
        "automountServiceAccountToken": False,
        # Kubernetes would add variables for every Service, some of which look like settings.
        "enableServiceLinks": False,
        "serviceAccountName": worker.service_account_name or child_name(pool.name),
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": worker.run_as_user,
            "runAsGroup": worker.run_as_user,
            "fsGroup": worker.run_as_user,
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "terminationGracePeriodSeconds": worker.termination_grace_period_seconds,
        "containers": [container],
        "volumes": [volume.to_volume() for volume in volumes],
        **_placement(pool),
        **omit_empty(
            imagePullSecrets=[secret.to_manifest() for secret in worker.image_pull_secrets],
            priorityClassName=worker.priority_class_name,
            runtimeClassName=worker.runtime_class_name,
            schedulerName=worker.scheduler_name,
        ),
    }
    metadata = {"labels": {**worker.pod_labels, **child_labels(pool)}, **omit_empty(annotations=annotations)}
    return {"metadata": metadata, "spec": spec}


def _resources(worker: WorkerSpec) -> dict[str, Any]:
    limits = {name: str(quantity) for name, quantity in (worker.resources.limits or {}).items()}
    requests = {name: str(quantity) for name, quantity in (worker.resources.requests or {}).items()}
    if worker.gpu.count:
        # Kubernetes takes the request of an extended resource from its limit.
        limits[worker.gpu.resource_name] = str(worker.gpu.count)
    return omit_empty(limits=limits, requests=requests)


def _probes(worker: WorkerSpec) -> dict[str, Any]:
    """Probes without a `host` use the pod's IP, where the worker listens."""

    def get(path: str) -> dict[str, Any]:
        return {"httpGet": {"path": path, "port": PORT_NAME, "scheme": "HTTP"}, "timeoutSeconds": 5}

    attempts = -(-worker.startup_timeout_seconds // STARTUP_PERIOD_SECONDS)
    return {
        "startupProbe": {
            **get("/readyz"),
            "periodSeconds": STARTUP_PERIOD_SECONDS,
            "failureThreshold": attempts,
        },
        "readinessProbe": {**get("/readyz"), "periodSeconds": READINESS_PERIOD_SECONDS, "failureThreshold": 2},
        "livenessProbe": {
            **get("/healthz"),
            "periodSeconds": LIVENESS_PERIOD_SECONDS,
            "failureThreshold": LIVENESS_FAILURES,
        },
    }


def _placement(pool: FluxWorkerPool) -> dict[str, Any]:
    worker = pool.spec.worker
    tolerations = [toleration.to_manifest() for toleration in worker.tolerations]
    gpu = {"key": worker.gpu.resource_name, "operator": "Exists", "effect": "NoSchedule"}
    if worker.gpu.count and gpu not in tolerations:
        tolerations.append(gpu)
    return omit_empty(
        nodeSelector=worker.node_selector,
        affinity=worker.affinity.to_manifest() if worker.affinity else None,
        tolerations=tolerations,
        topologySpreadConstraints=_spread(pool),
    )


def _spread(pool: FluxWorkerPool) -> list[dict[str, Any]]:
    selector = {"labelSelector": {"matchLabels": selector_labels(pool)}}
    constraints = pool.spec.worker.topology_spread_constraints
    if not constraints:
        return [
            {"maxSkew": 1, "topologyKey": "kubernetes.io/hostname", "whenUnsatisfiable": "ScheduleAnyway", **selector}
        ]
    return [{**selector, **constraint.to_manifest()} for constraint in constraints]
