"""The routes of events, and what a request for them must be."""

from collections.abc import Iterable
from functools import partial
from http import HTTPStatus
from typing import Annotated, Final

from fastapi import APIRouter, Header, Query, Request, Response
from pydantic import Field

from fluxpool_gateway.http.problem import ProblemCode, ProblemError, problems
from fluxpool_gateway.http.request_context import ASKED_BY_HEAD, HALF_CLOSED, PATH
from fluxpool_gateway.http.routes import READ_PROBLEMS, RequestIdInPath, Services, WithServices
from fluxpool_gateway.http.scopes import ADMIT_AGAIN, WithCaller, requires
from fluxpool_gateway.http.task_routes import (
    MAX_LIMIT,
    TaskFilters,
    base_of,
    filter_of,
    page_view_of,
    read_store,
    view_of,
)
from fluxpool_gateway.identity.api_key import KeyScope
from fluxpool_gateway.identity.caller import Caller
from fluxpool_gateway.live.event_response import EventResponse, Events
from fluxpool_gateway.live.task_events import has_all, known_version, task_events
from fluxpool_gateway.live.tenant_events import known_place, tenant_events
from fluxpool_gateway.store.task_state import TaskStatus

MEDIA_TYPE: Final = "text/event-stream"
_ACCEPTING: Final = frozenset({MEDIA_TYPE, "text/*", "*/*"})
_STREAM_PROBLEMS: Final = {
    **READ_PROBLEMS,
    400: "`Last-Event-ID` is not the id of an event.",
    405: "`HEAD` is not answered: the response has no end.",
    406: f"`Accept` leaves no `{MEDIA_TYPE}`.",
    429: "Too many event streams are read; `detail` names the limit.",
}
_TENANT_PROBLEMS: Final = {status: text for status, text in _STREAM_PROBLEMS.items() if status not in {404, 410}}
LastEventId = Annotated[
    str | None, Header(alias="Last-Event-ID", description="Id of the last event that the client got.")
]

router = APIRouter()


def accepts_events(accept: Iterable[str]) -> bool:
    """Whether `Accept` headers (RFC 9110 section 12.5.1) allow an event stream; any media type without one."""
    ranges = [part.replace(" ", "").lower() for header in accept for part in header.split(",") if part.strip()]
    return not ranges or any(
        name in _ACCEPTING and not any(_is_zero(parameter) for parameter in parameters)
        for name, *parameters in (part.split(";") for part in ranges)
    )


def _is_zero(parameter: str) -> bool:
    name, _, value = parameter.partition("=")
    return name == "q" and value.strip("0") in {"", "."}


async def _check_request(request: Request) -> None:
    """Raises `ProblemError` for a request that an endless response cannot answer."""
    if request.scope.get(ASKED_BY_HEAD):
        detail = "events are not answered to HEAD, because the response has no end; use GET"
        raise ProblemError(ProblemCode.METHOD_NOT_ALLOWED, detail, headers=[("allow", "GET")])
    if not accepts_events(request.headers.getlist("accept")):
        detail = f"Accept: only {MEDIA_TYPE} is sent here; accept it, or leave the header out"
        raise ProblemError(ProblemCode.NOT_ACCEPTABLE, detail)


async def _check_key(request: Request) -> None:
    """Raises `ProblemError` when the key that the request came with may read no more."""
    try:
        caller = await request.scope[ADMIT_AGAIN]()
    except ProblemError as problem:
        # The keys cannot be read now: the stream goes on as one that just passed.
        if problem.status is HTTPStatus.SERVICE_UNAVAILABLE:
            return
        raise
    caller.require(KeyScope.READ)


@router.get(
    PATH + "/{request_id}/events",
    response_class=Response,
    responses={
        200: {
            "content": {MEDIA_TYPE: {"schema": {"type": "string"}}},
            "description": "`snapshot`, then `queued`, `running`, `progress` and one of `succeeded`, `failed`, "
            "`expired`, `canceled`, each with the task's state as `data`; `preview` between them, with a picture; "
            "`closed` when the server ends the stream.",
        },
        204: {"description": "`Last-Event-ID` is that of the task's end: there is nothing more."},
        **problems(_STREAM_PROBLEMS),
    },
    summary="The changes of a task as server-sent events",
    **requires(KeyScope.READ, checks=[_check_request]),
)
async def get_task_events(
    request_id: RequestIdInPath,
    request: Request,
    services: WithServices,
    caller: WithCaller,
    last_event_id: LastEventId = None,
) -> Response:
    """The state first, then every change, until the task has ended."""
    known = known_version(last_event_id)
    found = await services.lookup.find(request_id, caller)
    if has_all(found, known):
        # Without it `EventSource` connects again for ever.
        return Response(status_code=HTTPStatus.NO_CONTENT)
    base = base_of(request, services)
    events = task_events(
        request_id,
        found,
        known,
        lookup=services.lookup,
        waits=services.waits,
        caller=caller,
        view=lambda found: view_of(request_id, found, services, base=base),
        previews=services.previews,
    )
    return _response(events, request, services, caller)


class EventsQuery(TaskFilters):
    """Which tasks to tell of: those whose new state passes all filters."""

    limit: Annotated[int, Field(ge=1, le=MAX_LIMIT)] = 50
    """Most tasks in the snapshot."""
    previews: bool = False
    """Also events `preview` of running tasks that ask for them, of 50 at once."""


@router.get(
    "/v1/events",
    response_class=Response,
    responses={
        200: {
            "content": {MEDIA_TYPE: {"schema": {"type": "string"}}},
            "description": "`snapshot` with a page of the list; then each task that changes, named and with `data` as "
            "in the events of one task; `preview` where that is asked for; `closed` when the server ends the stream.",
        },
        **problems({**_TENANT_PROBLEMS, 422: "A parameter is not allowed; `errors` names each."}),
    },
    summary="The changes of the caller's tasks as server-sent events",
    **requires(KeyScope.READ, checks=[_check_request]),
)
async def get_events(
    query: Annotated[EventsQuery, Query()],
    request: Request,
    services: WithServices,
    caller: WithCaller,
    last_event_id: LastEventId = None,
) -> Response:
    """The newest tasks first, then every change, without an end."""
    known = known_place(last_event_id)
    # A store that cannot be read is a problem document here, and waited for later.
    await read_store(services.store.place(caller.tenant))
    base = base_of(request, services)
    events = tenant_events(
        filter_of(
            caller,
            map(TaskStatus, query.status),
            query.group_id,
            since=query.created_after,
            before=query.created_before,
        ),
        known,
        limit=query.limit,
        store=services.store,
        waits=services.tenant_waits,
        page_view=lambda page: page_view_of(page, services, base=base),
        view=lambda task: view_of(task.request_id, task, services, base=base),
        previews=services.previews if query.previews else None,
    )
    return _response(events, request, services, caller)


def _response(events: Events, request: Request, services: Services, caller: Caller) -> EventResponse:
    return EventResponse(
        events,
        tenant=caller.tenant,
        readers=services.readers,
        stopping=services.stopping,
        half_closed=request.scope.get("state", {}).get(HALF_CLOSED),
        check=partial(_check_key, request),
    )
