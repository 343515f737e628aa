"""The children of a pool: golden files for whole manifests, properties for every pool.

A changed golden file rolls the pods of every pool: `UPDATE_GOLDEN=1 pytest tests/unit/operator/test_children.py`
writes the files again; review the difference with that in mind.
"""

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fluxpool_contract.settings.worker import WorkerSettings
from fluxpool_operator.api import FluxWorkerPool, InvalidPoolError
from fluxpool_operator.children import (
    Children,
    SecretKey,
    render_children,
    secret_variables,
    selector_text,
    worker_settings,
)
from fluxpool_operator.children.identity import manifest_hash
from kit.scaling.pools import (
    ACCEPTED,
    FULL_SPEC,
    MINIMAL_SPEC,
    OAUTH_ENDPOINT,
    OAUTH_PRIVATE_ENDPOINT,
    OAUTH_TOKEN,
    REMOVED,
    SASL_PLAIN,
    edited,
    pool_body,
)

GOLDEN = Path(__file__).parents[1] / "golden_children"
HOST_PATH = {"model.cache": {"hostPath": {"path": "/var/lib/models", "readOnly": True}}}


def _pool(edits: Mapping[str, Any] | None = None, *, spec: Mapping[str, Any] = MINIMAL_SPEC) -> FluxWorkerPool:
    return FluxWorkerPool.parse(edited(pool_body(spec), edits or {}))


def _template(edits: Mapping[str, Any] | None = None, **arguments: Any) -> dict[str, Any]:
    template: dict[str, Any] = render_children(_pool(edits), replicas=1, **arguments).deployment["spec"]["template"]
    return template


def _container(template: Mapping[str, Any]) -> dict[str, Any]:
    (container,) = template["spec"]["containers"]
    assert isinstance(container, dict)
    return container


def _as_the_kubelet(container: Mapping[str, Any], secrets: Mapping[SecretKey, str]) -> dict[str, str]:
    """The environment that a process gets."""
    environment = {}
    for variable in container["env"]:
        source = variable.get("valueFrom", {})
        if reference := source.get("secretKeyRef"):
            value = secrets[SecretKey(reference["name"], reference["key"])]
        elif reference := source.get("fieldRef"):
            value = {"status.podIP": "10.1.2.3", "metadata.name": "standard-worker-0"}[reference["fieldPath"]]
        else:
            value = re.sub(r"\$(\$|\([A-Z_]+\))", lambda found: "$" if found[1] == "$" else "", variable["value"])
        environment[variable["name"]] = value
    return environment


# Whole manifests


@pytest.mark.parametrize("name", ACCEPTED)
def test_manifests_are_as_reviewed(name: str) -> None:
    pool = FluxWorkerPool.parse(ACCEPTED[name])
    children = render_children(
        pool, replicas=3, max_unavailable=2, secrets_checksum="c0ffee" if name == "full" else "", host_path_allowed=True
    )
    text = json.dumps(children.in_order(), indent=2, sort_keys=True) + "\n"
    path = GOLDEN / f"{re.sub(r'[^a-z]+', '-', name.lower())}.json"
    if os.environ.get("UPDATE_GOLDEN"):
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    assert text == path.read_text()


def test_every_golden_file_has_a_pool() -> None:
    assert {path.stem for path in GOLDEN.glob("*")} == {re.sub(r"[^a-z]+", "-", name.lower()) for name in ACCEPTED}


# The environment


_text = st.text(st.characters(codec="ascii", categories=("L", "N", "P", "S")), min_size=1, max_size=12)
_edits = st.fixed_dictionaries(
    {},
    optional={
        "kafka.security": st.sampled_from(
            [SASL_PLAIN, OAUTH_ENDPOINT, OAUTH_PRIVATE_ENDPOINT, OAUTH_TOKEN, FULL_SPEC["kafka"]["security"]]
        ),
        "kafka.consumerGroup": st.from_regex(r"[A-Za-z0-9._-]{1,20}", fullmatch=True),
        "kafka.lanes": st.just(FULL_SPEC["kafka"]["lanes"]),
        "kafka.topics": st.just({"retry": ["one"]}),
        "kafka.offsetRetentionDays": st.integers(1, 3650),
        "model.id": _text,
        "model.revision": _text,
        "model.dtype": st.sampled_from(["float16", "bfloat16", "float32"]),
        "model.device": st.sampled_from(["auto", "cpu", "cuda"]),
        "model.cache": st.sampled_from(
            [{"image": {"reference": "flux:1"}}, {"persistentVolumeClaim": {"claimName": "models"}}]
        ),
        "model.tokenSecretRef": st.just({"name": "hub"}),
        "model.quality": st.sampled_from(
            [{"default": "fast", "allowed": ["fast"]}, {"default": "exact", "allowed": ["exact", "fast"]}]
        ),
        "model.loraFolder": st.just("/models/loras"),
        "retry.maxAttempts": st.integers(1, 10),
        "storage": st.just(FULL_SPEC["storage"]),
        "worker.terminationGracePeriodSeconds": st.integers(30, 86_400),
        "worker.taskHardLimitSeconds": st.integers(1, 86_400),
        "image.embedParameters": st.sampled_from(["all", "noPrompt", "none"]),
        "image.inputPrefix": st.just("_inputs/pool-a/"),
        "image.inputMaxBytes": st.integers(1, 2**26),
    },
)


@given(_edits, _text)
def test_the_worker_reads_the_settings_of_the_pool(edits: dict[str, Any], secret: str) -> None:
    pool = _pool(edits)
    keys = secret_variables(pool.spec)
    secrets = {key: f"{secret}{number}" for number, key in enumerate(sorted(set(keys.values())))}
    container = _container(render_children(pool, replicas=1).deployment["spec"]["template"])
    environment = _as_the_kubelet(container, secrets)
    read = WorkerSettings.from_environment(environment)
    meant = worker_settings(pool, secrets={name: secrets[key] for name, key in keys.items()})
    assert read == meant.model_copy(update={"worker_name": "standard-worker-0", "health_host": "10.1.2.3"})
    grace = _template(edits)["spec"]["terminationGracePeriodSeconds"]
    assert read.drain_grace_seconds == grace - 15
    assert environment["FLUXPOOL_DRAIN_GRACE_SECONDS"]


def test_what_tasks_may_ask_of_the_model_reaches_the_pod() -> None:
    edits = {
        "model.quality": {"default": "fast", "allowed": ["exact", "fast"]},
        "model.loraFolder": "/models/loras",
        "image.inputPrefix": "_inputs/pool-a/",
        "image.inputMaxBytes": 1000,
    }
    environment = _as_the_kubelet(_container(_template(edits)), {})
    assert {
        "FLUXPOOL_MODEL_QUALITY_DEFAULT": "fast",
        "FLUXPOOL_MODEL_QUALITY_ALLOWED": "exact,fast",
        "FLUXPOOL_MODEL_LORA_FOLDER": "/models/loras",
        "FLUXPOOL_IMAGE_INPUT_PREFIX": "_inputs/pool-a/",
        "FLUXPOOL_IMAGE_INPUT_MAX_BYTES": "1000",
    }.items() <= environment.items()
    plain = _as_the_kubelet(_container(_template({})), {})
    assert not [name for name in plain if "QUALITY" in name or "LORA" in name or "INPUT" in name]


@given(_edits)
def test_no_secret_is_written_and_none_is_missing(edits: dict[str, Any]) -> None:
    pool = _pool(edits)
    children = render_children(pool, replicas=1)
    assert "by-reference" not in json.dumps(children.in_order())
    by_reference = {
        variable["name"]: SecretKey(**variable["valueFrom"]["secretKeyRef"])
        for variable in _container(children.deployment["spec"]["template"])["env"]
        if "secretKeyRef" in variable.get("valueFrom", {})
    }
    assert by_reference == secret_variables(pool.spec)


def test_a_dollar_is_a_dollar() -> None:
    container = _container(_template({"model.id": "a$(HOME)$$b$c"}))
    assert _as_the_kubelet(container, {})["FLUXPOOL_MODEL_ID"] == "a$(HOME)$$b$c"
    assert {"name": "FLUXPOOL_MODEL_ID", "value": "a$$(HOME)$$$$b$$c"} in container["env"]


def test_variables_of_the_pool_come_after_those_they_may_refer_to() -> None:
    own = [{"name": "ZONE", "value": "eu"}, {"name": "A", "value": "$(ZONE)/$(FLUXPOOL_WORKER_NAME)"}]
    variables = _container(_template({"worker.env": own}))["env"]
    names = [variable["name"] for variable in variables]
    assert variables[-2:] == own
    assert names[:-2] == sorted(set(names[:-2]))


@pytest.mark.parametrize("name", ["FLUXPOOL_POOL", "HF_HOME", "FLUXPOOL_HEALTH_HOST"])
def test_a_variable_of_the_operators_is_refused_without_the_server_too(name: str) -> None:
    with pytest.raises(InvalidPoolError, match=f"spec.worker.env: {name} is set by the operator; remove it"):
        _template({"worker.env": [{"name": name, "value": "x"}]})


def test_a_read_only_cache_never_asks_the_hub() -> None:
    container = _container(_template({"model.cache": {"image": {"reference": "flux:1"}}}))
    assert {"name": "FLUXPOOL_MODEL_OFFLINE", "value": "true"} in container["env"]


def test_settings_that_contradict_each_other_are_refused_without_the_server_too() -> None:
    with pytest.raises(InvalidPoolError, match=r"spec\.kafka\.security: sasl_mechanism: is required with SASL_SSL"):
        _template({"kafka.security": {"protocol": "SASL_SSL"}})


# The template's hash


@pytest.mark.parametrize(
    "edits",
    [
        {"replicas": 5},
        {"paused": True},
        {"scaling": {"maxReplicas": 9, "minReplicas": 2, "mode": "Manual"}},
        {"disruption.maxUnavailable": 3},
        {"podMonitor": {}},
        {"kafka.manageTopics": True},
        {".metadata.generation": 7},
        {".metadata.annotations": {"a": "b"}},
        {".status": {"replicas": 3}},
    ],
    ids=lambda edits: next(iter(edits)),
)
def test_a_change_that_does_not_affect_pods_makes_no_new_pods(edits: dict[str, Any]) -> None:
    same = render_children(_pool(), replicas=1)
    assert render_children(_pool(edits), replicas=4, max_unavailable=3).template_hash == same.template_hash


@pytest.mark.parametrize(
    "edits",
    [{"worker.image": "new"}, {"model.revision": "x"}, {"worker.gpu.count": 2}, {"worker.podLabels": {"a": "b"}}],
    ids=lambda edits: next(iter(edits)),
)
def test_a_change_that_affects_pods_makes_new_ones(edits: dict[str, Any]) -> None:
    assert render_children(_pool(edits), replicas=1).template_hash != render_children(_pool(), replicas=1).template_hash


@given(_edits)
def test_equal_pools_have_equal_children(edits: dict[str, Any]) -> None:
    one, other = (render_children(_pool(edits), replicas=2) for _ in range(2))
    assert one == other
    assert [manifest_hash(child) for child in one.in_order()] == [manifest_hash(child) for child in other.in_order()]


# Properties of every child


def _all_children(name: str) -> Children:
    return render_children(FluxWorkerPool.parse(ACCEPTED[name]), replicas=1, host_path_allowed=True)


@pytest.mark.parametrize("name", ACCEPTED)
def test_every_child_belongs_to_the_pool(name: str) -> None:
    pool = FluxWorkerPool.parse(ACCEPTED[name])
    for child in _all_children(name).in_order():
        metadata = child["metadata"]
        assert metadata["name"] == f"{pool.name}-worker"
        assert metadata["namespace"] == "images"
        assert metadata["labels"]["app.kubernetes.io/managed-by"] == "fluxpool-operator"
        assert metadata["ownerReferences"] == [
            {
                "apiVersion": "fluxpool.dev/v1alpha1",
                "kind": "FluxWorkerPool",
                "name": pool.name,
                "uid": pool.metadata.uid,
                "controller": True,
                "blockOwnerDeletion": True,
            }
        ]


@pytest.mark.parametrize("name", ACCEPTED)
def test_the_selectors_find_the_pods(name: str) -> None:
    children = _all_children(name)
    labels = children.deployment["spec"]["template"]["metadata"]["labels"]
    for child in (children.deployment, children.pod_disruption_budget):
        assert child["spec"]["selector"]["matchLabels"].items() <= labels.items()
    selector = selector_text(FluxWorkerPool.parse(ACCEPTED[name]))
    assert selector == "app.kubernetes.io/name=fluxpool-worker,fluxpool.dev/pool=" + ACCEPTED[name]["metadata"]["name"]


@pytest.mark.parametrize("name", ACCEPTED)
def test_pods_have_no_privileges(name: str) -> None:
    spec = _all_children(name).deployment["spec"]["template"]["spec"]
    assert spec["automountServiceAccountToken"] is False
    assert spec["enableServiceLinks"] is False
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    (container,) = spec["containers"]
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "readOnlyRootFilesystem": True,
    }
    mounted = {mount["mountPath"] for mount in container["volumeMounts"]}
    written = {variable["name"]: variable.get("value") for variable in container["env"]}
    for folder in ("TMPDIR", "HOME", "HF_HOME", "TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR"):
        assert any(str(written[folder]).startswith(path) for path in mounted), folder
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in spec["volumes"]}


def test_probes_use_the_address_that_the_worker_listens_on() -> None:
    container = _container(_template({"worker.startupTimeoutSeconds": 61}))
    assert {
        "name": "FLUXPOOL_HEALTH_HOST",
        "valueFrom": {"fieldRef": {"apiVersion": "v1", "fieldPath": "status.podIP"}},
    } in (container["env"])
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert ports["http"] == worker_settings(_pool()).health_port
    for probe, path in (("startupProbe", "/readyz"), ("readinessProbe", "/readyz"), ("livenessProbe", "/healthz")):
        assert container[probe]["httpGet"] == {"path": path, "port": "http", "scheme": "HTTP"}
    startup = container["startupProbe"]
    assert startup["periodSeconds"] * startup["failureThreshold"] == 65


def test_the_termination_message_falls_back_to_the_end_of_the_log() -> None:
    assert _container(_template())["terminationMessagePolicy"] == "FallbackToLogsOnError"


# Choices of a pool


def test_a_pool_without_gpu_requests_none() -> None:
    template = _template({"worker.gpu.count": 0})
    assert _container(template)["resources"] == {}
    assert "tolerations" not in template["spec"]


def test_the_gpus_taint_is_tolerated_once() -> None:
    own = {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}
    assert _template({"worker.tolerations": [own]})["spec"]["tolerations"] == [own]
    assert _template({"worker.tolerations": [{"operator": "Exists"}]})["spec"]["tolerations"] == [
        {"operator": "Exists"},
        own,
    ]


def test_a_host_path_needs_the_operators_permission() -> None:
    with pytest.raises(InvalidPoolError, match=r"spec\.model\.cache\.hostPath: this operator does not allow"):
        _template(HOST_PATH)
    volumes = {volume["name"]: volume for volume in _template(HOST_PATH, host_path_allowed=True)["spec"]["volumes"]}
    assert volumes["models"]["hostPath"] == {"path": "/var/lib/models", "type": "Directory"}


def test_a_named_service_account_is_used_and_not_created() -> None:
    children = render_children(_pool({"worker.serviceAccountName": "mine"}), replicas=1)
    assert children.service_account is None
    assert children.deployment["spec"]["template"]["spec"]["serviceAccountName"] == "mine"


def test_a_created_service_account_mounts_no_token() -> None:
    account = render_children(_pool(), replicas=1).service_account
    assert account is not None
    assert account["automountServiceAccountToken"] is False


def test_a_monitor_is_created_on_demand() -> None:
    assert render_children(_pool(), replicas=1).pod_monitor is None
    monitor = render_children(_pool({"podMonitor": {"labels": {"release": "x"}}}), replicas=1).pod_monitor
    assert monitor is not None
    assert monitor["metadata"]["labels"]["release"] == "x"


def test_images_in_a_folder_are_written_to_the_claim() -> None:
    edits = {"storage": {"url": "file:///data/images/", "persistentVolumeClaim": {"claimName": "images"}}}
    mounts = {mount["name"]: mount for mount in _container(_template(edits))["volumeMounts"]}
    assert mounts["images"] == {"name": "images", "mountPath": "/data/images"}
    assert str(worker_settings(_pool(edits)).storage.folder) == "/data/images"


def test_images_cannot_be_stored_in_a_folder_of_the_worker() -> None:
    edits = {"storage": {"url": "file:///models", "persistentVolumeClaim": {"claimName": "images"}}}
    with pytest.raises(InvalidPoolError, match=r"spec\.storage\.url: /models is a folder of the worker's own"):
        _template(edits)


def test_a_rollout_needs_no_spare_gpu() -> None:
    children = render_children(_pool(), replicas=8, max_unavailable=4)
    assert children.deployment["spec"]["replicas"] == 8
    assert children.deployment["spec"]["strategy"]["rollingUpdate"] == {"maxSurge": 0, "maxUnavailable": 4}


@pytest.mark.parametrize(("replicas", "max_unavailable"), [(-1, 1), (1, 0)])
def test_numbers_out_of_range_are_refused(replicas: int, max_unavailable: int) -> None:
    with pytest.raises(ValueError, match="replicas must be at least 0 and max_unavailable 1"):
        render_children(_pool(), replicas=replicas, max_unavailable=max_unavailable)


def test_an_edit_of_the_labels_cannot_take_pods_from_the_pool() -> None:
    labels = _template({"worker.podLabels": {"fluxpool.dev/pool": "other", "team": "x"}})["metadata"]["labels"]
    assert (labels["fluxpool.dev/pool"], labels["team"]) == ("standard", "x")


def test_a_removed_field_is_absent_from_the_manifest() -> None:
    full = _pool({"worker.priorityClassName": REMOVED}, spec=FULL_SPEC)
    assert "priorityClassName" not in render_children(full, replicas=1).deployment["spec"]["template"]["spec"]
