"""A Kafka behind proxies for each test file that uses it; a file can define its own listeners."""

from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path

import pytest

from kit.brokers.kafka import running_kafka
from kit.brokers.kafka_cluster import KafkaCluster
from kit.brokers.kafka_settings import ListenerSpec
from kit.faults.chaos_kafka import ProxiedKafka, proxied_listener, proxies_of


@pytest.fixture(scope="module")
def listener() -> ListenerSpec:
    """The listener whose clients connect through `kit.faults.chaos_kafka.proxies_of`."""
    return proxied_listener()


@pytest.fixture(scope="module")
def broker_properties() -> Mapping[str, str]:
    """Further broker properties of a test file."""
    return {}


@pytest.fixture(scope="module")
def own_kafka(
    kafka_libs: Path,
    tmp_path_factory: pytest.TempPathFactory,
    listener: ListenerSpec,
    broker_properties: Mapping[str, str],
) -> Iterator[KafkaCluster]:
    """One broker with this listener and these properties."""
    data_dir = tmp_path_factory.mktemp("own-kafka")
    with running_kafka(data_dir, libs=kafka_libs, listeners=[listener], extra_properties=broker_properties) as cluster:
        yield cluster


@pytest.fixture
async def proxied(own_kafka: KafkaCluster, listener: ListenerSpec) -> AsyncIterator[ProxiedKafka]:
    """The same broker with its link restored for each test."""
    async with proxies_of(own_kafka, listener) as kafka:
        yield kafka
