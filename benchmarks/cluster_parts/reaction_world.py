"""The test bed of the reaction benchmark: a pool at zero replicas, its topics and group, bursts of tasks, fake nodes.

Knows how a burst is sent and how the pool returns to zero; measures only the time of the last acknowledgement.
"""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

from confluent_kafka import ConsumerGroupTopicPartitions, KafkaError, Message, Producer, TopicPartition
from confluent_kafka.admin import AdminClient

from fluxpool_contract.kafka.topics import TopicNames, topic_specs
from fluxpool_operator.api import FluxWorkerPool
from kit.brokers.kafka import create_topics
from kit.cluster.control_plane import ControlPlane
from kit.cluster.fake_nodes import FakeNodes, FakePods
from kit.cluster.kubernetes_api import KubernetesApi
from kit.cluster.kubernetes_node import NodeSpec
from kit.scaling.operator_bench import GPU, apply_definitions
from kit.scaling.pools import edited, pool_body

NAMESPACE: Final = "reaction"
POOL: Final = "standard"
PARTITIONS: Final = 12
TASKS: Final = 120
LINGER_MS: Final = 5
"""The linger time of the gateway's producer."""
ACK_SECONDS: Final = 30.0
# The maximum is above the planned size, and the target equals a partition's share, so that the size shows how much of
# the burst was read. Without an idle grace, runs follow each other within seconds.
SCALING: Final = {"maxReplicas": 20, "targetLagPerReplica": 10, "idleGracePeriodSeconds": 0}


@dataclass(frozen=True, slots=True)
class Burst:
    """Tasks sent at once."""

    began_at_seconds: float
    """Monotonic time, like all times here."""
    acked_at_seconds: float
    """Time of the last acknowledgement."""


class Tasks:
    """The tasks of the pool: produced, and committed as if workers had done them."""

    def __init__(self, bootstrap_servers: str, *, topic: str, group: str) -> None:
        """Connect with the first use."""
        # These clients outlive the broker, and would log errors.
        connection = {"bootstrap.servers": bootstrap_servers, "log_level": 0}
        self._admin = AdminClient(connection)
        self._producer = Producer({**connection, "acks": "all", "linger.ms": LINGER_MS})
        self._topic = topic
        self._group = group
        self._ends = dict.fromkeys(range(PARTITIONS), 0)
        self._acked_at_seconds = 0.0
        self._refused: KafkaError | None = None

    def burst(self) -> Burst:
        """Produce as many tasks on each partition; blocks until all are acknowledged."""
        began_at_seconds = time.monotonic()
        for number in range(TASKS):
            task = {"request_id": f"{began_at_seconds}-{number}", "prompt": "a lighthouse"}
            self._producer.produce(
                self._topic, json.dumps(task).encode(), partition=number % PARTITIONS, on_delivery=self._acknowledged
            )
        if self._refused is not None or self._producer.flush(ACK_SECONDS):
            raise RuntimeError(f"not every task was acknowledged within {ACK_SECONDS:g} s: {self._refused}")
        return Burst(began_at_seconds, self._acked_at_seconds)

    def commit(self) -> None:
        """Set the group's offsets to the ends; blocks until the broker has them."""
        offsets = [TopicPartition(self._topic, partition, end) for partition, end in self._ends.items()]
        committed = self._admin.alter_consumer_group_offsets([ConsumerGroupTopicPartitions(self._group, offsets)])
        for future in committed.values():
            future.result()

    def _acknowledged(self, error: KafkaError | None, message: Message) -> None:
        offset, partition = message.offset(), message.partition()
        if error is not None or offset is None or partition is None:
            self._refused = error
            return
        self._acked_at_seconds = time.monotonic()
        self._ends[partition] = max(self._ends[partition], offset + 1)


@dataclass(frozen=True, slots=True)
class Testbed:
    """The parts of all runs."""

    api: KubernetesApi
    pool: FluxWorkerPool
    tasks: Tasks

    async def is_resting(self) -> bool:
        """Whether the pool reports no pending task and no worker, and no pod is left."""
        namespace = f"namespaces/{NAMESPACE}"
        found = await self.api.get(f"/apis/fluxpool.dev/v1alpha1/{namespace}/fluxworkerpools/{POOL}")
        status = found.get("status", {})
        numbers = [status.get(name) for name in ("pending", "desiredReplicas", "replicas")]
        return numbers == [0, 0, 0] and not (await self.api.get(f"/api/v1/{namespace}/pods"))["items"]


@asynccontextmanager
async def build_testbed(control_plane: ControlPlane, bootstrap_servers: str) -> AsyncIterator[Testbed]:
    """Create everything but the scalers; the fake nodes live as long as the context."""
    specs = topic_specs(TopicNames(), task_partitions=PARTITIONS)
    await create_topics(bootstrap_servers, {spec.name: spec.partitions for spec in specs})
    await control_plane.kubectl("create", "namespace", NAMESPACE)
    # Capacity for the workers of all scalers.
    node = NodeSpec(name="reaction", capacity={GPU: "64"})
    async with control_plane.api() as api, FakeNodes(api, [node], pods=FakePods()):
        await apply_definitions(control_plane, api)
        body = edited(
            pool_body(name=POOL, namespace=NAMESPACE),
            {"kafka.bootstrapServers": [bootstrap_servers], "scaling": SCALING},
        )
        del body["metadata"]["uid"]
        path = f"/apis/fluxpool.dev/v1alpha1/namespaces/{NAMESPACE}/fluxworkerpools"
        pool = FluxWorkerPool.parse(await api.create(path, body))
        (lane,) = pool.spec.kafka.lanes
        tasks = Tasks(bootstrap_servers, topic=lane.topic, group=pool.spec.kafka.consumer_group)
        await asyncio.to_thread(tasks.commit)
        yield Testbed(api, pool, tasks)
