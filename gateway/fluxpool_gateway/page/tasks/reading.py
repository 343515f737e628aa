"""Reads tasks for the views, as the API's routes read them."""

import asyncio
from collections.abc import Iterable
from typing import Any, Final

from fastapi import Request

from fluxpool_gateway.http.routes import Services
from fluxpool_gateway.http.task_routes import base_of, filter_of, read_store, view_of
from fluxpool_gateway.identity.caller import Caller
from fluxpool_gateway.page.tasks.card import TaskCard, card_of
from fluxpool_gateway.store.task_list import ListFilter, ListOrder, TaskPage
from fluxpool_gateway.store.task_state import TaskState, TaskStatus
from fluxpool_gateway.tasks.lookup import RecentTask

UNFINISHED: Final = (TaskStatus.QUEUED, TaskStatus.RUNNING)
ENDED: Final = (TaskStatus.SUCCEEDED, TaskStatus.FAILED, TaskStatus.EXPIRED, TaskStatus.CANCELED)
SHOWN_UNFINISHED: Final = 24
SHOWN_ENDED: Final = 8
_PROJECTED_SECONDS: Final = 3.0
"""The projection shows a record within milliseconds, unless it is behind."""


def cards_of(page: TaskPage, request: Request, services: Services) -> list[TaskCard]:
    """The cards of a page of the list."""
    base = base_of(request, services)
    return [card_of(task, view_of(task.request_id, task, services, base=base)) for task in page.tasks]


def of_statuses(caller: Caller, statuses: Iterable[TaskStatus]) -> ListFilter:
    """Tasks of the caller's tenant."""
    return filter_of(caller, statuses, None, since=None, before=None)


async def read_live(request: Request, services: Services, caller: Caller) -> dict[str, Any]:
    """What the live tasks are shown with: those that have not ended, and the latest that have."""
    unfinished = await read_store(
        services.store.list(of_statuses(caller, UNFINISHED), order=ListOrder.DESC, after=None, limit=SHOWN_UNFINISHED)
    )
    ended = await read_store(
        services.store.list(of_statuses(caller, ENDED), order=ListOrder.DESC, after=None, limit=SHOWN_ENDED)
    )
    # In this order, so that a task which ends between the two reads is in both, not in neither.
    have_ended = {task.request_id for task in ended.tasks}
    cards = [card for card in cards_of(unfinished, request, services) if card.request_id not in have_ended]
    return {
        "unfinished": cards,
        "has_more": unfinished.next is not None,
        "ended": cards_of(ended, request, services),
    }


async def find_projected(request_id: str, services: Services, caller: Caller) -> TaskState | RecentTask:
    """The task, once the store has it if that is soon; raises `ProblemError` as `TaskLookup.find` does."""
    found = await services.lookup.find(request_id, caller)
    if isinstance(found, RecentTask):
        try:
            async with asyncio.timeout(_PROJECTED_SECONDS):
                await services.waits.later_than(found.key, -1)
        except TimeoutError:
            return found
        found = await services.lookup.find(request_id, caller)
    return found
