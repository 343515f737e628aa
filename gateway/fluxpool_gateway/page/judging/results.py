"""Win rates and mean scores by how images were made: a table with a plot of each interval."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Final

from fastapi import Query, Request, Response

from fluxpool_gateway.feedback.figures import Dimension, Group, Interval, group_by
from fluxpool_gateway.feedback.reads import read_compared, read_scored
from fluxpool_gateway.http.routes import WithServices
from fluxpool_gateway.http.scopes import WithCaller, requires
from fluxpool_gateway.http.task_routes import read_store
from fluxpool_gateway.identity.api_key import KeyScope
from fluxpool_gateway.page.forms import page_router
from fluxpool_gateway.page.rendering import render

MAX_SHOWN: Final = 20
_WHOLE: Final = 1000
"""Width of a plot, in its own units."""

router = page_router()


@dataclass(frozen=True, slots=True, kw_only=True)
class Plot:
    """An interval on a line from the least to the most, in thousandths of it."""

    low: float
    value: float
    high: float
    words: str
    """What it shows, for those who do not see it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """The judgements of the images with one value."""

    name: str
    group: Group
    win_rate: Plot | None


@router.get("/compare/results", **requires(KeyScope.READ))
async def get_results(
    request: Request,
    services: WithServices,
    caller: WithCaller,
    *,
    by: Annotated[Dimension, Query()] = Dimension.PRESET,
) -> Response:
    """Those with the most judgements; the best first."""
    scored, compared = await read_store(
        services.store.read(
            lambda connection: (read_scored(connection, caller.tenant), read_compared(connection, caller.tenant))
        )
    )
    groups = group_by(by, scored, compared)
    return render(
        request,
        "judging/results.html",
        by=by,
        dimensions=list(Dimension),
        rows=sorted(
            _rows(groups[:MAX_SHOWN], by), key=lambda row: -1.0 if row.win_rate is None else -row.win_rate.value
        ),
        hidden=max(0, len(groups) - MAX_SHOWN),
        scores=sum(one.count for one in scored),
        comparisons=sum(pair.count for pair in compared),
    )


def _rows(groups: list[Group], by: Dimension) -> Iterator[Row]:
    for group in groups:
        name = f"no {by.value} known" if group.value is None else group.value
        rate = group.win_rate
        yield Row(name=name, group=group, win_rate=None if rate is None else plot_of(rate))


def plot_of(share: Interval) -> Plot:
    """A share from 0 to 1."""
    words = f"{share.value:.0%}, with 95 % certainty between {share.low:.0%} and {share.high:.0%}"
    return Plot(low=_WHOLE * share.low, value=_WHOLE * share.value, high=_WHOLE * share.high, words=words)
