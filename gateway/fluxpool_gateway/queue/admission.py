"""Admission of requests that limit their wait: accepted with an estimate, or refused before anything is written.

Owns the comparison of limits with the estimate of a lane and the answer. Estimates are `queue.place`'s; where one is
not known, the request is accepted. Sends no request: what the process learns in the background is enough.
"""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final

from fluxpool_contract.problems import FieldProblem
from fluxpool_gateway.http.generation_request import GenerationRequest
from fluxpool_gateway.http.problem import ProblemCode, ProblemError, RefusedWait
from fluxpool_gateway.queue.lane_watch import LaneWatch
from fluxpool_gateway.queue.lanes import LaneQueue, Queue
from fluxpool_gateway.queue.place import Estimate

POSITION_HEADER: Final = "fluxpool-queue-position"
ETA_HEADER: Final = "fluxpool-eta-seconds"
MAX_RETRY_AFTER_SECONDS: Final = 120
"""Past it the OpenAI SDKs do not repeat a request."""
UNKNOWN_RETRY_SECONDS: Final = 30
"""Where the time of a task is not known; about that of a few."""


class AdmissionOutcome(StrEnum):
    """What became of a request that limits its wait; a label of metrics."""

    ACCEPTED = "accepted"
    UNKNOWN = "unknown"
    """Accepted, because too little is known for an estimate."""
    QUEUE_TOO_LONG = "queue_too_long"
    WOULD_START_LATE = "would_start_late"
    WOULD_END_LATE = "would_end_late"


@dataclass(frozen=True, slots=True)
class _Exceeded:
    """A limit of a request that its estimate is past."""

    field: str
    code: ProblemCode
    outcome: AdmissionOutcome
    message: str
    retry_after_seconds: float | None
    """Until an equal request is likely to be accepted, if no other comes."""


class Admission:
    """Admits requests in one process of the gateway."""

    def __init__(self, lanes: LaneWatch, *, count: Callable[[AdmissionOutcome], None]) -> None:
        """`count` is called with each outcome."""
        self._lanes = lanes
        self._count = count
        self._queue: Queue | None = None
        self._estimates: dict[str, Estimate] = {}
        self._readings = 0
        self._admitted: Counter[str] = Counter()
        """By topic: since the latest reading, which has none of them."""

    def admit(self, request: GenerationRequest, topic: str) -> Sequence[tuple[str, str]]:
        """Headers of the response with the estimate; raises `ProblemError` (429) when it is past a limit."""
        lane, estimate = self._estimate(topic)
        if lane is None or estimate is None:
            self._count(AdmissionOutcome.UNKNOWN)
            return ()
        exceeded = _exceeded(request, lane, estimate, seconds_per_task=self._lanes.queue().seconds_per_task)
        if exceeded is not None:
            self._count(exceeded.outcome)
            raise _refusal(exceeded, estimate)
        self._admitted[topic] += 1
        self._count(AdmissionOutcome.ACCEPTED if _says_enough(request, estimate) else AdmissionOutcome.UNKNOWN)
        headers = []
        if estimate.position is not None:
            headers.append((POSITION_HEADER, str(estimate.position)))
        if estimate.eta_seconds is not None:
            headers.append((ETA_HEADER, str(math.ceil(estimate.eta_seconds))))
        return headers

    def _estimate(self, topic: str) -> tuple[LaneQueue | None, Estimate | None]:
        """The lane, and the place of a task that is sent there now; behind what was admitted since the last reading."""
        queue = self._lanes.queue()
        if queue is not self._queue:
            self._queue, self._estimates = queue, {}
        if self._lanes.readings != self._readings:
            self._readings = self._lanes.readings
            self._admitted.clear()
        lane = queue.by_topic.get(topic)
        if lane is None:
            return None, None
        estimate = self._estimates.get(topic)
        if estimate is None:
            estimate = self._estimates[topic] = self._lanes.place_of_new(lane)
        count = self._admitted[topic]
        return lane, estimate if not count else _behind(estimate, count, lane, queue.seconds_per_task)


def _behind(estimate: Estimate, count: int, lane: LaneQueue, seconds_per_task: float | None) -> Estimate:
    """The estimate with so many more tasks before it."""
    workers = len(lane.workers) + lane.coming_workers
    more = 0.0 if seconds_per_task is None or not workers else count * seconds_per_task / workers
    return replace(
        estimate,
        position=None if estimate.position is None else estimate.position + count,
        starts_in_seconds=None if estimate.starts_in_seconds is None else estimate.starts_in_seconds + more,
        eta_seconds=None if estimate.eta_seconds is None else estimate.eta_seconds + more,
    )


def _exceeded(
    request: GenerationRequest, lane: LaneQueue, estimate: Estimate, *, seconds_per_task: float | None
) -> _Exceeded | None:
    """The first limit of the request that the estimate is past."""
    position, starts_in, eta = estimate.position, estimate.starts_in_seconds, estimate.eta_seconds
    most, start, deadline = request.max_queue_position, request.start_within_s, request.deadline_s
    if most is not None and position is not None and position > most:
        each = None if seconds_per_task is None or not lane.workers else seconds_per_task / len(lane.workers)
        return _Exceeded(
            "max_queue_position",
            ProblemCode.QUEUE_TOO_LONG,
            AdmissionOutcome.QUEUE_TOO_LONG,
            f"{position} tasks are before it, and {most} may be",
            None if each is None else (position - most) * each,
        )
    if start is not None and starts_in is not None and starts_in > start:
        return _Exceeded(
            "start_within_s",
            ProblemCode.WOULD_START_LATE,
            AdmissionOutcome.WOULD_START_LATE,
            f"it would begin in about {starts_in:.0f} s, and is to begin within {start} s",
            starts_in - start,
        )
    if deadline is not None and eta is not None and eta > deadline:
        return _Exceeded(
            "deadline_s",
            ProblemCode.WOULD_END_LATE,
            AdmissionOutcome.WOULD_END_LATE,
            f"its result would be there in about {eta:.0f} s, and is to be within {deadline} s",
            eta - deadline,
        )
    return None


def _says_enough(request: GenerationRequest, estimate: Estimate) -> bool:
    """Whether each limit of the request was compared."""
    return (
        (request.max_queue_position is None or estimate.position is not None)
        and (request.start_within_s is None or estimate.starts_in_seconds is not None)
        and (request.deadline_s is None or estimate.eta_seconds is not None)
    )


def _refusal(exceeded: _Exceeded, estimate: Estimate) -> ProblemError:
    wait = exceeded.retry_after_seconds
    retry_after = UNKNOWN_RETRY_SECONDS if wait is None else min(max(1, math.ceil(wait)), MAX_RETRY_AFTER_SECONDS)
    field = FieldProblem(exceeded.field, f"{exceeded.message}; wait, or raise the limit")
    return ProblemError(
        exceeded.code,
        f"{exceeded.field}: {exceeded.message}: {estimate.why}. Nothing was accepted",
        fields=[field],
        headers=[("retry-after", str(retry_after))],
        wait=RefusedWait(
            limit=exceeded.field,
            position=estimate.position,
            starts_in_seconds=_rounded(estimate.starts_in_seconds),
            eta_seconds=_rounded(estimate.eta_seconds),
            why=estimate.why,
        ),
    )


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 1)
