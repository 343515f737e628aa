"""Stars: the tasks that a tenant wants to find again.

A star is a rating without a score, of a pseudonym that is no person's: one record for each task of a tenant. So it
lives in the compacted topic, survives a rebuild of the store, and is deleted with its task; a row of a database of the
gateway's would need a backup, and another one where replicas share none. It has no score, so that no figure has it.
"""

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, Final

from fastapi import APIRouter, Response
from sqlalchemy import Connection, select

from fluxpool_contract.bounds import moment_at
from fluxpool_contract.messages import Rating, rating_id_of
from fluxpool_gateway.feedback.routes import RATE_PROBLEMS, judged_image, unconfirmed, write_judgement
from fluxpool_gateway.http.problem import problems
from fluxpool_gateway.http.request_context import PATH
from fluxpool_gateway.http.routes import RequestIdInPath, Services, WithServices
from fluxpool_gateway.http.scopes import WithCaller, requires
from fluxpool_gateway.identity.api_key import KeyScope
from fluxpool_gateway.identity.caller import Caller
from fluxpool_gateway.store.tables import STAR_RATER, ratings
from fluxpool_gateway.tasks.producer import DeliveryError

TAG: Final = "starred"
_PROBLEMS: Final = {status: text for status, text in RATE_PROBLEMS.items() if status not in {413, 415}}
_STAR: Final = PATH + "/{request_id}/star"
_ROUTE: Final[Mapping[str, Any]] = {
    "status_code": HTTPStatus.NO_CONTENT,
    # FastAPI's own would call an answer without a body JSON.
    "response_class": Response,
    "responses": problems(_PROBLEMS),
    **requires(KeyScope.RATE),
}

router = APIRouter()


@router.put(_STAR, summary="Star a task", **_ROUTE)
async def put_star(request_id: RequestIdInPath, services: WithServices, caller: WithCaller) -> None:
    """Answers once it is durable. As often as you like."""
    await set_star(request_id, services, caller, starred=True)


@router.delete(_STAR, summary="Take a star back", **_ROUTE)
async def delete_star(request_id: RequestIdInPath, services: WithServices, caller: WithCaller) -> None:
    """Answers once it is durable. As often as you like."""
    await set_star(request_id, services, caller, starred=False)


async def set_star(request_id: str, services: Services, caller: Caller, *, starred: bool) -> None:
    """Star a task, or take its star back; raises `ProblemError`."""
    task, origin = await judged_image(services, caller, request_id, 0, field="request_id")
    star_id = star_id_of(task.tenant, request_id)
    if starred:
        star = Rating(
            rating_id=star_id,
            tenant=task.tenant,
            rater_hash=STAR_RATER,
            created_at=moment_at(services.now_ms()),
            request_id=request_id,
            tags=(TAG,),
            origin=origin,
        )
        await write_judgement(services, star)
        return
    try:
        await services.feedback.withdraw([star_id], tenant=task.tenant)
    except DeliveryError as error:
        raise unconfirmed(error) from error


def star_id_of(tenant: str, request_id: str) -> str:
    """The key of its record."""
    return rating_id_of(tenant, STAR_RATER, (request_id, 0))


def find_starred(connection: Connection, tenant: str, request_ids: list[str]) -> set[str]:
    """Those of these tasks, some hundreds at most, that have a star."""
    known = {star_id_of(tenant, request_id): request_id for request_id in request_ids}
    where = (ratings.c.tenant == tenant, ratings.c.rating_id.in_(list(known)))
    return {known[found] for found in connection.execute(select(ratings.c.rating_id).where(*where)).scalars()}
