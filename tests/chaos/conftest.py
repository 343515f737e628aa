"""Kafka with ways through proxies, one for each test file that wants it; a file may have listeners of its own."""

from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path

import pytest

from kit.chaos_kafka import ProxiedKafka, proxied_listener, proxies_of
from kit.kafka import running_kafka
from kit.kafka_cluster import KafkaCluster
from kit.kafka_settings import ListenerSpec


@pytest.fixture(scope="module")
def listener() -> ListenerSpec:
    """The one whose clients come through `kit.chaos_kafka.proxies_of`."""
    return proxied_listener()


@pytest.fixture(scope="module")
def broker_properties() -> Mapping[str, str]:
    """What a file wants of its broker besides."""
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
    """The same broker with its line mended for each test anew."""
    async with proxies_of(own_kafka, listener) as kafka:
        yield kafka
