"""Who asks for the page: the holder of a session, or anybody where the gateway needs no key.

Every request below `/ui/` passes here before a route is chosen, as those of the API pass the gate; a cookie is looked
at nowhere else. What the page does is done with the rights and the tenant of the session's key.
"""

from collections.abc import MutableMapping
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from typing import Any, Final
from urllib.parse import quote, urlsplit

from starlette.requests import cookie_parser
from starlette.responses import RedirectResponse, Response

from fluxpool_gateway.http.problem import ProblemCode, ProblemError
from fluxpool_gateway.http.request_context import RawPairs, find_header
from fluxpool_gateway.http.scopes import ADMIT_AGAIN, CALLER_KEY
from fluxpool_gateway.identity.caller import ANYBODY, Caller
from fluxpool_gateway.identity.gate import Gate, KeyGate
from fluxpool_gateway.page.rendering import VISIT, Visit, render_problem
from fluxpool_gateway.page.session import SessionSigner, new_visit

PREFIX: Final = "/ui/"
STATIC: Final = PREFIX + "static/"
LOGIN: Final = PREFIX + "login"
EVENTS: Final = PREFIX + "events"
_FOREIGN: Final = frozenset({b"cross-site", b"same-site"})
"""Values of `Sec-Fetch-Site`. A page of another origin has no reason to send anything here."""
_SAFE: Final = frozenset({"GET", "HEAD"})

Scope = MutableMapping[str, Any]


def is_page(scope: Scope) -> bool:
    """Whether a request is one for the page: a browser's for `/`, or any for a path of the page."""
    path: str = scope["path"]
    return path.startswith(PREFIX) or path == "/ui" or (path == "/" and _accepts_html(scope["headers"]))


def _accepts_html(headers: RawPairs) -> bool:
    return b"text/html" in (find_header(headers, b"accept") or b"")


@dataclass(frozen=True, slots=True)
class _Admitted:
    """Who asks, by which cookie."""

    caller: Caller | None
    cookie: str
    is_new: bool = False


class PageDoor:
    """Admits the requests for the page of one process."""

    def __init__(self, public_url: str | None) -> None:
        """`public_url` is the address of the gateway as browsers see it, where that is known."""
        self._public_url = public_url
        self._root = "/" if public_url is None else urlsplit(public_url).path
        self._signer: SessionSigner | None = None

    async def admit(self, scope: Scope, gate: Gate) -> Response | None:
        """Put into the scope who asks, and return None; or return the response to one who is not admitted."""
        scheme = scope["scheme"] if self._public_url is None else urlsplit(self._public_url).scheme
        visit = Visit(root=self._root, secure=scheme == "https", needs_key=isinstance(gate, KeyGate))
        scope[VISIT] = visit
        path: str = scope["path"]
        if path in {"/", "/ui", PREFIX}:
            return RedirectResponse(f"{visit.root}ui/create", HTTPStatus.SEE_OTHER)
        if path.startswith(STATIC):
            return None
        headers = scope["headers"]
        try:
            if scope["method"] not in _SAFE and find_header(headers, b"sec-fetch-site") in _FOREIGN:
                raise ProblemError(ProblemCode.INSUFFICIENT_SCOPE, "the form was sent from another site")
            admitted = await self._find_caller(_cookies_of(headers), gate, visit)
        except ProblemError as problem:
            return render_problem(scope, problem)
        visit.cookie, visit.is_new, visit.caller = admitted.cookie, admitted.is_new, admitted.caller
        if admitted.caller is not None:
            scope[CALLER_KEY] = admitted.caller
            scope[ADMIT_AGAIN] = partial(self._admit_again, admitted.cookie, gate)
            return None
        return None if path == LOGIN or path.startswith(LOGIN + "/") else _to_login(scope, visit)

    async def signer(self, gate: KeyGate) -> SessionSigner:
        """What makes the cookies; raises `ProblemError` (503) while the key store cannot be read."""
        if self._signer is None:
            self._signer = SessionSigner.of_gateway(await gate.secret())
        return self._signer

    async def _find_caller(self, cookies: dict[str, str], gate: Gate, visit: Visit) -> _Admitted:
        if not isinstance(gate, KeyGate):
            cookie = cookies.get(visit.visit_cookie)
            return _Admitted(ANYBODY, cookie or new_visit(), is_new=not cookie)
        session = cookies.get(visit.session_cookie)
        if session is not None:
            try:
                return _Admitted(await self._admit_again(session, gate), session)
            except ProblemError as problem:
                if problem.code is not ProblemCode.UNAUTHORIZED:
                    raise
        cookie = cookies.get(visit.visit_cookie)
        return _Admitted(None, cookie or new_visit(), is_new=not cookie)

    async def _admit_again(self, cookie: str, gate: Gate) -> Caller:
        """The holder of the session now; raises `ProblemError` (401, 503)."""
        if not isinstance(gate, KeyGate):
            return ANYBODY
        signer = await self.signer(gate)
        if gate.tokens is not None and gate.tokens.issuer is not None:
            caller = signer.read_caller(cookie, issuer=gate.tokens.issuer, now_ms=gate.now_ms())
            if caller is not None:
                return caller
        key_id = signer.read(cookie, now_ms=gate.now_ms())
        if key_id is None:
            raise ProblemError(ProblemCode.UNAUTHORIZED, "the session is over; log in again")
        return await gate.admit_holder(key_id)


def _cookies_of(headers: RawPairs) -> dict[str, str]:
    # HTTP/2 proxies may send several headers of this name.
    return cookie_parser("; ".join(value.decode("latin-1") for name, value in headers if name == b"cookie"))


def _to_login(scope: Scope, visit: Visit) -> Response:
    headers = scope["headers"]
    address = f"{visit.root}ui/login"
    if scope["path"] == EVENTS or find_header(headers, b"hx-request") is not None:
        # A redirect would be followed by the script, which wants no log in.
        return Response("log in", status_code=HTTPStatus.UNAUTHORIZED, headers={"hx-redirect": address})
    if scope["method"] in _SAFE:
        query = scope["query_string"].decode("latin-1")
        asked = scope["path"][1:] + (f"?{query}" if query else "")
        address += "?next=" + quote(asked, safe="")
    return RedirectResponse(address, HTTPStatus.SEE_OTHER)
