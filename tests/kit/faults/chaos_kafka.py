"""Kafka behind a network that fails on demand: every connection of a client passes a proxy.

The brokers advertise the proxies' addresses, so no metadata leads past them. Brokers connect to each other directly;
observers use `bootstrap_servers` of the cluster, which no fault affects.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final, Literal

from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import KafkaError
from confluent_kafka.admin import AdminClient

from fluxpool_contract.kafka import SecurityProtocol
from kit.brokers.kafka import KafkaFactory
from kit.brokers.kafka_cluster import ClusterBroker, KafkaCluster
from kit.brokers.kafka_settings import ListenerSpec
from kit.faults.tcp_proxy import TcpProxy
from kit.ports import own_port
from kit.waiting import PATIENCE, wait_until

_REQUEST_SECONDS: Final = 10.0 * PATIENCE


@dataclass(frozen=True, slots=True)
class ProxiedKafka:
    """A cluster and the proxies of its brokers, by node id from 1 on."""

    cluster: KafkaCluster
    lines: tuple[TcpProxy, ...]

    @property
    def bootstrap_servers(self) -> str:
        """Bootstrap servers for the clients under test."""
        return ",".join(line.address for line in self.lines)

    async def on_every_line(self, change: Callable[[TcpProxy], Awaitable[None]]) -> None:
        """Change all proxies at once: `on_every_line(TcpProxy.black_hole)`."""
        await asyncio.gather(*(change(line) for line in self.lines))


def proxied_listener(*, brokers: Literal[1, 3] = 1, name: str = "PROXIED") -> ListenerSpec:
    """A listener that advertises proxies."""
    advertised = {broker: own_port() for broker in range(1, brokers + 1)}
    return ListenerSpec(name=name, protocol=SecurityProtocol.PLAINTEXT, advertised_ports=advertised)


@asynccontextmanager
async def proxies_of(cluster: KafkaCluster, listener: ListenerSpec) -> AsyncIterator[ProxiedKafka]:
    """Open the proxies of a running cluster that was started with this listener; restored for every test."""
    async with AsyncExitStack() as stack:
        lines = [
            TcpProxy(broker.ports[listener.name], port=listener.advertised_ports[broker.node_id])
            for broker in cluster.brokers
        ]
        for line in lines:
            await stack.enter_async_context(line)
        yield ProxiedKafka(cluster, tuple(lines))


@asynccontextmanager
async def proxied_kafka(
    kafka_factory: KafkaFactory, *, brokers: Literal[1, 3] = 1, **settings: Any
) -> AsyncIterator[ProxiedKafka]:
    """Start a Kafka, ready to serve, with one proxy for each broker."""
    listener = proxied_listener(brokers=brokers)
    cluster = await kafka_factory(brokers=brokers, listeners=[listener], **settings)
    async with proxies_of(cluster, listener) as kafka:
        yield kafka


async def coordinator_of(cluster: KafkaCluster, group: str) -> ClusterBroker:
    """The broker that coordinates a group."""
    running = [broker.address for broker in cluster.brokers if broker.pid is not None]
    admin = AIOKafkaAdminClient(bootstrap_servers=running)

    async def found() -> ClusterBroker | None:
        try:
            await admin.start()
            node_id = await admin.find_coordinator(group)
        except KafkaError:
            return None  # no coordinator has been chosen yet
        return next((broker for broker in cluster.brokers if broker.node_id == node_id and broker.pid), None)

    try:
        broker = await wait_until(found, deadline_seconds=30, what=f"a coordinator of {group}")
    finally:
        await admin.close()
    assert broker is not None
    return broker


async def leader_of(cluster: KafkaCluster, topic: str, partition: int) -> ClusterBroker:
    """The broker that leads a partition."""
    admin = AdminClient({"bootstrap.servers": cluster.bootstrap_servers})

    async def found() -> ClusterBroker | None:
        known = (await asyncio.to_thread(admin.list_topics, topic, timeout=_REQUEST_SECONDS)).topics[topic]
        leader = known.partitions[partition].leader
        return next((broker for broker in cluster.brokers if broker.node_id == leader and broker.pid), None)

    broker = await wait_until(found, deadline_seconds=30, what=f"a leader of {topic}-{partition}")
    assert broker is not None
    return broker
