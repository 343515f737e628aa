"""Blind pairs: which of two images of one prompt is better, one pair after the other, by mouse or by keys.

The round, that is what was judged and passed over since the view was opened, is in the address: no process keeps it.
"""

from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal
from urllib.parse import urlencode

from fastapi import Query, Request, Response
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from fluxpool_contract.messages import MAX_IMAGES, MAX_SECONDS, REQUEST_ID, Preference, comparison_id_of
from fluxpool_gateway.feedback.models import ComparisonRequest
from fluxpool_gateway.feedback.reads import Image
from fluxpool_gateway.feedback.routes import (
    judged_image,
    next_pair,
    post_comparison,
    rater_hash_of,
    unconfirmed,
)
from fluxpool_gateway.http.problem import ProblemCode, ProblemError
from fluxpool_gateway.http.routes import Services, WithServices
from fluxpool_gateway.http.scopes import WithCaller, requires
from fluxpool_gateway.identity.api_key import KeyScope
from fluxpool_gateway.identity.caller import Caller
from fluxpool_gateway.page.forms import Form, WithForm, page_router
from fluxpool_gateway.page.rendering import redirect, render
from fluxpool_gateway.tasks.producer import DeliveryError

MAX_PASSED_OVER: Final = 40
"""Of which an address has the keys; those before may come again."""
CHOICES: Final = (
    (Preference.A, "A is better", "1 ArrowLeft"),
    (Preference.B, "B is better", "2 ArrowRight"),
    (Preference.TIE, "Both alike", "3 ArrowUp"),
    (Preference.BOTH_BAD, "Both bad", "4 ArrowDown"),
)
"""With the keys that choose them."""
WORDS: Final = {
    Preference.A: "A was better",
    Preference.B: "B was better",
    Preference.TIE: "both were alike",
    Preference.BOTH_BAD: "both were bad",
}

router = page_router()


def _check_image(name: str) -> str:
    request_id, dot, index = name.rpartition(".")
    if name and not (dot and REQUEST_ID.fullmatch(request_id) and index.isdecimal() and int(index) < MAX_IMAGES):
        raise ValueError("must be the id of a task, a dot and the number of an image")
    return name


def image_name(image: Image) -> str:
    """An image in an address."""
    return f"{image[0]}.{image[1]}"


def _read_image(name: str) -> Image:
    request_id, _, index = name.rpartition(".")
    return request_id, int(index)


ImageName = Annotated[str, Field(max_length=132), AfterValidator(_check_image)]
Count = Annotated[int, Field(ge=0, le=100_000)]


class Round(BaseModel):
    """How far the caller is."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    judged: Count = 0
    skipped: Count = 0
    passed: Annotated[list[Annotated[str, Field(max_length=64)]], Field(max_length=MAX_PASSED_OVER)] = []
    """Keys of the comparisons that were skipped."""
    mode: Literal["side", "slider"] = "side"
    a: ImageName = ""
    b: ImageName = ""
    """The pair to show; any where they are empty."""
    last_a: ImageName = ""
    last_b: ImageName = ""
    """The pair that was judged last."""
    last_preferred: Preference | None = None
    """Of that pair."""

    def address(self, **changes: Any) -> str:
        """The path of the view at this state, with changes."""
        fields = self.model_copy(update=changes).model_dump(exclude_defaults=True, mode="json")
        return f"ui/compare?{urlencode(fields, doseq=True)}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Revealed:
    """How the images of the last pair were made, once that no longer matters."""

    preferred: str
    a: str
    b: str


@router.get("/compare", **requires(KeyScope.READ))
async def get_compare(
    state: Annotated[Round, Query()], request: Request, services: WithServices, caller: WithCaller
) -> Response:
    """The next pair, or the one that the address names."""
    found = await _pair(state, services, caller)
    last = state.model_copy(update={"a": "", "b": ""})
    shown: dict[str, Any] = {"pair": None, "state": last, "skip": "", "other_mode": ""}
    if found is not None:
        a, b, prompt = found
        key = comparison_id_of(caller.tenant, rater_hash_of(services, caller, caller.tenant, None), a, b)
        passed = [*state.passed, key][-MAX_PASSED_OVER:]
        here = state.model_copy(update={"a": image_name(a), "b": image_name(b)})
        shown = {
            "pair": (a, b),
            "prompt": prompt,
            "state": here,
            "skip": last.address(skipped=state.skipped + 1, passed=passed),
            "other_mode": here.address(mode="slider" if state.mode == "side" else "side"),
        }
    return render(
        request,
        "judging/compare.html",
        choices=CHOICES,
        may_rate=KeyScope.RATE in caller.scopes,
        shown_at_ms=services.now_ms(),
        revealed=await _reveal(state, services, caller),
        **shown,
    )


async def _pair(state: Round, services: Services, caller: Caller) -> tuple[Image, Image, str] | None:
    """The images and their prompt; raises `ProblemError` for a pair that is named and not there."""
    if state.a and state.b:
        a, b = _read_image(state.a), _read_image(state.b)
        (_, origin), _ = [await judged_image(services, caller, *image, field="index") for image in (a, b)]
        return a, b, origin.prompt or ""
    pair = await next_pair(services, caller, None, passed_over=frozenset(state.passed))
    return None if pair is None else (pair.first, pair.second, pair.prompt)


async def _reveal(state: Round, services: Services, caller: Caller) -> Revealed | None:
    if not (state.last_a and state.last_b and state.last_preferred):
        return None
    made: list[str] = []
    for name in (state.last_a, state.last_b):
        try:
            _, origin = await judged_image(services, caller, *_read_image(name), field="index")
        except ProblemError as problem:
            if problem.code not in {ProblemCode.NOT_FOUND, ProblemCode.GONE}:
                raise
            made.append("deleted")
            continue
        parts = [
            origin.preset and f"preset {origin.preset}",
            origin.steps and f"{origin.steps} steps",
            origin.quality and f"quality {origin.quality}",
            origin.model,
        ]
        made.append(", ".join(part for part in parts if part) or "not known")
    return Revealed(preferred=WORDS[state.last_preferred], a=made[0], b=made[1])


@router.post("/compare", **requires(KeyScope.RATE))
async def post_compare(services: WithServices, request: Request, caller: WithCaller, form: WithForm) -> Response:
    """Judge a pair, and go on to the next one."""
    state = _read_state(form)
    a, b = _read_image(state.a), _read_image(state.b)
    wanted: dict[str, Any] = {
        "a": {"request_id": a[0], "index": a[1]},
        "b": {"request_id": b[0], "index": b[1]},
        "preferred": form.get("preferred"),
        "shown_first": "a",
    }
    began = form.get("shown_at_ms")
    if began.isdecimal() and len(began) < 16:
        wanted["seconds"] = min(max(0.0, (services.now_ms() - int(began)) / 1000), MAX_SECONDS)
    try:
        comparison = ComparisonRequest.model_validate(wanted)
    except ValidationError as error:
        raise ProblemError(ProblemCode.INVALID_REQUEST, "the form says of no image that it is better") from error
    await post_comparison(comparison, services, caller)
    following = state.address(
        judged=state.judged + 1, a="", b="", last_a=state.a, last_b=state.b, last_preferred=comparison.preferred
    )
    return redirect(request, following)


@router.post("/compare/undo", **requires(KeyScope.RATE))
async def post_undo(services: WithServices, request: Request, caller: WithCaller, form: WithForm) -> Response:
    """Take the last judgement back, and show its pair again."""
    state = _read_state(form)
    rater_hash = rater_hash_of(services, caller, caller.tenant, None)
    key = comparison_id_of(caller.tenant, rater_hash, _read_image(state.a), _read_image(state.b))
    try:
        await services.feedback.withdraw([key], tenant=caller.tenant)
    except DeliveryError as error:
        raise unconfirmed(error) from error
    following = state.address(judged=max(0, state.judged - 1), last_a="", last_b="", last_preferred=None)
    return redirect(request, following)


def _read_state(form: Form) -> Round:
    """The round in a form, with its pair; raises `ProblemError` (400)."""
    names = ("judged", "skipped", "mode", "a", "b")
    fields: dict[str, Any] = {name: form.get(name) for name in names if form.get(name)}
    try:
        state = Round.model_validate({**fields, "passed": form.all("passed")[-MAX_PASSED_OVER:]})
    except ValidationError as error:
        raise ProblemError(ProblemCode.INVALID_REQUEST, "the form names no two images; reload the view") from error
    if not (state.a and state.b):
        raise ProblemError(ProblemCode.INVALID_REQUEST, "the form names no two images; reload the view")
    return state
