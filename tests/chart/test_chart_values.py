"""The chart's values: each is described and validated, and an invalid one is refused by name."""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from fluxpool_contract.kafka.connection import KafkaConnection
from fluxpool_operator import crd
from fluxpool_operator.api.kafka import LaneSpec, OauthSpec, SecuritySpec
from fluxpool_operator.api.storage import StorageSpec
from fluxpool_operator.settings import OperatorSettings
from kit.cluster.helm_chart import CHART, CI_VALUES, Helm, HelmError
from kit.scaling.pools import OAUTH_TOKEN, edited

SCHEMA: dict[str, Any] = json.loads((CHART / "values.schema.json").read_text())
VALUES: dict[str, Any] = yaml.safe_load((CHART / "values.yaml").read_text())
# Of a parent chart, not of this one.
FOREIGN = {"global"}
GATEWAY = {
    "gateway.enabled": True,
    "gateway.kafka.bootstrapServers": ["kafka:9092"],
    "gateway.storage.url": "s3://images/",
}
POOL_SPEC = {
    "kafka": {"bootstrapServers": ["kafka:9092"]},
    "scaling": {"maxReplicas": 6},
    "storage": {"url": "s3://images/"},
    "worker": {"image": "fluxpool-worker:dev"},
}


def resolved(schema: dict[str, Any]) -> dict[str, Any]:
    """A schema with its reference resolved."""
    while "$ref" in schema:
        schema = SCHEMA["definitions"][schema["$ref"].rpartition("/")[2]]
    return schema


def paths_of(values: Mapping[str, Any], schema: dict[str, Any], path: str = "") -> Iterator[str]:
    """Every value whose fields the schema names."""
    named = resolved(schema).get("properties", {})
    for name, value in values.items():
        below = f"{path}.{name}".removeprefix(".")
        yield below
        if isinstance(value, dict) and value and resolved(named[name]).get("properties"):
            yield from paths_of(value, named[name], below)


def test_values_and_schema_name_the_same_fields() -> None:
    def compare(values: dict[str, Any], schema: dict[str, Any], path: str) -> None:
        assert schema.get("additionalProperties") is False, f"{path or 'the root'} takes any field"
        assert values.keys() == schema["properties"].keys() - FOREIGN, path
        for name, value in values.items():
            below = resolved(schema["properties"][name])
            # An empty object is a default; only the schema has its fields.
            if isinstance(value, dict) and value and "properties" in below and "$ref" not in schema["properties"][name]:
                compare(value, below, f"{path}.{name}")

    compare(VALUES, SCHEMA, "")


def test_every_value_is_described_by_the_comment_before_it() -> None:
    lines = (CHART / "values.yaml").read_text().splitlines()
    leaves = [number for number, line in enumerate(lines) if re.match(r"\s*[a-zA-Z]+: \S", line)]
    unexplained = [
        lines[number].strip()
        for number in leaves
        if not lines[number - 1].lstrip().startswith("#")
        # Parts of a default that is described as a whole.
        and not re.match(r"\s+(cpu|memory): ", lines[number])
    ]
    assert unexplained == []


@pytest.mark.parametrize("path", CI_VALUES, ids=lambda path: path.stem)
def test_the_installations_use_existing_values(path: Path) -> None:
    known = set(paths_of(VALUES, SCHEMA))
    given = set(paths_of(yaml.safe_load(path.read_text()), SCHEMA))
    assert {one for one in given if one.count(".") < 1} <= known


def test_every_value_is_used_by_some_installation() -> None:
    tried = {one for path in CI_VALUES for one in paths_of(yaml.safe_load(path.read_text()), SCHEMA)}
    tried |= {one.rpartition(".")[0] for one in tried}
    untried = {one for one in paths_of(VALUES, SCHEMA) if one not in tried}
    # Values copied into pods, or alternatives of a value that is tried.
    assert untried <= {
        "gateway.affinity",
        "gateway.database",
        "gateway.database.caSecretRef",
        "gateway.database.urlSecretRef",
        "gateway.extraEnv",
        "gateway.image.digest",
        "gateway.image.pullPolicy",
        "gateway.dispatcher",
        "gateway.dispatcher.resources",
        "gateway.dispatcher.resources.limits",
        "gateway.dispatcher.resources.requests",
        "gateway.image.repository",
        "gateway.ingress.annotations",
        "gateway.nodeSelector",
        "gateway.persistence.accessModes",
        "gateway.persistence.annotations",
        "gateway.persistence.enabled",
        "gateway.podAnnotations",
        "gateway.priorityClassName",
        "gateway.projector",
        "gateway.projector.resources",
        "gateway.projector.resources.limits",
        "gateway.projector.resources.requests",
        "gateway.resources",
        "gateway.resources.limits",
        "gateway.resources.requests",
        "gateway.service.annotations",
        "gateway.terminationGracePeriodSeconds",
        "gateway.tolerations",
        "image.tag",
        "metrics.podMonitor.intervalSeconds",
        "networkPolicy.apiServerPorts",
        "networkPolicy.databasePorts",
        "networkPolicy.kafkaPorts",
        "resources",
        "resources.limits",
        "resources.requests",
    }


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"replica": 1}, "replica"),
        ({"replicas": 2}, "/replicas"),
        ({"watch.clusterWide": True, "watch.namespaces": ["a"]}, "/watch/namespaces"),
        ({"watch.namespaces": ["Team"]}, "/watch/namespaces/0"),
        ({"watch.namespaces": ["a", "a"]}, "/watch/namespaces"),
        ({"watch.namespace": "a"}, "namespace"),
        ({"allowedBrokers": ["kafka"]}, "/allowedBrokers/0"),
        ({"allowedBrokers": ["a:1,b:2"]}, "/allowedBrokers/0"),
        ({"allowedTokenEndpoints": ["sso.example.com/token"]}, "/allowedTokenEndpoints/0"),
        ({"image.digest": "0123"}, "/image/digest"),
        ({"image.repository": ""}, "/image/repository"),
        ({"image.pullPolicy": "Sometimes"}, "/image/pullPolicy"),
        ({"runAsUser": 0}, "/runAsUser"),
        ({"healthPort": 80}, "/healthPort"),
        ({"secretIntervalSeconds": 0}, "/secretIntervalSeconds"),
        ({"apiDeadlineSeconds": "15s"}, "/apiDeadlineSeconds"),
        ({"resources.limits": {"memory": "much"}}, "/resources/limits/memory"),
        ({"podLabels": {"team": 1}}, "/podLabels/team"),
        ({"extraEnv": [{"value": "nameless"}]}, "/extraEnv/0"),
        ({"fullnameOverride": "f" * 38}, "/fullnameOverride"),
        ({"serviceAccount.create": False}, "serviceAccount.name"),
        ({"test.kafkaBootstrapServers": ["kafka"]}, "/test/kafkaBootstrapServers/0"),
        ({"gateway.enabled": True, "gateway.storage.url": "s3://images/"}, "/gateway/kafka/bootstrapServers"),
        ({"gateway.enabled": True, "gateway.kafka.bootstrapServers": ["kafka:9092"]}, "/gateway/storage"),
        (GATEWAY | {"gateway.storage.url": "https://images/"}, "/gateway/storage/url"),
        (GATEWAY | {"gateway.storage.url": "file:///images/"}, "persistentVolumeClaim"),
        (GATEWAY | {"gateway.storage.persistentVolumeClaim": {"claimName": "a"}}, "persistentVolumeClaim"),
        (GATEWAY | {"gateway.replicas": 2}, "gateway.database.urlSecretRef"),
        (GATEWAY | {"gateway.replicas": -1}, "/gateway/replicas"),
        (GATEWAY | {"gateway.database.urlSecretRef": {"key": "url"}}, "/gateway/database/urlSecretRef"),
        (GATEWAY | {"gateway.port": 80}, "/gateway/port"),
        (GATEWAY | {"gateway.publicUrl": "flux.example.com"}, "/gateway/publicUrl"),
        (GATEWAY | {"gateway.ingress.enabled": True}, "/gateway/ingress/hosts"),
        (GATEWAY | {"gateway.topics.task": "a"}, "task"),
        (GATEWAY | {"gateway.topics.tasks": "no spaces"}, "/gateway/topics/tasks"),
        (GATEWAY | {"gateway.kafka.security": {"protocol": "SASL_SSL"}}, "saslMechanism"),
        (
            GATEWAY | {"gateway.kafka.security": {"protocol": "SASL_SSL", "saslMechanism": "PLAIN"}},
            "credentialsSecretRef",
        ),
        (GATEWAY | {"gateway.kafka.security": {"caSecretRef": {"name": "a"}}}, "caSecretRef"),
        (
            GATEWAY | {"gateway.kafka.security": edited(OAUTH_TOKEN, {".oauth.caSecretRef": {"name": "a"}})},
            "tokenEndpoint",
        ),
        (
            GATEWAY
            | {
                "gateway.storage.url": "file:///images/",
                "gateway.storage.persistentVolumeClaim": {"claimName": "a"},
                "gateway.storage.caSecretRef": {"name": "a"},
            },
            "caSecretRef",
        ),
        (GATEWAY | {"gateway.kafka.lanes": [{"name": "vip"}]}, "/gateway/kafka/lanes/0"),
        (GATEWAY | {"gateway.persistence.size": "big"}, "/gateway/persistence/size"),
        ({"samplePool.enabled": True, "samplePool.spec": {"kafka": {}}}, "/samplePool/spec"),
        ({"samplePool.enabled": True, "samplePool.spec": POOL_SPEC, "samplePool.name": "p" * 40}, "/samplePool/name"),
        (
            {"samplePool.enabled": True, "samplePool.spec": POOL_SPEC, "samplePool.namespace": "b"},
            "samplePool.namespace",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_wrong_value_is_refused_by_its_name(helm: Helm, values: dict[str, Any], named: str) -> None:
    with pytest.raises(HelmError, match=re.escape(named)):
        helm.render(values=values)


def test_bounds_are_those_of_the_operators_settings() -> None:
    bounds = OperatorSettings.model_json_schema()["properties"]
    for value, setting in (
        ("secretIntervalSeconds", "secret_interval_seconds"),
        ("resyncIntervalSeconds", "resync_interval_seconds"),
        ("apiDeadlineSeconds", "api_deadline_seconds"),
        ("kafkaDeadlineSeconds", "kafka_deadline_seconds"),
    ):
        for bound in ("minimum", "maximum"):
            assert SCHEMA["properties"][value][bound] == bounds[setting][bound], value
        assert VALUES[value] == bounds[setting]["default"]
    assert VALUES["healthPort"] == bounds["health_port"]["default"]


def test_the_gateways_lanes_have_the_fields_of_a_pools() -> None:
    lanes = SCHEMA["properties"]["gateway"]["properties"]["kafka"]["properties"]["lanes"]["items"]["properties"]
    assert lanes.keys() == LaneSpec.model_json_schema(by_alias=True)["properties"].keys()


def test_the_gateways_security_has_the_fields_and_choices_of_a_pools() -> None:
    security = SCHEMA["definitions"]["security"]["properties"]
    pools = SecuritySpec.model_json_schema(by_alias=True)["properties"]
    assert security.keys() == pools.keys()
    connection = KafkaConnection.model_json_schema()["$defs"]
    for field, choices in (("protocol", "SecurityProtocol"), ("saslMechanism", "SaslMechanism")):
        assert sorted(security[field]["enum"]) == sorted(connection[choices]["enum"])


def test_the_gateways_storage_and_oauth_have_the_fields_of_a_pools() -> None:
    storage = StorageSpec.model_json_schema(by_alias=True)["properties"].keys()
    assert SCHEMA["definitions"]["storage"]["properties"].keys() == storage - {"gatewayUrl"}
    oauth = OauthSpec.model_json_schema(by_alias=True)["properties"].keys()
    assert SCHEMA["definitions"]["security"]["properties"]["oauth"]["properties"].keys() == oauth


def test_the_definition_in_the_chart_is_the_one_of_the_models() -> None:
    assert [path.name for path in (CHART / "crds").iterdir()] == [crd.FILE_NAME]
    assert (CHART / "crds" / crd.FILE_NAME).read_text() == crd.render_definition(), "run `make schemas`"


def test_the_chart_has_the_version_of_the_distribution() -> None:
    project = (CHART.parents[1] / "pyproject.toml").read_text()
    (version,) = re.findall(r'^version = "(.*)"$', project, re.MULTILINE)
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert chart["appVersion"] == chart["version"] == version


def test_a_cluster_that_is_too_old_is_refused(helm: Helm) -> None:
    with pytest.raises(HelmError, match=r"kubeVersion: >=1\.32\.0-0"):
        helm.run("template", "demo", str(CHART), "--kube-version=1.31.9")
    helm.run("template", "demo", str(CHART), "--kube-version=1.33.1-gke.1")
