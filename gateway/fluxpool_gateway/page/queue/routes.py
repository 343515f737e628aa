"""The lanes, and tasks to choose from; the filters are in the address."""

from typing import Final

from fastapi import Request, Response

from fluxpool_gateway.http.routes import WithServices
from fluxpool_gateway.http.scopes import WithCaller, requires
from fluxpool_gateway.identity.api_key import KeyScope
from fluxpool_gateway.page.filters import WithFilters, read_filtered
from fluxpool_gateway.page.forms import page_router
from fluxpool_gateway.page.rendering import render
from fluxpool_gateway.page.tasks.card import STATUS_WORDS
from fluxpool_gateway.page.tasks.reading import cards_of
from fluxpool_gateway.store.task_state import TaskStatus

QUEUE_TASKS: Final = 50

router = page_router()


@router.get("/queue", **requires(KeyScope.READ))
async def get_queue(filters: WithFilters, request: Request, services: WithServices, caller: WithCaller) -> Response:
    """The lanes, and the caller's tasks as a table to choose from."""
    page = await read_filtered(filters, services, caller, statuses=map(TaskStatus, filters.status), limit=QUEUE_TASKS)
    return render(
        request,
        "queue.html",
        filters=filters,
        cards=cards_of(page, request, services),
        following=None if page.next is None else filters.address(page.next),
        lanes=[(lane, services.lanes.place_of_new(lane)) for lane in services.lanes.queue().lanes],
        words=STATUS_WORDS,
        may_cancel=KeyScope.CANCEL in caller.scopes,
        may_submit=KeyScope.SUBMIT in caller.scopes,
    )
