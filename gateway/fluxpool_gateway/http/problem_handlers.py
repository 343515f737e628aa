"""Errors of FastAPI's routes as problem documents: what a handler raised, and what FastAPI itself refuses."""

from collections.abc import Sequence
from http import HTTPStatus
from typing import Any, Final

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import iter_route_contexts
from starlette.exceptions import HTTPException
from starlette.routing import Match, Route

from fluxpool_contract.bounds import cut_text
from fluxpool_contract.problems import explain_items, summarize
from fluxpool_gateway.http import openai
from fluxpool_gateway.http.problem import MEDIA_TYPE, ProblemCode, ProblemError
from fluxpool_gateway.http.request_context import check_content_type, find_header
from fluxpool_gateway.page.door import is_page
from fluxpool_gateway.page.rendering import render_problem

MAX_SHOWN_PATH_BYTES: Final = 200


def add_problem_handlers(app: FastAPI) -> None:
    """Let `app`, whose `metrics` count refusals, answer every error with a problem document, or with a page."""
    app.add_exception_handler(ProblemError, _on_problem)
    app.add_exception_handler(RequestValidationError, _on_invalid_request)
    app.add_exception_handler(HTTPException, _on_http_exception)
    app.add_exception_handler(Exception, _on_failure)


def _answer(request: Request, problem: ProblemError) -> Response:
    # Not `request.url`, which takes the Host header for a part of an address and fails where it is none.
    request.app.metrics.count_refusal(problem.code)
    if is_page(request.scope):
        return render_problem(request.scope, problem)
    body = problem.render(correlation_id=request.scope["fluxpool.correlation_id"], instance=request.scope["path"])
    return Response(body, status_code=problem.status, media_type=MEDIA_TYPE, headers=dict(problem.headers))


async def _on_problem(request: Request, error: Exception) -> Response:
    assert isinstance(error, ProblemError)  # noqa: S101 - it is registered for this class
    return _answer(request, error)


async def _on_invalid_request(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)  # noqa: S101 - it is registered for this class
    errors: Sequence[Any] = error.errors()
    if any(item["loc"] == ("body",) for item in errors):
        # FastAPI takes no body for JSON that is not said to be some, as with `curl -d`.
        try:
            check_content_type(find_header(request.scope["headers"], b"content-type") or b"(none)")
        except ProblemError as refusal:
            return _answer(request, refusal)
    # FastAPI puts the part of the request before the path of the field, and the offset behind it for bad JSON.
    items = [{**item, "loc": () if item["type"] == "json_invalid" else item["loc"][1:]} for item in errors]
    fields = explain_items(items)
    # Clients of the OpenAI API know 400 alone.
    is_plain = request.scope["path"] == openai.PATH or any(item["type"] == "json_invalid" for item in items)
    status = None if is_plain else HTTPStatus.UNPROCESSABLE_ENTITY
    problem = ProblemError(ProblemCode.INVALID_REQUEST, summarize(fields), fields=fields, status=status)
    return _answer(request, problem)


async def _on_http_exception(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)  # noqa: S101 - it is registered for this class
    status = HTTPStatus(error.status_code)
    code = {
        HTTPStatus.NOT_FOUND: ProblemCode.NOT_FOUND,
        HTTPStatus.METHOD_NOT_ALLOWED: ProblemCode.METHOD_NOT_ALLOWED,
    }.get(status, ProblemCode.INVALID_REQUEST)
    path = cut_text(request.scope["path"], MAX_SHOWN_PATH_BYTES)
    detail = f"{request.method} {path}: {error.detail}; /openapi.json lists what there is"
    if status is HTTPStatus.BAD_REQUEST:
        # Too deep, not UTF-8, a number of thousands of digits.
        detail = "the body cannot be read; send one JSON object in UTF-8"
    headers = dict(error.headers or {})
    if "Allow" in headers:
        headers["Allow"] = ", ".join(_allowed_methods(request))
    return _answer(request, ProblemError(code, detail, headers=list(headers.items()), status=status))


def _allowed_methods(request: Request) -> list[str]:
    """Of all routes with this path; Starlette names those of the first one."""
    methods: set[str] = set()
    for route in iter_route_contexts(request.app.routes):
        found = route.original_route
        if isinstance(found, Route) and found.matches(request.scope)[0] is not Match.NONE:
            methods |= found.methods or set()
    return sorted(methods | {"HEAD"} if "GET" in methods else methods)


async def _on_failure(request: Request, _error: Exception) -> Response:
    detail = "the gateway failed on this request; its log has the reason, with the same x-request-id"
    return _answer(request, ProblemError(ProblemCode.INTERNAL, detail))
