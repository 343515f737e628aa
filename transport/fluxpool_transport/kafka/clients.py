"""The one place that turns a `KafkaConnection` into the options of a client library.

Owns addresses, encryption and credentials. Knows nothing of topics, groups, or how a client is used: callers add those
options. Consumers with the options for aiokafka return what they cannot decode as `undecodable_records` describes.
"""

import ssl
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, assert_never

import structlog
from aiokafka.client import AIOKafkaClient

from fluxpool_contract.kafka import KafkaConnection, SaslMechanism
from fluxpool_transport.kafka import undecodable_records
from fluxpool_transport.kafka.oauth import TokenClient, TokenFile, TokenProvider

log = structlog.get_logger(__name__)

REQUEST_TIMEOUT_MS = 15_000
"""Longest wait for one response; with a slower broker a new connection is better than waiting on."""

METADATA_MAX_AGE_MS = 60_000
"""New partitions and moved leaders are seen within a minute even when nothing fails."""


class KafkaCredentialsError(Exception):
    """A file or value that the connection needs is missing or unreadable; the message names the setting."""


def aiokafka_options(connection: KafkaConnection, *, client_id: str) -> dict[str, Any]:
    """Keywords that aiokafka's consumer, producer and admin client have in common.

    Call it inside the running event loop. Raises `KafkaCredentialsError` when a TLS file cannot be used.
    """
    undecodable_records.install()
    options: dict[str, Any] = {
        "bootstrap_servers": list(connection.bootstrap_servers),
        "client_id": client_id,
        "security_protocol": connection.security_protocol.value,
        "request_timeout_ms": REQUEST_TIMEOUT_MS,
        "metadata_max_age_ms": METADATA_MAX_AGE_MS,
    }
    if connection.security_protocol.uses_tls:
        options["ssl_context"] = _ssl_context(connection)
    names = ("sasl_mechanism", "sasl_plain_username", "sasl_plain_password", "sasl_oauth_token_provider")
    return options | _sasl(connection, *names, token=TokenProvider)


async def open_client(connection: KafkaConnection, *, client_id: str) -> AIOKafkaClient:
    """A connected aiokafka client, for requests that its consumers and producers do not make; the caller closes it.

    Raises aiokafka's `KafkaError` and `KafkaCredentialsError`.
    """
    client = AIOKafkaClient(**aiokafka_options(connection, client_id=client_id))
    try:
        await client.bootstrap()
    except BaseException:
        await client.close()
        raise
    return client


def librdkafka_options(connection: KafkaConnection, *, client_id: str) -> dict[str, Any]:
    """Configuration that librdkafka's consumer, producer and admin client have in common.

    Raises `KafkaCredentialsError` when a TLS file cannot be read.
    """
    options: dict[str, Any] = {
        "bootstrap.servers": ",".join(connection.bootstrap_servers),
        "client.id": client_id,
        "security.protocol": connection.security_protocol.value,
        "socket.timeout.ms": REQUEST_TIMEOUT_MS,
        "topic.metadata.refresh.interval.ms": METADATA_MAX_AGE_MS,
    }
    if connection.security_protocol.uses_tls:
        options |= _librdkafka_tls(connection)
    names = ("sasl.mechanism", "sasl.username", "sasl.password", "oauth_cb")
    return options | _sasl(connection, *names, token=_librdkafka_token)


def _sasl(
    connection: KafkaConnection,
    mechanism: str,
    username: str,
    password: str,
    oauth: str,
    *,
    token: Callable[[TokenFile | TokenClient], Any],
) -> dict[str, Any]:
    """The options of authentication by a library's names; `token` makes of a source what it asks for tokens."""
    match connection.sasl_mechanism:
        case None:
            return {}
        case SaslMechanism.PLAIN | SaslMechanism.SCRAM_SHA_256 | SaslMechanism.SCRAM_SHA_512:
            credentials = {username: connection.sasl_username, password: _secret(connection, "sasl_password")}
        case SaslMechanism.OAUTHBEARER:
            credentials = {oauth: token(_token_source(connection))}
        case _:
            assert_never(connection.sasl_mechanism)
    return {mechanism: connection.sasl_mechanism.value, **credentials}


def _ssl_context(connection: KafkaConnection) -> ssl.SSLContext:
    authorities = _readable(connection, "tls_ca_file")
    try:
        context = ssl.create_default_context(cafile=authorities)
    except ssl.SSLError as error:
        raise KafkaCredentialsError(f"tls_ca_file: {authorities} holds no PEM certificates ({error})") from error
    certificate = _readable(connection, "tls_certificate_file")
    if certificate is None:
        return context
    key = _readable(connection, "tls_key_file")
    try:
        # A callable, because without one OpenSSL would ask for the password of an encrypted key on the terminal.
        context.load_cert_chain(certificate, key, password=lambda: _secret(connection, "tls_key_password") or "")
    except (ssl.SSLError, ValueError) as error:
        raise KafkaCredentialsError(
            f"tls_certificate_file: {certificate} and tls_key_file {key} are not a PEM certificate with its key, "
            f"or tls_key_password is wrong ({error})"
        ) from error
    return context


def _librdkafka_tls(connection: KafkaConnection) -> dict[str, Any]:
    files = {
        "ssl.ca.location": _readable(connection, "tls_ca_file"),
        "ssl.certificate.location": _readable(connection, "tls_certificate_file"),
        "ssl.key.location": _readable(connection, "tls_key_file"),
    }
    options: dict[str, Any] = {name: str(path) for name, path in files.items() if path is not None}
    password = _secret(connection, "tls_key_password")
    return options | ({"ssl.key.password": password} if password else {})


def _librdkafka_token(source: TokenFile | TokenClient) -> Callable[[str], tuple[str, float]]:
    # Called in a thread of librdkafka's; its own OIDC client neither encodes credentials nor trusts another CA file.
    def token(_config: str) -> tuple[str, float]:
        fetched = source.fetch(now_seconds=time.time())
        return fetched.text, fetched.expires_at_seconds

    return token


def _token_source(connection: KafkaConnection) -> TokenFile | TokenClient:
    if connection.oauth_token_file is not None:
        return TokenFile(connection.oauth_token_file)
    endpoint, client_id = connection.oauth_token_endpoint, connection.oauth_client_id
    client_secret = connection.oauth_client_secret
    if endpoint is None or client_id is None or client_secret is None:
        raise KafkaCredentialsError("oauth_token_endpoint: is required together with oauth_client_id and its secret")
    if not endpoint.startswith("https://"):
        log.warning("oauth_endpoint_unencrypted", endpoint=endpoint, setting="kafka.oauth_token_endpoint")
    return TokenClient(
        endpoint=endpoint,
        client_id=client_id,
        client_secret=client_secret,
        scope=connection.oauth_scope,
        encode_credentials=connection.oauth_encode_credentials,
        ca_file=_readable(connection, "oauth_ca_file") or _readable(connection, "tls_ca_file"),
    )


def _readable(connection: KafkaConnection, setting: str) -> Path | None:
    """The file of a setting; a missing one is found here, because both libraries complain without naming it."""
    path: Path | None = getattr(connection, setting)
    if path is not None:
        try:
            with path.open("rb"):
                pass
        except OSError as error:
            raise KafkaCredentialsError(f"{setting}: {path} cannot be read ({error.strerror}); mount it") from error
    return path


def _secret(connection: KafkaConnection, setting: str) -> str | None:
    secret = getattr(connection, setting)
    return None if secret is None else str(secret.get_secret_value())
