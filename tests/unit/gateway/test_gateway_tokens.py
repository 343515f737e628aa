"""Bearer tokens of an OpenID Connect issuer: who is admitted by which, and what happens while the issuer is away."""

import base64
import hmac
import itertools
import json
import ssl
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import jwt
import pytest
import trustme
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from structlog.testing import capture_logs

from fluxpool_contract.header_names import TENANT
from fluxpool_gateway.http.problem import ProblemError
from fluxpool_gateway.identity.issuer_keys import (
    KEPT_SECONDS,
    MAX_DOCUMENT_BYTES,
    READ_AGAIN_SECONDS,
    REFRESHED_SECONDS,
    IssuerKeys,
)
from fluxpool_gateway.identity.tokens import CACHED_SECONDS, LEEWAY_SECONDS, MAX_TOKEN_BYTES, Tokens, find_claim
from fluxpool_gateway.settings import GatewaySettings, OidcSettings
from kit.gateways.keyed_gateway import Gateway, keyed_gateway, keyed_settings
from kit.http.token_issuer import Issuer, public_jwk, rsa_key
from kit.waiting import PATIENCE, wait_until

ANOTHER = "a key that the issuer does not have"


@pytest.fixture
async def issuer() -> AsyncIterator[Issuer]:
    async with Issuer().serving() as running:
        yield running


@asynccontextmanager
async def gateway_of(tmp_path: Path, oidc: OidcSettings) -> AsyncIterator[Gateway]:
    async with keyed_gateway(keyed_settings(tmp_path).model_copy(update={"oidc": oidc})) as running:
        yield running


@pytest.fixture
async def gateway(tmp_path: Path, issuer: Issuer) -> AsyncIterator[Gateway]:
    async with gateway_of(tmp_path, issuer.settings()) as running:
        yield running


async def ask(gateway: Gateway, token: str) -> httpx.Response:
    return await gateway.one.ask("GET", "/v1/generations", token)


def refusal(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["error"]["code"]


# Callers


async def test_a_token_submits_for_its_tenant(gateway: Gateway, issuer: Issuer) -> None:
    accepted = await gateway.one.submit(issuer.token())
    assert (accepted.status_code, [headers[TENANT] for headers in gateway.records.headers]) == (202, [b"acme"])
    path = f"/v1/generations/{accepted.json()['request_id']}"
    tokens = [issuer.token(sub="bob"), issuer.token(tenant="other"), await gateway.create(tenant="acme")]
    answers = [await gateway.one.ask("GET", path, token) for token in tokens]
    assert [answer.status_code for answer in answers] == [200, 404, 200]


async def test_a_token_needs_the_scope_of_the_route(gateway: Gateway, issuer: Issuer) -> None:
    answer = await gateway.one.ask("GET", "/v1/keys", issuer.token())
    assert refusal(answer) == (403, "insufficient_scope")
    assert answer.json()["detail"] == "this request needs the scope admin; the token of alice has read, submit"
    admin = issuer.token(scope=["fluxpool:admin", "admin", 7])
    with capture_logs() as logs:
        created = await gateway.one.ask("POST", "/v1/keys", admin, json={"name": "ci", "scopes": ["read"]})
    assert created.status_code == 201
    assert [line["by"] for line in logs if line["event"] == "api_key_created"] == ["the token of alice"]
    assert refusal(await ask(gateway, admin)) == (403, "insufficient_scope")


async def test_a_scope_allows_a_priority(gateway: Gateway, issuer: Issuer) -> None:
    body = {"prompt": "a fox", "priority": "vip"}
    vip = issuer.token(scope="fluxpool:submit fluxpool:priority:vip")
    answers = [await gateway.one.ask("POST", "/v1/generations", token, json=body) for token in (issuer.token(), vip)]
    assert [answer.status_code for answer in answers] == [403, 202]
    assert "the key or token does not allow vip" in answers[0].json()["detail"]


@pytest.mark.parametrize(
    ("claims", "settings", "status"),
    [
        ({"tenant": ...}, {}, 403),
        ({"tenant": ["acme"]}, {}, 403),
        ({"tenant": "Acme Inc."}, {}, 403),
        ({"tenant": {"name": "acme"}}, {"tenant_claim": "tenant.name"}, 200),
        ({"kubernetes.io": {"namespace": "acme"}}, {"tenant_claim": "kubernetes.io.namespace"}, 200),
        ({"https://acme.example/tenant": "acme"}, {"tenant_claim": "https://acme.example/tenant"}, 200),
        ({"scope": ...}, {}, 403),
        ({"scope": ...}, {"default_scopes": ("read",)}, 200),
        ({"scope": "openid"}, {"default_scopes": ("read",)}, 403),
        ({"scope": {"fluxpool:read": True}}, {}, 403),
        (
            {"realm_access": {"roles": ["flux-read"]}},
            {"scopes_claim": "realm_access.roles", "scope_prefix": "flux-"},
            200,
        ),
        ({"aud": ["account", "fluxpool"]}, {}, 200),
    ],
)
async def test_claims_tell_tenant_and_scopes(
    tmp_path: Path, issuer: Issuer, claims: dict[str, Any], settings: dict[str, Any], status: int
) -> None:
    async with gateway_of(tmp_path, issuer.settings(**settings)) as gateway:
        answer = await ask(gateway, issuer.token(**claims))
        assert answer.status_code == status, answer.text
        if "tenant" in claims and status == 403:
            assert "its claim tenant must be" in answer.json()["detail"]


def test_a_claim_is_found_by_its_name_before_its_path() -> None:
    claims = {"a": {"b": 1, "b.c": 2}, "a.b": {"c": 3, "d": None}, "x.y": 4, "x": {"y": 5}}
    paths = ("x.y", "a.b.c", "a.b", "a.b.d", "a", "b", "", ".", "a..b")
    assert [find_claim(claims, path) for path in paths] == [4, 2, {"c": 3, "d": None}, None, claims["a"], *[None] * 4]


async def test_what_a_subject_holds_cannot_break_a_line(gateway: Gateway, issuer: Issuer) -> None:
    answer = await gateway.one.ask("GET", "/v1/keys", issuer.token(sub="eve\r\nx: y" + "z" * 5000))
    assert answer.status_code == 403
    assert "the token of eve??x: yzzz" in answer.json()["detail"]
    assert len(answer.json()["detail"]) < 400


@pytest.mark.parametrize("algorithm", ["RS512", "PS256", "ES256", "ES384", "EdDSA"])
@pytest.mark.parametrize("is_named", [True, False])
async def test_keys_of_every_public_kind_are_known(
    gateway: Gateway, issuer: Issuer, algorithm: str, *, is_named: bool
) -> None:
    made = {"E": lambda: ec.generate_private_key(ec.SECP384R1() if algorithm == "ES384" else ec.SECP256R1())}
    key = ed25519.Ed25519PrivateKey.generate() if algorithm == "EdDSA" else made.get(algorithm[0], rsa_key)()
    document = public_jwk(key, "other", algorithm)
    if not is_named:
        del document["alg"], document["use"]
    # Sets hold what this release does not know.
    issuer.keys[:] = [7, {}, {"kty": "AKP", "kid": "other"}, {"kty": []}, document | {"use": "enc"}]
    issuer.keys += [document | {"key_ops": ["sign"]}, document]
    token = issuer.token(key=key, algorithm=algorithm, headers={"kid": "other"})
    assert (await ask(gateway, token)).status_code == 200


# Refusals


def encoded(part: bytes) -> str:
    return base64.urlsafe_b64encode(part).rstrip(b"=").decode()


def unsigned(header: dict[str, Any], claims: dict[str, Any], signature: bytes = b"") -> str:
    return ".".join(map(encoded, (json.dumps(header).encode(), json.dumps(claims).encode(), signature)))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"exp": 1}, "the token has expired"),
        ({"exp": ...}, 'the token is not valid: Token is missing the "exp" claim'),
        ({"exp": "soon"}, "the token is not valid"),
        ({"exp": 1e400}, "the token is not valid"),
        ({"nbf": 1 << 40}, "the token is not valid: The token is not yet valid (nbf)"),
        ({"iat": 1 << 40}, "the token is not valid: The token is not yet valid (iat)"),
        ({"aud": "another"}, "the token is not for this gateway; ask for the audience fluxpool"),
        ({"aud": ...}, 'the token is not valid: Token is missing the "aud" claim'),
        ({"aud": ["another", 7]}, "the token is not for this gateway; ask for the audience fluxpool"),
        ({"iss": "https://elsewhere"}, "the token is not of "),
        ({"sub": ...}, 'the token is not valid: Token is missing the "sub" claim'),
        ({"sub": 7}, "the token is not valid"),
        ({"headers": {"kid": "unknown"}}, "the token is signed with no key of the issuer"),
        ({"headers": {"kid": "first", "crit": ["exp"], "exp": 1}}, "the token is not valid"),
        ({"algorithm": "RS512"}, "the token is signed with no key of the issuer"),
        ({"key": ANOTHER}, "the token is not valid"),
        ({"tenant": "a" * MAX_TOKEN_BYTES}, f"the token is longer than {MAX_TOKEN_BYTES} bytes"),
    ],
)
async def test_a_bad_token_is_refused(gateway: Gateway, issuer: Issuer, changes: dict[str, Any], reason: str) -> None:
    if changes.get("key") == ANOTHER:
        changes = {**changes, "key": rsa_key()}
    answer = await ask(gateway, issuer.token(**changes))
    assert refusal(answer) == (401, "unauthorized")
    assert answer.json()["detail"].startswith(reason)
    assert answer.headers["www-authenticate"].startswith('Bearer realm="fluxpool", error="invalid_token"')


async def test_nobody_makes_a_token_of_what_is_public(gateway: Gateway, issuer: Issuer) -> None:
    pem = issuer.key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    good = issuer.token()
    head, _, signature = good.split(".")
    claims = issuer.claims(tenant="other")
    # The public key taken for a shared secret.
    keyed = unsigned({"alg": "HS256", "kid": "first"}, claims).rpartition(".")[0]
    forged = [
        unsigned({"alg": "none", "kid": "first"}, claims),
        unsigned({"alg": "NONE"}, claims),
        unsigned({"alg": 7, "kid": "first"}, claims),
        unsigned({"kid": "first"}, claims),
        unsigned({"alg": "RS256", "kid": ["first"]}, claims),
        unsigned({"alg": "RS256", "kid": {}}, claims),
        unsigned({"alg": "RS256", "kid": "first"}, claims, b"x" * 256),
        f"{keyed}.{encoded(hmac.digest(pem, keyed.encode(), 'sha256'))}",
        f"{head}.{unsigned({}, claims).split('.')[1]}.{signature}",
        f"{good}.e30",
        good[:-2],
        "a.b.c",
        "..",
    ]
    assert [refusal(await ask(gateway, token)) for token in forged] == [(401, "unauthorized")] * len(forged)
    assert (await ask(gateway, good)).status_code == 200


async def test_a_short_key_of_the_issuer_is_not_enough(gateway: Gateway, issuer: Issuer) -> None:
    short = rsa_key(1024)
    issuer.keys.append(public_jwk(short, "short", "RS256"))
    with pytest.warns(jwt.warnings.InsecureKeyLengthWarning):
        token = issuer.token(key=short, headers={"kid": "short"})
    assert refusal(await ask(gateway, token)) == (401, "unauthorized")


async def test_without_an_issuer_tokens_are_no_keys(tmp_path: Path, issuer: Issuer) -> None:
    async with keyed_gateway(keyed_settings(tmp_path)) as gateway:
        answer = await ask(gateway, issuer.token())
    assert (refusal(answer), answer.json()["detail"]) == ((401, "unauthorized"), "the API key is not valid")


async def test_a_request_without_either_is_told_of_both(gateway: Gateway, issuer: Issuer) -> None:
    answer = await gateway.one.ask("GET", "/v1/generations")
    assert answer.status_code == 401
    assert f"needs an API key: send it as `Authorization: Bearer fp_...`, or a token of {issuer.url}" in answer.text


# The issuer's keys


@dataclass(slots=True)
class Clock:
    passed: float = 0.0

    def monotonic(self) -> float:
        return self.passed

    def now_seconds(self) -> float:
        return time.time() + self.passed


@dataclass(slots=True)
class Bench:
    """Tokens whose clock a test moves."""

    issuer: Issuer
    clock: Clock
    tokens: Tokens

    async def status(self, token: str) -> int:
        try:
            await self.tokens.admit(token.encode(), digest=token.encode())
        except ProblemError as problem:
            return problem.status
        return 200


@pytest.fixture
async def bench(issuer: Issuer) -> AsyncIterator[Bench]:
    clock = Clock()
    keys = IssuerKeys(issuer.settings(), clock=clock.monotonic)
    tokens = Tokens(issuer.settings(), keys=keys, now_seconds=clock.now_seconds)
    yield Bench(issuer, clock, tokens)
    await tokens.close()


async def test_a_new_key_of_the_issuer_is_read_when_a_token_names_it(bench: Bench) -> None:
    assert await bench.status(bench.issuer.token()) == 200
    new = rsa_key()
    bench.issuer.keys.append(public_jwk(new, "second", "RS256"))
    token = bench.issuer.token(key=new, headers={"kid": "second"})
    assert await bench.status(token) == 401
    bench.clock.passed += READ_AGAIN_SECONDS
    assert await bench.status(token) == 200


async def test_invented_keys_do_not_make_the_issuer_busy(bench: Bench) -> None:
    for number in range(50):
        assert await bench.status(bench.issuer.token(headers={"kid": f"invented-{number}"})) == 401
    assert bench.issuer.asked == ["/.well-known/openid-configuration", "/keys"]


async def test_a_withdrawn_key_ends(bench: Bench) -> None:
    token = bench.issuer.token()
    assert await bench.status(token) == 200
    bench.issuer.keys[:] = [public_jwk(rsa_key(), "second", "RS256")]
    bench.clock.passed += CACHED_SECONDS - 1
    assert await bench.status(token) == 200
    bench.clock.passed += REFRESHED_SECONDS + 2
    # Known keys are in use while they are read again.
    assert await bench.status(token) == 200
    others = (bench.issuer.token(jti=str(number)) for number in itertools.count())

    async def is_refused() -> bool:
        return await bench.status(next(others)) == 401

    await wait_until(is_refused, deadline_seconds=10, what="a refusal by the new keys")
    bench.clock.passed += CACHED_SECONDS
    assert await bench.status(token) == 401


async def test_a_token_is_not_accepted_past_its_end_by_being_cached(bench: Bench) -> None:
    assert await bench.status(bench.issuer.token()) == 200
    end = int(time.time() + 3 * PATIENCE) - LEEWAY_SECONDS
    token = bench.issuer.token(exp=end)
    assert await bench.status(token) == 200

    async def has_ended() -> bool:
        return await bench.status(token) == 401

    # Far less than the time that tokens are cached.
    await wait_until(has_ended, deadline_seconds=CACHED_SECONDS / 2, what="the end of the token")
    assert time.time() >= end + LEEWAY_SECONDS


async def test_known_keys_stay_in_use_while_the_issuer_is_away(bench: Bench) -> None:
    assert await bench.status(bench.issuer.token()) == 200
    bench.issuer.status = 503
    bench.clock.passed += KEPT_SECONDS - 1
    assert await bench.status(bench.issuer.token(jti="1")) == 200
    bench.clock.passed += READ_AGAIN_SECONDS
    assert await bench.status(bench.issuer.token(jti="2")) == 503
    bench.issuer.status = 200
    bench.clock.passed += READ_AGAIN_SECONDS
    assert await bench.status(bench.issuer.token(jti="3")) == 200


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"status": 500}, "answered 500"),
        ({"status": 302}, "answered 302"),
        ({"discovery": {"issuer": "https://elsewhere"}}, "is of the issuer 'https://elsewhere'; oidc.issuer must be"),
        ({"discovery": {"jwks_uri": None}}, "names no jwks_uri; set oidc.jwks_url"),
        ({"discovery": {"jwks_uri": "file:///etc/passwd"}}, "UnsupportedProtocol"),
        ({"body": b"<html>"}, "did not answer JSON"),
        ({"body": b"[" * 100_000}, "did not answer JSON"),
        ({"body": b"[]"}, "did not answer a JSON object"),
        ({"body": b"{}"}, "it has no list `keys`"),
        ({"body": b'{"keys": "first"}'}, "it has no list `keys`"),
        ({"body": b'{"keys": [{"kty": "oct", "k": "AAAA", "kid": "first"}]}'}, "has no public RSA, EC or Ed25519 key"),
        ({"body": b" " * (MAX_DOCUMENT_BYTES + 1)}, "answered more than"),
    ],
)
async def test_an_unusable_issuer_is_logged_and_answered_as_unavailable(
    gateway: Gateway, issuer: Issuer, changes: dict[str, Any], reason: str
) -> None:
    for name, value in changes.items():
        setattr(issuer, name, value)
    with capture_logs() as logs:
        answer = await ask(gateway, issuer.token())
    assert refusal(answer) == (503, "identity_unavailable")
    assert answer.headers["retry-after"] == "1"
    [line] = [line for line in logs if line["event"] == "oidc_keys_not_read"]
    assert reason in line["reason"]
    # Keys do not need the issuer.
    assert (await ask(gateway, await gateway.create("read"))).status_code == 200


async def test_a_private_key_in_the_set_is_no_key(gateway: Gateway, issuer: Issuer) -> None:
    leaked = json.loads(jwt.get_algorithm_by_name("RS256").to_jwk(issuer.key))
    issuer.keys[:] = [leaked | {"kid": "first"}]
    assert refusal(await ask(gateway, issuer.token())) == (503, "identity_unavailable")


async def test_the_slash_at_the_end_of_an_issuer_is_part_of_its_name(tmp_path: Path, issuer: Issuer) -> None:
    issuer.discovery["issuer"] = issuer.url + "/"
    async with gateway_of(tmp_path, issuer.settings(issuer=issuer.url + "/")) as gateway:
        tokens = (issuer.token(iss=issuer.url + "/"), issuer.token())
        assert [(await ask(gateway, token)).status_code for token in tokens] == [200, 401]


async def test_a_token_without_a_key_id_means_the_only_key(gateway: Gateway, issuer: Issuer) -> None:
    token = issuer.token(headers={})
    assert (await ask(gateway, token)).status_code == 200


async def test_a_token_without_a_key_id_is_not_tried_with_one_of_several(gateway: Gateway, issuer: Issuer) -> None:
    issuer.keys.append(public_jwk(rsa_key(), "second", "RS256"))
    assert refusal(await ask(gateway, issuer.token(headers={}))) == (401, "unauthorized")


async def test_an_issuer_with_a_private_authority_is_trusted_by_its_ca_file(tmp_path: Path) -> None:
    authority = trustme.CA()
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(tls)
    (tmp_path / "ca.pem").write_bytes(authority.cert_pem.bytes())
    async with Issuer().serving(tls) as issuer:
        statuses = []
        for ca_file in (None, tmp_path / "ca.pem"):
            async with gateway_of(tmp_path, issuer.settings(ca_file=ca_file)) as gateway:
                statuses.append((await ask(gateway, issuer.token())).status_code)
    assert statuses == [503, 200]


# Settings


def _settings(**variables: str) -> GatewaySettings:
    return GatewaySettings.from_environment(
        {
            "FLUXPOOL_KAFKA_BOOTSTRAP_SERVERS": "kafka:9092",
            "FLUXPOOL_STORAGE_URL": "s3://images/",
            "FLUXPOOL_DATABASE_FILE": "/data/gateway.db",
            **{f"FLUXPOOL_{name}": value for name, value in variables.items()},
        }
    )


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"OIDC_ISSUER": "https://id.example"}, "FLUXPOOL_OIDC_AUDIENCE: is required with an issuer"),
        ({"OIDC_AUDIENCE": "fluxpool"}, "FLUXPOOL_OIDC_ISSUER: is required"),
        ({"OIDC_ISSUER": "http://id.example", "OIDC_AUDIENCE": "x"}, "FLUXPOOL_OIDC_ISSUER: must begin with https://"),
        ({"OIDC_ISSUER": "id.example", "OIDC_AUDIENCE": "x"}, "FLUXPOOL_OIDC_ISSUER: 'id.example' must begin with"),
        ({"OIDC_ISSUER": "https://id.example", "OIDC_AUDIENCE": "x", "OIDC_DEFAULT_SCOPES": "write"}, "DEFAULT_SCOPES"),
        (
            {"OIDC_ISSUER": "https://id.example", "OIDC_AUDIENCE": "x", "AUTHENTICATION": "none-on-loopback"},
            "FLUXPOOL_OIDC: is not used without authentication by keys",
        ),
    ],
)
def test_settings_that_would_let_others_in_are_refused(variables: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _settings(**variables)


def test_an_issuer_turns_authentication_on() -> None:
    assert not _settings().needs_keys()
    assert GatewaySettings.model_validate(_settings().model_dump()) == _settings()
    settings = _settings(OIDC_ISSUER="https://id.example", OIDC_AUDIENCE="x", OIDC_DEFAULT_SCOPES="read, submit")
    assert settings.needs_keys()
    assert GatewaySettings.from_environment(settings.to_environment()) == settings
