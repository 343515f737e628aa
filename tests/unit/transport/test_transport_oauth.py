"""OAUTHBEARER tokens from files and from a real HTTP endpoint."""

import asyncio
import base64
import json
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trustme
from aiohttp import web
from pydantic import SecretStr

from fluxpool_contract.kafka.connection import KafkaConnection, SaslMechanism, SecurityProtocol
from fluxpool_transport.kafka.clients import KafkaCredentialsError, aiokafka_options, librdkafka_options
from fluxpool_transport.kafka.oauth import (
    OPAQUE_TOKEN_SECONDS,
    OAuthTokenError,
    TokenClient,
    TokenFile,
    TokenProvider,
    jwt_expiry_seconds,
)


def _jwt(claims: object) -> str:
    payload = base64.urlsafe_b64encode(json.dumps(claims).encode()).rstrip(b"=").decode()
    return f"e30.{payload}.c2ln"


class TokenEndpoint:
    """Issues `token-1`, `token-2`, ... and records the requests."""

    def __init__(self) -> None:
        self.answer: dict[str, Any] = {"expires_in": 300}
        self.status = 200
        self.asked: list[tuple[dict[str, str], str]] = []
        self.url = ""

    async def handle(self, request: web.Request) -> web.Response:
        form = {name: str(value) for name, value in (await request.post()).items()}
        self.asked.append((form, request.headers["Authorization"]))
        body = {"access_token": f"token-{len(self.asked)}", "token_type": "Bearer", **self.answer}
        return web.json_response(body, status=self.status)


@asynccontextmanager
async def serving(server: TokenEndpoint, tls: ssl.SSLContext | None = None) -> AsyncIterator[None]:
    """Serve the endpoint on a loopback port and yield its address."""
    application = web.Application()
    application.router.add_post("/token", server.handle)
    runner = web.AppRunner(application)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls).start()
    host, port = runner.addresses[0][:2]
    server.url = f"http{'' if tls is None else 's'}://{host}:{port}/token"
    try:
        yield
    finally:
        await runner.cleanup()


@pytest.fixture
async def endpoint() -> AsyncIterator[TokenEndpoint]:
    server = TokenEndpoint()
    async with serving(server):
        yield server


class Clock:
    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


def _provider(endpoint: TokenEndpoint, clock: Clock, *, scope: str | None = None) -> TokenProvider:
    client = TokenClient(endpoint=endpoint.url, client_id="worker", client_secret=SecretStr("hush"), scope=scope)
    return TokenProvider(client, clock=clock)


@pytest.mark.parametrize(
    ("encode", "pair"),
    [(True, b"flux+pool:a%2Bb%252Fc%3Dd%3Ae%C3%A9"), (False, "flux pool:a+b%2Fc=d:eé".encode())],
)
async def test_credentials_are_form_encoded_unless_the_server_takes_them_as_they_are(
    endpoint: TokenEndpoint, encode: bool, pair: bytes
) -> None:
    connection = KafkaConnection(
        bootstrap_servers=("kafka:9092",),
        security_protocol=SecurityProtocol.SASL_PLAINTEXT,
        sasl_mechanism=SaslMechanism.OAUTHBEARER,
        oauth_token_endpoint=endpoint.url,
        oauth_client_id="flux pool",
        oauth_client_secret=SecretStr("a+b%2Fc=d:eé"),
        oauth_encode_credentials=encode,
    )
    await aiokafka_options(connection, client_id="t")["sasl_oauth_token_provider"].token()
    await asyncio.to_thread(librdkafka_options(connection, client_id="t")["oauth_cb"], "")
    expected = f"Basic {base64.b64encode(pair).decode()}"
    assert [header for _, header in endpoint.asked] == [expected, expected]


async def test_an_endpoint_with_a_private_authority_is_trusted_by_its_ca_file(tmp_path: Path) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    server = TokenEndpoint()
    async with serving(server, context):
        strange = TokenClient(endpoint=server.url, client_id="worker", client_secret=SecretStr("hush"))
        with pytest.raises(OAuthTokenError, match="cannot be reached"):
            await strange.fetch_async(now_seconds=0)
        trusted = replace(strange, ca_file=tmp_path / "ca.pem")
        assert (await trusted.fetch_async(now_seconds=0)).text == "token-1"
        assert (await asyncio.to_thread(trusted.fetch, now_seconds=0)).text == "token-2"


async def test_a_secret_for_an_unencrypted_endpoint_passes_no_proxy(
    endpoint: TokenEndpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    assert await _provider(endpoint, Clock()).token() == "token-1"


@pytest.mark.parametrize("expires_in", ["1e999", -1, "soon", float("nan")])
async def test_an_invalid_lifetime_is_refused(endpoint: TokenEndpoint, expires_in: object) -> None:
    endpoint.answer = {"expires_in": expires_in}
    with pytest.raises(OAuthTokenError, match="did not answer with an access_token"):
        await _provider(endpoint, Clock()).token()


def test_an_expiry_out_of_range_is_ignored() -> None:
    assert jwt_expiry_seconds(_jwt({"exp": 10**30})) is None


async def test_a_token_request_has_the_form_of_the_grant(endpoint: TokenEndpoint) -> None:
    assert await _provider(endpoint, Clock(), scope="kafka").token() == "token-1"
    assert endpoint.asked == [
        ({"grant_type": "client_credentials", "scope": "kafka"}, f"Basic {base64.b64encode(b'worker:hush').decode()}")
    ]


async def test_a_token_is_kept_until_shortly_before_it_expires(endpoint: TokenEndpoint) -> None:
    clock = Clock()
    provider = _provider(endpoint, clock)
    assert await provider.token() == "token-1"
    clock.now += 269
    assert await provider.token() == "token-1"
    clock.now += 2
    assert await provider.token() == "token-2"


async def test_callers_at_the_same_time_share_one_request(endpoint: TokenEndpoint) -> None:
    provider = _provider(endpoint, Clock())
    assert set(await asyncio.gather(*(provider.token() for _ in range(10)))) == {"token-1"}
    assert len(endpoint.asked) == 1


async def test_the_lifetime_of_a_response_without_one_is_read_from_the_token(endpoint: TokenEndpoint) -> None:
    clock = Clock()
    endpoint.answer = {"access_token": _jwt({"exp": clock.now + 100})}
    provider = _provider(endpoint, clock)
    await provider.token()
    clock.now += 69
    await provider.token()
    assert len(endpoint.asked) == 1
    clock.now += 2
    await provider.token()
    assert len(endpoint.asked) == 2


async def test_a_refusal_names_the_settings_and_not_the_secret(endpoint: TokenEndpoint) -> None:
    endpoint.status, endpoint.answer = 401, {"error": "invalid_client"}
    with pytest.raises(OAuthTokenError, match=r"answered 401.*invalid_client.*oauth_client_secret") as caught:
        await _provider(endpoint, Clock()).token()
    assert "hush" not in str(caught.value)


async def test_an_answer_without_a_token_is_refused(endpoint: TokenEndpoint) -> None:
    endpoint.answer = {"access_token": None}
    with pytest.raises(OAuthTokenError, match="access_token"):
        await _provider(endpoint, Clock()).token()


async def test_an_endpoint_that_cannot_be_reached_is_tried_again_next_time() -> None:
    nowhere = TokenEndpoint()
    nowhere.url = "http://127.0.0.1:1/token"
    provider = _provider(nowhere, Clock())
    for _ in range(2):
        with pytest.raises(OAuthTokenError, match=r"127\.0\.0\.1:1/token cannot be reached"):
            await provider.token()
    assert issubclass(OAuthTokenError, ConnectionError)


async def test_a_token_file_is_read_for_every_connection(tmp_path: Path) -> None:
    path = tmp_path / "token"
    provider = TokenProvider(TokenFile(path))
    path.write_text("one\n")
    assert await provider.token() == "one"
    path.write_text("two\n")
    assert await provider.token() == "two"


def test_the_lifetime_of_a_token_file_is_read_from_its_token(tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text(_jwt({"exp": 1_500}))
    assert TokenFile(path).fetch(now_seconds=1_000).expires_at_seconds == 1_500
    path.write_text("opaque")
    assert TokenFile(path).fetch(now_seconds=1_000).expires_at_seconds == 1_000 + OPAQUE_TOKEN_SECONDS


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "cannot be read"),
        ("", "is empty"),
        (" \n", "is empty"),
        ("ü", "cannot be read"),
        (_jwt({"exp": 900}), "100 s ago"),
    ],
)
def test_a_useless_token_file_is_named_with_the_remedy(tmp_path: Path, content: str | None, words: str) -> None:
    path = tmp_path / "token"
    if content is not None:
        path.write_text(content, encoding="utf-8")
    with pytest.raises(OAuthTokenError, match=f"oauth_token_file: .*{words}"):
        TokenFile(path).fetch(now_seconds=1_000)


@pytest.mark.parametrize(
    "token", ["", "a.b", "a.b.c", "....", "e30.e30.", "e30.W10.", _jwt([1]), _jwt({"exp": "soon"}), _jwt({"exp": True})]
)
def test_a_token_without_a_readable_expiry_is_opaque(token: str) -> None:
    assert jwt_expiry_seconds(token) is None


def test_librdkafka_gets_tokens_from_the_same_client() -> None:
    connection = KafkaConnection.model_validate(
        {
            "bootstrap_servers": ["a:1", "b:2"],
            "security_protocol": "SASL_SSL",
            "sasl_mechanism": "OAUTHBEARER",
            "oauth_token_endpoint": "https://id/token",
            "oauth_client_id": "c",
            "oauth_client_secret": "hush",
            "oauth_scope": "kafka",
        }
    )
    options = librdkafka_options(connection, client_id="me")
    assert options["bootstrap.servers"] == "a:1,b:2"
    assert callable(options["oauth_cb"])
    assert "hush" not in repr(options)


async def test_a_tls_file_that_is_no_certificate_is_named(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("not a certificate")
    connection = KafkaConnection.model_validate(
        {"bootstrap_servers": ["a:1"], "security_protocol": "SSL", "tls_ca_file": tmp_path / "ca.pem"}
    )
    with pytest.raises(KafkaCredentialsError, match=r"tls_ca_file: .*ca\.pem holds no PEM certificates"):
        aiokafka_options(connection, client_id="me")
