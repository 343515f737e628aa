"""Discard dead letters: first how many and why, then what became of each."""

from collections.abc import Sequence
from typing import Final

from fastapi import Request, Response

from fluxpool_gateway.dead_letters.replay_routes import chosen_query, discard_open
from fluxpool_gateway.dead_letters.routes import sees_only
from fluxpool_gateway.dead_letters.rows import StoredDeadLetter
from fluxpool_gateway.dead_letters.views import DeadLetterView, DiscardRequest, ReplayRequest
from fluxpool_gateway.http.problem import ProblemError
from fluxpool_gateway.http.routes import Services, WithServices
from fluxpool_gateway.http.scopes import WithCaller, requires
from fluxpool_gateway.http.task_routes import read_store
from fluxpool_gateway.identity.api_key import KeyScope
from fluxpool_gateway.identity.caller import Caller
from fluxpool_gateway.page.dead_letters.choosing import MAX_CHOSEN, Choice, choice_of
from fluxpool_gateway.page.forms import WithForm, page_router
from fluxpool_gateway.page.operations import wanted
from fluxpool_gateway.page.rendering import render

MAX_DISCARDED: Final = 500
"""At once: a second or two of a request."""

router = page_router()


@router.get("/dead-letters/discard", **requires(KeyScope.ADMIN))
async def get_discard(request: Request, services: WithServices, caller: WithCaller) -> Response:
    """How many it is about."""
    return await _render(request, services, caller, choice_of(request.query_params.multi_items()))


@router.post("/dead-letters/discard", **requires(KeyScope.ADMIN))
async def post_discard(request: Request, services: WithServices, caller: WithCaller, form: WithForm) -> Response:
    """Do it; those that were resolved meanwhile stay as they are."""
    choice = choice_of(form.pairs)
    dead_letters, _ = await _read(choice, services, caller)
    try:
        await discard_open(dead_letters, wanted(DiscardRequest, {"reason": form.get("reason")}), services, caller)
    except ProblemError as problem:
        return await _render(request, services, caller, choice, reason=form.get("reason"), why=problem)
    known = {str(ref) for one in dead_letters for ref in (one.entry.ref, *one.entry.copies)}
    return render(
        request,
        "dead_letters/discarded.html",
        discarded=[DeadLetterView.of(one) for one in dead_letters[:MAX_CHOSEN]],
        total=len(dead_letters),
        others=[name for name in choice.ids if name not in known],
    )


async def _read(choice: Choice, services: Services, caller: Caller) -> tuple[Sequence[StoredDeadLetter], int]:
    """Those that are open, the oldest failure first, and how many there are."""
    query = chosen_query(wanted(ReplayRequest, choice.values()), tenant=sees_only(caller))
    if query is None:
        return (), 0
    dead_letters = await read_store(services.dead_letters.oldest(query, limit=MAX_DISCARDED))
    _, matching = await read_store(services.dead_letters.page(query, after=None, newest_first=False, limit=1))
    return dead_letters, matching


async def _render(
    request: Request,
    services: Services,
    caller: Caller,
    choice: Choice,
    *,
    reason: str = "",
    why: ProblemError | None = None,
) -> Response:
    dead_letters, matching = await _read(choice, services, caller)
    return render(
        request,
        "dead_letters/discard.html",
        **({} if why is None else {"status": why.status}),
        choice=choice,
        count=len(dead_letters),
        matching=matching,
        letters=[DeadLetterView.of(one) for one in dead_letters[:3]],
        reason=reason,
        why=None if why is None else why.detail,
    )
