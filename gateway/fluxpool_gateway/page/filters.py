"""Filters of lists of tasks, as forms send them and addresses keep them."""

from collections.abc import Iterable
from typing import Annotated
from urllib.parse import urlencode

from fastapi import Query
from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, model_validator

from fluxpool_contract.messages import MAX_GROUP_CHARACTERS, REQUEST_ID
from fluxpool_gateway.http.routes import Services
from fluxpool_gateway.http.task_routes import Moment, ShownStatus, check_cursor, filter_of, narrowed, read_store
from fluxpool_gateway.identity.caller import Caller
from fluxpool_gateway.page.rendering import show_stamp
from fluxpool_gateway.search import SearchFields
from fluxpool_gateway.store.task_list import ListCursor, ListOrder, TaskPage
from fluxpool_gateway.store.task_state import SHOWN_STATUSES, TaskStatus


def _given(value: object) -> object:
    """A field that was left empty is sent as well, and filters nothing."""
    return None if value == "" else value


Blank = BeforeValidator(_given)
GroupId = Annotated[str, Field(pattern=REQUEST_ID.pattern, max_length=MAX_GROUP_CHARACTERS)]


class PageFilters(SearchFields):
    """Filters as forms send them."""

    model_config = ConfigDict(extra="ignore")

    status: Annotated[list[ShownStatus], Field(default_factory=list, max_length=len(SHOWN_STATUSES))]
    group_id: GroupId | None = None
    created_after: Moment | None = None
    created_before: Moment | None = None
    cursor: Annotated[str, AfterValidator(check_cursor)] | None = None

    @model_validator(mode="before")
    @classmethod
    def _leave_out(cls, fields: object) -> object:
        """As `Blank`, for the fields of a search, which the API has too."""
        if not isinstance(fields, dict):
            return fields
        return {name: value for name, value in fields.items() if value not in ("", [""])}

    @property
    def are_set(self) -> bool:
        """Whether they leave anything out."""
        return bool(self.address(None))

    def address(self, cursor: ListCursor | None) -> str:
        """The query of the page behind the cursor; of the first one without."""
        fields: list[tuple[str, str]] = [("status", status) for status in self.status]
        if self.group_id is not None:
            fields.append(("group_id", self.group_id))
        fields += [
            (name, show_stamp(moment))
            for name, moment in (("created_after", self.created_after), ("created_before", self.created_before))
            if moment is not None
        ]
        search = self.model_dump(include=set(SearchFields.model_fields), exclude_defaults=True)
        fields += [(name, "true" if value is True else str(value)) for name, value in search.items()]
        return urlencode(fields if cursor is None else [*fields, ("cursor", str(cursor))])

    @property
    def here(self) -> str:
        """The query of this page."""
        return self.address(None if self.cursor is None else ListCursor.parse(self.cursor))


WithFilters = Annotated[PageFilters, Query()]


async def read_filtered(
    filters: PageFilters, services: Services, caller: Caller, *, statuses: Iterable[TaskStatus], limit: int
) -> TaskPage:
    """A page of the list; raises `ProblemError` (503)."""
    wanted = filter_of(caller, statuses, filters.group_id, since=filters.created_after, before=filters.created_before)
    wanted = narrowed(wanted, filters)
    after = None if filters.cursor is None else ListCursor.parse(filters.cursor)
    return await read_store(services.store.list(wanted, order=ListOrder.DESC, after=after, limit=limit))
