"""The routes of feedback: rate an image, compare two, get a pair to judge, see means and win rates."""

import json
import random
from collections.abc import Container
from http import HTTPStatus
from typing import Annotated, Any, Final

from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel, ConfigDict

from fluxpool_contract.bounds import moment_at
from fluxpool_contract.messages import (
    AspectPreferences,
    AspectScores,
    ComparedImage,
    Comparison,
    ImageOrigin,
    Rating,
    check_request_id,
    comparison_id_of,
    prompt_key,
    rating_id_of,
)
from fluxpool_contract.problems import FieldProblem
from fluxpool_contract.tenants import NO_TENANT
from fluxpool_gateway.feedback import export_route
from fluxpool_gateway.feedback.figures import Dimension, group_by
from fluxpool_gateway.feedback.models import (
    ComparisonRequest,
    ComparisonView,
    GroupView,
    ImageName,
    PairImageView,
    PairView,
    RatedBy,
    Rater,
    RatingRequest,
    RatingView,
    SummaryView,
)
from fluxpool_gateway.feedback.reads import (
    Image,
    Pair,
    find_comparison,
    find_pair,
    find_rating,
    prompt_of,
    read_compared,
    read_scored,
)
from fluxpool_gateway.http.problem import BODY_PROBLEMS, ProblemCode, ProblemError, problems, unavailable
from fluxpool_gateway.http.request_context import PATH
from fluxpool_gateway.http.routes import (
    READ_PROBLEMS,
    RequestIdInPath,
    Services,
    WithServices,
    json_response,
)
from fluxpool_gateway.http.scopes import SECURITY_PROBLEMS, WithCaller, requires
from fluxpool_gateway.http.task_routes import base_of, has_ended, read_store
from fluxpool_gateway.identity.api_key import KeyScope
from fluxpool_gateway.identity.caller import Caller
from fluxpool_gateway.store.task_state import TaskState
from fluxpool_gateway.tasks.producer import DeliveryError
from fluxpool_gateway.tasks.view import read_result

MAX_GROUPS: Final = 100
"""Of one dimension, those with the most judgements."""
_ANYBODY: Final = "anybody"
_NOT_JUDGED: Final = {409: "The task has not ended (`not_finished`), or ended without images (`no_images`)."}
RATE_PROBLEMS: Final = {
    **BODY_PROBLEMS,
    **READ_PROBLEMS,
    **_NOT_JUDGED,
    503: "The broker did not confirm in time, or the task is unknown at the moment. Repeat the request.",
}

router = APIRouter()
router.include_router(export_route.router)


@router.put(
    PATH + "/{request_id}/rating",
    response_model=RatingView,
    responses=problems(RATE_PROBLEMS),
    summary="Rate an image",
    **requires(KeyScope.RATE),
)
async def put_rating(
    request_id: RequestIdInPath, wanted: RatingRequest, services: WithServices, caller: WithCaller
) -> Response:
    """Answers once it is durable. A second rating of the same image by the same rater replaces the first."""
    task, origin = await judged_image(services, caller, request_id, wanted.index, field="index")
    rater_hash = rater_hash_of(services, caller, task.tenant, wanted.rater)
    judgement = Rating(
        rating_id=rating_id_of(task.tenant, rater_hash, (request_id, wanted.index)),
        tenant=task.tenant,
        rater_hash=rater_hash,
        created_at=moment_at(services.now_ms()),
        request_id=request_id,
        image_index=wanted.index,
        score=wanted.score,
        thumb=wanted.thumb,
        aspects=None if wanted.aspects is None else AspectScores(**wanted.aspects.model_dump(exclude_none=True)),
        artifacts=wanted.artifacts,
        tags=wanted.tags,
        comment=wanted.comment,
        origin=origin,
    )
    await write_judgement(services, judgement)
    return json_response(RatingView.of(judgement))


@router.get(
    PATH + "/{request_id}/rating",
    response_model=RatingView,
    responses=problems({**READ_PROBLEMS, **_NOT_JUDGED, 404: "There is no such rating, or no such task."}),
    summary="The rating of an image",
    **requires(KeyScope.READ),
)
async def get_rating(
    request_id: RequestIdInPath, query: Annotated[RatedBy, Query()], services: WithServices, caller: WithCaller
) -> Response:
    """By one rater. It is shown some milliseconds after it was accepted."""
    tenant, rating_id = await _rating_of(services, caller, request_id, query)
    judgement = await read_store(
        services.store.read(lambda connection: find_rating(connection, rating_id, tenant=tenant))
    )
    if judgement is None:
        raise ProblemError(
            ProblemCode.NOT_FOUND, f"image {query.index} of task {request_id} has no rating by this rater"
        )
    return json_response(RatingView.of(judgement))


@router.delete(
    PATH + "/{request_id}/rating",
    status_code=HTTPStatus.NO_CONTENT,
    responses=problems({**READ_PROBLEMS, **_NOT_JUDGED}),
    summary="Take a rating back",
    **requires(KeyScope.RATE),
)
async def delete_rating(
    request_id: RequestIdInPath, query: Annotated[RatedBy, Query()], services: WithServices, caller: WithCaller
) -> Response:
    """As often as you like."""
    tenant, rating_id = await _rating_of(services, caller, request_id, query)
    try:
        await services.feedback.withdraw([rating_id], tenant=tenant)
    except DeliveryError as error:
        raise unconfirmed(error) from error
    return Response(status_code=HTTPStatus.NO_CONTENT)


@router.post(
    "/v1/comparisons",
    status_code=HTTPStatus.CREATED,
    response_model=ComparisonView,
    responses={
        200: {"model": ComparisonView, "description": "It replaced the same rater's comparison of the two."},
        **problems(RATE_PROBLEMS),
    },
    summary="Compare two images",
    **requires(KeyScope.RATE),
)
async def post_comparison(wanted: ComparisonRequest, services: WithServices, caller: WithCaller) -> Response:
    """Of one prompt. Answers once it is durable; the same rater's second comparison of the two replaces the first."""
    if wanted.a == wanted.b:
        raise _refusal("b", "must be another image than a")
    sides: dict[str, ComparedImage] = {}
    tenants: set[str] = set()
    for side, image in (("a", wanted.a), ("b", wanted.b)):
        try:
            check_request_id(image.request_id)
        except ValueError as error:
            raise _refusal(f"{side}.request_id", str(error)) from error
        task, origin = await judged_image(services, caller, image.request_id, image.index, field=f"{side}.index")
        tenants.add(task.tenant)
        sides[side] = ComparedImage(request_id=image.request_id, image_index=image.index, origin=origin)
    prompts = [side.origin.prompt if side.origin else None for side in sides.values()]
    if len(tenants) > 1 or None in prompts or len({prompt_key(prompt or "") for prompt in prompts}) > 1:
        raise _refusal("b", "must be an image of the same prompt as a; GET /v1/comparisons/next gives such pairs")
    (tenant,) = tenants
    rater_hash = rater_hash_of(services, caller, tenant, wanted.rater)
    rating_id = comparison_id_of(tenant, rater_hash, sides["a"].key, sides["b"].key)
    stored = await read_store(
        services.store.read(lambda connection: find_comparison(connection, rating_id, tenant=tenant))
    )
    is_new = services.feedback.latest(rating_id, stored) is None
    aspects = {} if wanted.aspects is None else wanted.aspects.model_dump(exclude_none=True)
    judgement = Comparison(
        rating_id=rating_id,
        tenant=tenant,
        rater_hash=rater_hash,
        created_at=moment_at(services.now_ms()),
        a=sides["a"],
        b=sides["b"],
        preferred=wanted.preferred,
        aspects=AspectPreferences(**aspects) if aspects else None,
        seconds=wanted.seconds,
        shown_first=wanted.shown_first,
    ).in_order
    await write_judgement(services, judgement)
    view = ComparisonView(
        rating_id=judgement.rating_id,
        a=ImageName(request_id=judgement.a.request_id, index=judgement.a.image_index),
        b=ImageName(request_id=judgement.b.request_id, index=judgement.b.image_index),
        preferred=judgement.preferred,
        created_at=judgement.created_at,
    )
    return json_response(view, HTTPStatus.CREATED if is_new else HTTPStatus.OK)


class NextQuery(BaseModel):
    """For whom."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    rater: Rater | None = None
    """As given with comparisons; the holder of the key or token when absent."""


@router.get(
    "/v1/comparisons/next",
    response_model=PairView,
    responses={
        204: {"description": "There is none: the rater has judged all pairs of the newest tasks, or there is none."},
        **problems({**SECURITY_PROBLEMS, 422: "A parameter is not allowed.", 503: READ_PROBLEMS[503]}),
    },
    summary="A pair of images to judge",
    **requires(KeyScope.READ),
)
async def get_next_pair(
    query: Annotated[NextQuery, Query()], request: Request, services: WithServices, caller: WithCaller
) -> Response:
    """Of one prompt, that the rater has not judged, in random order; out of the 500 newest tasks that succeeded."""
    pair = await next_pair(services, caller, query.rater)
    if pair is None:
        return Response(status_code=HTTPStatus.NO_CONTENT)
    base = base_of(request, services)

    def shown(image: Image) -> PairImageView:
        request_id, index = image
        url = f"{base}{PATH.lstrip('/')}/{request_id}/images/{index}"
        return PairImageView(request_id=request_id, index=index, url=url)

    return json_response(PairView(prompt=pair.prompt, a=shown(pair.first), b=shown(pair.second)))


async def next_pair(
    services: Services, caller: Caller, rater: str | None, *, passed_over: Container[str] = ()
) -> Pair | None:
    """A pair that the rater has not judged, nor passed over: keys of comparisons."""
    tenant = caller.tenant
    rater_hash = rater_hash_of(services, caller, tenant, rater)
    return await read_store(
        services.store.read(
            lambda connection: find_pair(
                connection,
                tenant=tenant,
                rater_hash=rater_hash,
                is_judged=lambda key: key in passed_over or services.feedback.wrote_lately(key),
                chance=random.Random(),  # noqa: S311 - an order of showing
            )
        )
    )


@router.get(
    "/v1/feedback/summary",
    response_model=SummaryView,
    responses=problems({**SECURITY_PROBLEMS, 503: READ_PROBLEMS[503]}),
    summary="Mean scores and win rates",
    **requires(KeyScope.READ),
)
async def get_summary(services: WithServices, caller: WithCaller) -> Response:
    """Of the tenant's images, by model, steps, preset and pool, with intervals of 95 %."""
    tenant = caller.tenant
    scored, compared = await read_store(
        services.store.read(lambda connection: (read_scored(connection, tenant), read_compared(connection, tenant)))
    )
    groups = {
        dimension.value: tuple(map(GroupView.of, group_by(dimension, scored, compared)[:MAX_GROUPS]))
        for dimension in Dimension
    }
    view = SummaryView(
        scores=sum(one.count for one in scored), comparisons=sum(pair.count for pair in compared), **groups
    )
    return json_response(view)


async def judged_image(
    services: Services, caller: Caller, request_id: str, index: int, *, field: str
) -> tuple[TaskState, ImageOrigin]:
    """The task, and how its image was made; raises `ProblemError` where there is no such image."""
    task = await _task_of(services, caller, request_id)
    result = read_result(task)
    if result is None or not result.images:
        raise ProblemError(
            ProblemCode.NO_IMAGES,
            f"task {request_id} {task.status} and has no images; only tasks that succeeded are judged",
        )
    image = next((image for image in result.images if image.index == index), None)
    if image is None:
        raise _refusal(field, f"task {request_id} has no image {index}, only 0 to {len(result.images) - 1}")
    origin = ImageOrigin(
        prompt=prompt_of(task),
        model=result.model,
        pool=result.pool,
        preset=preset_of(task),
        quality=result.quality,
        steps=result.steps,
        object=image.object,
        url=image.url,
    )
    return task, origin


def preset_of(task: TaskState) -> str | None:
    """The preset that the task was made with."""
    choice = None if task.body is None else json.loads(task.body).get("preset_choice")
    name: Any = choice.get("name") if isinstance(choice, dict) else None
    return name if isinstance(name, str) else None


async def _task_of(services: Services, caller: Caller, request_id: str) -> TaskState:
    """The task, which has ended; raises `ProblemError`."""
    found = await services.lookup.find(request_id, caller)
    if not has_ended(found):
        raise ProblemError(
            ProblemCode.NOT_FINISHED, f"task {request_id} has not ended; only tasks that succeeded are judged"
        )
    if found.tenant == NO_TENANT:
        raise ProblemError(ProblemCode.NOT_FOUND, f"whose task {request_id} is, is not known")
    return found


async def _rating_of(services: Services, caller: Caller, request_id: str, query: RatedBy) -> tuple[str, str]:
    """The tenant and the key of a rating."""
    task = await _task_of(services, caller, request_id)
    rater_hash = rater_hash_of(services, caller, task.tenant, query.rater)
    return task.tenant, rating_id_of(task.tenant, rater_hash, (request_id, query.index))


def rater_hash_of(services: Services, caller: Caller, tenant: str, rater: str | None) -> str:
    """The pseudonym of who judges."""
    # Apart, so that no name that is given is that of a key.
    name = f"caller/{caller.name or _ANYBODY}" if rater is None else f"rater/{rater}"
    return services.feedback.rater_hash(tenant, name)


async def write_judgement(services: Services, judgement: Rating | Comparison) -> None:
    """Return once the broker has it; raises `ProblemError` (503)."""
    try:
        await services.feedback.write(judgement)
    except DeliveryError as error:
        raise unconfirmed(error) from error


def unconfirmed(error: DeliveryError) -> ProblemError:
    """503: whether the broker has the record is not known."""
    return unavailable(ProblemCode.QUEUE_UNAVAILABLE, f"it was not confirmed ({error}); repeat the request")


def _refusal(name: str, message: str) -> ProblemError:
    problem = FieldProblem(name, message, path=tuple(name.split(".")))
    return ProblemError(
        ProblemCode.INVALID_REQUEST, str(problem), fields=[problem], status=HTTPStatus.UNPROCESSABLE_ENTITY
    )
