"""The images of the caller's tenant, newest first."""

from typing import Final

from fastapi import Request, Response

from fluxpool_gateway.http.routes import WithServices
from fluxpool_gateway.http.scopes import WithCaller, requires
from fluxpool_gateway.identity.api_key import KeyScope
from fluxpool_gateway.page.filters import WithFilters, read_filtered
from fluxpool_gateway.page.forms import page_router
from fluxpool_gateway.page.rendering import render
from fluxpool_gateway.page.tasks.reading import cards_of
from fluxpool_gateway.store.task_state import TaskStatus

GALLERY_TASKS: Final = 24
"""Divides by 2, 3, 4 and 6: full rows at most widths."""

router = page_router()


@router.get("/gallery", **requires(KeyScope.READ))
async def get_gallery(filters: WithFilters, request: Request, services: WithServices, caller: WithCaller) -> Response:
    """The images, newest first."""
    page = await read_filtered(filters, services, caller, statuses=[TaskStatus.SUCCEEDED], limit=GALLERY_TASKS)
    return render(
        request,
        "gallery.html",
        filters=filters,
        cards=cards_of(page, request, services),
        following=None if page.next is None else filters.address(page.next),
    )
