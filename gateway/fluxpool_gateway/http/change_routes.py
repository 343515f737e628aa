"""The routes that change what becomes of tasks: cancel one, or many by id or by a filter; retry or delete one."""

import asyncio
from http import HTTPStatus
from typing import Annotated, Final, Self

import structlog
from fastapi import APIRouter, Request, Response
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StrictBool, model_validator

from fluxpool_contract.messages import MAX_GROUP_CHARACTERS, REQUEST_ID
from fluxpool_contract.tenants import NO_TENANT
from fluxpool_gateway.dead_letters.replaying import UNANSWERED
from fluxpool_gateway.feedback.reads import find_keys_of_task
from fluxpool_gateway.http.problem import (
    BODY_PROBLEMS,
    RETRY_AFTER_SECONDS,
    ProblemCode,
    ProblemError,
    problems,
    unavailable,
)
from fluxpool_gateway.http.request_context import PATH, status_url_of
from fluxpool_gateway.http.routes import (
    READ_PROBLEMS,
    AcceptedGeneration,
    RequestIdInPath,
    RequestModel,
    Services,
    WithServices,
    json_response,
)
from fluxpool_gateway.http.scopes import SECURITY_PROBLEMS, WithCaller, requires
from fluxpool_gateway.http.submission import Submission
from fluxpool_gateway.http.task_routes import Moment, base_of, check_cursor, filter_of, read_store, read_up_to_now
from fluxpool_gateway.identity.api_key import KeyScope
from fluxpool_gateway.identity.caller import Caller
from fluxpool_gateway.store.task_list import ListCursor, ListFilter, ListOrder
from fluxpool_gateway.store.task_state import DELETED_VERSION, TaskState, TaskStatus
from fluxpool_gateway.tasks.canceling import CancelOutcome, CancelWish
from fluxpool_gateway.tasks.lookup import RecentTask
from fluxpool_gateway.tasks.producer import DeliveryError
from fluxpool_transport.storage import CorruptObjectError, StorageUnavailableError

DELETION_SHOWN_SECONDS: Final = 5.0
"""The projection shows a record within milliseconds, unless it is behind."""
MAX_CANCELED_AT_ONCE: Final = 500
"""One second of commands on a slow broker, and far fewer than workers remember (100,000)."""

router = APIRouter()

logger = structlog.stdlib.get_logger(__name__)


class CancelRequest(RequestModel):
    """How to cancel a task."""

    waiting_only: StrictBool = False
    """Leave it alone when an engine has begun it; one on a retry topic is waiting."""
    reason: Annotated[str, Field(max_length=1000)] | None = None
    """For people; part of the task's error."""


class CancelManyRequest(CancelRequest):
    """Which tasks to cancel: those with these ids, or all that the filter leaves."""

    request_ids: Annotated[list[str], Field(min_length=1, max_length=MAX_CANCELED_AT_ONCE)] | None = None
    """Tasks by their ids; no filter applies."""
    group_id: Annotated[str, Field(pattern=REQUEST_ID.pattern, max_length=MAX_GROUP_CHARACTERS)] | None = None
    """Only tasks of this group."""
    created_after: Moment | None = None
    """Only tasks that were accepted then or later."""
    created_before: Moment | None = None
    """Only tasks that were accepted before."""
    all: StrictBool = False
    """Every task of the tenant that has not ended; no filter applies."""
    cursor: Annotated[str, AfterValidator(check_cursor)] | None = None
    """`next_cursor` of the response before, with the same filter."""

    @model_validator(mode="after")
    def _says_which(self) -> Self:
        has_filter = not (self.group_id is None and self.created_after is None and self.created_before is None)
        if [self.request_ids is not None, has_filter, self.all].count(True) != 1:
            raise ValueError(
                "request_ids: give either request_ids, or a filter (group_id, created_after, created_before), "
                "or all: true"
            )
        return self


class CanceledTask(BaseModel):
    """What became of one task."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    request_id: str
    outcome: CancelOutcome | None
    """requested, ended (it had ended already) or running (and only waiting ones were to be canceled); null for an id
    that is not known."""
    status: TaskStatus | None
    """When this was answered. A canceled task is `canceled` once a worker has read the command."""
    status_url: str | None


class CanceledTasks(BaseModel):
    """What became of some tasks."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    data: tuple[CanceledTask, ...]
    has_more: bool
    """Whether the filter may leave further tasks: repeat the request with `cursor`."""
    next_cursor: str | None


@router.post(
    PATH + "/{request_id}/cancel",
    status_code=HTTPStatus.ACCEPTED,
    response_model=CanceledTask,
    responses={
        200: {"model": CanceledTask, "description": "Nothing to do; `outcome` says why."},
        **problems({**BODY_PROBLEMS, **READ_PROBLEMS}),
    },
    summary="Cancel a task",
    **requires(KeyScope.CANCEL),
)
async def cancel_generation(
    request_id: RequestIdInPath,
    request: Request,
    services: WithServices,
    caller: WithCaller,
    wanted: CancelRequest | None = None,
) -> Response:
    """In whatever state it is, and as often as you like. It stops before its next step, and ends as canceled."""
    found = await services.lookup.find(request_id, caller)
    (view,) = await _cancel(
        [(request_id, found)], services, caller, wanted or CancelRequest(), base=base_of(request, services)
    )
    requested = view.outcome is CancelOutcome.REQUESTED
    return json_response(view, HTTPStatus.ACCEPTED if requested else HTTPStatus.OK)


@router.post(
    PATH + "/cancel",
    status_code=HTTPStatus.ACCEPTED,
    response_model=CanceledTasks,
    responses=problems({**BODY_PROBLEMS, **SECURITY_PROBLEMS, 503: READ_PROBLEMS[503]}),
    summary="Cancel many tasks",
    **requires(KeyScope.CANCEL),
)
async def cancel_generations(
    wanted: CancelManyRequest, request: Request, services: WithServices, caller: WithCaller
) -> Response:
    """By id, or all that have not ended and pass a filter, at most 500 a request, in the order of their time."""
    canceled = await cancel_many(wanted, services, caller, base=base_of(request, services))
    return json_response(canceled, HTTPStatus.ACCEPTED)


async def cancel_many(wanted: CancelManyRequest, services: Services, caller: Caller, *, base: str) -> CanceledTasks:
    """Cancel at most 500 tasks; raises `ProblemError` (503)."""
    following: ListCursor | None = None
    unknown: set[str] = set()
    if wanted.request_ids is not None:
        tasks, unknown = await _find_all(list(dict.fromkeys(wanted.request_ids)), services, caller)
    else:
        # A command for every task that was accepted before: one that is not projected yet would go on.
        await read_up_to_now(services, "not every task is known yet")
        page = await read_store(
            services.store.list(
                _filter_of(wanted, caller),
                order=ListOrder.ASC,
                after=None if wanted.cursor is None else ListCursor.parse(wanted.cursor),
                limit=MAX_CANCELED_AT_ONCE,
            )
        )
        tasks, following = [(task.request_id, task) for task in page.tasks], page.next
    views = await _cancel(tasks, services, caller, wanted, base=base)
    missing = [CanceledTask(request_id=name, outcome=None, status=None, status_url=None) for name in sorted(unknown)]
    return CanceledTasks(
        data=(*views, *missing),
        has_more=following is not None,
        next_cursor=None if following is None else str(following),
    )


@router.post(
    PATH + "/{request_id}/retry",
    status_code=HTTPStatus.ACCEPTED,
    response_model=AcceptedGeneration,
    responses=problems(
        {
            409: "The task has not ended.",
            **READ_PROBLEMS,
            410: "The task was deleted, or its request is no longer stored.",
            422: "Today's limits do not allow the request; `errors` names each field.",
            429: "A limit of the tenant is reached.",
        }
    ),
    summary="Retry a task",
    **requires(KeyScope.SUBMIT),
)
async def retry_generation(
    request_id: RequestIdInPath, request: Request, services: WithServices, caller: WithCaller
) -> Response:
    """A new task with the same inputs. A second retry of the same end is the same task."""
    found = await services.lookup.find(request_id, caller)
    if isinstance(found, RecentTask) or not found.status.terminal:
        raise ProblemError(
            ProblemCode.NOT_FINISHED,
            f"task {request_id} has not ended; cancel it first, or wait for its end",
            headers=[("retry-after", str(RETRY_AFTER_SECONDS))],
        )
    if found.body is None:
        raise ProblemError(ProblemCode.GONE, f"the request of task {request_id} is no longer stored; submit it again")
    submission: Submission = request.app.submission
    try:
        retried_id, more = await submission.retry(found, found.body, caller, request.scope["headers"])
    except ProblemError as error:
        if error.status is not HTTPStatus.SERVICE_UNAVAILABLE:
            raise
        detail = "the retry is not confirmed; repeat the request, which cannot make a second task"
        raise unavailable(error.code, detail) from error
    status_url = status_url_of(retried_id, base=base_of(request, services))
    view = AcceptedGeneration(request_id=retried_id, status="queued", status_url=status_url)
    response = json_response(view, HTTPStatus.ACCEPTED)
    for name, value in [("location", status_url), ("retry-after", str(RETRY_AFTER_SECONDS)), *more]:
        response.headers[name] = value
    return response


@router.delete(
    PATH + "/{request_id}",
    status_code=HTTPStatus.NO_CONTENT,
    responses={
        202: {"description": "Written, but not shown yet: the state of the task is 410 in a moment."},
        **problems({**READ_PROBLEMS, 409: "The task has not ended: cancel it before."}),
    },
    summary="Delete a task and its images",
    **requires(KeyScope.CANCEL),
)
async def delete_generation(request_id: RequestIdInPath, services: WithServices, caller: WithCaller) -> Response:
    """As often as you like. From then on every route answers 410 for its id."""
    try:
        found = await services.lookup.find(request_id, caller)
    except ProblemError as problem:
        if problem.code is ProblemCode.GONE:
            return Response(status_code=HTTPStatus.NO_CONTENT)
        raise
    if isinstance(found, RecentTask) or not found.status.terminal:
        detail = f"task {request_id} has not ended; cancel it (POST {PATH}/{request_id}/cancel), then delete it"
        raise ProblemError(ProblemCode.NOT_FINISHED, detail, headers=[("retry-after", str(RETRY_AFTER_SECONDS))])
    if found.tenant == NO_TENANT:
        raise ProblemError(ProblemCode.NOT_FOUND, f"whose task {request_id} is, is not known")
    # It outlives the record of the deletion, and would come back with a store that is built again.
    feedback = await read_store(
        services.store.read(lambda connection: find_keys_of_task(connection, request_id, tenant=found.tenant))
    )
    dead_letters = await read_store(services.dead_letters.of_task(request_id, tenant=found.tenant))
    try:
        if dead_letters:
            # As the feedback: dead letters outlive the record of the deletion by weeks.
            async with services.dead_letters.topic.replayer(by=caller.name) as replayer:
                await replayer.mark_deleted([dead_letter.entry for dead_letter in dead_letters])
        await services.feedback.withdraw(feedback, tenant=found.tenant)
        await services.deleting.delete(found)
    except (StorageUnavailableError, CorruptObjectError) as error:
        logger.warning("task_objects_not_deleted", request_id=request_id, reason=str(error))
        detail = "the images cannot be deleted at the moment, and the task stays; repeat the request"
        raise unavailable(ProblemCode.STORAGE_FAILED, detail) from error
    except (DeliveryError, *UNANSWERED) as error:
        detail = "the task is not deleted yet, its images may be; repeat the request"
        raise unavailable(ProblemCode.QUEUE_UNAVAILABLE, detail) from error
    try:
        async with asyncio.timeout(DELETION_SHOWN_SECONDS):
            await services.waits.later_than(found.key, DELETED_VERSION - 1)
    except TimeoutError:
        return Response(status_code=HTTPStatus.ACCEPTED)
    return Response(status_code=HTTPStatus.NO_CONTENT)


async def _cancel(
    tasks: list[tuple[str, TaskState | RecentTask]],
    services: Services,
    caller: Caller,
    wanted: CancelRequest,
    *,
    base: str,
) -> list[CanceledTask]:
    wish = CancelWish(
        requested_by=caller.name,
        reason=wanted.reason,
        waiting_only=wanted.waiting_only,
    )
    try:
        outcomes = await services.canceling.cancel(tasks, wish)
    except DeliveryError as error:
        detail = f"the command was not confirmed ({error}); repeat the request, which cannot cancel anything twice"
        raise unavailable(ProblemCode.QUEUE_UNAVAILABLE, detail) from error
    return [
        CanceledTask(
            request_id=request_id,
            outcome=outcome,
            status=found.status if isinstance(found, TaskState) else TaskStatus.QUEUED,
            status_url=status_url_of(request_id, base=base),
        )
        for (request_id, found), outcome in zip(tasks, outcomes, strict=True)
    ]


async def _find_all(
    request_ids: list[str], services: Services, caller: Caller
) -> tuple[list[tuple[str, TaskState | RecentTask]], set[str]]:
    """The tasks with these ids, and the ids that the caller knows no task of."""
    answers = await asyncio.gather(
        *(services.lookup.find(name, caller) for name in request_ids), return_exceptions=True
    )
    found: list[tuple[str, TaskState | RecentTask]] = []
    unknown: set[str] = set()
    for name, answer in zip(request_ids, answers, strict=True):
        if isinstance(answer, ProblemError) and answer.code in {ProblemCode.NOT_FOUND, ProblemCode.GONE}:
            unknown.add(name)
        elif isinstance(answer, BaseException):
            raise answer
        else:
            found.append((name, answer))
    return found, unknown


def _filter_of(wanted: CancelManyRequest, caller: Caller) -> ListFilter:
    statuses = {TaskStatus.QUEUED} if wanted.waiting_only else {TaskStatus.QUEUED, TaskStatus.RUNNING}
    return filter_of(caller, statuses, wanted.group_id, since=wanted.created_after, before=wanted.created_before)
