"""Makes HTML of the templates, with the headers that every response of the page has.

Owns what a browser may load: scripts and styles of this origin alone, and none within the document.
"""

import functools
import gzip
import re
from collections.abc import MutableMapping
from dataclasses import dataclass
from datetime import UTC, datetime
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final, Literal

from fastapi import Request
from starlette.responses import RedirectResponse, Response

from fluxpool_gateway.http.problem import ProblemError
from fluxpool_gateway.http.request_context import RawPairs, find_header
from fluxpool_gateway.identity.api_key import KeyScope
from fluxpool_gateway.identity.caller import Caller
from fluxpool_gateway.page.assets import asset_path
from fluxpool_gateway.page.session import form_token

if TYPE_CHECKING:
    # Not for the start of every gateway: a page may never be asked for.
    from jinja2 import Environment

VISIT: Final = "fluxpool.visit"
"""Where the ASGI scope of a request for the page has its `Visit`."""
_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; form-action 'self'; "
    "base-uri 'none'; frame-ancestors 'none'"
)
PAGE_HEADERS: Final = {
    "content-security-policy": _POLICY,
    "cache-control": "no-store",
    "cross-origin-opener-policy": "same-origin",
    "referrer-policy": "same-origin",
    "vary": "accept-encoding, sec-fetch-site",
    "x-content-type-options": "nosniff",
}
_OWN: Final = frozenset({b"same-origin", b"none"})
"""Values of `Sec-Fetch-Site`: a link or a form of the page, an address that somebody typed."""
_COMPRESSION: Final = 5
"""A view of 50 tasks, 70 KB, is 5 KB within a millisecond; higher levels save little."""
_PAGE_PATH: Final = re.compile(r"ui/[A-Za-z0-9._~/-]*(\?[^\s\\]*)?", re.ASCII)
_UNIT: Final = re.compile(r"(?<=\d) (?=(?:ms|s|min|h|[KMG]iB)\b|%)", re.ASCII)
_VISIT_SECONDS: Final = 365 * 24 * 60 * 60


@dataclass(slots=True, kw_only=True)
class Visit:
    """One request of a browser."""

    root: str
    """Path of the gateway as the browser sees it, ending in a slash."""
    secure: bool
    """Whether the browser speaks HTTPS, also where a proxy ends that."""
    needs_key: bool
    cookie: str = ""
    """By which the browser is known."""
    is_new: bool = False
    """Whether it gets the cookie with this response."""
    caller: Caller | None = None

    @property
    def session_cookie(self) -> str:
        """Name of the cookie of a session; with the prefix no other host of the domain can set it."""
        return "__Host-fluxpool-session" if self.secure and self.root == "/" else "fluxpool-session"

    @property
    def visit_cookie(self) -> str:
        """Name of the cookie of a browser without a session."""
        return "__Host-fluxpool-visit" if self.secure and self.root == "/" else "fluxpool-visit"

    @property
    def sees_keys(self) -> bool:
        """Whether there are API keys, which the caller may look at."""
        return self.needs_key and self.caller is not None and KeyScope.ADMIN in self.caller.scopes

    @property
    def flow_cookie(self) -> str:
        """Name of the cookie of a log in at an issuer."""
        return "__Host-fluxpool-login" if self.secure and self.root == "/" else "fluxpool-login"

    @property
    def form_token(self) -> str:
        """Of the forms in this response."""
        return form_token(self.cookie)

    def keep(
        self,
        response: Response,
        name: str,
        value: str,
        *,
        seconds: int,
        samesite: Literal["strict", "lax"] = "strict",
    ) -> None:
        """Have the browser keep a cookie that no script reads; a strict one comes with requests of this site alone."""
        response.set_cookie(
            name, value, max_age=seconds, path=self.root, secure=self.secure, httponly=True, samesite=samesite
        )

    def drop(self, response: Response, name: str) -> None:
        """Have the browser forget a cookie."""
        response.delete_cookie(name, path=self.root, secure=self.secure, httponly=True, samesite="strict")


def visit_of(scope: MutableMapping[str, Any]) -> Visit:
    """The visit of a request that the door let in."""
    visit = scope[VISIT]
    assert isinstance(visit, Visit)  # noqa: S101 - set by the door for every path of the page
    return visit


def render(request: Request, template: str, *, status: HTTPStatus = HTTPStatus.OK, **values: Any) -> Response:
    """The page that a template makes."""
    return _render(request.scope, template, status=status, **values)


def render_problem(scope: MutableMapping[str, Any], problem: ProblemError) -> Response:
    """The page that says why a request was refused."""
    response = _render(scope, "problem.html", status=problem.status, problem=problem, path=scope["path"])
    for name, value in problem.headers:
        if name == "retry-after":
            response.headers[name] = value
    return response


def redirect(request: Request, path: str) -> Response:
    """Answer a form: the browser asks for the path below the root next, and a reload repeats nothing."""
    return RedirectResponse(visit_of(request.scope).root + path, HTTPStatus.SEE_OTHER)


def safe_path(path: str, *, otherwise: str) -> str:
    """The path where a form says to go on, if it is one of the page: no other address may follow."""
    return path if _PAGE_PATH.fullmatch(path) and ".." not in path else otherwise


def asked_by_script(request: Request) -> bool:
    """Whether htmx sent the request, which follows no redirect to another view."""
    return "hx-request" in request.headers


def _render(scope: MutableMapping[str, Any], template: str, *, status: HTTPStatus, **values: Any) -> Response:
    visit = visit_of(scope)
    html = environment().get_template(template).render(visit=visit, view=scope["path"], **values)
    content, headers = html.encode(), dict(PAGE_HEADERS)
    if _may_compress(scope["headers"]):
        content, headers["content-encoding"] = gzip.compress(content, _COMPRESSION, mtime=0), "gzip"
    response = Response(content, status_code=status, media_type="text/html", headers=headers)
    if visit.is_new:
        visit.keep(response, visit.visit_cookie, visit.cookie, seconds=_VISIT_SECONDS)
    return response


def _may_compress(headers: RawPairs) -> bool:
    """Whether the browser reads gzip, and asks for a view by itself.

    Compressed, the length of a view tells of what is in it twice. Who can have another site ask for addresses of their
    choice, and sees the lengths on the wire, would learn the form's token by it (BREACH); such requests say so.
    """
    asked_by = find_header(headers, b"sec-fetch-site")
    return asked_by in _OWN and b"gzip" in (find_header(headers, b"accept-encoding") or b"")


@functools.cache
def environment() -> "Environment":
    """The templates. What is put into them is escaped; a name that is not given is an error."""
    from jinja2 import Environment, PackageLoader, StrictUndefined  # noqa: PLC0415

    made = Environment(
        loader=PackageLoader(__package__), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True, auto_reload=False,
    )  # fmt: skip
    made.globals["asset"] = asset_path
    made.filters |= {"duration": show_duration, "moment": show_moment, "stamp": show_stamp, "units": keep_units}
    return made


def show_duration(seconds: float | None) -> str:
    """A duration in words that one reads at a glance."""
    if seconds is None:
        return "unknown"
    if seconds < 1:
        return keep_units(f"{seconds * 1000:.0f} ms")
    if seconds < 60:
        return keep_units(f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s")
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return keep_units(f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s")


def keep_units(text: str) -> str:
    """The text with a no-break space between each number and its unit."""
    return _UNIT.sub("\N{NO-BREAK SPACE}", text)


def show_moment(moment: datetime | None) -> str:
    """A time for people, in UTC; scripts show it in the browser's zone."""
    return "" if moment is None else moment.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def show_stamp(moment: datetime | None) -> str:
    """A time for programs."""
    return "" if moment is None else moment.astimezone(UTC).isoformat()
