"""Text fields of Kubernetes are rendered as text, for any content, and whole numbers as whole numbers."""

from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from kit.cluster.helm_chart import CHART, Helm, of_kind, only

LOOKALIKES = ("4444412", "1e3", "0x1f", "0o17", "010", "true", "null", "yes", "off", "y", "2001-01-01")
"""Legal names that a YAML parser may read as a number, a boolean, a date or null."""
GATEWAY: dict[str, Any] = {
    "gateway.enabled": True,
    "gateway.kafka.bootstrapServers": ["kafka:9092"],
    "gateway.ingress.enabled": True,
    "networkPolicy.enabled": True,
    "metrics.podMonitor.enabled": True,
    "metrics.prometheusRule.enabled": True,
    "podMonitors.enabled": True,
    "rbac.aggregateClusterRoles": True,
    "samplePool.enabled": True,
}
POOL_SPEC = {
    "kafka": {"bootstrapServers": ["kafka:9092"]},
    "scaling": {"maxReplicas": 6},
    "storage": {"url": "s3://images/"},
    "worker": {"image": "fluxpool-worker:dev"},
}


def _values(text: str) -> dict[str, Any]:
    """This text in every text field."""
    reference = {"name": text}
    security = {
        "protocol": "SASL_SSL",
        "saslMechanism": "PLAIN",
        "credentialsSecretRef": reference | {"usernameKey": text, "passwordKey": text},
        "caSecretRef": reference | {"key": text},
        "clientCertificateSecretRef": reference | {"certificateKey": text, "privateKeyKey": text, "passwordKey": text},
    }
    storage = {
        "url": "s3://images/",
        "region": text,
        "credentialsSecretRef": reference | {"accessKeyIdKey": text, "secretAccessKeyKey": text},
        "caSecretRef": reference | {"key": text},
    }
    return GATEWAY | {
        "nameOverride": text,
        "fullnameOverride": text,
        "commonLabels": {"team": text, text: text},
        "podAnnotations": {"note": text},
        "image.tag": text,
        "imagePullSecrets": [reference],
        "watch.namespaces": [text],
        "priorityClassName": text,
        "nodeSelector": {"zone": text},
        "serviceAccount.name": text,
        "serviceAccount.annotations": {"note": text},
        "extraEnv": [{"name": "NOTE", "value": text}],
        "gateway.image.tag": text,
        "gateway.kafka.consumerGroup": text,
        "gateway.kafka.security": security,
        "gateway.kafka.lanes": [{"name": text, "topic": text}],
        "gateway.topics": {"results": text, "retry": [text]},
        "gateway.storage": storage,
        "gateway.persistence.storageClassName": text,
        "gateway.ingress.className": text,
        "gateway.ingress.hosts": [text],
        "gateway.serviceAccount.name": text,
        "gateway.priorityClassName": text,
        "samplePool.name": text,
        "samplePool.namespace": text,
        "samplePool.spec": POOL_SPEC,
    }


def _scalars(node: yaml.Node) -> Iterator[yaml.ScalarNode]:
    match node:
        case yaml.ScalarNode():
            yield node
        case yaml.SequenceNode():
            for item in node.value:
                yield from _scalars(item)
        case yaml.MappingNode():
            for pair in node.value:
                for part in pair:
                    yield from _scalars(part)


def _rendered(helm: Helm, text: str) -> list[yaml.ScalarNode]:
    output = helm.run("template", text, str(CHART), "--namespace", text, *helm.flags(_values(text)))
    return [scalar for root in yaml.compose_all(output) for scalar in _scalars(root)]


@pytest.mark.parametrize("text", LOOKALIKES)
def test_ambiguous_text_is_quoted_everywhere(helm: Helm, text: str) -> None:
    # YAML 1.1 and 1.2 differ in what is a number: only a quoted one is text in both.
    quoted = [scalar for scalar in _rendered(helm, text) if scalar.value == text and scalar.style is not None]
    # For an unambiguous name quotes do not matter.
    assert len(quoted) >= len([scalar for scalar in _rendered(helm, "quince") if scalar.value == "quince"])


@pytest.mark.parametrize("cluster_wide", [False, True])
def test_a_namespace_of_digits_is_bound_to_its_roles(helm: Helm, cluster_wide: bool) -> None:
    flags = helm.flags({"watch.clusterWide": cluster_wide})
    output = helm.run("template", "fluxpool", str(CHART), "--namespace", "4444412", *flags)
    objects = [found for found in yaml.safe_load_all(output) if found]
    binding = only(objects, "ClusterRoleBinding" if cluster_wide else "RoleBinding")
    assert binding["subjects"][0]["namespace"] == "4444412"


def test_large_whole_numbers_are_written_with_all_their_digits(helm: Helm) -> None:
    number = 1_000_680_000
    output = helm.run(
        "template",
        "demo",
        str(CHART),
        *helm.flags(
            GATEWAY
            | {
                "runAsUser": number,
                "gateway.terminationGracePeriodSeconds": number,
                "gateway.storage.url": "s3://images/",
                "gateway.ingress.hosts": ["a"],
                "samplePool.spec": POOL_SPEC | {"scaling": {"maxReplicas": 6, "targetLagPerReplica": 1_000_000}},
                "tolerations": [{"operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 10_000_000}],
            }
        ),
    )
    assert "e+0" not in output
    objects = [found for found in yaml.safe_load_all(output) if found]
    for deployment in of_kind(objects, "Deployment"):
        assert deployment["spec"]["template"]["spec"]["securityContext"]["runAsUser"] == number
    assert only(objects, "FluxWorkerPool")["spec"]["scaling"]["targetLagPerReplica"] == 1_000_000
