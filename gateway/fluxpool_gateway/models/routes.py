"""The routes of models, in the form that clients of the OpenAI API list, with licence, limits and defaults.

The pools decide which model they run, and the gateway knows no pool: it lists the families that workers of its release
recognise, and which of them made images of the caller's tenant.
"""

from collections.abc import Mapping
from datetime import UTC, datetime, time
from typing import Annotated, Final, Literal

from fastapi import APIRouter, Path, Request, Response
from pydantic import BaseModel, ConfigDict

from fluxpool_contract.bounds import moment_at
from fluxpool_contract.families import PUBLISHED, Family
from fluxpool_contract.messages import (
    MAX_IMAGES,
    MAX_SIDE_PIXELS,
    MIN_SIDE_PIXELS,
    SIZE_MULTIPLE_PIXELS,
    OutputFormat,
    Quality,
)
from fluxpool_gateway.http.problem import ProblemCode, ProblemError, problems
from fluxpool_gateway.http.routes import READ_PROBLEMS, Services, WithServices, json_response
from fluxpool_gateway.http.scopes import SECURITY_PROBLEMS, WithCaller, requires
from fluxpool_gateway.http.task_routes import read_store
from fluxpool_gateway.identity.api_key import KeyScope
from fluxpool_gateway.identity.caller import Caller
from fluxpool_gateway.store.task_list import ListFilter, ListOrder
from fluxpool_gateway.store.task_state import TaskStatus
from fluxpool_gateway.tasks.view import read_result

LATEST_RESULTS: Final = 50
"""Results that are looked at for who made them."""
_PROBLEMS: Final = {**SECURITY_PROBLEMS, 503: READ_PROBLEMS[503]}

router = APIRouter()


class _View(BaseModel):
    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)


class LicenceView(_View):
    """The terms of a family's published weights; a fine-tune may have further ones."""

    name: str
    url: str
    commercial: bool
    """Whether they allow commercial use."""


class DefaultsView(_View):
    """What a task gets that leaves a field out."""

    steps: int
    guidance: float | None
    """Null: `guidance` has no effect."""


class LimitsView(_View):
    """What a task may ask for."""

    max_steps: int
    max_prompt_tokens: int
    """Text beyond is cut off, with a warning."""
    min_side_pixels: int
    max_side_pixels: int
    side_multiple_pixels: int
    max_images: int
    output_formats: tuple[OutputFormat, ...]
    qualities: tuple[Quality, ...]
    """Those that the gateway and the key allow; a pool may allow fewer."""


class ModelView(_View):
    """One family of models."""

    id: str
    object: Literal["model"] = "model"
    created: int
    """When its weights were published, in seconds since 1970."""
    owned_by: str
    family: str
    """As `model_family` of a task's state has it."""
    license: LicenceView
    defaults: DefaultsView
    limits: LimitsView
    last_result_at: datetime | None
    """When it made the latest images of the caller's tenant; null when it made none of the last 50."""


class ModelListView(_View):
    """All families."""

    object: Literal["list"] = "list"
    data: tuple[ModelView, ...]


@router.get(
    "/v1/models",
    response_model=ModelListView,
    responses=problems(_PROBLEMS),
    summary="The models that workers can run",
    **requires(KeyScope.READ),
)
async def list_models(request: Request, services: WithServices, caller: WithCaller) -> Response:
    """Pools decide which of them they run; a request cannot choose."""
    used = await _last_results(services, caller)
    allowed = _qualities(request, caller)
    return json_response(ModelListView(data=tuple(_view(family, allowed, used) for family in PUBLISHED)))


@router.get(
    "/v1/models/{model}",
    response_model=ModelView,
    responses=problems({**_PROBLEMS, 404: "Workers of this release run no such model."}),
    summary="One model",
    **requires(KeyScope.READ),
)
async def get_model(
    model: Annotated[str, Path(description="Its `id` in the list.")],
    request: Request,
    services: WithServices,
    caller: WithCaller,
) -> Response:
    """As the list has it."""
    for family in PUBLISHED:
        if family.name == model:
            return json_response(_view(family, _qualities(request, caller), await _last_results(services, caller)))
    names = ", ".join(family.name for family in PUBLISHED)
    raise ProblemError(ProblemCode.NOT_FOUND, f"there is no model {model[:100]!r}; there are {names}")


async def _last_results(services: Services, caller: Caller) -> Mapping[str, datetime]:
    """When each family made the latest images of the tenant."""
    wanted = ListFilter(tenant=caller.tenant, statuses=frozenset({TaskStatus.SUCCEEDED}))
    page = await read_store(services.store.list(wanted, order=ListOrder.DESC, limit=LATEST_RESULTS))
    latest: dict[str, datetime] = {}
    for task in page.tasks:
        result = read_result(task)
        if result is None or result.model_family is None or task.completed_at_ms is None:
            continue
        at = moment_at(task.completed_at_ms)
        latest[result.model_family] = max(at, latest.get(result.model_family, at))
    return latest


def _qualities(request: Request, caller: Caller) -> tuple[Quality, ...]:
    of_gateway, of_key = request.app.submission.qualities, caller.rights.qualities
    return tuple(
        quality
        for quality in Quality
        if (not of_gateway or quality in of_gateway) and (of_key is None or quality in of_key)
    )


def _view(family: Family, qualities: tuple[Quality, ...], used: Mapping[str, datetime]) -> ModelView:
    return ModelView(
        id=family.name,
        created=int(datetime.combine(family.published, time.min, UTC).timestamp()),
        owned_by=family.publisher,
        family=family.name,
        license=LicenceView.model_validate(family.licence, from_attributes=True),
        defaults=DefaultsView(steps=family.default_steps, guidance=family.default_guidance),
        limits=LimitsView(
            max_steps=family.max_steps,
            max_prompt_tokens=family.text_tokens,
            min_side_pixels=MIN_SIDE_PIXELS,
            max_side_pixels=MAX_SIDE_PIXELS,
            side_multiple_pixels=SIZE_MULTIPLE_PIXELS,
            max_images=MAX_IMAGES,
            output_formats=tuple(OutputFormat),
            qualities=qualities,
        ),
        last_result_at=used.get(family.name),
    )
