"""Cancel or retry many tasks: first what it would do, then what became of each."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Final, assert_never

from fastapi import Request, Response

from fluxpool_contract.messages import REQUEST_ID
from fluxpool_gateway.http.change_routes import CancelManyRequest, cancel_many, retry_generation
from fluxpool_gateway.http.problem import ProblemCode, ProblemError
from fluxpool_gateway.http.routes import Services, WithServices
from fluxpool_gateway.http.scopes import WithCaller, requires
from fluxpool_gateway.http.task_routes import MAX_LIMIT, base_of, read_store, read_up_to_now
from fluxpool_gateway.identity.api_key import KeyScope
from fluxpool_gateway.identity.caller import Caller
from fluxpool_gateway.page.forms import Form, WithForm, page_router
from fluxpool_gateway.page.rendering import render
from fluxpool_gateway.page.tasks.card import STATUS_WORDS
from fluxpool_gateway.page.tasks.reading import UNFINISHED, of_statuses
from fluxpool_gateway.store.task_list import ListOrder
from fluxpool_gateway.store.task_state import TaskStatus
from fluxpool_gateway.tasks.canceling import CancelOutcome
from fluxpool_gateway.tasks.lookup import RecentTask

MAX_CHOSEN: Final = MAX_LIMIT
REASON: Final = "canceled on the page"

router = page_router()


class BulkAction(StrEnum):
    """What is to be done."""

    CANCEL = "cancel"
    CANCEL_WAITING = "cancel-waiting"
    RETRY = "retry"


TITLES: Final = {
    BulkAction.CANCEL: "Cancel",
    BulkAction.CANCEL_WAITING: "Cancel waiting, keep running",
    BulkAction.RETRY: "Retry",
}


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one task."""

    request_id: str
    is_done: bool
    words: str
    new_id: str | None = None
    """Of the task that a retry made."""


@router.post("/queue/confirm", **requires(KeyScope.READ))
async def post_confirm(request: Request, services: WithServices, caller: WithCaller, form: WithForm) -> Response:
    """How many tasks it is about, and how many of them it changes."""
    action, request_ids = _read(form)
    statuses: list[TaskStatus] = []
    has_more = False
    if form.get("all"):
        page = await read_store(
            services.store.list(of_statuses(caller, UNFINISHED), order=ListOrder.DESC, after=None, limit=MAX_LIMIT)
        )
        statuses, has_more = [task.status for task in page.tasks], page.next is not None
    else:
        statuses = [status for name in request_ids if (status := await _status(name, services, caller)) is not None]
    counts = {word: statuses.count(status) for status, word in STATUS_WORDS.items() if status in statuses}
    return render(
        request,
        "confirm.html",
        action=action,
        title=TITLES[action],
        request_ids=request_ids,
        everything=bool(form.get("all")),
        total=len(statuses),
        unknown=0 if form.get("all") else len(request_ids) - len(statuses),
        has_more=has_more,
        counts=counts,
        changed=sum(map(_changes(action).__contains__, statuses)),
    )


async def _status(request_id: str, services: Services, caller: Caller) -> TaskStatus | None:
    """None where there is no such task, or none any more."""
    try:
        found = await services.lookup.find(request_id, caller)
    except ProblemError as problem:
        if problem.code in {ProblemCode.NOT_FOUND, ProblemCode.GONE}:
            return None
        raise
    return TaskStatus.QUEUED if isinstance(found, RecentTask) else found.status


def _changes(action: BulkAction) -> frozenset[TaskStatus]:
    """The statuses of tasks that the action changes."""
    match action:
        case BulkAction.CANCEL:
            return frozenset(UNFINISHED)
        case BulkAction.CANCEL_WAITING:
            return frozenset({TaskStatus.QUEUED})
        case BulkAction.RETRY:
            return frozenset(status for status in TaskStatus if status.terminal and status is not TaskStatus.DELETED)
        case unknown:
            assert_never(unknown)


@router.post("/queue/apply", **requires(KeyScope.READ))
async def post_apply(request: Request, services: WithServices, caller: WithCaller, form: WithForm) -> Response:
    """Do it. Sent twice it does nothing more: a retry of the same end is the same task."""
    action, request_ids = _read(form)
    if action is BulkAction.RETRY:
        caller.require(KeyScope.SUBMIT)
        outcomes = [await _retry(request_id, request, services, caller) for request_id in request_ids]
    else:
        caller.require(KeyScope.CANCEL)
        waiting_only = action is BulkAction.CANCEL_WAITING
        chosen = None if form.get("all") else request_ids
        outcomes = await _cancel(request, services, caller, request_ids=chosen, waiting_only=waiting_only)
    return render(
        request,
        "outcomes.html",
        title=TITLES[action],
        shown=outcomes[:MAX_LIMIT],
        total=len(outcomes),
        done=sum(outcome.is_done for outcome in outcomes),
    )


def _read(form: Form) -> tuple[BulkAction, list[str]]:
    """The action and the chosen tasks; raises `ProblemError` (400) for a form that names none."""
    request_ids = list(dict.fromkeys(form.all("id")))
    action = form.get("action")
    if action not in set(BulkAction):
        raise ProblemError(ProblemCode.INVALID_REQUEST, "the form names no action")
    if not request_ids and not form.get("all"):
        raise ProblemError(ProblemCode.INVALID_REQUEST, "no task was chosen; go back and check some")
    if form.get("all") and action == BulkAction.RETRY:
        raise ProblemError(ProblemCode.INVALID_REQUEST, "tasks to retry are chosen one by one")
    if len(request_ids) > MAX_CHOSEN or not all(map(REQUEST_ID.fullmatch, request_ids)):
        raise ProblemError(ProblemCode.INVALID_REQUEST, f"at most {MAX_CHOSEN} tasks are changed at once")
    return BulkAction(action), request_ids


async def _retry(request_id: str, request: Request, services: Services, caller: Caller) -> Outcome:
    try:
        answer = await retry_generation(request_id, request, services, caller)
    except ProblemError as problem:
        return Outcome(request_id, is_done=False, words=problem.detail)
    new_id = answer.headers["location"].rpartition("/")[2]
    return Outcome(request_id, is_done=True, words="retried as", new_id=new_id)


async def _cancel(
    request: Request, services: Services, caller: Caller, *, request_ids: list[str] | None, waiting_only: bool
) -> list[Outcome]:
    """Of the chosen tasks; of all that have not ended where none are named."""
    base = base_of(request, services)
    if request_ids is None:
        await read_up_to_now(services, "not every task is known yet")
    wanted = CancelManyRequest(
        request_ids=request_ids, all=request_ids is None, waiting_only=waiting_only, reason=REASON
    )
    outcomes: list[Outcome] = []
    while True:
        canceled = await cancel_many(wanted, services, caller, base=base)
        outcomes += [
            Outcome(task.request_id, is_done=task.outcome is CancelOutcome.REQUESTED, words=_words(task.outcome))
            for task in canceled.data
        ]
        if canceled.next_cursor is None:
            return outcomes
        wanted = wanted.model_copy(update={"cursor": canceled.next_cursor})


def _words(outcome: CancelOutcome | None) -> str:
    match outcome:
        case CancelOutcome.REQUESTED:
            return "cancel requested"
        case CancelOutcome.ENDED:
            return "had ended already"
        case CancelOutcome.RUNNING:
            return "keeps running"
        case None:
            return "there is no such task"
        case unknown:
            assert_never(unknown)
