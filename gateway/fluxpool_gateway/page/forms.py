"""Forms as browsers send them without a script, and the check that this page made them."""

from http import HTTPStatus
from typing import Annotated, Any, Final
from urllib.parse import parse_qsl

from fastapi import APIRouter, Depends, Request

from fluxpool_gateway.http.problem import ProblemCode, ProblemError
from fluxpool_gateway.page.rendering import visit_of
from fluxpool_gateway.page.session import is_form_token

TOKEN_FIELD: Final = "form_token"  # noqa: S105 - a field's name
MAX_FIELDS: Final = 1000
_MEDIA_TYPE: Final = "application/x-www-form-urlencoded"
_SAFE: Final = frozenset({"GET", "HEAD"})


class Form:
    """The fields of one form."""

    def __init__(self, pairs: list[tuple[str, str]]) -> None:
        """`pairs` are its fields in their order."""
        self.pairs: Final = pairs

    def get(self, name: str) -> str:
        """The first value of a field; empty without one."""
        return next((value for key, value in self.pairs if key == name), "")

    def all(self, name: str) -> list[str]:
        """Every value of a field."""
        return [value for key, value in self.pairs if key == name]


async def read_form(request: Request) -> Form:
    """The form in a request's body; raises `ProblemError` (400, 415)."""
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    body = await request.body()
    if body and media_type != _MEDIA_TYPE:
        raise ProblemError(ProblemCode.UNSUPPORTED_MEDIA_TYPE, f"the page's forms are sent as {_MEDIA_TYPE}")
    try:
        pairs = parse_qsl(body.decode(), keep_blank_values=True, max_num_fields=MAX_FIELDS, errors="strict")
    except ValueError as error:
        raise ProblemError(ProblemCode.INVALID_REQUEST, "the form cannot be read; send it again") from error
    # Browsers end lines in a text area with CR and LF.
    return Form([(name, value.replace("\r\n", "\n")) for name, value in pairs])


async def _check_form(request: Request) -> None:
    """Raises `ProblemError` (403) for a change by a form that this page did not make for this browser."""
    if request.method in _SAFE:
        return
    form = await read_form(request)
    if not is_form_token(form.get(TOKEN_FIELD), visit_of(request.scope).cookie):
        raise ProblemError(
            ProblemCode.INSUFFICIENT_SCOPE,
            "the form is not of this session, as after a new log in; nothing was done: go back, reload, send it again",
            status=HTTPStatus.FORBIDDEN,
        )


WithForm = Annotated[Form, Depends(read_form)]


def page_router() -> APIRouter:
    """A router of the page, whose every change needs a form of this page."""
    arguments: dict[str, Any] = {"prefix": "/ui", "include_in_schema": False}
    return APIRouter(dependencies=[Depends(_check_form)], **arguments)
