"""The two pools of the demo as manifests, with the names of their groups and topics.

Pure: knows addresses only as arguments.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from fluxpool_contract.kafka.topics import TopicNames
from fluxpool_contract.settings.worker import DEFAULT_CONSUMER_GROUP

NAMESPACE: Final = "fluxpool"
BUCKET: Final = "images"
BUCKET_SECRET: Final = "bucket"  # noqa: S105 - its name
TINY_MODEL: Final = "flux-tiny"
_DEFAULTS: Final = TopicNames()
_TARGET_LAG_PER_REPLICA: Final = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoPool:
    """A pool with its own lane, topics and folder of the bucket."""

    name: str
    group: str
    topics: TopicNames

    @property
    def image_prefix(self) -> str:
        """Prefix of the keys of its objects."""
        return f"{self.name}/"


STANDARD: Final = DemoPool(name="standard", group=DEFAULT_CONSUMER_GROUP, topics=_DEFAULTS)
VIP: Final = DemoPool(
    name="vip",
    group=f"{DEFAULT_CONSUMER_GROUP}-vip",
    topics=TopicNames(
        tasks=_DEFAULTS.tasks_vip,
        # A pool of one lane has no vip lane, but every topic needs a unique name.
        tasks_vip=f"{_DEFAULTS.tasks_vip}-unused",
        results=f"{_DEFAULTS.results}-vip",
        progress=f"{_DEFAULTS.progress}-vip",
        retry=tuple(f"{name}-vip" for name in _DEFAULTS.retry),
        control=f"{_DEFAULTS.control}-vip",
        dead_letters=f"{_DEFAULTS.dead_letters}-vip",
    ),
)
POOLS: Final = (STANDARD, VIP)


def pool_manifest(
    pool: DemoPool,
    *,
    bootstrap_servers: str,
    storage_endpoint_url: str,
    models: Path,
    worker_image: str,
    max_replicas: int,
) -> dict[str, Any]:
    """The `FluxWorkerPool` to apply; `models` is a folder of the node with the checkpoint `TINY_MODEL`."""
    return {
        "apiVersion": "fluxpool.dev/v1alpha1",
        "kind": "FluxWorkerPool",
        "metadata": {"name": pool.name, "namespace": NAMESPACE},
        "spec": {
            "model": {
                "id": f"/models/{TINY_MODEL}",
                "device": "cpu",
                "cache": {"hostPath": {"path": str(models), "readOnly": True}},
            },
            "kafka": _kafka(pool, bootstrap_servers),
            "scaling": {
                "minReplicas": 0,
                "maxReplicas": max_replicas,
                "targetLagPerReplica": _TARGET_LAG_PER_REPLICA,
                # Seconds, where a service would use minutes: a demo should be short.
                "pollIntervalSeconds": 1,
                "idleGracePeriodSeconds": 10,
                "scaleDown": {"stabilizationWindowSeconds": 5},
            },
            "storage": {
                "url": f"s3://{BUCKET}/{pool.image_prefix}",
                "endpointUrl": storage_endpoint_url,
                "region": "us-east-1",
                "credentialsSecretRef": {"name": BUCKET_SECRET},
            },
            # The demo compares the prompt in each file with the one that it sent.
            "image": {"embedParameters": "all"},
            "worker": {"image": worker_image, "terminationGracePeriodSeconds": 60},
        },
    }


def _kafka(pool: DemoPool, bootstrap_servers: str) -> Mapping[str, Any]:
    return {
        "bootstrapServers": [bootstrap_servers],
        "consumerGroup": pool.group,
        "lanes": [{"name": pool.name, "topic": pool.topics.tasks}],
        "topics": {
            "results": pool.topics.results,
            "progress": pool.topics.progress,
            "retry": list(pool.topics.retry),
            "control": pool.topics.control,
            "deadLetters": pool.topics.dead_letters,
        },
        "manageTopics": True,
        "topicLayout": {"replicationFactor": 1},
    }
