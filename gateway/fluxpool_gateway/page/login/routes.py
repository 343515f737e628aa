"""Log in by API key, and log out."""

from http import HTTPStatus
from typing import Annotated, Final

from fastapi import Query, Request, Response

from fluxpool_gateway.http.problem import ProblemCode, ProblemError
from fluxpool_gateway.identity.api_key import parse_key
from fluxpool_gateway.identity.gate import KeyGate
from fluxpool_gateway.page.forms import WithForm, page_router
from fluxpool_gateway.page.login.issuer_routes import issuer_of
from fluxpool_gateway.page.rendering import redirect, render, safe_path, visit_of
from fluxpool_gateway.page.session import SESSION_SECONDS

_HOME: Final = "ui/create"

router = page_router()


@router.get("/login")
async def get_login(request: Request, following: Annotated[str, Query(alias="next", max_length=4096)] = "") -> Response:
    """The form, unless the browser has a session or needs none."""
    if visit_of(request.scope).caller is not None:
        return redirect(request, _HOME)
    return _form(request, following=following)


@router.post("/login")
async def post_login(request: Request, form: WithForm) -> Response:
    """Begin a session with the key in the form."""
    gate = request.app.gate
    following = form.get("next")
    if not isinstance(gate, KeyGate):
        return redirect(request, _HOME)
    key = form.get("key").strip()
    presented = parse_key(key)
    try:
        if presented is None:
            raise ProblemError(ProblemCode.UNAUTHORIZED, "this is no API key; one is written fp_..., in one piece")
        await gate.admit(b"Bearer " + key.encode())
    except ProblemError as problem:
        if problem.code is not ProblemCode.UNAUTHORIZED:
            raise
        return _form(request, following=following, problem=problem.detail)
    response = redirect(request, safe_path(following, otherwise=_HOME))
    visit = visit_of(request.scope)
    cookie = (await request.app.page.signer(gate)).issue(presented.key_id, now_ms=gate.now_ms())
    visit.keep(response, visit.session_cookie, cookie, seconds=SESSION_SECONDS)
    return response


def _form(request: Request, *, following: str, problem: str | None = None) -> Response:
    status = HTTPStatus.OK if problem is None else HTTPStatus.UNAUTHORIZED
    issuer = issuer_of(request)
    return render(
        request, "login.html", status=status, following=following, problem=problem, issuer=issuer, issuer_problem=None
    )


@router.post("/logout")
async def post_logout(request: Request) -> Response:
    """End the session in this browser."""
    response = redirect(request, "ui/login")
    visit = visit_of(request.scope)
    visit.drop(response, visit.session_cookie)
    return response
