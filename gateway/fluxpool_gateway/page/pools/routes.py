"""The view of the pools, which is fetched again every few seconds."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from fastapi import Request, Response

from fluxpool_contract.bounds import moment_at
from fluxpool_contract.messages import PoolState
from fluxpool_gateway.http.routes import WithServices
from fluxpool_gateway.http.scopes import requires
from fluxpool_gateway.identity.api_key import KeyScope
from fluxpool_gateway.page.forms import page_router
from fluxpool_gateway.page.operations import answered
from fluxpool_gateway.page.pools.plots import HEIGHT, WIDTH, Plot, Point, plot
from fluxpool_gateway.page.rendering import render
from fluxpool_gateway.queue.lanes import LaneQueue
from fluxpool_gateway.queue.place import Estimate
from fluxpool_gateway.queue.pool_history import PoolSample
from fluxpool_gateway.queue.routes import PoolsView, PoolView, get_pools

SHOWN_DECISIONS: Final = 10

router = page_router()


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """A number of workers that the operator chose."""

    at: datetime
    before: int | None
    """None for the first that is known."""
    desired: int
    constraint: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolCard:
    """One pool as it is shown."""

    view: PoolView
    lanes: Sequence[tuple[LaneQueue, Estimate]]
    plots: Sequence[Plot]
    decisions: Sequence[Decision]

    @property
    def title(self) -> str:
        """Its name, or what it is known by without an operator."""
        return self.view.name or self.view.consumer_group

    @property
    def word(self) -> str:
        """Its state."""
        view = self.view
        if view.paused:
            return "Paused"
        if view.ready is None:
            return "Unknown"
        if view.ready:
            return "Ready"
        if view.starting or view.desired:
            return "Starting"
        return "No workers" if view.desired is None else "Asleep"


@router.get("/pools", **requires(KeyScope.READ))
async def show_pools(request: Request, services: WithServices) -> Response:
    """Each pool with its lanes, its last hour and its decisions."""
    pools = answered(await get_pools(services), PoolsView)
    now = services.now_ms() / 1000
    cards = []
    for view in pools.data:
        lanes = [lane for lane in services.lanes.queue().lanes if lane.lane.pool == view.consumer_group]
        past = next((told for lane in lanes if (told := services.lanes.pools.past_of_lane(lane.lane))), ())
        cards.append(
            PoolCard(
                view=view,
                lanes=[(lane, services.lanes.place_of_new(lane)) for lane in lanes],
                plots=plots_of(services.pool_history.of_pool(view.consumer_group), past, now=now),
                decisions=decisions_of(past)[:SHOWN_DECISIONS],
            )
        )
    return render(request, "pools/pools.html", cards=cards, left_out=pools.left_out, width=WIDTH, height=HEIGHT)


def plots_of(samples: Sequence[PoolSample], past: Sequence[tuple[float, PoolState]], *, now: float) -> list[Plot]:
    """Workers, lag and rate; the workers as their operator told, which is known from before the gateway started."""
    if past:
        told: list[tuple[str, Sequence[Point]]] = [
            ("Ready", [(at, state.ready_replicas) for at, state in past]),
            ("Desired", [(at, state.desired_replicas) for at, state in past]),
        ]
        workers = plot("Workers", told, now=now, steps=True)
    else:
        workers = plot("Workers", [("Ready", [(one.at, one.ready) for one in samples])], now=now, steps=True)
    return [
        workers,
        plot("Lag", [("Tasks not done", [(one.at, one.lag) for one in samples])], now=now),
        plot("Tasks a minute", [("Finished", [(one.at, one.completed_per_minute) for one in samples])], now=now),
    ]


def decisions_of(past: Sequence[tuple[float, PoolState]]) -> list[Decision]:
    """Where the number of workers changed, the latest first."""
    made: list[Decision] = []
    for at, state in past:
        before = made[-1].desired if made else None
        if state.desired_replicas != before:
            made.append(
                Decision(
                    at=moment_at(int(at * 1000)),
                    before=before,
                    desired=state.desired_replicas,
                    constraint=state.constraint,
                    reason=state.reason,
                )
            )
    return made[::-1]
