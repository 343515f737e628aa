"""The topics that the operator reads for a pool: its lanes, and the retry topics with the first lane."""

from fluxpool_contract.settings.worker import WorkerSettings
from fluxpool_operator.api import FluxWorkerPool
from fluxpool_operator.backlog import LaneTarget, lane_targets_of
from fluxpool_operator.backlog.observation import RetryTier
from fluxpool_operator.children import worker_settings


def _settings(kafka: dict[str, object]) -> WorkerSettings:
    pool = FluxWorkerPool.parse(
        {
            "apiVersion": "fluxpool.dev/v1alpha1",
            "kind": "FluxWorkerPool",
            "metadata": {"name": "standard", "namespace": "images", "uid": "u", "generation": 1},
            "spec": {
                "kafka": {"bootstrapServers": ["kafka:9092"], **kafka},
                "scaling": {"maxReplicas": 6},
                "storage": {"url": "s3://images/"},
                "worker": {"image": "fluxpool-worker:dev"},
            },
        }
    )
    return worker_settings(pool)


def test_the_default_pool_reads_the_topic_and_group_of_the_contract_with_all_retry_topics() -> None:
    (target,) = lane_targets_of(_settings({}))
    assert (target.topic, target.consumer_group) == ("flux-generation-tasks", "flux-worker-group")
    assert target.retry_tiers == tuple(
        RetryTier(
            topic=f"flux-generation-retry-{delay}",
            group="flux-worker-group-retry",
            delay_seconds=seconds,
            origins=("flux-generation-tasks",),
        )
        for delay, seconds in (("15s", 15.0), ("2m", 120.0), ("15m", 900.0))
    )


def test_further_lanes_have_groups_of_their_own_and_no_retry_topics() -> None:
    lanes = [
        {"name": "standard", "topic": "tasks"},
        {"name": "vip", "topic": "tasks-vip"},
        {"name": "bulk", "topic": "tasks-bulk", "consumerGroup": "bulk-readers"},
    ]
    first, *others = lane_targets_of(
        _settings({"lanes": lanes, "consumerGroup": "eu", "topics": {"retry": ["later-1h"]}})
    )
    (tier,) = first.retry_tiers
    assert (tier.topic, tier.group, tier.delay_seconds) == ("later-1h", "eu-retry", 3600.0)
    assert tier.origins == ("tasks", "tasks-vip", "tasks-bulk")
    assert others == [
        LaneTarget(name="vip", topic="tasks-vip", consumer_group="eu-vip"),
        LaneTarget(name="bulk", topic="tasks-bulk", consumer_group="bulk-readers"),
    ]
