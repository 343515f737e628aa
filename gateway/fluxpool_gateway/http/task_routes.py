"""The routes that read tasks: one, with a wait for its end; a list; the counts of a group."""

import asyncio
import hashlib
import re
from collections.abc import Awaitable, Coroutine, Iterable
from dataclasses import replace
from datetime import datetime
from http import HTTPStatus
from typing import Annotated, Any, Final, Literal, TypeGuard, TypeVar

from fastapi import APIRouter, Header, Path, Query, Request, Response
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from fluxpool_contract.bounds import milliseconds_of, with_zone
from fluxpool_contract.messages import MAX_GROUP_CHARACTERS, REQUEST_ID
from fluxpool_gateway.http.problem import RETRY_AFTER_SECONDS, ProblemCode, ProblemError, problems, unavailable
from fluxpool_gateway.http.request_context import (
    HALF_CLOSED,
    PATH,
    base_url,
    disconnected,
    find_header,
    preferred_wait_seconds,
    status_url_of,
)
from fluxpool_gateway.http.routes import (
    NO_STORE,
    READ_PROBLEMS,
    RequestIdInPath,
    Services,
    WithServices,
    json_response,
    matches,
)
from fluxpool_gateway.http.scopes import SECURITY_PROBLEMS, WithCaller, requires
from fluxpool_gateway.identity.api_key import KeyScope
from fluxpool_gateway.identity.caller import Caller
from fluxpool_gateway.projection.barrier import BarrierNotReachedError
from fluxpool_gateway.search import SearchFields
from fluxpool_gateway.store.reading import StoreUnavailableError
from fluxpool_gateway.store.task_list import ListCursor, ListFilter, ListOrder, TaskPage
from fluxpool_gateway.store.task_state import SHOWN_STATUSES, TaskState, TaskStatus
from fluxpool_gateway.tasks.lookup import RecentTask
from fluxpool_gateway.tasks.view import GroupView, TaskPageView, TaskView

MAX_WAIT_SECONDS: Final = 60
"""As other services have it; proxies commonly give up on a silent request after 60 to 120 s."""
MAX_LIMIT: Final = 200
_GROUPS_PATH: Final = "/v1/groups"
_PLUS_LOST: Final = re.compile(r"(T\d\d:\d\d:\d\d(?:\.\d+)?) (\d\d:\d\d)$")
_DATE = re.compile(r"\d{4}-\d{2}-\d{2}", re.ASCII)
_QUEUE_OF_TAG: Final = re.compile(r"\.[0-9a-f]{32}")
_LIST_PROBLEMS: Final = {
    **SECURITY_PROBLEMS,
    422: "A parameter is not allowed; `errors` names each.",
    503: READ_PROBLEMS[503],
}

T = TypeVar("T")

router = APIRouter()


@router.get(
    PATH + "/{request_id}",
    response_model=TaskView,
    responses={
        200: {
            "headers": {
                "ETag": {"description": "Changes whenever the response does.", "schema": {"type": "string"}},
                "Preference-Applied": {"description": "The wait that was granted.", "schema": {"type": "string"}},
                "Retry-After": {"description": "Seconds; absent once the task ended.", "schema": {"type": "string"}},
            }
        },
        304: {"description": "The state is the one that `If-None-Match` names."},
        **problems(READ_PROBLEMS),
    },
    summary="The state of a task",
    **requires(KeyScope.READ),
)
async def get_generation(
    request_id: RequestIdInPath,
    request: Request,
    *,
    services: WithServices,
    caller: WithCaller,
    prefer: Annotated[
        list[str],
        Header(description=f"`wait=N`: answer when the task ends, or after N seconds, {MAX_WAIT_SECONDS} at most."),
    ] = [],  # noqa: B006 - FastAPI copies it
    if_none_match: Annotated[
        list[str], Header(description="An `ETag`; with `wait`: answer as soon as the state is another one.")
    ] = [],  # noqa: B006
) -> Response:
    """200 for every known task, also a failed one; `status` holds its state."""
    base = base_of(request, services)
    # Several headers of one name are one list (RFC 9110 section 5.3).
    known = ", ".join(if_none_match) or None
    wait_seconds = preferred_wait_seconds(", ".join(prefer), maximum=MAX_WAIT_SECONDS)
    body, etag, found = await _state(request_id, services, caller, base=base)
    if wait_seconds:
        waiting = _wait(request_id, services, caller, etag=etag, found=found, base=base, known=known)
        await _answer_by(request, services, waiting, seconds=wait_seconds)
        body, etag, found = await _state(request_id, services, caller, base=base)
    headers = {**NO_STORE, "etag": etag}
    if not has_ended(found):
        headers["retry-after"] = str(RETRY_AFTER_SECONDS)
    if wait_seconds is not None:
        headers["preference-applied"] = f"wait={wait_seconds}"
    if matches(known, etag):
        return Response(status_code=HTTPStatus.NOT_MODIFIED, headers=headers)
    return Response(body, media_type="application/json", headers=headers)


async def _state(
    request_id: str, services: Services, caller: Caller, *, base: str
) -> tuple[str, str, TaskState | RecentTask]:
    """The task as JSON, the tag of that, and what it was made of; raises `ProblemError`.

    The first part of the tag is that of the state itself: a wait for another one must not end with each new estimate.
    """
    found = await services.lookup.find(request_id, caller)
    view = view_of(request_id, found, services, base=base)
    body = view.model_copy(update={"queue": None}).model_dump_json()
    tag = _digest(body)
    if view.queue is not None:
        body = view.model_dump_json()
        tag += f".{_digest(view.queue.model_dump_json())}"
    return body, f'"{tag}"', found


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _names_state(known: str, etag: str) -> bool:
    """Whether one of the known tags is of the same state, whatever its place in the queue was."""
    return matches(_QUEUE_OF_TAG.sub("", known), _QUEUE_OF_TAG.sub("", etag))


async def _wait(
    request_id: str,
    services: Services,
    caller: Caller,
    *,
    etag: str,
    found: TaskState | RecentTask,
    base: str,
    known: str | None,
) -> None:
    """Return once the task has ended or, where the client knows a tag, is in another state than that."""
    while not has_ended(found) and (known is None or _names_state(known, etag)):
        await services.waits.later_than(found.key, found.version if isinstance(found, TaskState) else -1)
        _, etag, found = await _state(request_id, services, caller, base=base)


async def _answer_by(
    request: Request, services: Services, waiting: Coroutine[Any, Any, None], *, seconds: float
) -> None:
    """Wait for a time at most, and no longer than the client is there and the server is not about to stop."""
    ends = [asyncio.ensure_future(end) for end in (waiting, services.stopping.wait(), disconnected(request.receive))]
    half_closed = request.scope.get("state", {}).get(HALF_CLOSED)
    if half_closed is not None:
        # Mostly a client that is gone; one that still reads gets the state as it is now.
        ends.append(asyncio.ensure_future(half_closed.wait()))
    try:
        await asyncio.wait(ends, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for end in ends:
            end.cancel()
        # An error of the wait repeats when the task is read, which answers with it.
        await asyncio.gather(*ends, return_exceptions=True)


def has_ended(found: TaskState | RecentTask) -> TypeGuard[TaskState]:
    """Whether nothing more becomes of the task."""
    return isinstance(found, TaskState) and found.status.terminal


def view_of(request_id: str, found: TaskState | RecentTask, services: Services, *, base: str) -> TaskView:
    """A task as clients see it."""
    status_url = status_url_of(request_id, base=base)
    if isinstance(found, RecentTask):
        return TaskView.of_recent(request_id, found, status_url=status_url, place=services.lanes.place_of(found.place))
    place = services.lanes.place_of(found.place) if found.status is TaskStatus.QUEUED else None
    return TaskView.of_state(found, status_url=status_url, place=place)


def base_of(request: Request, services: Services) -> str:
    """The address of the gateway as this client sees it, ending in a slash."""
    return base_url(
        public_url=services.public_url,
        scheme=request.scope["scheme"],
        host=find_header(request.scope["headers"], b"host"),
    )


def _as_written(value: object) -> object:
    """A time as text: numbers, which pydantic takes for seconds since 1970, are refused.

    `+` in a query is a blank unless it is written `%2B`; in a time that can have been nothing else.
    """
    if isinstance(value, datetime):
        return value
    if not (isinstance(value, str) and _DATE.match(value)):
        raise ValueError("must be a time such as 2026-04-05T10:00:00Z")
    return _PLUS_LOST.sub(r"\1+\2", value)


def filter_of(
    caller: Caller,
    statuses: Iterable[TaskStatus],
    group_id: str | None,
    *,
    since: datetime | None,
    before: datetime | None,
) -> ListFilter:
    """Which of the tasks of the caller's tenant; times without a zone are UTC."""
    return ListFilter(
        tenant=caller.tenant,
        statuses=frozenset(statuses),
        group_id=group_id,
        from_ms=None if since is None else milliseconds_of(with_zone(since)),
        before_ms=None if before is None else milliseconds_of(with_zone(before)),
    )


def narrowed(wanted: ListFilter, search: SearchFields) -> ListFilter:
    """The filter with what is searched for."""
    return replace(wanted, content=search.content, min_score=search.min_score, starred=search.starred)


def check_cursor(value: str) -> str:
    """The cursor itself; raises `ValueError` when it is none."""
    ListCursor.parse(value)
    return value


ShownStatus = Literal["queued", "running", "succeeded", "failed", "expired", "canceled"]
Moment = Annotated[datetime, BeforeValidator(_as_written)]


class TaskFilters(BaseModel):
    """Which tasks of the tenant."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    status: Annotated[list[ShownStatus], Field(max_length=len(SHOWN_STATUSES))] = []
    """Only tasks with one of these; may be repeated."""
    group_id: Annotated[str, Field(pattern=REQUEST_ID.pattern, max_length=MAX_GROUP_CHARACTERS)] | None = None
    """Only tasks of this group."""
    created_after: Moment | None = None
    """Only tasks that were accepted then or later; UTC when it has no zone."""
    created_before: Moment | None = None
    """Only tasks that were accepted before; UTC when it has no zone."""


class ListQuery(TaskFilters, SearchFields):
    """Which tasks to list."""

    order: ListOrder = ListOrder.DESC
    """By the time of acceptance: desc (newest first) or asc."""
    limit: Annotated[int, Field(ge=1, le=MAX_LIMIT)] = 50
    """Most tasks on one page. A page may have fewer, or none, and still have a next one."""
    cursor: Annotated[str, AfterValidator(check_cursor)] | None = None
    """`next_cursor` of the page before, with the same filters and order."""


@router.get(
    PATH,
    response_model=TaskPageView,
    responses=problems(_LIST_PROBLEMS),
    summary="Tasks of the caller's tenant",
    **requires(KeyScope.READ),
)
async def list_generations(
    query: Annotated[ListQuery, Query()], request: Request, services: WithServices, caller: WithCaller
) -> Response:
    """Page by page, in a stable order. A task appears here some milliseconds after it was accepted."""
    wanted = filter_of(
        caller, map(TaskStatus, query.status), query.group_id, since=query.created_after, before=query.created_before
    )
    wanted = narrowed(wanted, query)
    after = None if query.cursor is None else ListCursor.parse(query.cursor)
    page = await read_store(services.store.list(wanted, order=query.order, after=after, limit=query.limit))
    return json_response(page_view_of(page, services, base=base_of(request, services)))


def page_view_of(page: TaskPage, services: Services, *, base: str) -> TaskPageView:
    """A page of the list as clients see it."""
    return TaskPageView(
        data=tuple(view_of(task.request_id, task, services, base=base) for task in page.tasks),
        has_more=page.next is not None,
        next_cursor=None if page.next is None else str(page.next),
    )


@router.get(
    _GROUPS_PATH + "/{group_id}",
    response_model=GroupView,
    responses=problems(
        {**SECURITY_PROBLEMS, 404: "No task of the caller's tenant is in this group.", 503: READ_PROBLEMS[503]}
    ),
    summary="How far the tasks of a group are",
    **requires(KeyScope.READ),
)
async def get_group(
    group_id: Annotated[str, Path(description="As given with the tasks.")],
    request: Request,
    services: WithServices,
    caller: WithCaller,
) -> Response:
    """Counts every task that was accepted before the request."""
    if len(group_id) > MAX_GROUP_CHARACTERS or not REQUEST_ID.fullmatch(group_id):
        raise _no_such_group(group_id)
    await read_up_to_now(services, f"not every task of the group {group_id} is counted yet")
    counted = await read_store(services.store.count_group(tenant=caller.tenant, group_id=group_id))
    if not counted.total:
        raise _no_such_group(group_id)
    tasks_url = f"{base_of(request, services)}v1/generations?group_id={group_id}"
    last = None
    if counted.last_waiting is not None:
        last = services.lanes.place_of(counted.last_waiting.place)
    elif TaskStatus.RUNNING in counted.counts:
        last = services.lanes.place_of_running()
    return json_response(GroupView.of(group_id, counted, tasks_url=tasks_url, last=last))


def _no_such_group(group_id: str) -> ProblemError:
    return ProblemError(
        ProblemCode.NOT_FOUND, f"no task has the group {group_id[:MAX_GROUP_CHARACTERS]!r}; submit one with group_id"
    )


async def read_up_to_now(services: Services, otherwise: str) -> None:
    """Wait until the store has every task that was accepted before; raises `ProblemError` (503) with the text."""
    try:
        await services.lookup.barrier.passed()
    except BarrierNotReachedError as error:
        raise unavailable(ProblemCode.STORE_UNAVAILABLE, f"{otherwise} ({error}); retry in a moment") from error


async def read_store(reading: Awaitable[T]) -> T:
    """What the store answers; raises `ProblemError` (503) when it cannot."""
    try:
        return await reading
    except StoreUnavailableError as error:
        detail = "the task store cannot be read, or is being rebuilt; retry in a moment"
        raise unavailable(ProblemCode.STORE_UNAVAILABLE, detail) from error
