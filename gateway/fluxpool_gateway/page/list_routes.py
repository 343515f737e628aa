"""The gallery and the queue: lists of tasks whose filters are in their addresses."""

from collections.abc import Iterable
from typing import Annotated, Final
from urllib.parse import urlencode

from fastapi import Query, Request, Response
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from fluxpool_contract.messages import MAX_GROUP_CHARACTERS, REQUEST_ID
from fluxpool_gateway.http.routes import Services, WithServices
from fluxpool_gateway.http.scopes import WithCaller, requires
from fluxpool_gateway.http.task_routes import Moment, ShownStatus, check_cursor, filter_of, read_store
from fluxpool_gateway.identity.api_key import KeyScope
from fluxpool_gateway.identity.caller import Caller
from fluxpool_gateway.page.forms import page_router
from fluxpool_gateway.page.rendering import render, show_stamp
from fluxpool_gateway.page.task_card import STATUS_WORDS
from fluxpool_gateway.page.task_reading import cards_of
from fluxpool_gateway.store.task_list import ListCursor, ListOrder, TaskPage
from fluxpool_gateway.store.task_state import SHOWN_STATUSES, TaskStatus

GALLERY_TASKS: Final = 24
"""Divides by 2, 3, 4 and 6: full rows at most widths."""
QUEUE_TASKS: Final = 50

router = page_router()


def _given(value: object) -> object:
    """A field that was left empty is sent as well, and filters nothing."""
    return None if value == "" else value


GroupId = Annotated[str, Field(pattern=REQUEST_ID.pattern, max_length=MAX_GROUP_CHARACTERS)]
Blank = BeforeValidator(_given)


class PageFilters(BaseModel):
    """Filters as forms send them."""

    model_config = ConfigDict(extra="ignore")

    status: Annotated[list[ShownStatus], Field(max_length=len(SHOWN_STATUSES))] = []
    group_id: Annotated[GroupId | None, Blank] = None
    created_after: Annotated[Moment | None, Blank] = None
    created_before: Annotated[Moment | None, Blank] = None
    cursor: Annotated[Annotated[str, AfterValidator(check_cursor)] | None, Blank] = None

    def address(self, cursor: ListCursor) -> str:
        """The query of the next page."""
        fields: list[tuple[str, str]] = [("status", status) for status in self.status]
        if self.group_id is not None:
            fields.append(("group_id", self.group_id))
        fields += [
            (name, show_stamp(moment))
            for name, moment in (("created_after", self.created_after), ("created_before", self.created_before))
            if moment is not None
        ]
        return urlencode([*fields, ("cursor", str(cursor))])


WithFilters = Annotated[PageFilters, Query()]


@router.get("/gallery", **requires(KeyScope.READ))
async def get_gallery(filters: WithFilters, request: Request, services: WithServices, caller: WithCaller) -> Response:
    """The images, newest first."""
    page = await _read(filters, services, caller, statuses=[TaskStatus.SUCCEEDED], limit=GALLERY_TASKS)
    return render(
        request,
        "gallery.html",
        filters=filters,
        cards=cards_of(page, request, services),
        following=None if page.next is None else filters.address(page.next),
    )


@router.get("/queue", **requires(KeyScope.READ))
async def get_queue(filters: WithFilters, request: Request, services: WithServices, caller: WithCaller) -> Response:
    """The lanes, and the caller's tasks as a table to choose from."""
    page = await _read(filters, services, caller, statuses=map(TaskStatus, filters.status), limit=QUEUE_TASKS)
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


async def _read(
    filters: PageFilters, services: Services, caller: Caller, *, statuses: Iterable[TaskStatus], limit: int
) -> TaskPage:
    wanted = filter_of(caller, statuses, filters.group_id, since=filters.created_after, before=filters.created_before)
    after = None if filters.cursor is None else ListCursor.parse(filters.cursor)
    return await read_store(services.store.list(wanted, order=ListOrder.DESC, after=after, limit=limit))
