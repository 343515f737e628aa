"""API keys: created and rotated, shown once, and revoked."""

from http import HTTPStatus
from typing import Annotated, Any

from fastapi import Query, Request, Response

from fluxpool_contract.messages import DEFAULT_TENANT
from fluxpool_gateway.http.generation_request import Priority
from fluxpool_gateway.http.key_routes import (
    KeyPage,
    KeyRequest,
    NewKeyView,
    RotationRequest,
    WithGate,
    create_key,
    find_key,
    list_keys,
    revoke_key,
    rotate_key,
)
from fluxpool_gateway.http.problem import ProblemError
from fluxpool_gateway.http.scopes import WithCaller, requires
from fluxpool_gateway.http.submission import Submission
from fluxpool_gateway.identity.api_key import KeyScope
from fluxpool_gateway.identity.caller import Caller
from fluxpool_gateway.identity.gate import KeyGate
from fluxpool_gateway.page.access.lifetimes import LIFETIMES, OVERLAPS, USUAL_OVERLAP
from fluxpool_gateway.page.forms import Form, WithForm, page_router
from fluxpool_gateway.page.operations import answered, as_number, wanted
from fluxpool_gateway.page.rendering import redirect, render

_FIELDS = ("name", "tenant", "scopes", "expires_in_seconds", "priorities", "submit_limit", "presets", "models")
_LISTS = ("presets", "models")

router = page_router()


@router.get("/keys", **requires(KeyScope.ADMIN))
async def get_keys(
    request: Request, gate: WithGate, caller: WithCaller, after: Annotated[str, Query(max_length=64)] = ""
) -> Response:
    """The keys of all tenants, and a form for another one."""
    return await _render(request, gate, caller, after=after)


@router.post("/keys", **requires(KeyScope.ADMIN))
async def post_key(request: Request, gate: WithGate, caller: WithCaller, form: WithForm) -> Response:
    """Create a key, which is in this response alone."""
    try:
        key = answered(await create_key(wanted(KeyRequest, _values(form)), gate, caller), NewKeyView)
    except ProblemError as problem:
        return await _render(request, gate, caller, values=_shown(form), why=problem)
    return render(request, "access/new_key.html", status=HTTPStatus.CREATED, key=key, replaced=None)


def _values(form: Form) -> dict[str, Any]:
    values: dict[str, Any] = {
        "name": form.get("name").strip(),
        "tenant": form.get("tenant").strip(),
        "scopes": form.all("scopes"),
        "priorities": form.all("priorities"),
    }
    if form.get("expires_in_seconds"):
        values["expires_in_seconds"] = as_number(form.get("expires_in_seconds"))
    if limit := form.get("submit_limit").strip():
        values["submit_limit"] = limit
    # Without names all are allowed.
    return values | {name: names for name in _LISTS if (names := form.get(name).replace(",", " ").split())}


def _shown(form: Form) -> dict[str, Any]:
    return _values(form) | {name: form.get(name) for name in ("expires_in_seconds", "submit_limit", *_LISTS)}


@router.post("/keys/{key_id}/rotate", **requires(KeyScope.ADMIN))
async def post_rotate(key_id: str, request: Request, gate: WithGate, caller: WithCaller, form: WithForm) -> Response:
    """Replace a key by one that is in this response alone."""
    rotation = wanted(RotationRequest, {"overlap_seconds": as_number(form.get("overlap_seconds"))})
    key = answered(await rotate_key(rotation, key_id, gate, caller), NewKeyView)
    return render(request, "access/new_key.html", status=HTTPStatus.CREATED, key=key, replaced=key_id)


@router.get("/keys/{key_id}", **requires(KeyScope.ADMIN))
async def get_key(key_id: str, request: Request, gate: WithGate, caller: WithCaller) -> Response:
    """One key, to be rotated or revoked."""
    return render(
        request,
        "access/key.html",
        key=await find_key(key_id, gate),
        is_own=_is_own(key_id, caller),
        overlaps=OVERLAPS,
        usual_overlap=USUAL_OVERLAP,
    )


@router.post("/keys/{key_id}/revoke", **requires(KeyScope.ADMIN))
async def post_revoke(key_id: str, request: Request, gate: WithGate, caller: WithCaller) -> Response:
    """Revoke a key; a session of it ends with it."""
    await revoke_key(key_id, gate, caller)
    return redirect(request, "ui/keys")


def _is_own(key_id: str, caller: Caller) -> bool:
    return caller.name is not None and caller.name.endswith(f" {key_id}")


async def _render(
    request: Request,
    gate: KeyGate,
    caller: Caller,
    *,
    after: str = "",
    values: dict[str, Any] | None = None,
    why: ProblemError | None = None,
) -> Response:
    page = answered(await list_keys(gate, after=after), KeyPage)
    problems = {} if why is None else {problem.field.partition(".")[0]: problem.message for problem in why.fields}
    submission: Submission = request.app.submission
    models = {
        name
        for topic in (submission.topics.tasks, submission.topics.tasks_vip)
        for names in submission.models_of(topic)
        for name in names
    }
    usual = {"name": "", "tenant": DEFAULT_TENANT, "scopes": [KeyScope.SUBMIT, KeyScope.READ, KeyScope.CANCEL]}
    return render(
        request,
        "access/keys.html",
        **({} if why is None else {"status": why.status}),
        page=page,
        own=next((key.id for key in page.keys if _is_own(key.id, caller)), None),
        scopes=[*KeyScope],
        priorities=[*Priority],
        lifetimes=LIFETIMES,
        presets=sorted(submission.presets.presets),
        models=sorted(models),
        values={**usual, **dict.fromkeys(_FIELDS[3:], ""), "priorities": [Priority.STANDARD]} | (values or {}),
        problems=problems,
        why=None if why is None or problems.keys() & set(_FIELDS) else why.detail,
    )
