"""Log in to the page by an OpenID Connect issuer: authorization code, PKCE, state and nonce, and what goes wrong."""

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest
from pydantic import ValidationError

from fluxpool_gateway.page.login.flow import FLOW_SECONDS, LoginFlow
from fluxpool_gateway.settings import OidcSettings
from kit.gateways.keyed_gateway import Gateway, keyed_gateway, keyed_settings
from kit.http.page_visitor import Visitor, text_of
from kit.http.token_issuer import AUDIENCE, CLIENT, Issuer

SECRET = "s ecret/+"
SCOPES = "openid fluxpool:submit fluxpool:read"


@pytest.fixture
async def issuer() -> AsyncIterator[Issuer]:
    async with Issuer().serving() as running:
        yield running


@pytest.fixture
def changes() -> dict[str, Any]:
    return {}


@pytest.fixture
async def gateway(tmp_path: Path, issuer: Issuer, changes: dict[str, Any]) -> AsyncIterator[Gateway]:
    oidc = issuer.settings(client_id=CLIENT, **changes)
    async with keyed_gateway(keyed_settings(tmp_path).model_copy(update={"oidc": oidc})) as running:
        yield running


@pytest.fixture
def visitor(gateway: Gateway) -> Visitor:
    return Visitor(gateway.one.app)


async def begin(visitor: Visitor, following: str = "") -> str:
    answer = await visitor.get(f"/ui/login/issuer?next={following}")
    assert answer.status_code == 303, text_of(answer)
    return answer.headers["location"]


async def come_back(visitor: Visitor, address: str) -> httpx.Response:
    parts = urlsplit(address)
    return await visitor.get(f"{parts.path}?{parts.query}")


async def log_in(visitor: Visitor, issuer: Issuer, following: str = "") -> httpx.Response:
    return await come_back(visitor, await issuer.approve(await begin(visitor, following)))


async def test_who_logs_in_at_the_issuer_gets_a_session_with_the_rights_of_its_token(
    gateway: Gateway, visitor: Visitor, issuer: Issuer
) -> None:
    form = await visitor.get("/ui/login?next=ui%2Fqueue")
    assert 'href="/ui/login/issuer?next=ui/queue"' in form.text
    answer = await log_in(visitor, issuer, "ui%2Fqueue")
    assert answer.status_code == 200
    assert '<meta http-equiv="refresh" content="0;url=/ui/queue">' in answer.text
    assert "acme" in text_of(await visitor.get("/ui/queue")) or (await visitor.get("/ui/queue")).status_code == 200
    sent = await visitor.post("/ui/create", prompt="a fox", key="k")
    assert sent.status_code == 303
    assert gateway.records.headers[0]["fluxpool-tenant"] == b"acme"
    # Without the scope `cancel`.
    assert (await visitor.post("/ui/queue/apply", id="x", action="cancel")).status_code == 403
    other = Visitor(gateway.two.app, cookies=visitor.cookies)
    assert (await other.get("/ui/tasks")).status_code == 200, "every replica reads the session"


async def test_no_cookie_and_no_page_has_a_token(visitor: Visitor, issuer: Issuer) -> None:
    answer = await log_in(visitor, issuer)
    cookies = answer.headers.get_list("set-cookie")
    session = next(cookie for cookie in cookies if cookie.startswith("fluxpool-session="))
    assert "HttpOnly" in session
    assert "SameSite=strict" in session
    assert any(cookie.startswith('fluxpool-login="";') for cookie in cookies), "the log in is over"
    header = issuer.token().split(".")[0]
    for text in (*cookies, answer.text, (await visitor.get("/ui/create")).text):
        assert header not in text


async def test_what_is_asked_of_the_issuer_has_a_challenge_a_state_and_a_nonce(visitor: Visitor) -> None:
    asked = [parse_qs(urlsplit(await begin(visitor)).query) for _ in range(2)]
    first, second = asked
    assert first["redirect_uri"] == ["http://gateway/ui/login/callback"]
    assert (first["response_type"], first["code_challenge_method"]) == (["code"], ["S256"])
    assert first["audience"] == [AUDIENCE]
    for name in ("state", "nonce", "code_challenge"):
        assert len(first[name][0]) >= 32
        assert first[name] != second[name]


async def test_a_session_ends_with_its_time_and_with_another_issuer(
    gateway: Gateway, visitor: Visitor, issuer: Issuer
) -> None:
    await log_in(visitor, issuer)
    assert (await visitor.get("/ui/tasks")).status_code == 200
    tokens = gateway.one.gate.tokens
    assert tokens is not None
    tokens.issuer = "https://another.example"
    assert (await visitor.get("/ui/tasks")).status_code == 303
    tokens.issuer = issuer.url
    gateway.clock.pass_seconds(3601)
    assert (await visitor.get("/ui/tasks")).status_code == 303


@pytest.mark.parametrize("changes", [{"client_secret": SECRET}])
async def test_a_client_with_a_secret_proves_it(visitor: Visitor, issuer: Issuer) -> None:
    issuer.client_secret = SECRET
    assert (await log_in(visitor, issuer)).status_code == 200
    issuer.client_secret = "another"
    answer = await log_in(visitor, issuer)
    assert answer.status_code == 401
    assert "correct FLUXPOOL_OIDC_CLIENT_ID and FLUXPOOL_OIDC_CLIENT_SECRET" in text_of(answer)


@pytest.mark.parametrize("changes", [{"audience": CLIENT}])
async def test_where_the_audience_is_the_client_the_id_token_counts(visitor: Visitor, issuer: Issuer) -> None:
    issuer.login = {"aud": "somebody else"}
    issuer.id_claims = {"tenant": "acme", "scope": SCOPES}
    assert (await log_in(visitor, issuer)).status_code == 200
    assert (await visitor.get("/ui/tasks")).status_code == 200


# What goes wrong


@pytest.mark.parametrize(
    ("login", "identity", "expected"),
    [
        ({"tenant": ...}, {}, (403, "FLUXPOOL_OIDC_TENANT_CLAIM")),
        ({"aud": "another"}, {}, (401, "FLUXPOOL_OIDC_AUDIENCE")),
        ({"sub": "bob"}, {}, (401, "different people")),
        ({}, {"nonce": "of another log in"}, (401, "not of this log in")),
        ({}, {"nonce": ...}, (401, "not of this log in")),
        ({}, {"aud": "another"}, (401, f"ask for the audience {CLIENT}")),
        ({}, {"aud": [CLIENT, "another"], "azp": "another"}, (401, "FLUXPOOL_OIDC_CLIENT_ID")),
        ({}, {"exp": 1}, (401, "expired")),
    ],
)
async def test_tokens_that_do_not_fit_begin_no_session_and_the_form_says_why(
    visitor: Visitor, issuer: Issuer, login: dict[str, Any], identity: dict[str, Any], expected: tuple[int, str]
) -> None:
    status, words = expected
    issuer.login, issuer.id_claims = login, identity
    answer = await log_in(visitor, issuer)
    assert answer.status_code == status
    assert words in text_of(answer)
    assert "API key" in text_of(answer), "another way to log in"
    assert "fluxpool-session" not in visitor.cookies


async def test_a_code_is_redeemed_only_in_the_browser_that_asked_and_once(
    gateway: Gateway, visitor: Visitor, issuer: Issuer
) -> None:
    address = await issuer.approve(await begin(visitor))
    stranger = Visitor(gateway.one.app)
    assert "not begun in this browser" in text_of(await come_back(stranger, address))
    await begin(stranger)
    assert (await come_back(stranger, address)).status_code == 400, "the state is of another browser"
    assert "/token" not in issuer.asked
    cookies = httpx.Cookies(visitor.cookies)
    assert (await come_back(visitor, address)).status_code == 200
    replayed = await come_back(Visitor(gateway.one.app, cookies=cookies), address)
    assert replayed.status_code == 401
    assert "invalid_grant: no such code" in text_of(replayed)
    foreign = Visitor(gateway.one.app)
    address = await issuer.approve(await begin(foreign))
    mixed_up = address.replace(urlsplit(issuer.url).netloc, "evil.example")
    assert (await come_back(foreign, mixed_up)).status_code == 400


async def test_a_log_in_that_takes_too_long_is_over(gateway: Gateway, visitor: Visitor, issuer: Issuer) -> None:
    address = await issuer.approve(await begin(visitor))
    gateway.clock.pass_seconds(FLOW_SECONDS + 1)
    assert (await come_back(visitor, address)).status_code == 400


async def test_what_the_issuer_refuses_is_said_with_the_setting(visitor: Visitor) -> None:
    state = parse_qs(urlsplit(await begin(visitor)).query)["state"][0]
    answer = await visitor.get(f"/ui/login/callback?state={state}&error=invalid_scope&error_description=%3Cb%3Eno")
    assert answer.status_code == 401
    assert "<b>no" not in answer.text
    assert "invalid_scope: <b>no); correct FLUXPOOL_OIDC_LOGIN_SCOPE" in text_of(answer)


async def test_an_issuer_that_cannot_be_asked_is_named_with_the_remedy(visitor: Visitor, issuer: Issuer) -> None:
    issuer.status = 500
    answer = await visitor.get("/ui/login/issuer")
    assert answer.status_code == 503
    assert f"the issuer {issuer.url} cannot be asked" in text_of(answer)
    assert "FLUXPOOL_OIDC_ISSUER" in text_of(answer)


async def test_a_log_in_leads_to_the_page_alone(visitor: Visitor, issuer: Issuer) -> None:
    answer = await log_in(visitor, issuer, "https%3A%2F%2Fevil.example")
    assert 'content="0;url=/ui/create"' in answer.text


async def test_without_a_client_there_is_no_other_way_than_a_key(tmp_path: Path, issuer: Issuer) -> None:
    settings = keyed_settings(tmp_path).model_copy(update={"oidc": issuer.settings()})
    async with keyed_gateway(settings) as gateway:
        visitor = Visitor(gateway.one.app)
        assert "ui/login/issuer" not in (await visitor.get("/ui/login")).text
        answer = await visitor.get("/ui/login/issuer")
        assert answer.status_code == 404
        assert "FLUXPOOL_OIDC_CLIENT_ID" in text_of(answer)


def test_settings_that_do_not_fit_are_named() -> None:
    given = {"issuer": "https://id.example", "audience": "a"}
    for more, words in (({"client_secret": "x"}, "client_id"), ({"client_id": "x", "login_scope": "email"}, "pattern")):
        with pytest.raises(ValidationError, match=words):
            OidcSettings.model_validate({**given, **more})


def test_a_flow_is_read_by_whoever_has_the_secret_and_is_changed_by_nobody() -> None:
    flow = LoginFlow(following="ui/queue", until_seconds=10)
    cookie = flow.pack(b"secret")
    assert LoginFlow.unpack(cookie, b"secret", now_seconds=9) == flow
    assert LoginFlow.unpack(cookie, b"secret", now_seconds=10) is None
    assert LoginFlow.unpack(cookie, b"another", now_seconds=9) is None
    assert LoginFlow.unpack("x" + cookie, b"secret", now_seconds=9) is None
    assert flow.verifier not in json.dumps(str(flow))
