"""Children of pools: drift, other field managers, changed Secrets, and everything that can reject a pod."""

import contextlib
import json
from datetime import UTC, datetime, timedelta

import pytest

from kit.cluster.kubernetes_api import ApiError, PatchType
from kit.cluster.manifests import condition, is_ready, wait_gone
from kit.scaling.operator_bench import OperatorBench
from kit.waiting import wait_until

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600), pytest.mark.usefixtures("shared_operator")]


async def test_a_changed_secret_rolls_the_pods_and_a_missing_one_is_named(fluxpool: OperatorBench) -> None:
    await fluxpool.topics("standard")
    secret = f"/api/v1/namespaces/{fluxpool.namespace}/secrets"
    async with fluxpool.fake_workers() as nodes:
        token = {"tokenSecretRef": {"name": "hub"}, "id": "stand-in", "device": "cpu"}
        await fluxpool.apply(fluxpool.pool(scaling__minReplicas=1, model=token, **nodes.placement))
        missing = await fluxpool.wait_condition("Ready", "False", reason="SecretNotFound")
        assert "hub/token" in missing["message"]
        # Scaling continues: the pod waits for its Secret, as with any Deployment.
        await fluxpool.wait_replicas(1)
        await fluxpool.bench.api.create(secret, {"metadata": {"name": "hub"}, "stringData": {"token": "first"}})
        await fluxpool.wait_condition("Ready", "True")
        (first,) = await fluxpool.wait_pods(1)
        await fluxpool.bench.api.patch(f"{secret}/hub", {"stringData": {"token": "second"}})

        async def renewed() -> bool:
            pods = await fluxpool.pods()
            return len(pods) == 1 and is_ready(pods[0]) and pods[0]["metadata"]["uid"] != first["metadata"]["uid"]

        await wait_until(renewed, deadline_seconds=60, what="a pod with the new Secret")
        await fluxpool.wait_condition("Ready", "True")
        # The value itself is in the Secret only.
        assert "second" not in json.dumps([await fluxpool.get(), await fluxpool.deployment(), await fluxpool.events()])


async def test_what_rejects_pods_is_reported_in_ready_with_its_message(fluxpool: OperatorBench) -> None:
    await fluxpool.restrict()
    for name in ("policy", "quota", "image", "standard"):
        await fluxpool.topics(name)
    async with fluxpool.fake_workers() as nodes:
        cache = {"id": "stand-in", "device": "cpu", "cache": {"hostPath": {"path": "/var/lib/models"}}}
        await fluxpool.apply(fluxpool.pool("policy", scaling__minReplicas=1, model=cache, **nodes.placement))
        refused = await fluxpool.wait_condition("Ready", "False", reason="ChildFailed", name="policy")
        assert "hostPath" in refused["message"], refused
        assert "restricted" in refused["message"], refused
        await fluxpool.delete("policy")

        await fluxpool.apply(fluxpool.pool("image", scaling__minReplicas=1, worker__image="fluxpool-worker:typo"))
        pulling = await fluxpool.wait_condition("Ready", "False", reason="ImagePullFailed", name="image")
        assert "fluxpool-worker:typo" in pulling["message"], pulling
        await fluxpool.delete("image")
        await fluxpool.wait_no_pods("image")

        quota = {"metadata": {"name": "few"}, "spec": {"hard": {"requests.nvidia.com/gpu": "2"}}}
        await fluxpool.bench.api.create(f"/api/v1/namespaces/{fluxpool.namespace}/resourcequotas", quota)
        await fluxpool.apply(fluxpool.pool("quota", **nodes.placement))
        await fluxpool.produce(60, name="quota")
        over = await fluxpool.wait_condition("Ready", "False", reason="QuotaExceeded", name="quota")
        assert "exceeded quota: few" in over["message"], over
        await fluxpool.wait_condition("ScalingLimited", "True", reason="QuotaExceeded", name="quota")
        assert len(await fluxpool.pods("quota")) == 2


async def test_two_pools_of_one_group_and_foreign_objects_are_reported(fluxpool: OperatorBench) -> None:
    await fluxpool.topics("standard")
    await fluxpool.topics("taken")
    async with fluxpool.fake_workers() as nodes:
        await fluxpool.apply(fluxpool.pool(scaling__minReplicas=1, **nodes.placement))
        await fluxpool.wait_pods(1)
        # Creation times have whole seconds; they decide which pool is older.
        created = datetime.fromisoformat((await fluxpool.get())["metadata"]["creationTimestamp"])
        await wait_until(
            lambda: datetime.now(UTC) >= created + timedelta(seconds=1), deadline_seconds=10, what="another second"
        )
        fluxpool.groups["rival"] = fluxpool.groups["standard"]
        await fluxpool.apply(fluxpool.pool("rival", scaling__minReplicas=1, **nodes.placement))
        conflict = await fluxpool.wait_condition("Ready", "False", reason="GroupConflict", name="rival")
        assert f"{fluxpool.namespace}/standard" in conflict["message"]
        assert await fluxpool.pods("rival") == []
        await fluxpool.delete("standard")
        await fluxpool.wait_condition("Ready", "True", name="rival")
        await fluxpool.wait_pods(1, name="rival")

        await fluxpool.bench.api.create(
            f"/apis/apps/v1/namespaces/{fluxpool.namespace}/deployments",
            {
                "metadata": {"name": "taken-worker"},
                "spec": {
                    "replicas": 0,
                    "selector": {"matchLabels": {"app": "other"}},
                    "template": {
                        "metadata": {"labels": {"app": "other"}},
                        "spec": {"containers": [{"name": "other", "image": "other"}]},
                    },
                },
            },
        )
        await fluxpool.apply(fluxpool.pool("taken", scaling__minReplicas=1, **nodes.placement))
        foreign = await fluxpool.wait_condition("Ready", "False", reason="ForeignChild", name="taken")
        assert "taken-worker" in foreign["message"]
        other = await fluxpool.deployment("taken")
        assert "ownerReferences" not in other["metadata"]
        await fluxpool.bench.api.delete(fluxpool.deployment_path("taken"))
        await fluxpool.wait_condition("Ready", "True", name="taken")


async def test_a_foreign_entry_in_the_template_survives_and_is_reported(fluxpool: OperatorBench) -> None:
    await fluxpool.topics("standard")
    async with fluxpool.fake_workers() as nodes:
        await fluxpool.apply(fluxpool.pool(scaling__minReplicas=1, **nodes.placement))
        await fluxpool.wait_condition("Ready", "True")
        foreign = {"spec": {"template": {"metadata": {"annotations": {"mesh/inject": "true"}}}}}
        await fluxpool.bench.api.patch(fluxpool.deployment_path(), foreign, patch_type=PatchType.STRATEGIC)

        told = await fluxpool.wait_condition("Ready", "True", reason="ForeignFields")
        # The field manager of this test's client.
        assert "python-httpx" in told["message"]
        template = (await fluxpool.deployment())["spec"]["template"]
        assert template["metadata"]["annotations"]["mesh/inject"] == "true"


async def test_children_that_others_delete_or_relabel_are_repaired_within_15_seconds(fluxpool: OperatorBench) -> None:
    await fluxpool.topics("standard")
    async with fluxpool.fake_workers() as nodes:
        await fluxpool.apply(fluxpool.pool(scaling__minReplicas=1, **nodes.placement))
        await fluxpool.wait_condition("Ready", "True")
        api, namespace = fluxpool.bench.api, fluxpool.namespace
        budget = f"/apis/policy/v1/namespaces/{namespace}/poddisruptionbudgets/standard-worker"
        account = f"/api/v1/namespaces/{namespace}/serviceaccounts/standard-worker"
        for path in (budget, account):
            uid = (await api.get(path))["metadata"]["uid"]
            await api.delete(path)

            async def made_again(path: str = path, uid: str = uid) -> bool:
                with contextlib.suppress(ApiError):
                    return bool((await api.get(path))["metadata"]["uid"] != uid)
                return False

            await wait_until(made_again, deadline_seconds=15, what=f"another {path}")
        label = "app.kubernetes.io/component"
        for path in (fluxpool.deployment_path(), budget):
            await api.patch(path, {"metadata": {"labels": {label: "mine"}}})

            async def relabelled(path: str = path) -> bool:
                return bool((await api.get(path))["metadata"]["labels"][label] == "worker")

            await wait_until(relabelled, deadline_seconds=15, what=f"the label of {path}")


async def test_a_restarted_rollout_completes_and_is_not_reported(fluxpool: OperatorBench) -> None:
    await fluxpool.topics("standard")
    async with fluxpool.fake_workers() as nodes:
        await fluxpool.apply(fluxpool.pool(scaling__minReplicas=1, **nodes.placement))
        await fluxpool.wait_condition("Ready", "True")
        (before,) = await fluxpool.pods()
        await fluxpool.bench.control_plane.kubectl(
            "rollout", "restart", "deployment/standard-worker", "--namespace", fluxpool.namespace
        )

        async def replaced() -> bool:
            pods = await fluxpool.pods()
            return len(pods) == 1 and is_ready(pods[0]) and pods[0]["metadata"]["uid"] != before["metadata"]["uid"]

        await wait_until(replaced, deadline_seconds=60, what="another pod")
        await fluxpool.wait_condition("Ready", "True", reason="Ready")
        template = (await fluxpool.deployment())["spec"]["template"]
        assert "kubectl.kubernetes.io/restartedAt" in template["metadata"]["annotations"]
        assert [event for event in await fluxpool.events() if event[0] == "Warning"] == []


async def test_topics_are_created_on_demand_and_an_invalid_pool_reports_why(fluxpool: OperatorBench) -> None:
    await fluxpool.topics("standard")
    fluxpool.groups["fresh"] = f"{fluxpool.groups['standard']}-fresh"
    async with fluxpool.fake_workers() as nodes:
        await fluxpool.apply(fluxpool.pool("fresh", **nodes.placement))
        unready = await fluxpool.wait_condition("TopicsReady", "False", name="fresh")
        assert f"{fluxpool.groups['fresh']}-tasks" in unready["message"]
        managed = {"manageTopics": True, "topicLayout": {"taskPartitions": 8, "replicationFactor": 1}}
        await fluxpool.patch("fresh", {"kafka": managed})
        await fluxpool.wait_condition("TopicsReady", "True", name="fresh")
        await fluxpool.produce(20, name="fresh")
        await fluxpool.wait_replicas(2, name="fresh")
        assert condition(await fluxpool.get("fresh"), "LagAvailable")["status"] == "True"
        await fluxpool.delete("fresh")
        await wait_gone(fluxpool.bench.api, fluxpool.deployment_path("fresh"))
