"""Watch events: to which pool an object belongs, what is cached of it; odd objects end nothing."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fluxpool_contract.kafka import KafkaConnection
from fluxpool_operator.api.kafka import KafkaSpec
from fluxpool_operator.backlog import TopicReport
from fluxpool_operator.children import MANAGED_BY, POOL_LABEL
from fluxpool_operator.metrics import OperatorMetrics
from fluxpool_operator.reconcile.child_cache import Change, ChildCache, PoolKey
from fluxpool_operator.reconcile.context import OperatorContext
from fluxpool_operator.reconcile.pool_tasks import PoolTasks
from fluxpool_operator.settings import OperatorSettings
from kit.scaling.pool_bench import FakeCluster, FakeHub
from kit.scaling.pools import pool_body
from kit.waiting import wait_until

KEY = PoolKey("images", "standard")


def child(name: str = "standard-worker", **metadata: Any) -> dict[str, Any]:
    labels = {**MANAGED_BY, POOL_LABEL: KEY.name}
    usual = {"name": name, "namespace": KEY.namespace, "uid": name, "resourceVersion": "7", "labels": labels}
    return {"metadata": {**usual, "creationTimestamp": "2026-05-04T12:00:00Z", **metadata}, "spec": {}, "status": {}}


def pod(name: str = "standard-worker-a", **metadata: Any) -> dict[str, Any]:
    owner = [{"kind": "ReplicaSet", "name": "standard-worker-1", "uid": "rs", "controller": True}]
    return child(name, **{"ownerReferences": owner, **metadata})


# Ownership


def test_a_pod_without_a_controlling_replica_set_is_ignored() -> None:
    cache = ChildCache()
    cache.on_pod(pod(ownerReferences=[]), is_deleted=False)
    assert cache.pods(KEY) == ()
    cache.on_pod(pod(), is_deleted=False)
    assert [found.name for found in cache.pods(KEY)] == ["standard-worker-a"]


def test_the_deletion_of_a_child_does_not_remove_its_successor_of_the_same_name() -> None:
    cache, woken = ChildCache(), set[Change]()
    cache.on_child("PodDisruptionBudget", child(uid="old", resourceVersion="1"), is_deleted=False)
    cache.on_child("PodDisruptionBudget", child(uid="new", resourceVersion="2"), is_deleted=False)
    cache.subscribe(KEY, woken.add)
    cache.on_child("PodDisruptionBudget", child(uid="old", resourceVersion="1"), is_deleted=True)
    assert (cache.children(KEY)["PodDisruptionBudget"].uid, woken) == ("new", set())


# Odd objects

TEXT = st.text(max_size=20)
ANNOTATIONS = st.one_of(
    st.none(),
    st.dictionaries(
        st.one_of(
            TEXT,
            st.sampled_from(["controller.kubernetes.io/pod-deletion-cost", "kubectl.kubernetes.io/restartedAt"]),
        ),
        st.one_of(TEXT, st.sampled_from(["", "-1e3", "9" * 5000, "\N{ARABIC-INDIC DIGIT THREE}", "null", "0x1"])),
        max_size=4,
    ),
)
CONTAINER = st.fixed_dictionaries(
    {},
    optional={
        "name": TEXT,
        "restartCount": st.integers(0, 2**31),
        "started": st.one_of(st.none(), st.booleans()),
        "state": st.one_of(
            st.none(),
            st.dictionaries(
                st.sampled_from(["waiting", "terminated", "running"]),
                st.one_of(
                    st.none(),
                    st.fixed_dictionaries({}, optional={"reason": TEXT, "message": TEXT, "exitCode": st.integers()}),
                ),
            ),
        ),
    },
)
STATUS = st.one_of(
    st.none(),
    st.fixed_dictionaries(
        {},
        optional={
            "phase": st.one_of(TEXT, st.sampled_from(["Running", "Pending", "Evicted"])),
            "conditions": st.one_of(
                st.none(),
                st.lists(
                    st.fixed_dictionaries(
                        {"type": st.sampled_from(["Ready", "PodScheduled", "Progressing", "Odd"])},
                        optional={"status": st.sampled_from(["True", "False", "Unknown", "Perhaps"]), "reason": TEXT},
                    ),
                    max_size=3,
                ),
            ),
            "containerStatuses": st.one_of(st.none(), st.lists(CONTAINER, max_size=3)),
        },
    ),
)


@given(annotations=ANNOTATIONS, status=STATUS, labels=st.dictionaries(TEXT, TEXT, max_size=3))
def test_no_odd_pod_fails_to_be_summarized(
    annotations: dict[str, str] | None, status: dict[str, Any] | None, labels: dict[str, str]
) -> None:
    cache = ChildCache()
    body = pod(annotations=annotations, labels={**labels, POOL_LABEL: KEY.name})
    cache.on_pod({**body, "status": status}, is_deleted=False)
    assert len(cache.pods(KEY)) == 1
    cache.on_pod({**body, "status": status}, is_deleted=True)
    assert cache.pods(KEY) == ()


FIELDS: st.SearchStrategy[Any] = st.recursive(
    st.dictionaries(st.sampled_from(["f:a", "k:{}", ".", "odd", "f:template"]), st.just({}), max_size=2),
    lambda below: st.dictionaries(
        st.sampled_from(["f:spec", "f:template", "f:metadata", "v:1", "x"]), below, max_size=3
    ),
    max_leaves=6,
)


@given(
    annotations=ANNOTATIONS,
    status=STATUS,
    fields=st.one_of(st.none(), FIELDS),
    strategy=st.one_of(st.none(), st.just({}), st.just({"rollingUpdate": None})),
)
def test_no_odd_deployment_fails_to_be_summarized(
    annotations: dict[str, str] | None,
    status: dict[str, Any] | None,
    fields: dict[str, Any] | None,
    strategy: dict[str, Any] | None,
) -> None:
    cache = ChildCache()
    body = child(annotations=annotations, managedFields=[{"manager": "odd", "fieldsV1": fields}, {}])
    cache.on_child("Deployment", {**body, "spec": {"strategy": strategy}, "status": status}, is_deleted=False)
    assert cache.deployment(KEY) is not None


# Pools


def pool_tasks_of(folder: Path, cluster: FakeCluster | None = None, **fields: Any) -> PoolTasks:
    async def observe_topics(connection: KafkaConnection, kafka: KafkaSpec) -> TopicReport:
        del connection, kafka
        return TopicReport()

    context = OperatorContext(
        settings=OperatorSettings(),
        cluster=cluster or FakeCluster(),
        hub=FakeHub(),
        folder=folder,
        observe_topics=observe_topics,
        **fields,
    )
    return PoolTasks(context, restart_seconds=0.02)


def pool(uid: str, **metadata: Any) -> dict[str, Any]:
    body = pool_body()
    body["metadata"] |= {"uid": uid, "resourceVersion": "1", "generation": 1, **metadata}
    return body


async def test_a_pool_that_was_recreated_during_a_watch_outage_has_one_loop(tmp_path: Path) -> None:
    pool_tasks = pool_tasks_of(tmp_path)
    pool_tasks.on_pool(pool("old"), is_deleted=False)
    pool_tasks.on_pool(pool("new"), is_deleted=False)
    assert pool_tasks.pool_uids == {"new"}
    await pool_tasks.stop()


async def test_an_invalid_pool_is_reported_and_reconciled_once_it_is_corrected(tmp_path: Path) -> None:
    cluster = FakeCluster()
    pool_tasks = pool_tasks_of(tmp_path, cluster)
    invalid = pool("one")
    invalid["spec"] = {**invalid["spec"], "scaling": {"minReplicas": 5, "maxReplicas": 1}}
    path = f"/namespaces/{KEY.namespace}/fluxworkerpools/{KEY.name}/status"
    pool_tasks.on_pool(invalid, is_deleted=False)
    await wait_until(
        lambda: any(verb == "merge_patch" and asked.endswith(path) for verb, asked in cluster.requests),
        deadline_seconds=10,
        what="the status of the invalid pool",
    )
    assert cluster.writes() == []
    pool_tasks.on_pool(pool("one", generation=2), is_deleted=False)
    await wait_until(
        lambda: any(written.endswith("/deployments/standard-worker") for written in cluster.writes()),
        deadline_seconds=10,
        what="the Deployment of the corrected pool",
    )
    await pool_tasks.stop()


@pytest.mark.parametrize(
    "metadata",
    [
        {"annotations": None, "labels": None},
        {"annotations": {"": "", "\N{SNOWMAN}": "\x1b[2J", "a" * 300: "b" * 100_000}},
        {"creationTimestamp": None, "generation": None},
        {"generation": "three", "labels": "none"},
        {"ownerReferences": [{}], "finalizers": [""]},
    ],
)
async def test_an_odd_pool_has_a_loop_and_does_not_affect_others(tmp_path: Path, metadata: dict[str, Any]) -> None:
    pool_tasks = pool_tasks_of(tmp_path)
    pool_tasks.on_pool(pool("odd", name="odd", **metadata), is_deleted=False)
    pool_tasks.on_pool(pool("plain"), is_deleted=False)
    for uid in ("odd", "plain"):
        pool_tasks.on_pool(pool(uid, name="odd" if uid == "odd" else "standard", **metadata), is_deleted=False)
    assert pool_tasks.pool_uids == {"odd", "plain"}
    await pool_tasks.stop()


class DefectiveCache(ChildCache):
    """Ends the loop of one pool three times."""

    def __init__(self) -> None:
        super().__init__()
        self.failures = 3

    def subscribe(self, key: PoolKey, wake: Callable[[Change], None]) -> None:
        if key.name == "broken" and self.failures:
            self.failures -= 1
            raise LookupError("a defect")
        super().subscribe(key, wake)


async def test_a_loop_that_a_defect_ends_begins_again_while_others_go_on(tmp_path: Path) -> None:
    cluster, metrics = FakeCluster(), OperatorMetrics()
    pool_tasks = pool_tasks_of(tmp_path, cluster, cache=DefectiveCache(), metrics=metrics)
    pool_tasks.on_pool(pool("broken", name="broken"), is_deleted=False)
    pool_tasks.on_pool(pool("plain"), is_deleted=False)
    wanted = {"standard-worker", "broken-worker"}
    await wait_until(
        lambda: wanted <= {path.rpartition("/deployments/")[2] for path in cluster.writes()},
        deadline_seconds=10,
        what="both Deployments",
    )

    def failures(name: str) -> float | None:
        labels = {"namespace": KEY.namespace, "pool": name}
        return metrics.registry.get_sample_value("fluxpool_pool_loop_failures_total", labels)

    assert (failures("broken"), failures(KEY.name)) == (3, None)
    assert pool_tasks.longest_silence_seconds() < 10
    pool_tasks.remove_pool("broken")
    assert failures("broken") is None
    await pool_tasks.stop()
