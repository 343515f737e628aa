"""The route of the queue: how many tasks wait on each lane, and when one that is sent now is done."""

from fastapi import APIRouter, Response
from pydantic import BaseModel, ConfigDict

from fluxpool_gateway.http.generation_request import Priority
from fluxpool_gateway.http.problem import problems
from fluxpool_gateway.http.routes import WithServices, json_response
from fluxpool_gateway.http.scopes import SECURITY_PROBLEMS, requires
from fluxpool_gateway.identity.api_key import KeyScope
from fluxpool_gateway.queue.lane_watch import LaneWatch
from fluxpool_gateway.queue.lanes import LaneQueue

router = APIRouter()


class _View(BaseModel):
    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)


class LaneView(_View):
    """One lane, with the tasks of all tenants. Numbers are null while they are not known; `why` says the reason."""

    name: str
    priority: Priority | None
    """Of the requests that are sent to it; null when none is."""
    waiting: int | None
    """Tasks that no worker has begun."""
    running: int | None
    """Tasks that a worker has begun."""
    workers: int | None
    """Workers that are ready for its tasks."""
    oldest_waiting_seconds: int | None
    """How long the first waiting task has waited at least: a process of the gateway knows of no time before its start.
    Null when none waits."""
    completed_per_minute: float | None
    """Tasks that were finished in the last minute."""
    eta_seconds: float | None
    """Until the result of a task that is sent now."""
    why: str
    """What the estimate comes from, and what is missing."""


class QueueStateView(_View):
    """All lanes."""

    lanes: tuple[LaneView, ...]
    seconds_per_task: float | None
    """How long a worker took for a task lately."""


@router.get(
    "/v1/queue",
    response_model=QueueStateView,
    responses=problems(SECURITY_PROBLEMS),
    summary="How many tasks wait, and how long a new one would take",
    **requires(KeyScope.READ),
)
async def get_queue(services: WithServices) -> Response:
    """By the readings that the process makes of Kafka in the background, at most some seconds old."""
    queue = services.lanes.queue()
    seconds = None if queue.seconds_per_task is None else round(queue.seconds_per_task, 2)
    views = tuple(_view(lane, services.lanes) for lane in queue.lanes)
    return json_response(QueueStateView(lanes=views, seconds_per_task=seconds))


def _view(lane: LaneQueue, watch: LaneWatch) -> LaneView:
    known = bool(lane.partitions)
    place = watch.place_of_new(lane)
    rate, oldest = lane.completed_per_minute, lane.oldest_waiting_seconds
    return LaneView(
        name=lane.lane.name,
        priority=lane.lane.priority,
        waiting=lane.waiting if known else None,
        running=lane.running if known else None,
        workers=len(lane.workers) if known else None,
        oldest_waiting_seconds=None if oldest is None else int(oldest),
        completed_per_minute=None if rate is None else round(rate, 1),
        eta_seconds=None if place.eta_seconds is None else round(place.eta_seconds, 1),
        why=place.why,
    )
