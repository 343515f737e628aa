"""The view to create images: the form, the estimate, the request as code, and the caller's live tasks beside it."""

import hashlib
import json
from http import HTTPStatus
from typing import Annotated, Final

from fastapi import Query, Request, Response

from fluxpool_contract.messages import PoolState, new_request_id
from fluxpool_gateway.http.generation_request import Priority, parse_request
from fluxpool_gateway.http.problem import ProblemError
from fluxpool_gateway.http.request_context import RawPairs
from fluxpool_gateway.http.routes import Services, WithServices
from fluxpool_gateway.http.scopes import WithCaller, requires
from fluxpool_gateway.http.submission import Submission
from fluxpool_gateway.http.task_routes import base_of
from fluxpool_gateway.identity.api_key import KeyScope
from fluxpool_gateway.identity.caller import Caller
from fluxpool_gateway.page.create.form import FIELDS, LIMITS, SIZES, CreateForm, RecordTarget, form_of_task, snippets
from fluxpool_gateway.page.create.offer import Offer, offer_to
from fluxpool_gateway.page.forms import Form, WithForm, page_router
from fluxpool_gateway.page.rendering import redirect, render, visit_of
from fluxpool_gateway.page.tasks.reading import find_projected, read_live
from fluxpool_gateway.queue.lanes import LaneQueue
from fluxpool_gateway.queue.place import Estimate
from fluxpool_gateway.store.task_state import TaskState

_PASSED_ON: Final = frozenset({b"traceparent", b"tracestate"})

router = page_router()


@router.get("/create", **requires(KeyScope.READ))
async def get_create(
    request: Request,
    services: WithServices,
    caller: WithCaller,
    *,
    source: Annotated[str, Query(alias="from", max_length=128)] = "",
    seed: Annotated[bool, Query()] = False,
) -> Response:
    """The form: empty, or with the settings of an earlier task, and its seed if that is wanted."""
    form = CreateForm()
    if source:
        found = await find_projected(source, services, caller)
        if isinstance(found, TaskState) and found.body is not None:
            form = form_of_task(found.body, keep_seed=seed)
    return await _render(request, services, caller, form=form, source=source, lock=seed)


@router.post("/create", **requires(KeyScope.READ))
async def post_create(request: Request, services: WithServices, caller: WithCaller, form: WithForm) -> Response:
    """Submit the request in the form; or show it as code."""
    filled, lock = CreateForm({name: form.get(name) for name in (*FIELDS, "preview")}), bool(form.get("lock"))
    if form.get("show") == "code":
        return await _render(request, services, caller, form=filled, lock=lock, show_code=True)
    caller.require(KeyScope.SUBMIT)
    if not form.get("wake") and _sleeping(services, _priority(filled)) is not None:
        # Not by chance: to wake it starts machines.
        return await _render(request, services, caller, form=filled, lock=lock, key=form.get("key"), asks=True)
    try:
        request_id = await _submit(request, filled, form, caller)
    except ProblemError as problem:
        if problem.status >= HTTPStatus.INTERNAL_SERVER_ERROR or not problem.fields:
            return await _render(request, services, caller, form=filled, lock=lock, key=form.get("key"), why=problem)
        return await _render(request, services, caller, form=filled, lock=lock, why=problem)
    return redirect(request, f"ui/create?from={request_id}{'&seed=1' if lock else ''}#tasks")


async def _submit(request: Request, filled: CreateForm, form: Form, caller: Caller) -> str:
    body = json.dumps(filled.body()).encode()
    wanted = parse_request(body)
    # Sent twice, as by a second click or a reload, the form is one task; changed after a step back it is another.
    key = f"{form.get('key')}.{hashlib.sha256(body).hexdigest()[:16]}"
    headers: RawPairs = [
        *(pair for pair in request.scope["headers"] if pair[0] in _PASSED_ON),
        (b"idempotency-key", key.encode()),
    ]
    submission: Submission = request.app.submission
    request_id, _ = await submission.submit(wanted, caller, headers)
    return request_id


async def _render(
    request: Request,
    services: Services,
    caller: Caller,
    *,
    form: CreateForm,
    lock: bool,
    source: str = "",
    key: str = "",
    show_code: bool = False,
    asks: bool = False,
    why: ProblemError | None = None,
) -> Response:
    """`asks`: whether a pool that sleeps is to be woken."""
    submission: Submission = request.app.submission
    offer = _offer(submission, caller)
    priority = _priority(form)
    if priority not in offer.priorities:
        priority = next(iter(offer.priorities), priority)
    target = RecordTarget(
        topic=priority.topic(submission.topics),
        request_id=new_request_id(),
        tenant=caller.tenant,
    )
    needs_key = visit_of(request.scope).needs_key
    fields = {} if why is None else {problem.field: problem.message for problem in why.fields}
    return render(
        request,
        "create.html",
        status=HTTPStatus.OK if why is None else why.status,
        form=form,
        source=source,
        lock=lock,
        key=key or new_request_id(),
        show_code=show_code,
        snippets=snippets(form.body(), base=base_of(request, services), needs_key=needs_key, target=target),
        why=None if why is None or set(fields) & set(FIELDS) else why.detail,
        problems=fields,
        limits=LIMITS,
        sizes=SIZES,
        megapixels=_megapixels(form),
        estimate=_estimate(services, priority),
        sleeping=_sleeping(services, priority),
        asks=asks,
        offer=offer,
        may_submit=KeyScope.SUBMIT in caller.scopes,
        may_cancel=KeyScope.CANCEL in caller.scopes,
        **await read_live(request, services, caller),
    )


def _offer(submission: Submission, caller: Caller) -> Offer:
    return offer_to(
        caller.rights,
        presets=submission.presets.presets,
        qualities=submission.qualities,
        models_of=lambda priority: submission.models_of(priority.topic(submission.topics)),
    )


def _megapixels(form: CreateForm) -> float:
    try:
        return int(form["width"]) * int(form["height"]) / 1e6
    except ValueError:
        return 0.0


def _priority(form: CreateForm) -> Priority:
    return Priority(form["priority"]) if form["priority"] in set(Priority) else Priority.STANDARD


def _lane(services: Services, priority: Priority) -> LaneQueue | None:
    """The lane of the priority; None where there is none."""
    return next((lane for lane in services.lanes.queue().lanes if lane.lane.priority is priority), None)


def _estimate(services: Services, priority: Priority) -> Estimate | None:
    """Of a task that is sent now."""
    lane = _lane(services, priority)
    return None if lane is None else services.lanes.place_of_new(lane)


def _sleeping(services: Services, priority: Priority) -> PoolState | None:
    """The pool that a task would wake; None while it runs, or no operator tells of one."""
    lane = _lane(services, priority)
    if lane is None or lane.pool is None or lane.workers or lane.pool.desired_replicas or lane.pool.paused:
        return None
    return lane.pool
