"""Rate an image and star its task, where it is shown."""

from typing import Any, Final

from fastapi import Request, Response
from pydantic import ValidationError

from fluxpool_contract.messages import Rating
from fluxpool_contract.problems import explain
from fluxpool_gateway.feedback.models import RatedBy, RatingRequest
from fluxpool_gateway.feedback.routes import delete_rating, put_rating
from fluxpool_gateway.feedback.stars import set_star
from fluxpool_gateway.http.problem import ProblemCode, ProblemError
from fluxpool_gateway.http.routes import RequestIdInPath, WithServices
from fluxpool_gateway.http.scopes import WithCaller, requires
from fluxpool_gateway.identity.api_key import KeyScope
from fluxpool_gateway.page.forms import Form, WithForm, page_router
from fluxpool_gateway.page.judging.reading import read_judgements
from fluxpool_gateway.page.rendering import asked_by_script, redirect, render, safe_path

_KEPT: Final = ("thumb", "artifacts", "tags", "aspects")
"""What a rating by the API may say besides, which the form does not show and must not lose."""

router = page_router()


@router.post("/tasks/{request_id}/rate", **requires(KeyScope.RATE))
async def post_rating(
    request_id: RequestIdInPath, request: Request, services: WithServices, caller: WithCaller, form: WithForm
) -> Response:
    """Replace the caller's score and note of an image; take both back where they are empty."""
    index = _index(form)
    before = (await read_judgements(request_id, [index], services, caller)).mine.get(index)
    wanted = _wanted(form, index, before)
    if wanted is None:
        await delete_rating(request_id, RatedBy(index=index), services, caller)
    else:
        await put_rating(request_id, wanted, services, caller)
    if not asked_by_script(request):
        return redirect(request, safe_path(form.get("next"), otherwise=f"ui/tasks/{request_id}"))
    judgements = await read_judgements(request_id, [index], services, caller)
    return render(
        request,
        "judging/_rating.html",
        request_id=request_id,
        index=index,
        judgements=judgements,
        following=form.get("next"),
    )


def _index(form: Form) -> int:
    text = form.get("index") or "0"
    if not text.isdecimal() or len(text) > 2:
        raise ProblemError(ProblemCode.INVALID_REQUEST, "index: must be the number of an image")
    return int(text)


def _wanted(form: Form, index: int, before: Rating | None) -> RatingRequest | None:
    """None for a form that says nothing."""
    kept: dict[str, Any] = {} if before is None else before.model_dump(include=set(_KEPT), exclude_defaults=True)
    score, comment = form.get("score"), form.get("comment").strip()
    given: dict[str, Any] = {"score": int(score)} if score.isdecimal() and len(score) == 1 else {}
    given |= {"comment": comment} if comment else {}
    if not given and not kept:
        return None
    try:
        return RatingRequest.model_validate({**kept, **given, "index": index})
    except ValidationError as error:
        raise ProblemError(ProblemCode.INVALID_REQUEST, "; ".join(map(str, explain(error)))) from error


@router.post("/tasks/{request_id}/star", **requires(KeyScope.RATE))
async def post_star(
    request_id: RequestIdInPath, request: Request, services: WithServices, caller: WithCaller, form: WithForm
) -> Response:
    """Star a task, or take the star back."""
    starred = form.get("starred") == "1"
    await set_star(request_id, services, caller, starred=starred)
    if not asked_by_script(request):
        return redirect(request, safe_path(form.get("next"), otherwise=f"ui/tasks/{request_id}"))
    return _star(request, request_id, starred=starred, following=form.get("next"))


def _star(request: Request, request_id: str, *, starred: bool, following: str) -> Response:
    return render(
        request, "judging/_star.html", request_id=request_id, starred=starred, may_rate=True, following=following
    )
