"""The test bed of the operator's benchmark: topics and groups with tasks, fake nodes, and pools of a fixed size.

Keeps everything unchanged while the operator is measured; measures nothing itself.
"""

import asyncio
import math
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

from confluent_kafka import ConsumerGroupTopicPartitions, KafkaError, KafkaException, Message, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic

from kit.cluster.control_plane import ControlPlane
from kit.cluster.fake_nodes import FakeNodes, FakePods
from kit.cluster.kubernetes_api import ApiUnreachableError, Body, KubernetesApi
from kit.cluster.kubernetes_node import NodeSpec
from kit.scaling.operator_bench import apply_definitions
from kit.waiting import wait_until

NAMESPACE: Final = "scale"
PODS_PER_NODE: Final = 200
TOPICS_AT_ONCE: Final = 200
POOLS_AT_ONCE: Final = 20
WRITE_ROUNDS: Final = 5
WRITE_PAUSE_SECONDS: Final = 1.0
WRITE_SECONDS: Final = 120
TASKS_AGE_SECONDS: Final = 3 * 86_400 + 300
SETTLE_POLL_SECONDS: Final = 10.0
SETTLE_DEADLINE_SECONDS: Final = 1800.0
# A thousand topics reach a client's metadata some time after they were created.
UNKNOWN_PLACE: Final = (
    KafkaError._UNKNOWN_TOPIC,  # noqa: SLF001 - librdkafka's local error codes carry the underscore in their public names
    KafkaError._UNKNOWN_PARTITION,  # noqa: SLF001
)
SHARED_TOPICS: Final = {
    "results": "scale-results",
    "progress": "scale-progress",
    "control": "scale-control",
    "deadLetters": "scale-dlq",
    "retry": ["scale-retry-15s"],
}


@dataclass(frozen=True, slots=True)
class Testbed:
    """The pools of the operator."""

    api: KubernetesApi
    bootstrap_servers: str
    topics: tuple[str, ...]
    """One for each pool; its group has the same name."""
    pods_per_pool: int
    tasks_per_pool: int

    async def wait_settled(self) -> None:
        """Wait until every pool is ready with all of its pods."""
        path = f"/apis/fluxpool.dev/v1alpha1/namespaces/{NAMESPACE}/fluxworkerpools"

        async def settled() -> bool:
            await asyncio.sleep(SETTLE_POLL_SECONDS)
            try:
                pools = (await self.api.get(path))["items"]
            except ApiUnreachableError as error:  # busy creating pods
                sys.stderr.write(f"{error}; asking again\n")
                return False
            ready = [pool for pool in pools if pool.get("status", {}).get("readyReplicas") == self.pods_per_pool]
            sys.stderr.write(f"{len(ready)} of {len(self.topics)} pools are ready\n")
            return len(ready) == len(self.topics)

        await wait_until(settled, deadline_seconds=SETTLE_DEADLINE_SECONDS, what="every pool to be ready")


@asynccontextmanager
async def build_testbed(
    control_plane: ControlPlane, bootstrap_servers: str, *, pools: int, pods: int, partitions: int
) -> AsyncIterator[Testbed]:
    """Create everything but the operator; the fake nodes live as long as the context."""
    topics = tuple(f"scale-{number}" for number in range(pools))
    pods_per_pool = max(1, pods // pools)
    await asyncio.to_thread(_make_groups, bootstrap_servers, topics, partitions, pods_per_pool)
    await control_plane.kubectl("create", "namespace", NAMESPACE)
    nodes = [
        NodeSpec(name=f"scale-{number}", capacity={"nvidia.com/gpu": str(PODS_PER_NODE)}, heartbeat_interval_seconds=20)
        for number in range(math.ceil(pods_per_pool * pools / PODS_PER_NODE) + 1)
    ]
    async with control_plane.api() as api, FakeNodes(api, nodes, pods=FakePods()):
        await apply_definitions(control_plane, api)
        for first in range(0, pools, POOLS_AT_ONCE):
            batch = topics[first : first + POOLS_AT_ONCE]
            await asyncio.gather(*(_make_pool(api, bootstrap_servers, topic, pods_per_pool) for topic in batch))
        yield Testbed(api, bootstrap_servers, topics, pods_per_pool, tasks_per_pool=_tasks(partitions, pods_per_pool))


def _tasks(partitions: int, pods_per_pool: int) -> int:
    """The same number on each partition, and at least one for each pod."""
    return partitions * math.ceil(pods_per_pool / partitions)


def _make_groups(bootstrap_servers: str, topics: tuple[str, ...], partitions: int, pods_per_pool: int) -> None:
    """Topics with tasks, and groups that have committed the begin of each partition."""
    admin = AdminClient({"bootstrap.servers": bootstrap_servers})
    tasks = _tasks(partitions, pods_per_pool)
    retry = SHARED_TOPICS["retry"]
    shared = [name for name in SHARED_TOPICS.values() if isinstance(name, str)] + list(retry)
    wanted = [NewTopic(name, num_partitions=1) for name in shared]
    wanted += [NewTopic(name, num_partitions=partitions) for name in topics]
    for first in range(0, len(wanted), TOPICS_AT_ONCE):
        made = admin.create_topics(wanted[first : first + TOPICS_AT_ONCE], operation_timeout=60, request_timeout=90)
        for future in made.values():
            future.result()
    _write_tasks(bootstrap_servers, [(topic, number % partitions) for topic in topics for number in range(tasks)])
    for topic in topics:
        begins = [TopicPartition(topic, number, 0) for number in range(partitions)]
        for future in admin.alter_consumer_group_offsets([ConsumerGroupTopicPartitions(topic, begins)]).values():
            future.result()


def _write_tasks(bootstrap_servers: str, places: list[tuple[str, int]]) -> None:
    """Write one task to each partition; repeat those that the producer does not know yet."""
    # Days old, so that their age, which a status shows in steps, does not change either.
    written_at_ms = int((time.time() - TASKS_AGE_SECONDS) * 1000)
    producer = Producer({"bootstrap.servers": bootstrap_servers, "linger.ms": 50})
    for _ in range(WRITE_ROUNDS):
        refused: list[tuple[str, int]] = []

        def note(error: object, message: Message, refused: list[tuple[str, int]] = refused) -> None:
            if error is not None:
                refused.append((message.topic(), message.partition()))

        for topic, partition in places:
            try:
                producer.produce(
                    topic,
                    b'{"request_id": "x", "prompt": "x"}',
                    partition=partition,
                    timestamp=written_at_ms,
                    on_delivery=note,
                )
            except KafkaException as error:
                if error.args[0].code() not in UNKNOWN_PLACE:
                    raise
                refused.append((topic, partition))
            producer.poll(0)
        if producer.flush(WRITE_SECONDS):
            raise RuntimeError(f"not every task was written within {WRITE_SECONDS} s")
        if not refused:
            return
        places = refused
        time.sleep(WRITE_PAUSE_SECONDS)
    raise RuntimeError(f"{len(places)} tasks were refused {WRITE_ROUNDS} times, such as one for {places[0]}")


async def _make_pool(api: KubernetesApi, bootstrap_servers: str, topic: str, pods: int) -> Body:
    return await api.create(
        f"/apis/fluxpool.dev/v1alpha1/namespaces/{NAMESPACE}/fluxworkerpools",
        {
            "apiVersion": "fluxpool.dev/v1alpha1",
            "kind": "FluxWorkerPool",
            "metadata": {"name": topic},
            "spec": {
                "kafka": {
                    "bootstrapServers": [bootstrap_servers],
                    "consumerGroup": topic,
                    "lanes": [{"name": "standard", "topic": topic}],
                    "topics": SHARED_TOPICS,
                },
                # The size is constant: minimum, maximum and required number are the same.
                "scaling": {"minReplicas": pods, "maxReplicas": pods, "targetLagPerReplica": 1},
                "storage": {"url": "s3://images/"},
                "worker": {"image": "fluxpool-worker:dev"},
            },
        },
    )
