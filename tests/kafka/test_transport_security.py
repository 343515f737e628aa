"""Authentication at a real broker with every mechanism, by both client libraries."""

import asyncio
import base64
import json
import ssl
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import trustme
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.errors import KafkaConnectionError
from cryptography.hazmat.primitives import serialization
from pydantic import SecretStr

from fluxpool_contract.kafka.connection import KafkaConnection, SaslMechanism, SecurityProtocol
from fluxpool_contract.kafka.topics import TopicSpec
from fluxpool_transport.kafka.admin import KafkaUnavailableError
from fluxpool_transport.kafka.clients import KafkaCredentialsError, aiokafka_options
from fluxpool_transport.kafka.topic_admin import ensure_topics
from fluxpool_transport.lag.lag_reader import LagReader
from kit.brokers.kafka import (
    create_topics,
    running_kafka,
    sasl_plain_listener,
    scram_listener,
    tls_listener,
    unique_name,
)
from kit.brokers.kafka_cluster import KafkaCluster
from kit.brokers.kafka_settings import ListenerSpec, ScramUser
from kit.waiting import wait_until

pytestmark = pytest.mark.kafka

PASSWORD = "correct-horse-battery"


@dataclass(frozen=True, slots=True)
class SecureKafka:
    cluster: KafkaCluster
    ca_file: Path
    client_certificate_file: Path
    client_key_file: Path
    token_file: Path

    def connection(self, listener: str, **settings: Any) -> KafkaConnection:
        return KafkaConnection(
            bootstrap_servers=tuple(self.cluster.bootstrap_servers_of(listener).split(",")), **settings
        )


def _unsigned_jwt(*, subject: str, lifetime_seconds: float) -> str:
    """A token that Kafka's unsecured validator accepts: claims under `alg: none`, with an empty signature."""
    now = time.time()
    parts = ({"alg": "none"}, {"sub": subject, "iat": now, "exp": now + lifetime_seconds})
    encoded = [base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=").decode() for part in parts]
    return ".".join([*encoded, ""])


def _oauth_listener() -> ListenerSpec:
    module = "org.apache.kafka.common.security.oauthbearer.OAuthBearerLoginModule"
    return ListenerSpec(
        name="OAUTH",
        protocol=SecurityProtocol.SASL_PLAINTEXT,
        properties={
            "sasl.enabled.mechanisms": "OAUTHBEARER",
            "oauthbearer.sasl.jaas.config": f'{module} required unsecuredLoginStringClaim_sub="broker";',
        },
    )


def _pkcs8(key_pem: bytes) -> str:
    key = serialization.load_pem_private_key(key_pem, password=None)
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).decode()


@pytest.fixture(scope="module")
def secure(kafka_libs: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SecureKafka]:
    folder = tmp_path_factory.mktemp("secure-kafka")
    authority = trustme.CA()
    server, client = authority.issue_cert("127.0.0.1"), authority.issue_cert("worker@fluxpool.test")
    files = {"ca": authority.cert_pem, "certificate": client.cert_chain_pems[0], "key": client.private_key_pem}
    paths = {name: folder / f"{name}.pem" for name in files}
    for name, blob in files.items():
        blob.write_to_path(str(paths[name]))
    chain = server.cert_chain_pems[0].bytes().decode()
    key = _pkcs8(server.private_key_pem.bytes())
    ca = authority.cert_pem.bytes().decode()
    with running_kafka(
        folder / "data",
        libs=kafka_libs,
        listeners=[
            sasl_plain_listener({"worker": PASSWORD}),
            scram_listener(),
            tls_listener(certificate_chain_pem=chain, private_key_pem=key),
            tls_listener(certificate_chain_pem=chain, private_key_pem=key, client_ca_pem=ca, name="MTLS"),
            _oauth_listener(),
        ],
        scram_users=[
            ScramUser(name="worker", password=PASSWORD, mechanism=SaslMechanism.SCRAM_SHA_256),
            ScramUser(name="worker", password=PASSWORD, mechanism=SaslMechanism.SCRAM_SHA_512),
        ],
    ) as cluster:
        yield SecureKafka(cluster, paths["ca"], paths["certificate"], paths["key"], folder / "token")


def _sasl(mechanism: SaslMechanism, *, password: str = PASSWORD) -> dict[str, Any]:
    return {
        "security_protocol": SecurityProtocol.SASL_PLAINTEXT,
        "sasl_mechanism": mechanism,
        "sasl_username": "worker",
        "sasl_password": SecretStr(password),
    }


@pytest.fixture(params=["plain", "scram-256", "scram-512", "tls", "mutual-tls", "oauth-file"])
def login(request: pytest.FixtureRequest, secure: SecureKafka) -> KafkaConnection:
    tls = {"security_protocol": SecurityProtocol.SSL, "tls_ca_file": secure.ca_file}
    match request.param:
        case "plain":
            return secure.connection("SASL", **_sasl(SaslMechanism.PLAIN))
        case "scram-256":
            return secure.connection("SCRAM", **_sasl(SaslMechanism.SCRAM_SHA_256))
        case "scram-512":
            return secure.connection("SCRAM", **_sasl(SaslMechanism.SCRAM_SHA_512))
        case "tls":
            return secure.connection("TLS", **tls)
        case "mutual-tls":
            return secure.connection(
                "MTLS", **tls, tls_certificate_file=secure.client_certificate_file, tls_key_file=secure.client_key_file
            )
        case _:
            secure.token_file.write_text(_unsigned_jwt(subject="worker", lifetime_seconds=600))
            return secure.connection(
                "OAUTH",
                security_protocol=SecurityProtocol.SASL_PLAINTEXT,
                sasl_mechanism=SaslMechanism.OAUTHBEARER,
                oauth_token_file=secure.token_file,
            )


async def test_aiokafka_and_librdkafka_both_connect(login: KafkaConnection) -> None:
    topic = unique_name("secure")
    await ensure_topics(login, [TopicSpec(name=topic, partitions=1, replication_factor=1)])
    producer = AIOKafkaProducer(acks="all", **aiokafka_options(login, client_id="test"))
    await producer.start()
    try:
        await producer.send_and_wait(topic, b"payload")
    finally:
        await producer.stop()
    consumer = AIOKafkaConsumer(topic, auto_offset_reset="earliest", **aiokafka_options(login, client_id="test"))
    await consumer.start()
    try:
        async with asyncio.timeout(15):
            assert (await consumer.getone()).value == b"payload"
    finally:
        await consumer.stop()
    async with LagReader(login) as reader:

        async def one_waits() -> bool:
            return (await reader.read({"secure-group": topic}))["secure-group"].lag_records == 1

        await wait_until(one_waits, deadline_seconds=15, what="a backlog of one record")


@pytest.mark.parametrize(
    ("listener", "mechanism"),
    [("SASL", SaslMechanism.PLAIN), ("SCRAM", SaslMechanism.SCRAM_SHA_512)],
    ids=["plain", "scram-512"],
)
async def test_a_wrong_password_is_named_as_the_cause(
    secure: SecureKafka, listener: str, mechanism: SaslMechanism
) -> None:
    wrong = secure.connection(listener, **_sasl(mechanism, password="wrong"))
    with pytest.raises(KafkaUnavailableError, match=r"[Aa]uthentication failed") as caught:
        await ensure_topics(wrong, [TopicSpec(name="x", partitions=1, replication_factor=1)], deadline_seconds=3)
    assert "wrong" not in str(caught.value)
    producer = AIOKafkaProducer(**aiokafka_options(wrong, client_id="test"))
    try:
        with pytest.raises(KafkaConnectionError):
            await producer.start()
    finally:
        await producer.stop()


async def test_a_certificate_of_another_authority_is_refused(secure: SecureKafka, tmp_path: Path) -> None:
    stranger = tmp_path / "ca.pem"
    trustme.CA().cert_pem.write_to_path(str(stranger))
    connection = secure.connection("TLS", security_protocol=SecurityProtocol.SSL, tls_ca_file=stranger)
    with pytest.raises(KafkaUnavailableError, match="certificate verify failed"):
        await ensure_topics(connection, [TopicSpec(name="x", partitions=1, replication_factor=1)], deadline_seconds=3)
    assert aiokafka_options(connection, client_id="test")["ssl_context"].verify_mode == ssl.CERT_REQUIRED


async def test_a_server_name_that_does_not_match_is_refused(secure: SecureKafka) -> None:
    (address,) = secure.connection("TLS", security_protocol=SecurityProtocol.SSL).bootstrap_servers
    port = address.rpartition(":")[2]
    connection = KafkaConnection(
        bootstrap_servers=(f"localhost:{port}",), security_protocol=SecurityProtocol.SSL, tls_ca_file=secure.ca_file
    )
    with pytest.raises(KafkaUnavailableError):
        await ensure_topics(connection, [TopicSpec(name="x", partitions=1, replication_factor=1)], deadline_seconds=2)


async def test_without_a_token_no_connection_is_made(secure: SecureKafka, tmp_path: Path) -> None:
    connection = secure.connection(
        "OAUTH",
        security_protocol=SecurityProtocol.SASL_PLAINTEXT,
        sasl_mechanism=SaslMechanism.OAUTHBEARER,
        oauth_token_file=tmp_path / "nothing",
    )
    producer = AIOKafkaProducer(**aiokafka_options(connection, client_id="test"))
    try:
        with pytest.raises(KafkaConnectionError):
            await producer.start()
    finally:
        await producer.stop()


async def test_a_missing_tls_file_is_reported_before_anything_is_connected(secure: SecureKafka, tmp_path: Path) -> None:
    connection = secure.connection("TLS", security_protocol=SecurityProtocol.SSL, tls_ca_file=tmp_path / "nothing.pem")
    with pytest.raises(KafkaCredentialsError, match=r"tls_ca_file: .*nothing\.pem"):
        aiokafka_options(connection, client_id="test")
    with pytest.raises(KafkaCredentialsError, match=r"tls_ca_file: .*nothing\.pem"):
        await ensure_topics(connection, [TopicSpec(name="any", partitions=1, replication_factor=1)])


async def test_the_plain_listener_needs_no_login(secure: SecureKafka) -> None:
    topic = unique_name("plain")
    await create_topics(secure.cluster.bootstrap_servers, {topic: 1})
    connection = secure.connection("PLAINTEXT")
    assert await ensure_topics(connection, [TopicSpec(name=topic, partitions=1, replication_factor=1)]) == ()
