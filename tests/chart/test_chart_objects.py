"""The rendered objects: permissions, security, settings and names, for every kind of installation."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from fluxpool_operator.access import access_rules
from fluxpool_operator.api import FluxWorkerPool
from fluxpool_operator.metrics import OperatorMetrics
from fluxpool_operator.settings import OperatorSettings
from kit.cluster.helm_chart import (
    CHART,
    NAMESPACE,
    RELEASE,
    Helm,
    containers_of,
    environment,
    of_kind,
    only,
    pod_specs,
    restricted_violations,
)
from kit.cluster.kubernetes_api import Body

MAX_LABEL_CHARACTERS = 63
LABEL = re.compile(r"([A-Za-z0-9]([A-Za-z0-9_.-]*[A-Za-z0-9])?)?")
RenderedFrom = Callable[[str], list[Body]]


def values_of(path: Path | None) -> dict[str, Any]:
    return dict(yaml.safe_load(path.read_text())) if path else {}


def test_the_chart_passes_the_linter(helm: Helm, values_file: Path | None) -> None:
    helm.run("lint", "--strict", str(CHART), *([f"--values={values_file}"] if values_file else []))


def test_the_default_is_an_operator_for_its_own_namespace_only(helm: Helm) -> None:
    kinds = sorted(f"{found['kind']}/{found['metadata']['name']}" for found in helm.render())
    operator = f"{RELEASE}-fluxpool-operator"
    assert kinds == [
        f"Deployment/{operator}",
        f"Pod/{RELEASE}-fluxpool-self-check",
        f"Role/{operator}",
        f"RoleBinding/{operator}",
        f"ServiceAccount/{operator}",
    ]


def test_every_kind_of_object_is_rendered_by_some_installation(helm: Helm, rendered_from: RenderedFrom) -> None:
    ways = [helm.render(), *map(rendered_from, ("cluster-wide", "gateway", "minimal-rights", "namespaces"))]
    kinds = {found["kind"] for objects in ways for found in objects}
    assert kinds == {
        "ClusterRole",
        "ClusterRoleBinding",
        "Deployment",
        "FluxWorkerPool",
        "Ingress",
        "NetworkPolicy",
        "PersistentVolumeClaim",
        "Pod",
        "PodMonitor",
        "PrometheusRule",
        "Role",
        "RoleBinding",
        "Service",
        "ServiceAccount",
    }


# Names and labels


def test_names_and_labels_are_legal_and_no_object_appears_twice(rendered: list[Body]) -> None:
    seen = [(found["kind"], found["metadata"].get("namespace"), found["metadata"]["name"]) for found in rendered]
    assert len(seen) == len(set(seen))
    for found in rendered:
        assert re.fullmatch(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?", found["metadata"]["name"])
        labels = found["metadata"]["labels"]
        template = found.get("spec", {}).get("template", {}).get("metadata", {}).get("labels", {})
        for value in (*labels.values(), *template.values()):
            assert len(value) <= MAX_LABEL_CHARACTERS
            assert LABEL.fullmatch(value)


def test_labels_given_by_the_user_reach_every_object_and_never_replace_the_charts_own(
    rendered_from: RenderedFrom,
) -> None:
    objects = rendered_from("namespaces")
    assert {found["metadata"]["labels"]["team"] for found in objects} == {"images"}
    template = only(objects, "Deployment")["spec"]["template"]["metadata"]
    assert template["labels"]["cost-centre"] == "images"
    assert template["labels"]["app.kubernetes.io/name"] == "flux"
    assert template["annotations"]["example.com/note"] == "for two teams"


def test_selectors_find_their_own_pods_only(rendered: list[Body]) -> None:
    templates = {
        found["metadata"]["name"]: found["spec"]["template"]["metadata"]["labels"]
        for found in of_kind(rendered, "Deployment")
    }
    selectors = {
        found["metadata"]["name"]: found["spec"]["selector"]["matchLabels"]
        for found in rendered
        if found["kind"] in ("Deployment", "PodMonitor")
    }
    selectors |= {found["metadata"]["name"]: found["spec"]["selector"] for found in of_kind(rendered, "Service")}
    for name, selector in selectors.items():
        assert [pod for pod, labels in templates.items() if selector.items() <= labels.items()] == [name]


def test_a_release_name_of_any_length_makes_valid_pod_names(helm: Helm) -> None:
    output = helm.run("template", "r" * 53, str(CHART))
    names = [found["metadata"]["name"] for found in yaml.safe_load_all(output) if found["kind"] == "Deployment"]
    # The hashes of the ReplicaSet and the pod are appended, and a pod's name is its host name.
    assert [len(f"{name}-0123456789-01234") <= MAX_LABEL_CHARACTERS for name in names] == [True]


# Permissions


def _granted(role: Body) -> set[tuple[str, str, str]]:
    return {
        (group, resource, verb)
        for rule in role["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }


def _needed(*, pod_monitors: bool) -> set[tuple[str, str, str]]:
    return {(rule.group, rule.path, verb) for rule in access_rules(pod_monitors=pod_monitors) for verb in rule.verbs}


@pytest.mark.parametrize("pod_monitors", [False, True])
def test_the_operators_role_has_exactly_the_listed_rules(helm: Helm, pod_monitors: bool) -> None:
    objects = helm.render(values={"podMonitors.enabled": pod_monitors})
    role = only(objects, "Role")
    assert _granted(role) == _needed(pod_monitors=pod_monitors)
    # Exact names, so that only listed permissions are granted.
    assert not {"*"} & {part for triple in _granted(role) for part in triple}


def test_cluster_wide_the_same_rules_are_a_cluster_role(rendered_from: RenderedFrom) -> None:
    objects = rendered_from("cluster-wide")
    assert of_kind(objects, "Role") == of_kind(objects, "RoleBinding") == []
    assert _granted(only(objects, "ClusterRole", suffix="-operator")) == _needed(pod_monitors=True)
    assert "FLUXPOOL_WATCH_NAMESPACES" not in _operator_environment(objects)


def test_every_watched_namespace_has_a_role_and_the_release_has_no_other(rendered_from: RenderedFrom) -> None:
    objects = rendered_from("namespaces")
    watched = ["team-a", "team-b"]
    assert of_kind(objects, "ClusterRole") == of_kind(objects, "ClusterRoleBinding") == []
    assert [role["metadata"]["namespace"] for role in of_kind(objects, "Role")] == watched
    assert all(_granted(role) == _needed(pod_monitors=False) for role in of_kind(objects, "Role"))
    bindings = of_kind(objects, "RoleBinding")
    assert [binding["metadata"]["namespace"] for binding in bindings] == watched
    subject = {"kind": "ServiceAccount", "name": "flux-operator", "namespace": NAMESPACE}
    assert all(binding["subjects"] == [subject] for binding in bindings)
    assert _operator_environment(objects)["FLUXPOOL_WATCH_NAMESPACES"] == ",".join(watched)


def test_accounts_and_roles_can_be_created_by_administrators(rendered_from: RenderedFrom) -> None:
    objects = rendered_from("minimal-rights")
    assert {found["kind"] for found in objects} == {"Deployment", "Pod", "Service"}
    pods = pod_specs(objects)
    assert pods["Deployment/flux-operator"]["serviceAccountName"] == "given-by-the-administrators"
    # A cluster that chooses the users of pods, such as OpenShift, must find none.
    assert all("runAsUser" not in spec["securityContext"] for spec in pods.values())


def test_only_pods_that_use_the_api_get_a_token(rendered: list[Body]) -> None:
    tokens = {name: spec["automountServiceAccountToken"] for name, spec in pod_specs(rendered).items()}
    assert tokens == {name: not name.endswith("-gateway") for name in tokens}
    assert all(account["automountServiceAccountToken"] is False for account in of_kind(rendered, "ServiceAccount"))


# Pods


def test_pods_pass_the_restricted_standard_and_cannot_write_to_their_root(rendered: list[Body]) -> None:
    specs = pod_specs(rendered)
    assert specs
    for name, spec in specs.items():
        assert restricted_violations(spec) == [], name
        for container in spec["containers"]:
            assert container["securityContext"]["readOnlyRootFilesystem"] is True
            assert {"name": "tmp", "mountPath": "/tmp"} in container["volumeMounts"]  # noqa: S108 - the mount path of a volume
            assert container["resources"]["requests"].keys() == {"cpu", "memory"}


def test_the_check_of_the_restricted_standard_finds_violations() -> None:
    spec = {
        "hostNetwork": True,
        "volumes": [{"name": "host", "hostPath": {"path": "/"}}],
        "containers": [
            {
                "name": "main",
                "securityContext": {"privileged": True, "runAsUser": 0},
                "ports": [{"hostPort": 80}],
                "livenessProbe": {"httpGet": {"host": "elsewhere"}},
            }
        ],
    }
    assert restricted_violations(spec) == [
        "hostNetwork",
        "volumes[host]",
        "main: privileged",
        "main: allowPrivilegeEscalation",
        "main: capabilities",
        "main: runAsNonRoot",
        "main: runAsUser",
        "main: seccompProfile",
        "main: hostPort",
        "main: livenessProbe host",
    ]


def test_operator_and_gateway_are_replaced_by_recreate(rendered: list[Body]) -> None:
    for found in of_kind(rendered, "Deployment"):
        assert found["spec"]["strategy"] == {"type": "Recreate"}
        assert found["spec"]["replicas"] in (0, 1)


def test_images_have_the_charts_version_by_default(helm: Helm, rendered_from: RenderedFrom) -> None:
    version = yaml.safe_load((CHART / "Chart.yaml").read_text())["appVersion"]
    images = {container["image"] for spec in pod_specs(helm.render()).values() for container in spec["containers"]}
    assert images == {f"fluxpool-operator:{version}"}
    pods = pod_specs(rendered_from("gateway"))
    assert pods[f"Deployment/{RELEASE}-fluxpool-gateway"]["containers"][0]["image"] == "fluxpool-gateway:0.1.0-rc.1"
    digest = "registry.example.com/fluxpool-operator@sha256:" + "0123456789abcdef" * 4
    for spec in pod_specs(rendered_from("namespaces")).values():
        assert spec["containers"][0]["image"] == digest
        assert spec["imagePullSecrets"] == [{"name": "registry"}]


# Settings


def _operator_environment(objects: list[Body]) -> dict[str, str]:
    (container,) = containers_of(objects, "operator")
    return environment(container)


def test_the_operator_reads_the_settings_of_the_chart(rendered: list[Body], values_file: Path | None) -> None:
    given = _operator_environment(rendered)
    of_the_pod = {"FLUXPOOL_HEALTH_HOST": "10.0.0.1", "FLUXPOOL_NAMESPACE": NAMESPACE}
    settings = OperatorSettings.from_environment({**given, **of_the_pod})
    values = values_of(values_file)
    namespaces = [] if values.get("watch", {}).get("clusterWide") else values.get("watch", {}).get("namespaces")
    defaults = OperatorSettings()
    assert settings == OperatorSettings(
        namespace=NAMESPACE,
        allowed_brokers=tuple(values.get("allowedBrokers", ())),
        allowed_token_endpoints=tuple(values.get("allowedTokenEndpoints", ())),
        watch_namespaces=tuple([NAMESPACE] if namespaces is None else namespaces),
        host_path_allowed=values.get("hostPathAllowed", defaults.host_path_allowed),
        pod_monitors=values.get("podMonitors", {}).get("enabled", defaults.pod_monitors),
        health_host="10.0.0.1",
        health_port=values.get("healthPort", defaults.health_port),
        secret_interval_seconds=values.get("secretIntervalSeconds", defaults.secret_interval_seconds),
        resync_interval_seconds=values.get("resyncIntervalSeconds", defaults.resync_interval_seconds),
        api_deadline_seconds=values.get("apiDeadlineSeconds", defaults.api_deadline_seconds),
        kafka_deadline_seconds=values.get("kafkaDeadlineSeconds", defaults.kafka_deadline_seconds),
    )
    # A setting without a value in the chart could only be set by extraEnv.
    known = {f"FLUXPOOL_{name.upper()}" for name in OperatorSettings.model_fields}
    optional = {"FLUXPOOL_WATCH_NAMESPACES", "FLUXPOOL_ALLOWED_BROKERS", "FLUXPOOL_ALLOWED_TOKEN_ENDPOINTS"}
    assert known - given.keys() <= optional


def test_the_self_check_has_the_settings_of_the_operator(rendered: list[Body], values_file: Path | None) -> None:
    (container,) = only(rendered, "Pod")["spec"]["containers"]
    extra = {variable["name"] for variable in values_of(values_file).get("extraEnv", [])}
    operator = {name: value for name, value in _operator_environment(rendered).items() if name not in extra}
    assert environment(container) == operator
    assert container["command"] == ["python", "-m", "fluxpool_operator.self_check"]


def test_every_file_in_the_gateways_settings_is_on_a_mounted_volume(rendered: list[Body]) -> None:
    for name, spec in pod_specs(rendered).items():
        if not name.endswith("-gateway"):
            continue
        container, projector, dispatcher = spec["containers"]
        assert projector["volumeMounts"] == dispatcher["volumeMounts"] == container["volumeMounts"]
        mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
        assert set(mounts.values()) == {volume["name"] for volume in spec["volumes"]}
        files = [
            Path(value)
            for variable, value in environment(container).items()
            if variable.endswith("_FILE") and value.startswith("/")
        ]
        assert files
        assert {str(path.parent) for path in files} <= mounts.keys()
        volumes = {volume["name"]: volume for volume in spec["volumes"]}
        projected = {path: volumes[name]["projected"] for path, name in mounts.items() if "projected" in volumes[name]}
        provided = {
            Path(path) / item["path"]
            for path, volume in projected.items()
            for source in volume["sources"]
            for item in (source.get("secret", {}).get("items") or [source.get("serviceAccountToken")])
        }
        assert provided == {path for path in files if path.is_relative_to("/etc/fluxpool")}


def test_probes_service_and_ingress_use_the_listening_ports(rendered_from: RenderedFrom) -> None:
    objects = rendered_from("gateway")
    for component, port in (("operator", 8080), ("gateway", 9000)):
        container = containers_of(objects, component)[0]
        assert [(one["name"], one["containerPort"]) for one in container["ports"]] == [("http", port)]
        probes = {name: container[name]["httpGet"] for name in ("startupProbe", "livenessProbe", "readinessProbe")}
        assert {probe["port"] for probe in probes.values()} == {"http"}
        assert [probe["path"] for probe in probes.values()] == ["/healthz", "/healthz", "/readyz"]
    (port,) = only(objects, "Service")["spec"]["ports"]
    assert (port["port"], port["targetPort"]) == (443, "http")
    (rule,) = only(objects, "Ingress")["spec"]["rules"]
    (path,) = rule["http"]["paths"]
    assert (rule["host"], path["backend"]["service"]["name"]) == ("flux.example.com", f"{RELEASE}-fluxpool-gateway")
    assert path["backend"]["service"]["port"] == {"name": "http"}


def test_network_policies_cover_every_pod_and_allow_its_traffic(rendered_from: RenderedFrom) -> None:
    objects = rendered_from("gateway")
    policies = {found["metadata"]["name"]: found["spec"] for found in of_kind(objects, "NetworkPolicy")}
    operator, gateway = (policies[f"{RELEASE}-fluxpool-{component}"] for component in ("operator", "gateway"))
    assert operator["podSelector"]["matchExpressions"][0]["values"] == ["operator", "self-check"]

    def ports(rules: list[Body]) -> set[int]:
        return {port["port"] for rule in rules for port in rule["ports"]}

    assert (ports(operator["ingress"]), ports(gateway["ingress"])) == ({8080}, {9000})
    assert ports(operator["egress"]) == {53, 9092, 9093, 9094, 443, 6443}
    assert ports(gateway["egress"]) == {53, 9092, 9093, 9094, 443, 9000}


# Pools and metrics


def test_the_operator_can_read_the_sample_pool(rendered_from: RenderedFrom) -> None:
    for way, place in (("gateway", (NAMESPACE, "standard")), ("namespaces", ("team-b", "sample"))):
        manifest = only(rendered_from(way), "FluxWorkerPool")
        metadata = manifest["metadata"]
        assert (metadata["namespace"], metadata["name"]) == place
        manifest["metadata"] = {**metadata, "uid": "0", "generation": 1}
        pool = FluxWorkerPool.model_validate(manifest)
        assert pool.spec.worker.image == "fluxpool-worker:0.1.0"


def test_alerts_use_existing_metrics_of_the_operator(rendered_from: RenderedFrom) -> None:
    rule = only(rendered_from("cluster-wide"), "PrometheusRule")
    (group,) = rule["spec"]["groups"]
    asked = {name for alert in group["rules"] for name in re.findall(r"fluxpool_\w+", alert["expr"])}
    registry = OperatorMetrics().registry
    had = {metric.name if metric.type != "counter" else f"{metric.name}_total" for metric in registry.collect()}
    assert asked
    assert asked <= had
    summaries = [alert["annotations"]["summary"] for alert in group["rules"]]
    assert [text for text in summaries if "{{ $labels.pool }}" in text] == summaries[:-1]


def test_monitors_scrape_the_pods_own_ports(rendered_from: RenderedFrom) -> None:
    monitor = only(rendered_from("cluster-wide"), "PodMonitor")
    assert monitor["metadata"]["labels"]["release"] == "prometheus"
    rendered = rendered_from("gateway")
    monitors = of_kind(rendered, "PodMonitor")
    assert len(monitors) == 2
    for found in (monitor, *monitors):
        assert found["spec"]["podMetricsEndpoints"] == [{"port": "http", "path": "/metrics", "interval": "30s"}]
    labels = [found["spec"]["template"]["metadata"]["labels"] for found in of_kind(rendered, "Deployment")]
    for found in monitors:
        selected = found["spec"]["selector"]["matchLabels"]
        assert len([pod for pod in labels if selected.items() <= pod.items()]) == 1
    assert {found["metadata"]["labels"]["app.kubernetes.io/component"] for found in monitors} == {"operator", "gateway"}


# Notes


def test_the_notes_name_objects_that_exist(helm: Helm, values_file: Path | None, rendered: list[Body]) -> None:
    notes = helm.notes(*([values_file] if values_file else []))
    deployments = {found["metadata"]["name"] for found in of_kind(rendered, "Deployment")}
    services = {found["metadata"]["name"] for found in of_kind(rendered, "Service")}
    assert set(re.findall(r"deployment/(\S+)", notes)) <= deployments
    assert set(re.findall(r"service/(\S+)", notes)) == services
    assert f"helm uninstall -n {NAMESPACE} {RELEASE}" in notes
    assert ("restricted Pod Security Standard" in notes) == values_of(values_file).get("hostPathAllowed", False)
