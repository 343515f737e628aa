"""The live tasks, one task with all that is known of it, and what a browser fetches for them."""

from typing import Annotated, Final

from fastapi import Header, Query, Request, Response

from fluxpool_gateway.http.change_routes import cancel_generation, delete_generation, retry_generation
from fluxpool_gateway.http.routes import RequestIdInPath, WithServices
from fluxpool_gateway.http.scopes import WithCaller, requires
from fluxpool_gateway.http.task_routes import base_of, view_of
from fluxpool_gateway.identity.api_key import KeyScope
from fluxpool_gateway.images.routes import get_image
from fluxpool_gateway.images.thumbnail import ThumbnailSize
from fluxpool_gateway.live.routes import EventsQuery, get_events
from fluxpool_gateway.page.forms import page_router
from fluxpool_gateway.page.rendering import asked_by_script, redirect, render
from fluxpool_gateway.page.tasks.card import card_of
from fluxpool_gateway.page.tasks.detail import read_detail
from fluxpool_gateway.page.tasks.reading import read_live

_NOTHING: Final = 204

router = page_router()


@router.get("/tasks", **requires(KeyScope.READ))
async def get_tasks(request: Request, services: WithServices, caller: WithCaller) -> Response:
    """The tasks that have not ended, and the latest that have."""
    live = await read_live(request, services, caller)
    return render(request, "tasks.html", may_cancel=KeyScope.CANCEL in caller.scopes, **live)


@router.get("/events", **requires(KeyScope.READ))
async def get_task_events(
    request: Request,
    services: WithServices,
    caller: WithCaller,
    last_event_id: Annotated[str | None, Header(alias="Last-Event-ID")] = None,
) -> Response:
    """The changes of the caller's tasks, as the API sends them; here the session's cookie says whose they are."""
    return await get_events(EventsQuery(limit=1, previews=True), request, services, caller, last_event_id)


@router.get("/tasks/{request_id}", **requires(KeyScope.READ))
async def get_task(
    request_id: RequestIdInPath, request: Request, services: WithServices, caller: WithCaller
) -> Response:
    """One task; a page that says so where there is none, which never looks like one that waits."""
    detail = await read_detail(request_id, request, services, caller)
    return render(request, "task.html", **detail)


@router.get("/tasks/{request_id}/images/{index}", **requires(KeyScope.READ))
async def get_task_image(
    request_id: RequestIdInPath,
    index: str,
    request: Request,
    services: WithServices,
    caller: WithCaller,
    *,
    thumb: Annotated[ThumbnailSize | None, Query()] = None,
) -> Response:
    """An image or its thumbnail, as the API has them."""
    return await get_image(request_id, index, request, services, caller, thumb=thumb)


@router.post("/tasks/{request_id}/cancel", **requires(KeyScope.CANCEL))
async def post_cancel(
    request_id: RequestIdInPath, request: Request, services: WithServices, caller: WithCaller
) -> Response:
    """Cancel a task."""
    await cancel_generation(request_id, request, services, caller)
    return _done(request, f"ui/tasks/{request_id}")


@router.post("/tasks/{request_id}/retry", **requires(KeyScope.SUBMIT))
async def post_retry(
    request_id: RequestIdInPath, request: Request, services: WithServices, caller: WithCaller
) -> Response:
    """Retry a task, and show the new one."""
    answer = await retry_generation(request_id, request, services, caller)
    return redirect(request, f"ui/tasks/{answer.headers['location'].rpartition('/')[2]}")


@router.get("/tasks/{request_id}/delete", **requires(KeyScope.CANCEL))
async def get_delete(
    request_id: RequestIdInPath, request: Request, services: WithServices, caller: WithCaller
) -> Response:
    """Ask whether a task and its images are to be deleted, which nothing brings back."""
    found = await services.lookup.find(request_id, caller)
    card = card_of(found, view_of(request_id, found, services, base=base_of(request, services)))
    return render(request, "delete.html", card=card)


@router.post("/tasks/{request_id}/delete", **requires(KeyScope.CANCEL))
async def post_delete(
    request_id: RequestIdInPath, request: Request, services: WithServices, caller: WithCaller
) -> Response:
    """Delete a task."""
    await delete_generation(request_id, services, caller)
    return redirect(request, "ui/gallery")


def _done(request: Request, path: str) -> Response:
    """A script sees the change by its event; without one the browser asks for the view."""
    return Response(status_code=_NOTHING) if asked_by_script(request) else redirect(request, path)
