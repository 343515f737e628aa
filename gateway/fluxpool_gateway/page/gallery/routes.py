"""The images of the caller's tenant, newest first; what is looked for and what is open are in the address."""

from typing import Annotated, Any, Final

from fastapi import Query, Request, Response
from pydantic import Field

from fluxpool_contract.messages import REQUEST_ID
from fluxpool_gateway.http.problem import ProblemCode, ProblemError
from fluxpool_gateway.http.routes import WithServices
from fluxpool_gateway.http.scopes import WithCaller, requires
from fluxpool_gateway.identity.api_key import KeyScope
from fluxpool_gateway.page.filters import PageFilters, read_filtered
from fluxpool_gateway.page.forms import page_router
from fluxpool_gateway.page.judging.reading import read_starred
from fluxpool_gateway.page.rendering import render
from fluxpool_gateway.page.tasks.detail import read_detail
from fluxpool_gateway.page.tasks.reading import cards_of
from fluxpool_gateway.store.task_state import TaskStatus

GALLERY_TASKS: Final = 24
"""Divides by 2, 3, 4 and 6: full rows at most widths."""

router = page_router()


class GalleryFilters(PageFilters):
    """Which images, and which of them is open in the drawer."""

    task: Annotated[str, Field(pattern=REQUEST_ID.pattern, max_length=128)] | None = None


@router.get("/gallery", **requires(KeyScope.READ))
async def get_gallery(
    filters: Annotated[GalleryFilters, Query()], request: Request, services: WithServices, caller: WithCaller
) -> Response:
    """The images that pass the filters; beside them one with all that is known of it."""
    page = await read_filtered(filters, services, caller, statuses=[TaskStatus.SUCCEEDED], limit=GALLERY_TASKS)
    detail: dict[str, Any] = {}
    problem = None
    if filters.task is not None:
        try:
            detail = await read_detail(filters.task, request, services, caller)
        except ProblemError as error:
            if error.code not in {ProblemCode.NOT_FOUND, ProblemCode.GONE}:
                raise
            problem = error.detail
    return render(
        request,
        "gallery.html",
        filters=filters,
        cards=cards_of(page, request, services),
        starred=await read_starred([task.request_id for task in page.tasks], services, caller),
        following=None if page.next is None else filters.address(page.next),
        has_drawer=filters.task is not None,
        problem=problem,
        **detail,
    )
