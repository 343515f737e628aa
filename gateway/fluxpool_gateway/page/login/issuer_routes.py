"""Log in by an OpenID Connect issuer: the browser is sent there, and comes back with a code."""

import hmac
from http import HTTPStatus
from typing import Annotated, Final

from fastapi import Query, Request
from starlette.responses import RedirectResponse, Response

from fluxpool_gateway.http.problem import ProblemCode, ProblemError
from fluxpool_gateway.http.routes import WithServices
from fluxpool_gateway.http.task_routes import base_of
from fluxpool_gateway.identity.gate import KeyGate
from fluxpool_gateway.page.forms import page_router
from fluxpool_gateway.page.login.flow import FLOW_SECONDS, LoginFlow, explain_refusal
from fluxpool_gateway.page.login.issuer import IssuerLogin
from fluxpool_gateway.page.rendering import render, safe_path, visit_of

HOME: Final = "ui/create"
CALLBACK: Final = "ui/login/callback"
_FOREIGN: Final = "the log in was not begun in this browser, or more than 10 minutes ago; begin again"
_MAX_CODE: Final = 8192

router = page_router()


def issuer_of(request: Request) -> str | None:
    """The issuer that people may log in by."""
    gate = request.app.gate
    if not isinstance(gate, KeyGate) or gate.tokens is None or gate.tokens.settings.client_id is None:
        return None
    return gate.tokens.issuer


def _login_of(request: Request) -> tuple[KeyGate, IssuerLogin, str, int]:
    """The gate, the issuer with its address, and the length of a session; raises `ProblemError` (404)."""
    gate = request.app.gate
    if isinstance(gate, KeyGate) and gate.tokens is not None:
        settings = gate.tokens.settings
        if settings.client_id is not None and settings.issuer is not None:
            return gate, IssuerLogin(gate.tokens, settings.client_id), settings.issuer, settings.session_seconds
    raise ProblemError(
        ProblemCode.NOT_FOUND, "people log in by an API key here; set FLUXPOOL_OIDC_CLIENT_ID to log in by an issuer"
    )


@router.get("/login/issuer")
async def get_issuer(
    request: Request, services: WithServices, following: Annotated[str, Query(alias="next", max_length=2048)] = ""
) -> Response:
    """Send the browser to the issuer."""
    gate, login, _, _ = _login_of(request)
    now_seconds = gate.now_ms() // 1000
    flow = LoginFlow(following=safe_path(following, otherwise=HOME), until_seconds=now_seconds + FLOW_SECONDS)
    redirect_uri = base_of(request, services) + CALLBACK
    response = RedirectResponse(await login.begin(flow, redirect_uri=redirect_uri), HTTPStatus.SEE_OTHER)
    response.headers["cache-control"] = "no-store"
    visit = visit_of(request.scope)
    # Lax: the browser comes back from another site.
    visit.keep(response, visit.flow_cookie, flow.pack(await gate.secret()), seconds=FLOW_SECONDS, samesite="lax")
    return response


@router.get("/login/callback")
async def get_callback(
    request: Request,
    services: WithServices,
    *,
    code: Annotated[str, Query(max_length=_MAX_CODE)] = "",
    state: Annotated[str, Query(max_length=_MAX_CODE)] = "",
    iss: Annotated[str, Query(max_length=_MAX_CODE)] = "",
    error: Annotated[str, Query(max_length=_MAX_CODE)] = "",
    error_description: Annotated[str, Query(max_length=_MAX_CODE)] = "",
) -> Response:
    """Redeem the code, and begin a session; or say on the form why there is none."""
    gate, login, issuer, session_seconds = _login_of(request)
    visit = visit_of(request.scope)
    cookie = request.cookies.get(visit.flow_cookie, "")
    flow = LoginFlow.unpack(cookie, await gate.secret(), now_seconds=gate.now_ms() / 1000)
    following = "" if flow is None else flow.following
    try:
        if flow is None or not hmac.compare_digest(state.encode(), flow.state.encode()):
            raise ProblemError(ProblemCode.INVALID_REQUEST, _FOREIGN)
        # RFC 9207: an answer of another issuer must not be taken for one of this.
        if iss and iss != issuer:
            raise ProblemError(ProblemCode.INVALID_REQUEST, _FOREIGN)
        if error:
            raise ProblemError(ProblemCode.UNAUTHORIZED, explain_refusal(error, error_description))
        caller = await login.finish(code, flow, redirect_uri=base_of(request, services) + CALLBACK)
    except ProblemError as problem:
        response = render(
            request, "login.html", status=problem.status, following=following, problem=None, issuer=issuer,
            issuer_problem=problem.detail,
        )  # fmt: skip
        visit.drop(response, visit.flow_cookie)
        return response
    # Not a redirect: the browser would take it for one of the issuer's, and withhold the session's strict cookie.
    response = render(request, "login_done.html", following=following, name=caller.name, tenant=caller.tenant)
    signer = await request.app.page.signer(gate)
    session = signer.issue_to(caller, issuer=issuer, now_ms=gate.now_ms(), seconds=session_seconds)
    visit.keep(response, visit.session_cookie, session, seconds=session_seconds)
    visit.drop(response, visit.flow_cookie)
    return response
