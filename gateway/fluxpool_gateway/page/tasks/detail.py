"""All that is known of one task, for the view of it and for the drawer of the gallery."""

from typing import Any

from fastapi import Request

from fluxpool_gateway.http.routes import Services
from fluxpool_gateway.http.task_routes import base_of, view_of
from fluxpool_gateway.identity.api_key import KeyScope
from fluxpool_gateway.identity.caller import Caller
from fluxpool_gateway.page.judging.reading import Judgements, read_judgements
from fluxpool_gateway.page.tasks.card import card_of
from fluxpool_gateway.page.tasks.reading import find_projected
from fluxpool_gateway.tasks.lookup import RecentTask
from fluxpool_gateway.tasks.view import read_result


async def read_detail(request_id: str, request: Request, services: Services, caller: Caller) -> dict[str, Any]:
    """What its template is made with; raises `ProblemError` where there is no such task."""
    found = await find_projected(request_id, services, caller)
    card = card_of(found, view_of(request_id, found, services, base=base_of(request, services)))
    result = None if isinstance(found, RecentTask) else read_result(found)
    judgements = Judgements(may_rate=False)
    if card.view.images:
        indexes = [image.index for image in card.view.images]
        judgements = await read_judgements(request_id, indexes, services, caller)
    return {
        "card": card,
        "worker": None if result is None else result.worker,
        "judgements": judgements,
        "may_cancel": KeyScope.CANCEL in caller.scopes,
        "may_submit": KeyScope.SUBMIT in caller.scopes,
    }
