"""The route of usage: what the tasks of the caller's tenant used, by hour or by day."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from http import HTTPStatus
from typing import Annotated, Final, Self

from fastapi import APIRouter, Query, Response
from pydantic import BaseModel, ConfigDict, Field

from fluxpool_contract.bounds import milliseconds_of, moment_at
from fluxpool_contract.problems import FieldProblem
from fluxpool_gateway.http.problem import ProblemCode, ProblemError, problems
from fluxpool_gateway.http.routes import READ_PROBLEMS, WithServices, json_response
from fluxpool_gateway.http.scopes import SECURITY_PROBLEMS, WithCaller, requires
from fluxpool_gateway.http.task_routes import Moment, read_store
from fluxpool_gateway.identity.api_key import KeyScope
from fluxpool_gateway.usage.hours import HOUR_MS, USAGE_DAYS, HourOfUsage, hour_of, oldest_hour

DEFAULT_HOURS: Final = 24
MAX_PERIODS: Final = 31 * 24
"""Of one response; about 100 KiB."""

router = APIRouter()


class Period(StrEnum):
    """What one entry of a response covers; both begin as UTC has them."""

    HOUR = "hour"
    DAY = "day"

    @property
    def hours(self) -> int:
        """Its length."""
        return 24 if self is Period.DAY else 1


class UsageQuery(BaseModel):
    """Which usage, and in what parts."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    since: Annotated[Moment | None, Field(alias="from")] = None
    """The first time, rounded to the start of its hour or day; UTC when it has no zone. 24 hours before the end unless
    given."""
    to: Moment | None = None
    """The last time, rounded to the end of its hour or day; UTC when it has no zone. Now unless given."""
    by: Period = Period.HOUR
    """hour or day."""


class _View(BaseModel):
    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)


class OutcomeCounts(_View):
    """Tasks that have ended, by how."""

    succeeded: int = 0
    failed: int = 0
    expired: int = 0
    canceled: int = 0


class UsageView(_View):
    """What tasks used."""

    tasks: OutcomeCounts
    images: int
    megapixels: float
    """Millions of pixels of these images."""
    gpu_seconds: float
    """Of the workers' GPUs, by the `timings` of the results."""

    @classmethod
    def of(cls, hours: Sequence[HourOfUsage]) -> Self:
        """The sums of some hours."""
        tasks = {
            outcome: sum(hour.tasks for hour in hours if hour.outcome == outcome)
            for outcome in OutcomeCounts.model_fields
        }
        return cls(
            tasks=OutcomeCounts(**tasks),
            images=sum(hour.used.images for hour in hours),
            megapixels=sum(hour.used.pixels for hour in hours) / 1e6,
            gpu_seconds=sum(hour.used.gpu_ms for hour in hours) / 1e3,
        )


class PeriodUsageView(_View):
    """One hour or day."""

    start: datetime
    usage: UsageView


class UsageReportView(_View):
    """A time, in whole hours or days; tasks count where they ended."""

    start: datetime
    end: datetime
    by: Period
    total: UsageView
    data: tuple[PeriodUsageView, ...]
    """Every hour or day from `start` to before `end`, also those without tasks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Hours:
    """The hours of a report, as `hour_of` counts them."""

    first: int
    end: int
    by: Period

    @classmethod
    def asked_for(cls, query: UsageQuery, *, now_ms: int) -> Self:
        """Whole periods around the two times; raises `ProblemError` (422) when they are too many, or not kept."""
        step = query.by.hours
        to_ms = now_ms if query.to is None else milliseconds_of(query.to)
        # The end of the period that the time lies in, or that ends there.
        end = -(-to_ms // (step * HOUR_MS)) * step
        if query.since is None:
            first = end - DEFAULT_HOURS
        else:
            since_ms = milliseconds_of(query.since)
            if since_ms >= to_ms:
                raise _refusal("from", "must be before to, which is now unless it is given")
            first = hour_of(since_ms) // step * step
        oldest = -(-oldest_hour(now_ms) // step) * step
        if first < oldest:
            remedy = f"use {_start(oldest):%Y-%m-%dT%H:%M:%SZ} or later"
            raise _refusal("to" if query.since is None else "from", f"usage is kept for {USAGE_DAYS} days; {remedy}")
        if end - first > MAX_PERIODS * step:
            remedy = f"use to within {MAX_PERIODS * step // 24} days of from"
            raise _refusal("to", f"at most {MAX_PERIODS} {query.by}s are answered at once; {remedy}")
        return cls(first=first, end=end, by=query.by)

    def periods(self) -> Iterator[range]:
        """The hours of each period."""
        step = self.by.hours
        return (range(start, start + step) for start in range(self.first, self.end, step))


def _start(hour: int) -> datetime:
    return moment_at(hour * HOUR_MS)


def _refusal(name: str, message: str) -> ProblemError:
    problem = FieldProblem(name, message)
    return ProblemError(
        ProblemCode.INVALID_REQUEST, str(problem), fields=[problem], status=HTTPStatus.UNPROCESSABLE_ENTITY
    )


@router.get(
    "/v1/usage",
    response_model=UsageReportView,
    responses=problems(
        {
            **SECURITY_PROBLEMS,
            422: "A parameter is not allowed; `errors` names each.",
            503: READ_PROBLEMS[503],
        }
    ),
    summary="What the tasks of the caller's tenant used",
    **requires(KeyScope.READ),
)
async def get_usage(query: Annotated[UsageQuery, Query()], services: WithServices, caller: WithCaller) -> Response:
    """Of tasks that have ended. A task counts some milliseconds after its result was published."""
    asked = _Hours.asked_for(query, now_ms=services.now_ms())
    found = await read_store(services.store.usage(caller.tenant, first=asked.first, end=asked.end))
    return json_response(_report(asked, found))


def _report(asked: _Hours, found: Iterable[HourOfUsage]) -> UsageReportView:
    by_hour: dict[int, list[HourOfUsage]] = {}
    for hour in found:
        by_hour.setdefault(hour.hour, []).append(hour)
    data = tuple(
        PeriodUsageView(
            start=_start(period.start),
            usage=UsageView.of([used for hour in period for used in by_hour.get(hour, ())]),
        )
        for period in asked.periods()
    )
    total = UsageView.of([used for hours in by_hour.values() for used in hours])
    return UsageReportView(start=_start(asked.first), end=_start(asked.end), by=asked.by, total=total, data=data)
