"""The connection to a pool's Kafka: addresses as its pods resolve them, allowed addresses, certificates and Secrets."""

import base64
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import trustme
from hypothesis import given
from hypothesis import strategies as st

from fluxpool_operator.api import FluxWorkerPool, Reason
from fluxpool_operator.children import SecretKey
from fluxpool_operator.reconcile.kafka.broker_addresses import (
    BrokerNameError,
    comparable_server,
    is_endpoint_refused,
    refused_brokers,
    resolve_servers,
)
from fluxpool_operator.reconcile.kafka.kafka_access import KafkaAccess, KafkaAccessFinder
from fluxpool_operator.reconcile.kafka.pool_secrets import SecretFiles, SecretValues
from fluxpool_operator.settings import OperatorSettings
from kit.scaling.pool_bench import PoolBench
from kit.scaling.pools import OAUTH_ENDPOINT, OAUTH_PRIVATE_ENDPOINT, SASL_PLAIN, edited, pool_body

AUTHORITY = trustme.CA().cert_pem.bytes()
IN_CLUSTER = {"FLUXPOOL_NAMESPACE": "fluxpool-system"}


def names(*known: str) -> Callable[[str], Awaitable[bool]]:
    """A resolver with these names."""

    async def exists(name: str) -> bool:
        return name in known

    return exists


def pool(**edits: Any) -> FluxWorkerPool:
    paths = {path.replace("__", "."): value for path, value in edits.items()}
    return FluxWorkerPool.parse(edited(pool_body(namespace="images"), paths))


async def access(
    found: FluxWorkerPool,
    folder: Path,
    *,
    environment: Mapping[str, str] = IN_CLUSTER,
    exists: Callable[[str], Awaitable[bool]] | None = None,
    secrets: SecretValues | None = None,
) -> KafkaAccess:
    settings = OperatorSettings.from_environment(environment)
    finder = KafkaAccessFinder(folder, settings=settings, exists=exists or names())
    return await finder.find(found, secrets or SecretValues(values={}, missing=()))


# Names


@pytest.mark.parametrize(
    ("written", "known", "resolved"),
    [
        ("kafka:9092", (), "kafka.images.svc:9092"),
        ("KAFKA:9092", (), "KAFKA.images.svc:9092"),
        ("kafka-0.kafka:9092", ("kafka-0.kafka.images.svc",), "kafka-0.kafka.images.svc:9092"),
        ("kafka.streams:9092", ("kafka.streams.svc",), "kafka.streams.svc:9092"),
        ("example.com:9092", (), "example.com:9092"),
        ("a.b:1", ("a.b.svc", "a.b.images.svc"), "a.b.images.svc:1"),
        ("kafka.streams.svc:9092", (), "kafka.streams.svc:9092"),
        ("b-1.msk.example.com:9092", (), "b-1.msk.example.com:9092"),
        ("kafka.:9092", (), "kafka.:9092"),
        ("localhost:9092", (), "localhost:9092"),
        ("10.0.0.7:9092", (), "10.0.0.7:9092"),
        ("[2001:db8::1]:9092", (), "[2001:db8::1]:9092"),
    ],
)
async def test_a_broker_name_resolves_as_in_the_pods_of_its_pool(
    written: str, known: tuple[str, ...], resolved: str
) -> None:
    assert await resolve_servers([written], namespace="images", exists=names(*known)) == (resolved,)


async def test_a_pool_of_another_namespace_is_not_read_from_the_operators_own_kafka(tmp_path: Path) -> None:
    found = await access(pool(), tmp_path)
    assert found.connection is not None
    assert found.connection.bootstrap_servers == ("kafka.images.svc:9092",)


async def test_in_its_own_namespace_the_operator_uses_the_name_as_written(tmp_path: Path) -> None:
    found = await access(pool(), tmp_path, environment={"FLUXPOOL_NAMESPACE": "images"})
    assert found.connection is not None
    assert found.connection.bootstrap_servers == ("kafka:9092",)
    assert found.servers == ("kafka.images.svc:9092",)


async def test_a_dns_timeout_is_reported_and_the_lookup_repeated(tmp_path: Path) -> None:
    async def silent(name: str) -> bool:
        raise BrokerNameError(f"{name} cannot be looked up: no answer")

    found = await access(pool(kafka__bootstrapServers=["a.b:9092"]), tmp_path, exists=silent)
    assert (found.connection, found.is_final) == (None, False)
    assert "a.b.images.svc cannot be looked up" in found.problems[0].message
    assert not found.problems[0].stops_scaling


@pytest.mark.parametrize(
    "server",
    ["kafka.images:9092", "kafka.images.svc:9092", "Kafka.Images.svc.cluster.local:9092", "kafka.images.svc.:9092"],
)
def test_all_ways_to_write_one_service_compare_equal(server: str) -> None:
    assert comparable_server(server) == "kafka.images:9092"


async def test_pools_of_two_namespaces_with_the_same_short_name_do_not_conflict(tmp_path: Path) -> None:
    first = PoolBench(body=pool_body(namespace="a"), folder=tmp_path, environment=IN_CLUSTER)
    body = edited(pool_body(namespace="b"), {".metadata.uid": "another"})
    second = PoolBench(body=body, folder=tmp_path, environment=IN_CLUSTER, shared=first.context)
    await first.reconcile()
    await second.reconcile()
    assert (first.condition("ScalingActive").status, second.condition("ScalingActive").status) == ("True", "True")


async def test_pools_that_write_one_kafka_in_two_ways_conflict(tmp_path: Path) -> None:
    first = PoolBench(body=pool_body(namespace="a"), folder=tmp_path, environment=IN_CLUSTER)
    edits = {".metadata.uid": "z", "kafka.bootstrapServers": ["kafka.a.svc.cluster.local:9092"]}
    body = edited(pool_body(namespace="b"), edits)
    second = PoolBench(body=body, folder=tmp_path, environment=IN_CLUSTER, shared=first.context)
    await first.reconcile()
    await second.reconcile()
    assert second.condition("Ready").reason == "GroupConflict"


# Allowed addresses


@pytest.mark.parametrize(
    ("server", "allowed", "is_refused"),
    [
        ("kafka.streams.svc:9092", (), False),
        ("kafka.streams.svc:9092", ("kafka.streams.svc:9092",), False),
        ("Kafka.streams.svc:9092", ("kafka.streams.svc:9092",), False),
        ("kafka.streams.svc:9093", ("kafka.streams.svc:9092",), True),
        ("kafka.streams.svc:9093", ("kafka.streams.svc:*",), False),
        ("b-1.msk.example.com:9094", ("*.msk.example.com:9094",), False),
        ("msk.example.com.evil.org:9094", ("*.msk.example.com:9094",), True),
        ("10.0.0.7:6443", ("*.svc:*",), True),
        ("kafkaXstreams.svc:9092", ("kafka.streams.svc:9092",), True),
    ],
)
def test_brokers_are_allowed_by_pattern(server: str, allowed: tuple[str, ...], is_refused: bool) -> None:
    assert refused_brokers([server], allowed=allowed) == ((server,) if is_refused else ())


@pytest.mark.parametrize(
    ("endpoint", "is_refused"),
    [
        ("https://sso.example.com/realms/a/token", False),
        ("https://SSO.example.com/", False),
        ("http://sso.example.com/token", True),
        ("https://sso.example.com", True),
        ("https://sso.example.com.evil.org/token", True),
        ("https://sso.example.com:8443/token", True),
        ("https://sso.example.com@evil.org/token", True),
        ("https://evil.org/sso.example.com/token", True),
        ("https://evil.org#sso.example.com/", True),
        ("https://eu.auth.example.com/oauth/token", False),
        ("https://evil.org/.auth.example.com/oauth/token", True),
        ("https://user@eu.auth.example.com/oauth/token", True),
    ],
)
def test_token_endpoints_are_allowed_by_pattern_and_a_star_never_moves_the_host(
    endpoint: str, is_refused: bool
) -> None:
    allowed = ("https://sso.example.com/*", "https://*.auth.example.com/oauth/token")
    assert is_endpoint_refused(endpoint, allowed=allowed) == is_refused


@given(st.text(max_size=60))
def test_no_host_but_those_below_the_pattern_is_allowed(text: str) -> None:
    if not refused_brokers([text], allowed=("*.example.com:9092",)):
        assert text.lower().endswith(".example.com:9092")
        assert not set("/@:?#\\ ") & set(text[: -len(":9092")])


async def test_a_broker_that_is_not_allowed_is_never_connected_to_and_the_status_names_it(tmp_path: Path) -> None:
    environment = {**IN_CLUSTER, "FLUXPOOL_ALLOWED_BROKERS": "*.streams.svc:9092"}
    bench = PoolBench(body=pool_body(namespace="images"), folder=tmp_path, environment=environment)
    bench.hub.pending = 5
    await bench.run(60)
    assert bench.hub.connections == []
    for type_ in ("Ready", "LagAvailable"):
        told = bench.condition(type_)
        assert (told.status, told.reason) == ("False", "AddressNotAllowed")
        assert "kafka.images.svc:9092" in told.message
        assert "allowedBrokers" in told.message


async def test_no_request_is_sent_to_a_token_endpoint_that_is_not_allowed(tmp_path: Path) -> None:
    environment = {**IN_CLUSTER, "FLUXPOOL_ALLOWED_TOKEN_ENDPOINTS": "https://sso.example.com/*"}
    body = edited(pool_body(namespace="images"), {"kafka.security": OAUTH_ENDPOINT})
    found = await access(FluxWorkerPool.parse(body), tmp_path, environment=environment)
    assert found.connection is None
    assert "https://login.example.com/token" in found.problems[0].message


# Files


def _certificates() -> tuple[FluxWorkerPool, SecretValues]:
    security = {"protocol": "SSL", "caSecretRef": {"name": "ca"}}
    values = {SecretKey("ca", "ca.crt"): b"certificate"}
    return pool(kafka__security=security), SecretValues(values=values, missing=())


def test_closing_an_earlier_pool_does_not_remove_the_certificates_of_the_next(tmp_path: Path) -> None:
    found, secrets = _certificates()
    old, new = SecretFiles(tmp_path / "pool"), SecretFiles(tmp_path / "pool")
    old.write(found, secrets)
    new.write(found, secrets)
    old.remove()
    assert (new.write(found, secrets) / "ca.crt").read_bytes() == b"certificate"


async def test_pools_of_one_name_have_separate_certificates(tmp_path: Path) -> None:
    found, secrets = _certificates()
    folders = set()
    for uid in ("first", "second"):
        finder = KafkaAccessFinder(tmp_path / uid, settings=OperatorSettings())
        connection = (await finder.find(found, secrets)).connection
        assert connection is not None
        assert connection.tls_ca_file is not None
        folders.add(connection.tls_ca_file.parent)
    assert len(folders) == 2


# The token endpoint


OAUTH_SECRETS = {
    SecretKey("oauth", "client-id"): b"flux",
    SecretKey("oauth", "client-secret"): b"hush",
    SecretKey("oauth-ca", "ca.crt"): AUTHORITY,
}


async def test_the_operator_requests_tokens_as_the_pool_configures(tmp_path: Path) -> None:
    secrets = SecretValues(values=OAUTH_SECRETS, missing=())
    found = await access(pool(kafka__security=OAUTH_PRIVATE_ENDPOINT), tmp_path, secrets=secrets)
    assert found.problems == ()
    assert found.connection is not None
    assert found.connection.oauth_encode_credentials is False
    assert found.connection.oauth_ca_file is not None
    assert found.connection.oauth_ca_file.read_bytes() == AUTHORITY


async def test_without_the_ca_of_the_token_endpoint_there_is_no_connection(tmp_path: Path) -> None:
    missing = SecretKey("oauth-ca", "ca.crt")
    values = {key: value for key, value in OAUTH_SECRETS.items() if key != missing}
    secrets = SecretValues(values=values, missing=(missing,))
    found = await access(pool(kafka__security=OAUTH_PRIVATE_ENDPOINT), tmp_path, secrets=secrets)
    assert found.connection is None


# Content of Secrets


@pytest.mark.parametrize("line_end", [b"\n", b"\r\n", b"\r", b"\nx"])
async def test_a_password_with_a_line_end_is_reported_without_its_value(tmp_path: Path, line_end: bytes) -> None:
    values = {SecretKey("kafka-user", "username"): b"flux", SecretKey("kafka-user", "password"): b"hush" + line_end}
    found = await access(pool(kafka__security=SASL_PLAIN), tmp_path, secrets=SecretValues(values=values, missing=()))
    assert found.connection is None
    (problem,) = found.problems
    assert (problem.reason, problem.stops_reading, problem.stops_scaling) == (Reason.SECRET_INVALID, True, False)
    assert "spec.kafka.security: sasl_password" in problem.message
    assert "hush" not in problem.message


async def test_a_storage_key_with_a_line_end_is_reported_and_the_lag_still_read(tmp_path: Path) -> None:
    values = {SecretKey("bucket", "access-key-id"): b"AKIA", SecretKey("bucket", "secret-access-key"): b"hush\n"}
    found = await access(
        pool(storage__credentialsSecretRef={"name": "bucket"}),
        tmp_path,
        secrets=SecretValues(values=values, missing=()),
    )
    assert found.connection is not None
    (problem,) = found.problems
    assert (problem.reason, problem.stops_reading) == (Reason.SECRET_INVALID, False)
    assert "spec.storage: secret_access_key" in problem.message
    assert "hush" not in problem.message


@pytest.mark.parametrize(
    ("content", "is_refused"),
    [
        (AUTHORITY, False),
        ("# Zertifizierungsstelle für Köln\n".encode() + AUTHORITY * 2, False),
        (b"\xef\xbb\xbf" + AUTHORITY, False),
        (AUTHORITY.decode().encode("utf-16"), True),
        (AUTHORITY[:200], True),
        (AUTHORITY.replace(b"MII", b"MIX", 1), True),
        (b"certificate", True),
        (b"", True),
    ],
    ids=["one", "a commented bundle", "a byte order mark", "UTF-16", "cut off", "damaged", "no PEM", "empty"],
)
@pytest.mark.parametrize("field", ["kafka.security", "kafka.security.oauth", "storage"])
async def test_a_ca_entry_without_certificates_is_named_by_field_and_entry(
    tmp_path: Path, field: str, content: bytes, is_refused: bool
) -> None:
    security = {**OAUTH_PRIVATE_ENDPOINT, "protocol": "SASL_SSL"}
    body = edited(pool_body(namespace="images"), {"kafka.security": security, f"{field}.caSecretRef": {"name": "ca"}})
    secrets = SecretValues(values={**OAUTH_SECRETS, SecretKey("ca", "ca.crt"): content}, missing=())
    found = await access(FluxWorkerPool.parse(body), tmp_path, secrets=secrets)
    assert [problem.reason for problem in found.problems] == [Reason.SECRET_INVALID] * is_refused
    assert all(f"spec.{field}.caSecretRef: the entry ca/ca.crt" in problem.message for problem in found.problems)


async def test_an_unusable_secret_is_reported_until_it_is_corrected(tmp_path: Path) -> None:
    body = edited(pool_body(namespace="images"), {"kafka.security": SASL_PLAIN})
    bench = PoolBench(body=body, folder=tmp_path)
    path = "/api/v1/namespaces/images/secrets/kafka-user"
    entries = {"username": "Zmx1eA==", "password": base64.b64encode(b"hush\n").decode()}
    bench.cluster.put(path, {"kind": "Secret", "data": entries})
    await bench.run(30)
    ready = bench.condition("Ready")
    assert (ready.status, ready.reason) == ("False", "SecretInvalid")
    assert bench.hub.connections == []
    bench.cluster.put(path, {"kind": "Secret", "data": {**entries, "password": "aHVzaA=="}})
    await bench.run(60)
    assert bench.condition("Ready").reason != "SecretInvalid"
    assert bench.hub.connections
