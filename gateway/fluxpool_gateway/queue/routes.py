"""The routes of the queue and the pools: how many tasks wait, who serves them, and when a new one is done."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Final

from fastapi import APIRouter, Response
from pydantic import BaseModel, ConfigDict

from fluxpool_gateway.http.generation_request import Priority
from fluxpool_gateway.http.problem import problems
from fluxpool_gateway.http.routes import WithServices, json_response
from fluxpool_gateway.http.scopes import SECURITY_PROBLEMS, requires
from fluxpool_gateway.identity.api_key import KeyScope
from fluxpool_gateway.queue.lane_watch import LaneWatch
from fluxpool_gateway.queue.lanes import LaneQueue, Queue
from fluxpool_gateway.queue.pool_history import PoolSample

LEFT_OUT: Final = (
    "How many workers are starting or desired, and why, is unknown for some pool here: its operator publishes no state "
    "to the topic of pool states. In Kubernetes: kubectl get fluxworkerpools"
)

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


class PoolView(_View):
    """The workers of one pool. Numbers are null while they are not known; `problem` says the reason."""

    consumer_group: str
    """Of its first lane: `spec.kafka.consumerGroup` of the pool."""
    lanes: tuple[str, ...]
    ready: int | None
    """Workers with a loaded model."""
    busy: int | None
    """Those that have a task, or for which one waits."""
    lag: int | None
    """Tasks that are not done."""
    waiting: int | None
    """Those that no worker has begun."""
    completed_per_minute: float | None
    """Tasks that were finished in the last minute."""
    name: str | None = None
    """Of the FluxWorkerPool. This and what follows is null unless its operator has written it lately."""
    desired: int | None = None
    """Workers that the operator has asked for."""
    starting: int | None = None
    """Workers that pull their image or load their model."""
    draining: int | None = None
    """Workers that finish their task and end."""
    min: int | None = None
    max: int | None = None
    paused: bool | None = None
    constraint: str | None = None
    """What determined the number of workers, in a word."""
    reason: str | None = None
    """The operator's plan, in sentences."""
    next_ready_in_seconds: int | None = None
    """Until the first of the starting workers is expected to be ready; null when none is, or that is not known."""
    start_seconds: int | None = None
    """How long workers took to become ready."""
    lag_eta_seconds: int | None = None
    """Until no task is left at the present rate; null while their number does not shrink."""
    model: str | None = None
    """The checkpoint."""
    model_family: str | None = None
    license: str | None = None
    """Of the family's published weights."""
    reported_at: datetime | None = None
    """When the operator decided this."""
    problem: str | None
    """What could not be read."""


class PoolsView(_View):
    """All pools that serve this gateway."""

    data: tuple[PoolView, ...]
    left_out: str | None
    """What is not known here, and where it is; null when every pool has an operator that publishes it."""


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


@router.get(
    "/v1/pools",
    response_model=PoolsView,
    responses=problems(SECURITY_PROBLEMS),
    summary="The workers that serve the tasks",
    **requires(KeyScope.READ),
)
async def get_pools(services: WithServices) -> Response:
    """As their consumer groups have them, with what their operator decided where it writes that to Kafka."""
    views = pool_views(services.lanes.queue(), wall_seconds=services.now_ms() / 1000)
    is_whole = all(view.name is not None for view in views)
    return json_response(PoolsView(data=views, left_out=None if is_whole else LEFT_OUT))


def pool_views(queue: Queue, *, wall_seconds: float) -> tuple[PoolView, ...]:
    """The pools that serve the lanes."""
    pools: dict[str, list[LaneQueue]] = {}
    for lane in queue.lanes:
        pools.setdefault(lane.lane.pool, []).append(lane)
    return tuple(_pool(name, lanes, queue, wall_seconds=wall_seconds) for name, lanes in pools.items())


def sample_pools(watch: LaneWatch, at: float) -> list[PoolSample]:
    """The pools at this moment, for their history."""
    return [
        PoolSample(
            pool=view.consumer_group,
            at=at,
            ready=view.ready,
            lag=view.lag,
            completed_per_minute=view.completed_per_minute,
        )
        for view in pool_views(watch.queue(), wall_seconds=at)
    ]


def _pool(name: str, lanes: Sequence[LaneQueue], queue: Queue, *, wall_seconds: float) -> PoolView:
    known = all(lane.partitions for lane in lanes)
    workers = {worker for lane in lanes for worker in lane.workers}
    waiting = sum(lane.waiting for lane in lanes)
    rates = [lane.completed_per_minute for lane in lanes if lane.completed_per_minute is not None]
    unread = [f"the lane {lane.lane.name}: {lane.problem}" for lane in lanes if lane.problem is not None]
    unread += [
        f"the lane {lane.lane.name}: its operator has not reported for {lane.operator_silent_seconds:.0f} s"
        for lane in lanes
        if lane.operator_silent_seconds is not None
    ]
    told = next((lane for lane in lanes if lane.pool is not None), None)
    return PoolView(
        consumer_group=name,
        lanes=tuple(lane.lane.name for lane in lanes),
        ready=len(workers) if known else None,
        busy=sum(map(queue.is_busy, workers)) if known else None,
        lag=waiting + sum(lane.running for lane in lanes) if known else None,
        waiting=waiting if known else None,
        completed_per_minute=round(sum(rates), 1) if len(rates) == len(lanes) else None,
        **_told(told, wall_seconds=wall_seconds),
        problem="; ".join(unread) or None,
    )


def _told(lane: LaneQueue | None, *, wall_seconds: float) -> dict[str, Any]:
    """What the operator tells of the pool of this lane, by the view's fields."""
    state = None if lane is None else lane.pool
    if lane is None or state is None:
        return {}
    ready_in = lane.next_ready_in(wall_seconds)
    return {
        "name": state.pool,
        "desired": state.desired_replicas,
        "starting": state.starting_replicas,
        "draining": state.draining_replicas,
        "min": state.min_replicas,
        "max": state.max_replicas,
        "paused": state.paused,
        "constraint": state.constraint,
        "reason": state.reason,
        "next_ready_in_seconds": None if ready_in is None else round(ready_in),
        "start_seconds": state.start_seconds,
        "lag_eta_seconds": state.eta_seconds,
        "model": state.model,
        "model_family": state.model_family,
        "license": state.license,
        "reported_at": state.decided_at,
    }
