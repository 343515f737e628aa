"""Every refusal of a pool by the API server, and partly by the model; for unit and cluster tests."""

from dataclasses import dataclass, field
from typing import Any, Final

from kit.scaling.pools import OAUTH_ENDPOINT, OAUTH_TOKEN, REMOVED, SASL_PLAIN


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """An edit of the minimal pool that is refused, and the error."""

    name: str
    edits: dict[str, Any]
    message: str
    """Part of the API server's message."""
    before: dict[str, Any] | None = None
    """If set: the edit of the existing pool, because only the change is refused."""
    by_model: bool = field(default=False)
    """Whether the model refuses it, too."""


def _lanes(*lanes: tuple[str, str, str | None]) -> dict[str, Any]:
    return {
        "kafka.lanes": [
            {"name": name, "topic": topic, **({"consumerGroup": group} if group else {})}
            for name, topic, group in lanes
        ]
    }


RULE_REFUSALS: Final = (
    Refusal(
        name="a name too long for pods",
        edits={".metadata.name": "p" * 40},
        message="metadata.name: is part of pod names; use at most 39 characters and no dot",
    ),
    Refusal(
        name="a name with a dot",
        edits={".metadata.name": "flux.eu"},
        message="metadata.name: is part of pod names; use at most 39 characters and no dot",
    ),
    Refusal(
        name="replicas of an active pool",
        before={},
        edits={"replicas": 4},
        message="replicas: has no effect in mode Active; change scaling.minReplicas and maxReplicas,"
        " or set scaling.mode to Manual",
    ),
    Refusal(
        name="a topic of foreign tenants that no lane has",
        edits={"tenants.foreignTopics": ["elsewhere"]},
        message="tenants.foreignTopics: each must be the topic of a lane",
    ),
    Refusal(
        name="a server without a port",
        edits={"kafka.bootstrapServers": ["kafka"]},
        message="bootstrapServers: each must have the form host:port, such as kafka:9092",
        by_model=True,
    ),
    Refusal(
        name="a port that does not exist",
        edits={"kafka.bootstrapServers": ["kafka:65536"]},
        message="bootstrapServers: each must have the form host:port, such as kafka:9092",
        by_model=True,
    ),
    Refusal(
        name="another group",
        before={},
        edits={"kafka.consumerGroup": "other"},
        message="consumerGroup: is immutable, its offsets would be lost; create another pool instead",
    ),
    Refusal(
        name="another topic in a lane",
        before=_lanes(("standard", "a", None)),
        edits=_lanes(("standard", "b", None)),
        message="topic: is immutable, the committed offsets belong to it; add another lane instead",
    ),
    Refusal(
        name="another group of a lane",
        before=_lanes(("standard", "a", None), ("vip", "b", "x")),
        edits=_lanes(("standard", "a", None), ("vip", "b", "y")),
        message="consumerGroup: is immutable, its offsets would be lost; add another lane instead",
    ),
    Refusal(
        name="a group given to a lane later",
        before=_lanes(("standard", "a", None), ("vip", "b", None)),
        edits=_lanes(("standard", "a", None), ("vip", "b", "y")),
        message="consumerGroup: is immutable, its offsets would be lost; add another lane instead",
    ),
    Refusal(
        name="another first lane",
        before=_lanes(("standard", "a", None), ("vip", "b", None)),
        edits=_lanes(("vip", "b", None), ("standard", "a", None)),
        message="lanes: the first lane owns consumerGroup and must stay the first; put new lanes after it",
    ),
    Refusal(
        name="two lanes of one topic",
        edits=_lanes(("a", "t", None), ("b", "t", None)),
        message="lanes: every lane needs its own topic, or each task would be processed twice",
    ),
    Refusal(
        name="two lanes of one group",
        edits=_lanes(("a", "t", None), ("b", "u", None), ("c", "v", "flux-worker-group-b")),
        message="lanes: every lane needs its own consumer group; change one of the consumerGroup fields",
    ),
    Refusal(
        name="a lane of the results",
        edits=_lanes(("a", "flux-generation-results", None)),
        message="lanes: a topic that workers produce to cannot be a lane; choose another topic",
    ),
    Refusal(
        name="a lane of a retry topic",
        edits=_lanes(("a", "flux-generation-retry-2m", None)),
        message="lanes: a topic that workers produce to cannot be a lane; choose another topic",
    ),
    Refusal(
        name="results and dead letters in one topic",
        edits={"kafka.topics": {"results": "all", "deadLetters": "all"}},
        message="topics: every topic needs its own name, or records of one are read as those of another",
    ),
    Refusal(
        name="retries in the control topic",
        edits={"kafka.topics": {"retry": ["again-2m", "flux-generation-control"]}},
        message="topics: every topic needs its own name, or records of one are read as those of another",
    ),
    Refusal(
        name="a mechanism without SASL",
        edits={"kafka.security": SASL_PLAIN | {"protocol": "SSL"}},
        message="saslMechanism: is required with protocol SASL_PLAINTEXT and SASL_SSL, and only then",
    ),
    Refusal(
        name="SASL without a mechanism",
        edits={"kafka.security": {"protocol": "SASL_SSL"}},
        message="saslMechanism: is required with protocol SASL_PLAINTEXT and SASL_SSL, and only then",
    ),
    Refusal(
        name="SASL without credentials",
        edits={"kafka.security": {"protocol": "SASL_SSL", "saslMechanism": "PLAIN"}},
        message="credentialsSecretRef: is required with saslMechanism PLAIN and SCRAM, and only then",
    ),
    Refusal(
        name="credentials without SASL",
        edits={"kafka.security": {"credentialsSecretRef": {"name": "x"}}},
        message="credentialsSecretRef: is required with saslMechanism PLAIN and SCRAM, and only then",
    ),
    Refusal(
        name="OAUTHBEARER without a source of tokens",
        edits={"kafka.security": {"protocol": "SASL_SSL", "saslMechanism": "OAUTHBEARER"}},
        message="oauth: is required with saslMechanism OAUTHBEARER, and only then",
    ),
    Refusal(
        name="two sources of tokens",
        edits={
            "kafka.security": OAUTH_ENDPOINT,
            "kafka.security.oauth": OAUTH_ENDPOINT["oauth"] | {"serviceAccountToken": {"audience": "kafka"}},
        },
        message="oauth: give either serviceAccountToken, or both tokenEndpoint and clientSecretRef",
    ),
    Refusal(
        name="half an OAuth client",
        edits={"kafka.security": OAUTH_ENDPOINT, "kafka.security.oauth.clientSecretRef": REMOVED},
        message="oauth: give either serviceAccountToken, or both tokenEndpoint and clientSecretRef",
    ),
    Refusal(
        name="a scope without a token endpoint",
        edits={"kafka.security": OAUTH_TOKEN, "kafka.security.oauth.scope": "kafka"},
        message="scope: requires tokenEndpoint; set tokenEndpoint or remove scope",
    ),
    Refusal(
        name="authorities without a token endpoint",
        edits={"kafka.security": OAUTH_TOKEN, "kafka.security.oauth.caSecretRef": {"name": "ca"}},
        message="caSecretRef: requires tokenEndpoint; set tokenEndpoint or remove caSecretRef",
    ),
    Refusal(
        name="authorities without TLS",
        edits={"kafka.security": {"caSecretRef": {"name": "ca"}}},
        message="protocol: caSecretRef and clientCertificateSecretRef need protocol SSL or SASL_SSL",
    ),
    Refusal(
        name="an address that is not HTTP",
        edits={"storage.publicBaseUrl": "images.example.com"},
        message="the address must begin with http:// or https:// and name a host",
        by_model=True,
    ),
    Refusal(
        name="a minimum above the maximum",
        edits={"scaling.minReplicas": 7},
        message="minReplicas: must not exceed maxReplicas; lower minReplicas or raise maxReplicas",
    ),
    Refusal(
        name="a default quality that is not allowed",
        edits={"model.quality": {"default": "fast"}},
        message="default: must be one of allowed; add it there or change it",
    ),
    Refusal(
        name="a fallback without a number",
        edits={"scaling.onLagUnavailable": {"policy": "Fallback"}},
        message="replicas: is required with policy Fallback, and only then",
    ),
    Refusal(
        name="a fallback above the maximum",
        edits={"scaling.onLagUnavailable": {"policy": "Fallback", "replicas": 7}},
        message="onLagUnavailable.replicas: must not exceed maxReplicas; lower it or raise maxReplicas",
    ),
    Refusal(
        name="readings that are always stale",
        edits={"scaling.pollIntervalSeconds": 16},
        message="onLagUnavailable.staleAfterSeconds: must be at least twice pollIntervalSeconds,"
        " or one late reading makes the lag stale",
    ),
    Refusal(
        name="no cache",
        edits={"model.cache": {}},
        message="cache: set exactly one of emptyDir, persistentVolumeClaim, hostPath and image",
    ),
    Refusal(
        name="two caches",
        edits={"model.cache": {"emptyDir": {}, "image": {"reference": "flux:1"}}},
        message="cache: set exactly one of emptyDir, persistentVolumeClaim, hostPath and image",
    ),
    Refusal(
        name="a relative folder of LoRAs",
        edits={"model.loraFolder": "loras"},
        message="loraFolder: must be absolute, such as /models/loras",
        by_model=True,
    ),
    Refusal(
        name="a relative folder of the node",
        edits={"model.cache": {"hostPath": {"path": "models"}}},
        message="path: must be absolute, such as /var/lib/models",
        by_model=True,
    ),
    Refusal(
        name="a relative folder of LoRAs",
        edits={"model.loraFolder": "loras"},
        message="loraFolder: must be absolute, such as /models/loras",
        by_model=True,
    ),
    Refusal(
        name="a prefix of pictures that is no folder",
        edits={"image.inputPrefix": "_inputs"},
        message="inputPrefix: must be _inputs/ or a folder below it with a slash, such as _inputs/pool-a/",
        by_model=True,
    ),
    Refusal(
        name="a prefix of pictures where a tenant's images are stored",
        edits={"image.inputPrefix": "inputs/"},
        message="inputPrefix: must be _inputs/ or a folder below it with a slash, such as _inputs/pool-a/",
        by_model=True,
    ),
    Refusal(
        name="an unknown kind of storage",
        edits={"storage.url": "gs://images/"},
        message="url: must be s3://bucket/prefix/ or file:///folder/",
        by_model=True,
    ),
    Refusal(
        name="a folder without a volume",
        edits={"storage.url": "file:///images/"},
        message="persistentVolumeClaim: is required with a file:/// url, and only then",
    ),
    Refusal(
        name="a region of a folder",
        edits={
            "storage": {
                "url": "file:///images/",
                "persistentVolumeClaim": {"claimName": "images"},
                "region": "eu-west-1",
            }
        },
        message="url: endpointUrl, region, credentialsSecretRef and caSecretRef need an s3:// url",
    ),
    Refusal(
        name="authorities of a folder",
        edits={
            "storage": {
                "url": "file:///images/",
                "persistentVolumeClaim": {"claimName": "images"},
                "caSecretRef": {"name": "ca"},
            }
        },
        message="url: endpointUrl, region, credentialsSecretRef and caSecretRef need an s3:// url",
    ),
    Refusal(
        name="a setting as a variable",
        edits={"worker.env": [{"name": "FLUXPOOL_POOL", "value": "x"}]},
        message="env: variables that begin with FLUXPOOL_ are rendered from the pool; use the field of the setting",
    ),
    Refusal(
        name="a variable of the operator's",
        edits={"worker.env": [{"name": "HF_HOME", "value": "/x"}]},
        message="env: HF_HOME, HF_TOKEN, HOME, TMPDIR, TORCHINDUCTOR_CACHE_DIR, TRITON_CACHE_DIR are set by the"
        " operator; remove them",
    ),
    Refusal(
        name="a variable with two values",
        edits={"worker.env": [{"name": "A", "value": "x", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}}]},
        message="env: give a variable either value or valueFrom, not both",
    ),
    Refusal(
        name="a variable from nowhere",
        edits={"worker.env": [{"name": "A", "valueFrom": {}}]},
        message="valueFrom: give exactly one of secretKeyRef, configMapKeyRef and fieldRef",
    ),
    Refusal(
        name="the GPU asked for twice",
        edits={"worker.resources": {"limits": {"nvidia.com/gpu": 1}}},
        message="resources: gpu.resourceName and gpu.count request the GPU; remove it here",
    ),
    Refusal(
        name="a label of the operator's",
        edits={"worker.podLabels": {"fluxpool.dev/pool": "other"}},
        message="podLabels: labels that begin with app.kubernetes.io/ or fluxpool.dev/ are reserved; choose others",
    ),
    Refusal(
        name="an annotation of the operator's",
        edits={"worker.podAnnotations": {"fluxpool.dev/secrets-checksum": "x"}},
        message="podAnnotations: annotations that begin with fluxpool.dev/ are reserved; choose others",
    ),
    Refusal(
        name="annotations of another account",
        edits={"worker.serviceAccountName": "mine", "worker.serviceAccountAnnotations": {"a": "b"}},
        message="serviceAccountAnnotations: cannot be used with serviceAccountName; annotate that account instead",
    ),
)
"""At least one for every rule."""

SCHEMA_REFUSALS: Final = (
    Refusal(name="no maximum", edits={"scaling": {}}, message="spec.scaling.maxReplicas: Required", by_model=True),
    Refusal(name="no servers", edits={"kafka": {}}, message="spec.kafka.bootstrapServers: Required", by_model=True),
    Refusal(name="no storage", edits={"storage": REMOVED}, message="spec.storage: Required", by_model=True),
    Refusal(name="no image", edits={"worker": {}}, message="spec.worker.image: Required", by_model=True),
    Refusal(name="no room", edits={"scaling.maxReplicas": 0}, message="spec.scaling.maxReplicas", by_model=True),
    Refusal(name="an unknown mode", edits={"scaling.mode": "Auto"}, message="spec.scaling.mode", by_model=True),
    Refusal(name="text for a number", edits={"retry.maxAttempts": "3"}, message="spec.retry.maxAttempts"),
    Refusal(name="no lanes", edits={"kafka.lanes": []}, message="spec.kafka.lanes", by_model=True),
    Refusal(
        name="two lanes of one name",
        edits=_lanes(("a", "t", None), ("a", "u", None)),
        message="spec.kafka.lanes[1]: Duplicate value",
    ),
    Refusal(
        name="more than all",
        edits={"disruption.maxUnavailable": "101%"},
        message="spec.disruption.maxUnavailable",
        by_model=True,
    ),
    Refusal(
        name="not a quantity",
        edits={"worker.sharedMemorySize": "2 GB"},
        message="spec.worker.sharedMemorySize",
        by_model=True,
    ),
    Refusal(
        name="a misspelt field",
        edits={"scaling.maxReplica": 3},
        message='unknown field "spec.scaling.maxReplica"',
    ),
    Refusal(
        name="a misspelt field in a toleration",
        edits={"worker.tolerations": [{"keys": "spot"}]},
        message='unknown field "spec.worker.tolerations[0].keys"',
    ),
)
