"""Minimal and accepted pools, for unit and cluster tests."""

import copy
from collections.abc import Mapping
from typing import Any, Final

REMOVED: Final = object()
"""As a value of an edit: remove the field."""

MINIMAL_SPEC: Final[dict[str, Any]] = {
    "kafka": {"bootstrapServers": ["kafka:9092"]},
    "scaling": {"maxReplicas": 6},
    "storage": {"url": "s3://images/"},
    "worker": {"image": "fluxpool-worker:dev"},
}

FULL_SPEC: Final[dict[str, Any]] = {
    "replicas": 2,
    "paused": False,
    "model": {
        "id": "black-forest-labs/FLUX.1-dev",
        "revision": "3de623fc3c33e44ffbe2bad470d0f45bccf2eb21",
        "dtype": "bfloat16",
        "encoderDtype": "bfloat16",
        "device": "cuda",
        "offload": "never",
        "quality": {"default": "fast", "allowed": ["exact", "fast"]},
        "tokenSecretRef": {"name": "hub"},
        "cache": {"persistentVolumeClaim": {"claimName": "checkpoints", "readOnly": True}},
    },
    "kafka": {
        "bootstrapServers": ["kafka-0.kafka:9093", "kafka-1.kafka:9093", "[2001:db8::1]:9093"],
        "security": {
            "protocol": "SASL_SSL",
            "saslMechanism": "SCRAM-SHA-512",
            "credentialsSecretRef": {"name": "kafka-user", "usernameKey": "user"},
            "caSecretRef": {"name": "kafka-ca"},
            "clientCertificateSecretRef": {"name": "kafka-client", "passwordKey": "pass"},
        },
        "consumerGroup": "flux-eu",
        "lanes": [
            {"name": "standard", "topic": "flux-generation-tasks"},
            {"name": "vip", "topic": "flux-generation-tasks-vip", "preference": 10},
            {"name": "bulk", "topic": "flux-bulk", "consumerGroup": "bulk-readers"},
        ],
        "topics": {"results": "answers", "retry": ["again-1m", "again-10m"]},
        "manageTopics": True,
        "topicLayout": {"taskPartitions": 24, "replicationFactor": 2},
        "offsetRetentionDays": 30,
    },
    "scaling": {
        "mode": "Shadow",
        "minReplicas": 1,
        "maxReplicas": 12,
        "targetLagPerReplica": 8,
        "activationLag": 2,
        "pollIntervalSeconds": 10,
        "idleGracePeriodSeconds": 600,
        "scaleUp": {"stabilizationWindowSeconds": 5, "maxStepPods": 4},
        "scaleDown": {"stabilizationWindowSeconds": 90, "maxStepPods": 1, "periodSeconds": 30},
        "onLagUnavailable": {"policy": "Fallback", "replicas": 3, "staleAfterSeconds": 45},
    },
    "retry": {"maxAttempts": 5},
    "storage": {
        "url": "s3://images/eu/",
        "publicBaseUrl": "https://images.example.com/",
        "gatewayUrl": "https://flux.example.com",
        "endpointUrl": "http://minio.storage:9000",
        "region": "eu-west-1",
        "credentialsSecretRef": {"name": "bucket"},
        "caSecretRef": {"name": "bucket-ca", "key": "root.pem"},
    },
    "image": {
        "embedParameters": "none",
        "provenance": {"signingSecretRef": {"name": "image-signer", "privateKeyKey": "signer.pem"}},
    },
    "tenants": {"secretRef": {"name": "tenant-keys", "key": "all"}},
    "worker": {
        "image": "registry.example.com/fluxpool-worker@sha256:" + "0" * 64,
        "imagePullPolicy": "IfNotPresent",
        "imagePullSecrets": [{"name": "registry"}],
        "gpu": {"resourceName": "nvidia.com/mig-3g.40gb", "count": 1},
        "resources": {
            "limits": {"memory": "64Gi", "ephemeral-storage": "100Gi"},
            "requests": {"cpu": 4, "memory": "48Gi"},
        },
        "nodeSelector": {"nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3"},
        "tolerations": [{"key": "spot", "operator": "Equal", "value": "true", "effect": "NoSchedule"}],
        "affinity": {
            "nodeAffinity": {
                "requiredDuringSchedulingIgnoredDuringExecution": {
                    "nodeSelectorTerms": [
                        {
                            "matchExpressions": [
                                {"key": "topology.kubernetes.io/zone", "operator": "In", "values": ["eu-1a", "eu-1b"]}
                            ]
                        }
                    ]
                }
            },
            "podAntiAffinity": {
                "preferredDuringSchedulingIgnoredDuringExecution": [
                    {
                        "weight": 10,
                        "podAffinityTerm": {
                            "topologyKey": "kubernetes.io/hostname",
                            "labelSelector": {"matchLabels": {"app": "batch"}},
                        },
                    }
                ]
            },
        },
        "topologySpreadConstraints": [
            {"maxSkew": 2, "topologyKey": "topology.kubernetes.io/zone", "whenUnsatisfiable": "DoNotSchedule"}
        ],
        "priorityClassName": "interactive",
        "runtimeClassName": "nvidia",
        "schedulerName": "gpu-scheduler",
        "serviceAccountAnnotations": {"eks.amazonaws.com/role-arn": "arn:aws:iam::111122223333:role/images"},
        "runAsUser": 10001,
        "sharedMemorySize": "4Gi",
        "startupTimeoutSeconds": 903,
        "terminationGracePeriodSeconds": 120,
        "taskHardLimitSeconds": 300,
        "env": [
            {"name": "NCCL_DEBUG", "value": "WARN"},
            {"name": "PROXY_PASSWORD", "valueFrom": {"secretKeyRef": {"name": "proxy", "key": "password"}}},
            {"name": "OPTIONAL", "valueFrom": {"secretKeyRef": {"name": "maybe", "key": "x", "optional": True}}},
        ],
        "podLabels": {"team": "images"},
        "podAnnotations": {"karpenter.sh/do-not-disrupt": "true"},
    },
    "disruption": {"maxUnavailable": "25%"},
    "podMonitor": {"intervalSeconds": 15, "labels": {"release": "prometheus"}},
}

SASL_PLAIN: Final = {
    "protocol": "SASL_PLAINTEXT",
    "saslMechanism": "PLAIN",
    "credentialsSecretRef": {"name": "kafka-user"},
}
OAUTH_ENDPOINT: Final[dict[str, Any]] = {
    "protocol": "SASL_SSL",
    "saslMechanism": "OAUTHBEARER",
    "oauth": {
        "tokenEndpoint": "https://login.example.com/token",
        "clientSecretRef": {"name": "oauth"},
        "scope": "kafka",
    },
}
OAUTH_PRIVATE_ENDPOINT: Final[dict[str, Any]] = {
    **OAUTH_ENDPOINT,
    "protocol": "SASL_PLAINTEXT",
    "oauth": {
        "tokenEndpoint": "https://login.example.com/token",
        "clientSecretRef": {"name": "oauth"},
        "caSecretRef": {"name": "oauth-ca"},
        "encodeCredentials": False,
    },
}
OAUTH_TOKEN: Final = {
    "protocol": "SASL_SSL",
    "saslMechanism": "OAUTHBEARER",
    "oauth": {"serviceAccountToken": {"audience": "kafka"}},
}


def pool_body(
    spec: Mapping[str, Any] = MINIMAL_SPEC, *, name: str = "standard", namespace: str = "images"
) -> dict[str, Any]:
    """A pool as the API server returns it."""
    return {
        "apiVersion": "fluxpool.dev/v1alpha1",
        "kind": "FluxWorkerPool",
        "metadata": {"name": name, "namespace": namespace, "uid": "0b7c8b1e-5f0f-4f7f-9d47-6a3a0c1d2e3f"},
        "spec": copy.deepcopy(dict(spec)),
    }


def edited(body: Mapping[str, Any], edits: Mapping[str, Any]) -> dict[str, Any]:
    """A copy with fields set by their dotted paths below spec; a leading dot starts at the root."""
    result = copy.deepcopy(dict(body))
    for path, value in edits.items():
        parts = path.removeprefix(".").split(".") if path.startswith(".") else ["spec", *path.split(".")]
        branch = result
        for part in parts[:-1]:
            branch = branch.setdefault(part, {})
        if value is REMOVED:
            branch.pop(parts[-1], None)
        else:
            branch[parts[-1]] = copy.deepcopy(value)
    return result


ACCEPTED: Final[dict[str, dict[str, Any]]] = {
    "minimal": pool_body(),
    "full": pool_body(FULL_SPEC),
    "longest name": pool_body(name="p" * 39),
    "SASL": edited(pool_body(), {"kafka.security": SASL_PLAIN}),
    "OAuth endpoint": edited(pool_body(), {"kafka.security": OAUTH_ENDPOINT}),
    "OAuth private endpoint": edited(pool_body(), {"kafka.security": OAUTH_PRIVATE_ENDPOINT}),
    "OAuth by the service account": edited(pool_body(), {"kafka.security": OAUTH_TOKEN}),
    "TLS": edited(pool_body(), {"kafka.security": {"protocol": "SSL", "caSecretRef": {"name": "ca"}}}),
    "image cache": edited(pool_body(), {"model.cache": {"image": {"reference": "flux@sha256:1"}}}),
    "node's folder": edited(pool_body(), {"model.cache": {"hostPath": {"path": "/var/lib/models"}}}),
    "storage in a volume": edited(
        pool_body(), {"storage": {"url": "file:///images/", "persistentVolumeClaim": {"claimName": "images"}}}
    ),
    "CPU": edited(pool_body(), {"worker.gpu.count": 0, "worker.serviceAccountName": "mine"}),
    "manual": edited(pool_body(), {"scaling.mode": "Manual", "replicas": 3}),
    "never evicted": edited(pool_body(), {"disruption.maxUnavailable": 0}),
}
