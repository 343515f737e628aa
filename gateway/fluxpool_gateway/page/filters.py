"""Filters of lists of tasks, as forms send them and addresses keep them."""

from collections.abc import Iterable
from typing import Annotated
from urllib.parse import urlencode

from fastapi import Query
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from fluxpool_contract.messages import MAX_GROUP_CHARACTERS, REQUEST_ID
from fluxpool_gateway.http.routes import Services
from fluxpool_gateway.http.task_routes import Moment, ShownStatus, check_cursor, filter_of, read_store
from fluxpool_gateway.identity.caller import Caller
from fluxpool_gateway.page.rendering import show_stamp
from fluxpool_gateway.store.task_list import ListCursor, ListOrder, TaskPage
from fluxpool_gateway.store.task_state import SHOWN_STATUSES, TaskStatus


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


async def read_filtered(
    filters: PageFilters, services: Services, caller: Caller, *, statuses: Iterable[TaskStatus], limit: int
) -> TaskPage:
    """A page of the list; raises `ProblemError` (503)."""
    wanted = filter_of(caller, statuses, filters.group_id, since=filters.created_after, before=filters.created_before)
    after = None if filters.cursor is None else ListCursor.parse(filters.cursor)
    return await read_store(services.store.list(wanted, order=ListOrder.DESC, after=after, limit=limit))
