"""The views that read dead letters: causes and a list, one with its record, an export of what is listed."""

import json
from typing import Annotated, Any, Final, Literal

from fastapi import Query, Request, Response
from pydantic import AfterValidator

from fluxpool_gateway.dead_letters.routes import export_dead_letters, get_dead_letter, get_summary, list_dead_letters
from fluxpool_gateway.dead_letters.views import (
    DeadLetterDetailView,
    DeadLetterPageQuery,
    DeadLetterPageView,
    ExportQuery,
    SummaryQuery,
    SummaryView,
    position_of,
)
from fluxpool_gateway.http.routes import WithServices
from fluxpool_gateway.http.scopes import WithCaller, requires
from fluxpool_gateway.identity.api_key import KeyScope
from fluxpool_gateway.page.dead_letters.choosing import Filters
from fluxpool_gateway.page.filters import Blank
from fluxpool_gateway.page.forms import page_router
from fluxpool_gateway.page.operations import answered, wanted
from fluxpool_gateway.page.rendering import render

SHOWN_CAUSES: Final = 50
SHOWN_LETTERS: Final = 50

router = page_router()


class ListedFilters(Filters):
    """Filters, and a page of the list."""

    cursor: Annotated[Annotated[str, AfterValidator(lambda text: str(position_of(text) and text))] | None, Blank] = None


class ExportedFilters(Filters):
    """Filters, and the form of the file."""

    format: Literal["jsonl", "csv"] = "jsonl"
    records: bool = False


@router.get("/dead-letters", **requires(KeyScope.READ))
async def get_dead_letters(
    filters: Annotated[ListedFilters, Query()], request: Request, services: WithServices, caller: WithCaller
) -> Response:
    """The causes, those with the most open dead letters first, and the latest dead letters."""
    values = {**filters.values(), "state": filters.states}
    summary = answered(await get_summary(wanted(SummaryQuery, values), services, caller), SummaryView)
    query = wanted(DeadLetterPageQuery, {**values, "limit": SHOWN_LETTERS, "cursor": filters.cursor})
    page = answered(await list_dead_letters(query, services, caller), DeadLetterPageView)
    causes = [
        (cause, filters.of_cause({name: getattr(cause, name) for name in ("error_class", "error_code", "pool")}))
        for cause in summary.data
    ]
    return render(
        request,
        "dead_letters/list.html",
        filters=filters,
        causes=causes[:SHOWN_CAUSES],
        more_causes=len(causes) > SHOWN_CAUSES or summary.has_more,
        page=page,
        following=None if page.next_cursor is None else filters.address(cursor=page.next_cursor),
        may_resolve=KeyScope.ADMIN in caller.scopes,
    )


@router.get("/dead-letters/export", **requires(KeyScope.READ))
async def get_export(
    filters: Annotated[ExportedFilters, Query()], services: WithServices, caller: WithCaller
) -> Response:
    """All that pass the filters, as a file."""
    form = {"format": filters.format, "records": filters.records}
    query = wanted(ExportQuery, {**filters.values(), "state": filters.states, **form})
    return await export_dead_letters(query, services, caller)


@router.get("/dead-letters/{partition:int}/{offset:int}", **requires(KeyScope.READ))
async def get_one(
    partition: int, offset: int, request: Request, services: WithServices, caller: WithCaller
) -> Response:
    """One dead letter with everything that its record has."""
    letter = answered(await get_dead_letter(f"{partition}/{offset}", services, caller), DeadLetterDetailView)
    return render(
        request,
        "dead_letters/one.html",
        letter=letter,
        value=shown_value(letter.value),
        may_resolve=KeyScope.ADMIN in caller.scopes,
    )


def shown_value(text: str | None) -> str | None:
    """The original's value, indented where it is JSON."""
    value = parsed_value(text)
    return text if value is None else json.dumps(value, indent=2, ensure_ascii=False)


def parsed_value(text: str | None) -> Any:
    """The original's value; None where it is no JSON."""
    try:
        return json.loads(text or "")
    except (ValueError, RecursionError):
        return None
