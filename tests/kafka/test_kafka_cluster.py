"""The local Kafka: stable address, durable records, readiness, clean shutdown and clear errors."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import trustme
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.errors import KafkaError as ClientError
from aiokafka.helpers import create_ssl_context
from aiokafka.structs import OffsetAndMetadata
from cryptography.hazmat.primitives import serialization

from fluxpool_cli.local.kafka.broker import KafkaStartError, java_command
from fluxpool_contract.kafka import SecurityProtocol
from kit.brokers.kafka import (
    CommittedOffset,
    KafkaFactory,
    committed_offsets,
    create_topics,
    produce,
    read_topic,
    running_kafka,
    sasl_plain_listener,
    scram_listener,
    tls_listener,
    unique_name,
)
from kit.brokers.kafka_cluster import KafkaCluster
from kit.brokers.kafka_settings import ListenerSpec, ScramUser, group_on_partition
from kit.programs.processes import is_alive
from kit.waiting import PATIENCE, WaitExpiredError, wait_until, wait_until_blocking

pytestmark = [pytest.mark.kafka, pytest.mark.on_change("cli/fluxpool_cli/local/kafka")]


@pytest.fixture(scope="module")
def own_kafka(kafka_libs: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[KafkaCluster]:
    """A broker of this module's own, which its tests kill, pause and restart but leave running."""
    with running_kafka(tmp_path_factory.mktemp("own-kafka"), libs=kafka_libs) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA(key_type=trustme.KeyType.ECDSA)


@pytest.fixture(scope="module")
def secured_kafka(
    kafka_libs: Path, tmp_path_factory: pytest.TempPathFactory, authority: trustme.CA
) -> Iterator[KafkaCluster]:
    """A broker with a listener for each authentication mechanism."""
    certificate = authority.issue_cert("127.0.0.1", key_type=trustme.KeyType.ECDSA)
    tls = tls_listener(
        certificate_chain_pem="".join(blob.bytes().decode() for blob in certificate.cert_chain_pems),
        private_key_pem=pkcs8(certificate.private_key_pem.bytes()),
    )
    with running_kafka(
        tmp_path_factory.mktemp("secured-kafka"),
        libs=kafka_libs,
        listeners=[sasl_plain_listener({"ada": "plain-secret"}), scram_listener(), tls],
        scram_users=[ScramUser(name="grace", password="scram-secret")],
    ) as cluster:
        yield cluster


def pkcs8(private_key_pem: bytes) -> str:
    key = serialization.load_pem_private_key(private_key_pem, password=None)
    encoding, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    return key.private_bytes(encoding, form, serialization.NoEncryption()).decode()


async def send_one(bootstrap_servers: str, topic: str, value: bytes, *, partition: int = 0, **login: Any) -> None:
    producer = AIOKafkaProducer(bootstrap_servers=bootstrap_servers, acks="all", **login)
    try:
        await producer.start()
        await producer.send_and_wait(topic, value, partition=partition)
    finally:
        await producer.stop()


async def test_a_group_can_be_used_at_once_when_the_kafka_is_ready(kafka: KafkaCluster) -> None:
    topic, group = unique_name("ready"), unique_name("group")
    await create_topics(kafka.bootstrap_servers, {topic: 2})
    await produce(kafka.bootstrap_servers, topic, [(b"k", b"v")], partition=1)
    consumer = AIOKafkaConsumer(
        topic,
        bootstrap_servers=kafka.bootstrap_servers,
        group_id=group,
        auto_offset_reset="earliest",
        enable_auto_commit=False,
    )
    await consumer.start()
    try:
        async with asyncio.timeout(20 * PATIENCE):
            record = await consumer.getone()
        await consumer.commit({TopicPartition(topic, 1): OffsetAndMetadata(record.offset + 1, "seen")})
    finally:
        await consumer.stop()
    assert record.value == b"v"
    assert await committed_offsets(kafka.bootstrap_servers, group) == {
        (topic, 1): CommittedOffset(offset=1, metadata="seen")
    }


async def test_a_topic_is_read_back_as_a_foreign_client_wrote_it(bootstrap_servers: str) -> None:
    topic = unique_name("raw")
    await create_topics(bootstrap_servers, {topic: 3}, config={"retention.ms": "-1"})
    where = await produce(bootstrap_servers, topic, [(b"a", b"1"), (None, b"2"), (b"c", None)])
    where += await produce(bootstrap_servers, topic, [(b"d", b"4")], partition=2, headers=[("x", b"y"), ("x", b"z")])
    records = {(record.partition, record.offset): record for record in await read_topic(bootstrap_servers, topic)}
    assert [(records[place].key, records[place].value) for place in where] == [
        (b"a", b"1"),
        (None, b"2"),
        (b"c", None),
        (b"d", b"4"),
    ]
    assert records[where[0]].headers == ()
    assert records[where[3]].headers == (("x", b"y"), ("x", b"z"))
    assert all(record.timestamp_ms > 1_600_000_000_000 for record in records.values())


async def test_a_topic_without_records_reads_as_empty(bootstrap_servers: str) -> None:
    topic = unique_name("empty")
    await create_topics(bootstrap_servers, {topic: 1})
    assert await read_topic(bootstrap_servers, topic) == []


async def test_topics_are_not_created_by_metadata_requests(bootstrap_servers: str) -> None:
    with pytest.raises(LookupError):
        await read_topic(bootstrap_servers, unique_name("never-created"))


async def test_a_restarted_broker_has_its_records_and_its_address(own_kafka: KafkaCluster) -> None:
    address, broker = own_kafka.bootstrap_servers, own_kafka.brokers[0]
    topic = unique_name("kept")
    await create_topics(address, {topic: 1})
    await produce(address, topic, [(b"k", str(number).encode()) for number in range(50)])
    killed_pid = broker.pid
    await broker.kill()
    assert broker.pid is None
    await broker.start()
    await own_kafka.wait_ready()
    assert own_kafka.bootstrap_servers == address
    assert broker.pid != killed_pid
    assert [record.value for record in await read_topic(address, topic)] == [str(n).encode() for n in range(50)]


async def test_a_paused_broker_responds_once_it_is_resumed(own_kafka: KafkaCluster) -> None:
    broker = own_kafka.brokers[0]
    topic = unique_name("paused")
    await create_topics(own_kafka.bootstrap_servers, {topic: 1})
    broker.pause()
    try:
        with pytest.raises(KafkaStartError, match="still missing"):
            await own_kafka.wait_ready(deadline_seconds=1)
        assert broker.pid is not None
        sending = asyncio.create_task(send_one(own_kafka.bootstrap_servers, topic, b"late"))
    finally:
        broker.resume()
    async with asyncio.timeout(30 * PATIENCE):
        await sending
    assert [record.value for record in await read_topic(own_kafka.bootstrap_servers, topic)] == [b"late"]


async def test_a_clean_stop_leaves_no_process_and_a_new_handle_finds_everything_again(
    kafka_libs: Path, tmp_path: Path
) -> None:
    topic = unique_name("formatted-once")
    async with KafkaCluster(tmp_path, libs=kafka_libs) as first:
        address, pid = first.bootstrap_servers, first.brokers[0].pid
        await create_topics(address, {topic: 1})
        await produce(address, topic, [(b"k", b"v")])
    assert pid is not None
    assert not psutil.pid_exists(pid)
    assert "shut down completed" in first.brokers[0].log_tail()
    meta_path = tmp_path / "broker-1" / "log" / "meta.properties"
    formatted = meta_path.read_text()

    async with KafkaCluster(tmp_path, libs=kafka_libs) as second:
        assert second.bootstrap_servers == address
        assert [record.value for record in await read_topic(address, topic)] == [b"v"]
    assert meta_path.read_text() == formatted


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux signals a child whose parent was SIGKILLed")
def test_a_broker_dies_with_the_program_that_started_it(kafka_libs: Path, tmp_path: Path) -> None:
    program = textwrap.dedent(
        """
        import asyncio, sys
        from pathlib import Path
        from fluxpool_cli.local.kafka.local_kafka import LocalKafka

        async def main():
            kafka = LocalKafka(Path(sys.argv[1]), libs=Path(sys.argv[2]))
            await kafka.start()
            print(f"pid={kafka.broker.pid}", flush=True)
            await asyncio.Event().wait()

        asyncio.run(main())
        """
    )
    arguments = [sys.executable, "-c", program, str(tmp_path), str(kafka_libs)]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pid_line = next(line for line in parent.stdout if line.startswith("pid="))
        broker = psutil.Process(int(pid_line.removeprefix("pid=")))
        assert "kafka.Kafka" in broker.cmdline()
        os.kill(parent.pid, signal.SIGKILL)
    wait_until_blocking(
        lambda: not is_alive(broker),
        deadline_seconds=10,
        what="end of the orphaned broker",
    )


async def test_three_brokers_serve_a_replicated_topic_with_one_of_them_killed(kafka_factory: KafkaFactory) -> None:
    cluster = await kafka_factory(brokers=3)
    topic, group = unique_name("replicated"), unique_name("group")
    await create_topics(cluster.bootstrap_servers, {topic: 3}, replication_factor=3)
    await produce(cluster.bootstrap_servers, topic, [(None, b"before")], partition=0)
    await cluster.brokers[0].kill()
    await cluster.wait_ready()
    # Acknowledged by the two remaining in-sync replicas of each partition.
    for partition in range(3):
        await send_one(cluster.bootstrap_servers, topic, b"after", partition=partition)
    values = [record.value for record in await read_topic(cluster.bootstrap_servers, topic)]
    assert sorted(values, key=str) == [b"after", b"after", b"after", b"before"]
    assert await committed_offsets(cluster.bootstrap_servers, group) == {}


@pytest.mark.parametrize(
    ("listener", "mechanism", "user", "password"),
    [("SASL", "PLAIN", "ada", "plain-secret"), ("SCRAM", "SCRAM-SHA-512", "grace", "scram-secret")],
)
async def test_a_listener_accepts_the_right_password_only(
    secured_kafka: KafkaCluster, listener: str, mechanism: str, user: str, password: str
) -> None:
    topic = unique_name("secured")
    await create_topics(secured_kafka.bootstrap_servers, {topic: 1})
    login: dict[str, Any] = {
        "security_protocol": "SASL_PLAINTEXT",
        "sasl_mechanism": mechanism,
        "sasl_plain_username": user,
    }
    address = secured_kafka.bootstrap_servers_of(listener)
    await send_one(address, topic, mechanism.encode(), **login, sasl_plain_password=password)
    with pytest.raises(ClientError):
        await send_one(address, topic, b"intruder", **login, sasl_plain_password="guess")
    records = await read_topic(secured_kafka.bootstrap_servers, topic)
    assert [record.value for record in records] == [mechanism.encode()]


async def test_a_tls_listener_shows_the_certificate_it_was_given(
    secured_kafka: KafkaCluster, authority: trustme.CA
) -> None:
    topic = unique_name("tls")
    await create_topics(secured_kafka.bootstrap_servers, {topic: 1})
    address = secured_kafka.bootstrap_servers_of("TLS")
    trusting = create_ssl_context(cadata=authority.cert_pem.bytes().decode())
    await send_one(address, topic, b"trusted", security_protocol="SSL", ssl_context=trusting)
    with pytest.raises(ClientError):
        await send_one(address, topic, b"distrusted", security_protocol="SSL", ssl_context=create_ssl_context())
    assert [record.value for record in await read_topic(secured_kafka.bootstrap_servers, topic)] == [b"trusted"]


async def test_a_broker_that_dies_at_start_is_reported_with_the_end_of_its_log(
    kafka_libs: Path, tmp_path: Path
) -> None:
    cluster = KafkaCluster(tmp_path, libs=kafka_libs, extra_properties={"num.io.threads": "none"})
    with pytest.raises(KafkaStartError, match=r"(?s)kafka-1.*num\.io\.threads"):
        await cluster.start()
    assert all(broker.pid is None for broker in cluster.brokers)


async def test_a_second_kafka_on_the_same_folder_is_refused(own_kafka: KafkaCluster, kafka_libs: Path) -> None:
    with pytest.raises(KafkaStartError, match="another Kafka running on the same data folder"):
        await KafkaCluster(own_kafka.data_dir, libs=kafka_libs).start()
    await own_kafka.wait_ready(deadline_seconds=10)


async def test_a_folder_of_another_size_is_refused(own_kafka: KafkaCluster, kafka_libs: Path) -> None:
    with pytest.raises(KafkaStartError, match=r"holds a Kafka of 1 broker\(s\), not 3"):
        await KafkaCluster(own_kafka.data_dir, libs=kafka_libs, brokers=3).start()


async def test_a_damaged_folder_is_named_with_the_remedy(kafka_libs: Path, tmp_path: Path) -> None:
    (tmp_path / "cluster.json").write_text('{"cluster_id": 1')
    with pytest.raises(KafkaStartError, match=r"cluster\.json is damaged .* remove"):
        await KafkaCluster(tmp_path, libs=kafka_libs).start()


async def test_an_interrupted_format_is_done_again(kafka_libs: Path, tmp_path: Path) -> None:
    (tmp_path / "broker-1" / "log").mkdir(parents=True)
    (tmp_path / "broker-1" / "log" / "meta.properties").write_text("version=1\n")
    cluster = KafkaCluster(tmp_path, libs=kafka_libs)
    await cluster.start()
    await cluster.brokers[0].kill()
    assert json.loads((tmp_path / "cluster.json").read_text())["formatted"] is True


async def test_waiting_before_the_start_is_refused(kafka_libs: Path, tmp_path: Path) -> None:
    cluster = KafkaCluster(tmp_path, libs=kafka_libs)
    with pytest.raises(KafkaStartError, match="no broker runs"):
        await cluster.wait_ready()
    with pytest.raises(KafkaStartError, match="before its first start"):
        cluster.bootstrap_servers.lower()


def test_an_unknown_listener_is_refused_with_the_known_ones(secured_kafka: KafkaCluster) -> None:
    with pytest.raises(KafkaStartError, match=r"no listener 'OAUTH'; known: PLAINTEXT, SASL, SCRAM, TLS"):
        secured_kafka.bootstrap_servers_of("OAUTH")


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"brokers": 2}, "brokers=2"),
        ({"extra_properties": {"listeners": "X://:1"}}, "listeners cannot be set"),
        ({"listeners": [scram_listener(), scram_listener()]}, "each name may be used once"),
    ],
)
def test_impossible_settings_are_refused_by_name(tmp_path: Path, settings: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        KafkaCluster(tmp_path, libs=tmp_path, **settings)


@pytest.mark.parametrize("name", ["sasl", "PLAINTEXT", "CONTROLLER", "", "A B"])
def test_listener_names_that_kafka_cannot_use_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="listener name"):
        ListenerSpec(name=name, protocol=SecurityProtocol.PLAINTEXT)


def test_a_password_that_the_format_tool_does_not_accept_is_refused_and_not_shown() -> None:
    with pytest.raises(ValueError, match="password must not") as refused:
        ScramUser(name="ada", password="a,b")
    assert "a,b" not in str(refused.value)


def test_missing_java_is_named_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(KafkaStartError, match="no java on the path: install a Java runtime 17 or newer"):
        java_command(tmp_path, (), environment={"PATH": str(tmp_path)})
    with pytest.raises(KafkaStartError, match=r"JAVA_HOME='/nowhere' has no bin/java"):
        java_command(tmp_path, (), environment={"PATH": os.environ["PATH"], "JAVA_HOME": "/nowhere"})


@pytest.mark.parametrize("partition", [0, 1, 2])
async def test_readiness_asks_the_coordinator_of_every_partition(own_kafka: KafkaCluster, partition: int) -> None:
    group, topic = group_on_partition(partition), unique_name("coordinated")
    await create_topics(own_kafka.bootstrap_servers, {topic: 1})
    consumer = AIOKafkaConsumer(topic, bootstrap_servers=own_kafka.bootstrap_servers, group_id=group)
    before = {record.offset for record in await committed_records(own_kafka, partition)}
    await consumer.start()
    await consumer.stop()
    written = [record for record in await committed_records(own_kafka, partition) if record.offset not in before]
    assert any(group.encode() in (record.key or b"") for record in written)


async def committed_records(cluster: KafkaCluster, partition: int) -> list[Any]:
    records = await read_topic(cluster.bootstrap_servers, "__consumer_offsets")
    return [record for record in records if record.partition == partition]


async def test_the_timeout_error_names_the_condition_and_the_last_value(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kit.waiting.PATIENCE", 3.0)

    async def never() -> int:
        return 0

    with pytest.raises(WaitExpiredError, match=r"not within 0\.15 s: rain \(last seen: 0\)"):
        await wait_until(never, deadline_seconds=0.05, what="rain")
    with pytest.raises(WaitExpiredError, match="rain"):
        await wait_until(asyncio.Event().wait, deadline_seconds=0.05, what="rain")
    with pytest.raises(WaitExpiredError, match="rain"):
        wait_until_blocking(lambda: None, deadline_seconds=0.05, what="rain")
    assert await wait_until(lambda: "sun", deadline_seconds=1, what="sun") == "sun"
