"""What the caller has said of the images of a task, and whether the tenant has starred it."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from sqlalchemy import Connection

from fluxpool_contract.messages import Rating, rating_id_of
from fluxpool_gateway.feedback.reads import find_rating
from fluxpool_gateway.feedback.routes import rater_hash_of
from fluxpool_gateway.feedback.stars import find_starred, star_id_of
from fluxpool_gateway.http.routes import Services
from fluxpool_gateway.http.task_routes import read_store
from fluxpool_gateway.identity.api_key import KeyScope
from fluxpool_gateway.identity.caller import Caller


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgements:
    """Of one task."""

    may_rate: bool
    starred: bool = False
    mine: Mapping[int, Rating] = field(default_factory=dict)
    """By the number of the image."""


async def read_judgements(request_id: str, images: Iterable[int], services: Services, caller: Caller) -> Judgements:
    """Of a task of the caller's tenant; what this process has just written is there before the store has it."""
    rater_hash = rater_hash_of(services, caller, caller.tenant, None)
    rating_ids = {index: rating_id_of(caller.tenant, rater_hash, (request_id, index)) for index in images}

    def read(connection: Connection) -> tuple[set[str], dict[int, Rating | None]]:
        ratings = {
            index: find_rating(connection, rating_id, tenant=caller.tenant) for index, rating_id in rating_ids.items()
        }
        return find_starred(connection, caller.tenant, [request_id]), ratings

    starred, stored = await read_store(services.store.read(read))
    mine = {index: services.feedback.latest(rating_ids[index], rating) for index, rating in stored.items()}
    return Judgements(
        may_rate=KeyScope.RATE in caller.scopes,
        starred=has_star(request_id, starred, services, caller),
        mine={index: rating for index, rating in mine.items() if isinstance(rating, Rating)},
    )


async def read_starred(request_ids: list[str], services: Services, caller: Caller) -> set[str]:
    """Those of the tasks that the tenant has starred."""
    starred = await read_store(
        services.store.read(lambda connection: find_starred(connection, caller.tenant, request_ids))
    )
    return {request_id for request_id in request_ids if has_star(request_id, starred, services, caller)}


def has_star(request_id: str, starred: set[str], services: Services, caller: Caller) -> bool:
    """Whether it has one now, where the store knows of these."""
    stored = True if request_id in starred else None
    return services.feedback.latest(star_id_of(caller.tenant, request_id), stored) is not None
