"""Reconciling a pool: requests to the API server, problems that do not stop scaling, repairs."""

import copy
from pathlib import Path
from typing import Any

import pytest

from fluxpool_contract.kafka.connection import KafkaConnection
from fluxpool_operator.api.kafka import KafkaSpec
from fluxpool_operator.backlog import TopicReport
from fluxpool_operator.cluster import ClusterError
from fluxpool_operator.reconcile.apply import topic_reconciler
from fluxpool_operator.reconcile.child_cache import Change
from kit.scaling.pool_bench import PoolBench
from kit.scaling.pools import MINIMAL_SPEC, SASL_PLAIN, edited, pool_body
from kit.waiting import wait_until

NAMESPACE = pool_body()["metadata"]["namespace"]
SECRETS = f"/api/v1/namespaces/{NAMESPACE}/secrets"
MUTUAL_TLS = {
    **SASL_PLAIN,
    "protocol": "SASL_SSL",
    "caSecretRef": {"name": "kafka-ca"},
    "clientCertificateSecretRef": {"name": "kafka-client"},
}


def bench(folder: Path, **edits: Any) -> PoolBench:
    """A pool of at most six workers, one for each task, that scales in at once."""
    scaling = {
        "maxReplicas": 6,
        "targetLagPerReplica": 1,
        "idleGracePeriodSeconds": 0,
        "scaleDown": {"stabilizationWindowSeconds": 0},
    }
    paths = {path.replace("__", "."): value for path, value in edits.items()}
    return PoolBench(body=edited(pool_body({**MINIMAL_SPEC, "scaling": scaling}), paths), folder=folder)


def secret(*keys: str) -> dict[str, Any]:
    return {"kind": "Secret", "data": dict.fromkeys(keys, "eA==")}


# Rates of requests


@pytest.mark.parametrize("security", [SASL_PLAIN, MUTUAL_TLS], ids=["one Secret", "three Secrets"])
async def test_a_pool_without_its_kafka_secret_asks_the_api_server_at_most_12_times_in_10_seconds(
    tmp_path: Path, security: dict[str, Any]
) -> None:
    pool = bench(tmp_path, kafka__security=security)
    await pool.run(10)
    assert len(pool.cluster.requests) <= 12
    assert pool.condition("Ready").reason == "SecretNotFound"
    assert "kafka-user/username" in pool.condition("Ready").message
    before = len(pool.cluster.requests)
    await pool.run(60)
    assert len(pool.cluster.requests) - before <= 12


async def test_a_refused_deployment_is_applied_again_with_growing_delays(tmp_path: Path) -> None:
    pool = bench(tmp_path)
    refusal = ClusterError(request="PATCH", status=403, reason="Forbidden", message="no such thing here")
    pool.cluster.refusals[pool.deployment_path] = refusal
    await pool.run(10)
    before = len(pool.cluster.requests)
    await pool.run(60)
    assert len(pool.cluster.requests) - before <= 20
    assert "no such thing here" in pool.condition("Ready").message
    pool.cluster.refusals.clear()
    await pool.run(16)
    assert pool.replicas == 0


async def test_an_idle_pool_sends_no_request_to_the_api_server(tmp_path: Path) -> None:
    pool = bench(tmp_path)
    await pool.run(30)
    before = len(pool.cluster.requests)
    await pool.run(60)
    assert pool.cluster.requests[before:] == []


async def test_a_secret_that_appears_is_found_within_15_seconds(tmp_path: Path) -> None:
    pool = bench(tmp_path, kafka__security=SASL_PLAIN)
    pool.hub.pending = 1
    await pool.run(12)
    assert pool.replicas is None
    pool.cluster.put(f"{SECRETS}/kafka-user", secret("username", "password"))
    await pool.run(15)
    assert pool.replicas == 6


# Problems that do not stop scaling


async def test_a_missing_model_token_stops_neither_scale_out_nor_scale_in(tmp_path: Path) -> None:
    pool = bench(tmp_path, model__tokenSecretRef={"name": "hub"})
    pool.hub.pending = 1
    await pool.run(20)
    assert pool.replicas == 6
    assert (pool.condition("Ready").reason, pool.condition("ScalingActive").status) == ("SecretNotFound", "True")
    pool.hub.pending = 0
    await pool.run(20)
    assert pool.replicas == 0


async def test_pods_that_run_are_not_replaced_while_a_secret_of_theirs_is_missing(tmp_path: Path) -> None:
    pool = bench(tmp_path, model__tokenSecretRef={"name": "hub"})
    pool.cluster.put(f"{SECRETS}/hub", secret("token"))
    pool.hub.pending = 1
    await pool.run(10)
    template = copy.deepcopy(pool.cluster.objects[pool.deployment_path]["spec"]["template"])
    del pool.cluster.objects[f"{SECRETS}/hub"]
    pool.hub.pending = 0
    await pool.run(60)
    assert pool.condition("Ready").reason == "SecretNotFound"
    assert pool.replicas == 0
    assert pool.cluster.objects[pool.deployment_path]["spec"]["template"] == template


async def test_a_missing_kafka_secret_does_not_stop_the_fallback_of_a_pool_with_workers(tmp_path: Path) -> None:
    fallback = {"policy": "Fallback", "replicas": 3}
    pool = bench(tmp_path, kafka__security=SASL_PLAIN, scaling__onLagUnavailable=fallback)
    pool.cluster.put(f"{SECRETS}/kafka-user", secret("username", "password"))
    await pool.run(10)
    assert pool.replicas == 0
    del pool.cluster.objects[f"{SECRETS}/kafka-user"]
    await pool.run(120)
    assert pool.replicas == 3


def _topics(monkeypatch: pytest.MonkeyPatch, report: TopicReport) -> list[KafkaSpec]:
    asked: list[KafkaSpec] = []

    async def manage_topics(connection: KafkaConnection, kafka: KafkaSpec) -> TopicReport:
        del connection
        asked.append(kafka)
        return report

    monkeypatch.setattr(topic_reconciler, "manage_topics", manage_topics)
    return asked


async def test_trouble_with_topic_administration_does_not_stop_scaling(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _topics(monkeypatch, TopicReport(problems=("topic flux-dlq: grant ALTER",)))
    pool = bench(tmp_path, kafka__manageTopics=True, scaling__maxReplicas=3)
    pool.hub.pending = 5
    await pool.reconcile(Change.SPEC)
    await wait_until(lambda: Change.TOPICS in pool.woken, deadline_seconds=5, what="the topics' report")
    await pool.run(20)
    assert pool.replicas == 3
    assert (pool.condition("TopicsReady").status, pool.condition("Ready").reason) == ("False", "TopicsFailed")
    assert pool.condition("ScalingActive").status == "True"


async def test_trouble_with_topic_administration_does_not_stop_the_fallback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _topics(monkeypatch, TopicReport(problems=("topics could not be reconciled: no broker answers",)))
    fallback = {"policy": "Fallback", "replicas": 3}
    pool = bench(tmp_path, kafka__manageTopics=True, scaling__onLagUnavailable=fallback)
    pool.hub.pending = None
    await pool.reconcile(Change.SPEC)
    await wait_until(lambda: Change.TOPICS in pool.woken, deadline_seconds=5, what="the topics' report")
    await pool.run(120)
    assert pool.replicas == 3


async def test_a_paused_pool_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = _topics(monkeypatch, TopicReport())
    pool = bench(tmp_path, kafka__manageTopics=True, paused=True, model__tokenSecretRef={"name": "hub"})
    pool.hub.pending = 5
    await pool.run(30)
    assert (asked, pool.cluster.writes()) == ([], [])
    assert pool.condition("ScalingActive").reason == "Paused"
    assert pool.condition("LagAvailable").status == "True"


async def test_topics_with_producer_timestamps_are_named_with_the_remedy(tmp_path: Path) -> None:
    pool = bench(tmp_path)
    pool.create_time = ("flux-generation-tasks", "flux-generation-retry-15s")
    await pool.reconcile(Change.SPEC)
    await wait_until(lambda: Change.TOPICS in pool.woken, deadline_seconds=5, what="the check of the topics")
    await pool.reconcile()
    condition = pool.condition("LogAppendTime")
    assert (condition.status, condition.reason) == ("False", "CreateTime")
    for words in ("topic flux-generation-tasks", "message.timestamp.type=LogAppendTime", "flux-generation-retry-15s"):
        assert words in condition.message


async def test_expired_records_are_counted_once(tmp_path: Path) -> None:
    pool = bench(tmp_path)
    await pool.run(10)
    pool.hub.expired = 2
    await pool.run(30)
    pool.hub.expired = 3
    await pool.run(30)
    labels = {"namespace": pool.key.namespace, "pool": pool.key.name}
    assert pool.context.metrics.registry.get_sample_value("fluxpool_pool_expired_records_total", labels) == 6 * 3


# Repairs


BUDGETS = f"/apis/policy/v1/namespaces/{NAMESPACE}/poddisruptionbudgets"
ACCOUNTS = f"/api/v1/namespaces/{NAMESPACE}/serviceaccounts"


async def _repairable(folder: Path, **edits: Any) -> PoolBench:
    """A pool whose children may be repaired now."""
    pool = bench(folder, **edits)
    await pool.run(30)
    return pool


@pytest.mark.parametrize(
    ("kind", "collection"),
    [("PodDisruptionBudget", BUDGETS), ("ServiceAccount", ACCOUNTS)],
)
async def test_a_deleted_child_is_created_again_at_the_watch_event(tmp_path: Path, kind: str, collection: str) -> None:
    pool = await _repairable(tmp_path)
    path = f"{collection}/standard-worker"
    gone = pool.cluster.objects.pop(path)
    pool.context.cache.on_child(kind, gone, is_deleted=True)
    assert pool.woken == {Change.CHILD_DELETED}
    await pool.reconcile()
    assert path in pool.cluster.objects


async def test_a_changed_label_of_the_deployment_is_repaired_at_the_watch_event(tmp_path: Path) -> None:
    pool = await _repairable(tmp_path)
    path = pool.deployment_path
    label = "app.kubernetes.io/component"
    pool.context.cache.on_child(
        "Deployment", pool.cluster.put(path, {"metadata": {"labels": {label: "mine"}}}), is_deleted=False
    )
    await pool.run(5)
    assert pool.cluster.objects[path]["metadata"]["labels"][label] == "worker"


async def test_a_label_that_is_changed_again_and_again_is_repaired_at_a_bounded_rate(tmp_path: Path) -> None:
    pool = await _repairable(tmp_path)
    before, began = len(pool.cluster.requests), pool.seconds
    for _ in range(100):
        strange = pool.cluster.put(pool.deployment_path, {"metadata": {"labels": {"app.kubernetes.io/name": "x"}}})
        pool.context.cache.on_child("Deployment", strange, is_deleted=False)
        await pool.reconcile()
        pool.seconds += 0.1
    assert pool.seconds - began < 11
    assert len(pool.cluster.requests) - before <= 3


async def test_a_status_that_a_controller_writes_does_not_wake_the_loop(tmp_path: Path) -> None:
    pool = await _repairable(tmp_path)
    budget = pool.cluster.put(f"{BUDGETS}/standard-worker", {"status": {"currentHealthy": 3}})
    pool.context.cache.on_child("PodDisruptionBudget", budget, is_deleted=False)
    assert pool.woken == set()


async def test_a_late_event_of_an_earlier_state_is_no_drift(tmp_path: Path) -> None:
    pool = bench(tmp_path)
    await pool.reconcile(Change.SPEC)
    early = copy.deepcopy(pool.cluster.objects[pool.deployment_path])
    pool.hub.pending = 5
    await pool.run(20)
    writes = len(pool.cluster.writes())
    pool.context.cache.on_child("Deployment", early, is_deleted=False)
    await pool.run(20)
    assert (pool.replicas, len(pool.cluster.writes())) == (6, writes)


async def test_a_copy_of_the_deployment_under_another_name_is_ignored(tmp_path: Path) -> None:
    pool = await _repairable(tmp_path)
    copied = copy.deepcopy(pool.cluster.objects[pool.deployment_path])
    copied["metadata"] |= {"name": "mine", "uid": "copied", "resourceVersion": "9999"}
    copied["spec"]["replicas"] = 5
    pool.context.cache.on_child("Deployment", copied, is_deleted=False)
    deployment = pool.context.cache.deployment(pool.key)
    assert (pool.woken, deployment and deployment.spec_replicas) == (set(), 0)
