"""Who may use the page: sessions, log in and out, forms of other sites, and what browsers are told."""

import re
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from fastapi.routing import APIRoute

from fluxpool_gateway.identity.api_key import KeyScope
from fluxpool_gateway.page import PAGE_ROUTERS
from fluxpool_gateway.page.door import LOGIN, STATIC
from fluxpool_gateway.page.session import SESSION_SECONDS, SessionSigner, form_token, is_form_token
from kit.gateways.keyed_gateway import Gateway, key_id, keyed_gateway, keyed_settings
from kit.http.page_visitor import HTML, Visitor, text_of

NOW_MS = 1_800_000_000_000
KEY_ID = "0123456789ab"
CHANGES = ("cancel", "retry", "delete")


@pytest.fixture
async def gateway(tmp_path: Path) -> AsyncIterator[Gateway]:
    async with keyed_gateway(keyed_settings(tmp_path)) as made:
        yield made


def test_a_session_is_read_by_every_signer_with_the_secret_until_it_ends() -> None:
    cookie = SessionSigner.of_gateway(b"secret").issue(KEY_ID, now_ms=NOW_MS)
    again = SessionSigner.of_gateway(b"secret")
    assert again.read(cookie, now_ms=NOW_MS) == KEY_ID
    assert again.read(cookie, now_ms=NOW_MS + SESSION_SECONDS * 1000 - 1000) == KEY_ID
    assert again.read(cookie, now_ms=NOW_MS + SESSION_SECONDS * 1000) is None
    assert SessionSigner.of_gateway(b"another").read(cookie, now_ms=NOW_MS) is None


@pytest.mark.parametrize("part", range(5))
def test_a_session_with_any_part_changed_is_none(part: int) -> None:
    signer = SessionSigner.of_gateway(b"secret")
    parts = signer.issue(KEY_ID, now_ms=NOW_MS).split(".")
    parts[part] = ("0" if parts[part][0] != "0" else "1") + parts[part][1:]
    assert signer.read(".".join(parts), now_ms=NOW_MS) is None


def test_a_form_token_is_of_one_cookie() -> None:
    assert is_form_token(form_token("one"), "one")
    assert not is_form_token(form_token("one"), "two")
    assert not is_form_token("\N{SNOWMAN}", "one")


async def test_the_root_leads_browsers_to_the_page_and_programs_nowhere(gateway: Gateway) -> None:
    visitor = Visitor(gateway.one.app)
    assert (await visitor.get("/")).headers["location"] == "/ui/create"
    assert (await gateway.one.ask("GET", "/")).status_code == 401


async def test_without_a_session_every_view_leads_to_the_log_in_and_back(gateway: Gateway) -> None:
    visitor = Visitor(gateway.one.app)
    answer = await visitor.get("/ui/queue?status=queued")
    assert answer.status_code == 303
    assert answer.headers["location"] == "/ui/login?next=ui%2Fqueue%3Fstatus%3Dqueued"
    key = await gateway.create("read")
    answer = await visitor.log_in(key, following="ui/queue?status=queued")
    assert answer.headers["location"] == "/ui/queue?status=queued"


@pytest.mark.parametrize(
    "following", ["https://evil.example/", "//evil.example", "ui/../../x", "ui/\\evil", "javascript:alert(1)", "v1/x"]
)
async def test_a_log_in_leads_to_the_page_alone(gateway: Gateway, following: str) -> None:
    answer = await Visitor(gateway.one.app).log_in(gateway.admin, following=following)
    assert answer.headers["location"] == "/ui/create"


async def test_the_key_is_in_no_cookie_and_no_page(gateway: Gateway) -> None:
    visitor = Visitor(gateway.one.app)
    answer = await visitor.log_in(gateway.admin)
    cookie = answer.headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=strict" in cookie
    assert "Secure" not in cookie, "the gateway is asked by HTTP"
    secret = gateway.admin.split("_")[2]
    for text in (cookie, (await visitor.get("/ui/create")).text, (await visitor.get("/ui/tasks")).text):
        assert secret not in text


async def test_a_refused_key_is_not_shown_again(gateway: Gateway) -> None:
    for key in ("fp_nonsense", gateway.admin[:-1] + "x"):
        answer = await Visitor(gateway.one.app).log_in(key)
        assert answer.status_code == 401
        assert key not in answer.text
        assert "session" not in answer.headers.get("set-cookie", "")


async def test_on_https_cookies_are_of_this_host_and_of_https_alone(gateway: Gateway) -> None:
    visitor = Visitor(gateway.one.app, base="https://gateway")
    cookie = (await visitor.log_in(gateway.admin)).headers["set-cookie"]
    assert cookie.startswith("__Host-fluxpool-session=")
    assert "Secure" in cookie
    assert "Path=/" in cookie


async def test_a_session_holds_on_every_replica_and_ends_with_its_key(gateway: Gateway) -> None:
    key = await gateway.create("read")
    visitor = Visitor(gateway.one.app)
    await visitor.log_in(key)
    other = Visitor(gateway.two.app, cookies=visitor.cookies)
    assert (await other.get("/ui/tasks")).status_code == 200
    await gateway.one.ask("DELETE", f"/v1/keys/{key_id(key)}", gateway.admin)
    assert (await visitor.get("/ui/tasks")).status_code == 303
    gateway.clock.pass_seconds(3)
    assert (await other.get("/ui/tasks")).status_code == 303


async def test_a_session_ends_with_its_time_and_with_log_out(gateway: Gateway) -> None:
    visitor = Visitor(gateway.one.app)
    await visitor.log_in(gateway.admin)
    gateway.clock.pass_seconds(SESSION_SECONDS + 1)
    assert (await visitor.get("/ui/tasks")).status_code == 303
    await visitor.log_in(gateway.admin)
    assert (await visitor.get("/ui/tasks")).status_code == 200
    assert (await visitor.post("/ui/logout")).headers["location"] == "/ui/login"
    assert (await visitor.get("/ui/tasks")).status_code == 303


async def test_the_api_takes_no_session(gateway: Gateway) -> None:
    visitor = Visitor(gateway.one.app)
    await visitor.log_in(gateway.admin)
    for path in ("/v1/generations", "/v1/events", "/v1/queue", "/v1/keys"):
        assert (await visitor.get(path)).status_code == 401


async def test_no_form_without_this_sessions_token_changes_anything(gateway: Gateway) -> None:
    visitor = Visitor(gateway.one.app)
    await visitor.log_in(gateway.admin)
    before = await visitor.token()
    await visitor.log_in(gateway.admin)
    for token in ("", "0" * 64, before):
        answer = await visitor.post("/ui/create", token=token, prompt="a fox", key="k")
        assert answer.status_code == 403
        assert "nothing was done" in text_of(answer)
    assert gateway.records.values == []


async def test_every_route_of_the_page_but_the_open_ones_needs_a_session_and_its_scope(gateway: Gateway) -> None:
    with_rate_alone, without = Visitor(gateway.one.app), Visitor(gateway.one.app)
    with_read_alone = Visitor(gateway.one.app)
    await with_rate_alone.log_in(await gateway.create("rate"))
    await with_read_alone.log_in(await gateway.create("read"))
    token = form_token(with_rate_alone.cookies["fluxpool-session"])
    read_token = form_token(with_read_alone.cookies["fluxpool-session"])
    asked = 0
    for route in [route for router in PAGE_ROUTERS for route in router.routes]:
        assert isinstance(route, APIRoute)
        path = re.sub(r"\{\w+(:\w+)?\}", "1", route.path)
        if path.startswith((STATIC, LOGIN, "/ui/logout")):
            continue
        asked += 1
        if "GET" in (route.methods or ()):
            assert (await without.get(path)).status_code in {303, 401}, path
            assert (await with_rate_alone.get(path)).status_code == 403, path
        else:
            assert (await without.post(path, token="no")).status_code == 303, path
            refused = await with_rate_alone.post(path, token=token)
            if refused.status_code != 403:
                refused = await with_read_alone.post(path, token=read_token)
            assert refused.status_code == 403, path
    assert asked > 40


async def test_every_route_that_changes_something_needs_a_token(gateway: Gateway) -> None:
    visitor = Visitor(gateway.one.app)
    await visitor.log_in(gateway.admin)
    for path in ("create", "login", "logout", "queue/confirm", "queue/apply", *map("tasks/x/{}".format, CHANGES)):
        assert (await visitor.post(f"/ui/{path}", token="no", id="x", action="cancel")).status_code == 403, path


async def test_a_form_from_another_site_is_refused_whatever_it_holds(gateway: Gateway) -> None:
    visitor = Visitor(gateway.one.app)
    await visitor.log_in(gateway.admin)
    form = {"form_token": await visitor.token(), "prompt": "a fox", "key": "k"}
    headers = {"sec-fetch-site": "cross-site", "cookie": "; ".join(f"{n}={v}" for n, v in visitor.cookies.items())}
    answer = await gateway.one.http.post("/ui/create", data=form, headers=headers)
    assert answer.status_code == 403
    assert gateway.records.values == []


async def test_every_page_has_a_policy_that_allows_nothing_from_elsewhere_and_nothing_within(gateway: Gateway) -> None:
    visitor = Visitor(gateway.one.app)
    seen = [await visitor.get("/ui/login")]
    await visitor.log_in(gateway.admin)
    seen += [await visitor.get(f"/ui/{path}") for path in ("create", "tasks", "gallery", "queue", "tasks/none", "none")]
    for answer in seen:
        policy = answer.headers["content-security-policy"]
        assert policy.startswith("default-src 'none';")
        assert "unsafe" not in policy
        assert "frame-ancestors 'none'" in policy
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["cache-control"] == "no-store"
        assert not re.search(r"<script(?![^>]* src=)|<style|\sstyle=|\son[a-z]+=|hx-on", answer.text)


@pytest.mark.parametrize(
    ("asked_by", "encoding"),
    [("none", "gzip"), ("same-origin", "gzip"), ("same-site", None), ("cross-site", None), (None, None)],
)
async def test_a_view_is_compressed_unless_another_site_may_have_asked_for_it(
    gateway: Gateway, asked_by: str | None, encoding: str | None
) -> None:
    fetch = {} if asked_by is None else {"sec-fetch-site": asked_by}
    page = await Visitor(gateway.one.app).get("/ui/login", headers={**HTML, **fetch, "accept-encoding": "gzip"})
    assert page.headers.get("content-encoding") == encoding
    assert "Log in" in page.text


async def test_a_session_has_the_scopes_of_its_key_and_no_more(gateway: Gateway) -> None:
    visitor = Visitor(gateway.one.app)
    await visitor.log_in(await gateway.create(KeyScope.READ))
    assert "may not submit" in text_of(await visitor.get("/ui/create"))
    assert (await visitor.post("/ui/create", prompt="a fox", key="k")).status_code == 403
    assert (await visitor.post("/ui/queue/apply", id="x", action="cancel")).status_code == 403
    assert (await visitor.post("/ui/queue/apply", id="x", action="retry")).status_code == 403
    assert gateway.records.values == []
    assert gateway.records.commands == []


async def test_a_script_without_a_session_is_not_redirected_into_a_view(gateway: Gateway) -> None:
    visitor = Visitor(gateway.one.app)
    answer = await visitor.get("/ui/tasks", headers={"hx-request": "true"})
    assert (answer.status_code, answer.headers["hx-redirect"]) == (401, "/ui/login")
    assert (await visitor.get("/ui/events", headers={"accept": "text/event-stream"})).status_code == 401
