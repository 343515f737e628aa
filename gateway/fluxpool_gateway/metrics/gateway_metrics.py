"""The metrics that server processes count themselves: requests, refusals, accepted tasks, readers of events.

Owns names, help texts and labels, which are bounded: no path, id or tenant. Cheap enough for the hot route.
"""

from collections.abc import Collection
from pathlib import Path
from typing import Final, Literal

import structlog
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.registry import Collector

from fluxpool_gateway.http.problem import ProblemCode
from fluxpool_gateway.metrics.shared_values import SharedValues

PREFIX: Final = "fluxpool_gateway_"
EVENT_STREAM_PREFIX: Final = "fluxpool_event_stream_"
NO_ROUTE: Final = "none"
OTHER_METHOD: Final = "other"
_METHODS: Final = frozenset({"DELETE", "GET", "HEAD", "PATCH", "POST", "PUT"})
_PRODUCE_BUCKETS_SECONDS: Final = (0.005, 0.01, 0.015, 0.02, 0.03, 0.05, 0.1, 0.25, 0.5, 1.0, 3.0)
"""From the producer's linger of 5 ms to the default deadline of 3 s."""

logger = structlog.stdlib.get_logger(__name__)


class GatewayMetrics:
    """The metrics of one server process; `collectors` are those of all processes."""

    def __init__(self, shared: SharedValues | None = None) -> None:
        """Without `shared` there is one process. With it, the class of values has been chosen for all metrics."""
        own = CollectorRegistry()
        self.collectors: Collection[Collector] = (own if shared is None else shared,)
        self._requests = Counter(
            f"{PREFIX}requests",
            "Requests answered, by the route's template; none: refused before there was a route.",
            ("method", "route", "status"),
            registry=own,
        )
        self._refusals = Counter(
            f"{PREFIX}refusals", "Requests, or requests in a batch, answered with a problem.", ("code",), registry=own
        )
        self._accepted = Counter(
            f"{PREFIX}accepted_tasks", "Tasks whose records the broker acknowledged.", ("priority",), registry=own
        )
        self._admissions = Counter(
            f"{PREFIX}admissions", "Requests that limit their wait, by what became of them.", ("outcome",), registry=own
        )
        self._feedback = Counter(
            f"{PREFIX}feedback",
            "Ratings, comparisons and withdrawals whose records the broker acknowledged.",
            ("kind",),
            registry=own,
        )
        self._produce = Histogram(
            f"{PREFIX}produce_seconds",
            "Time from the producer's queue to the broker's acknowledgement of a task.",
            buckets=_PRODUCE_BUCKETS_SECONDS,
            registry=own,
        )
        processes = Gauge(
            f"{PREFIX}processes", "Server processes that are running.", multiprocess_mode="livesum", registry=own
        )
        self.event_readers = Gauge(
            f"{EVENT_STREAM_PREFIX}readers",
            "Clients that read events now.",
            multiprocess_mode="livesum",
            registry=own,
        )
        self.dropped_event_readers = Counter(
            f"{EVENT_STREAM_PREFIX}dropped_readers",
            "Readers that were dropped because they read too slowly.",
            registry=own,
        )
        self._dead_letters = Counter(
            f"{PREFIX}dead_letters",
            "Dead letters that were replayed, refused by a replay, or discarded over HTTP.",
            ("outcome",),
            registry=own,
        )
        # Looking one up by its labels costs more than to count with it.
        self._requests_by: dict[tuple[str, str, int], Counter] = {}
        self._accepted_by: dict[str, Counter] = {}
        processes.set(1)

    def count_request(self, method: str, route: str, status: int) -> None:
        """A request was answered; `route` is the path as it was declared."""
        key = method, route, status
        counter = self._requests_by.get(key)
        if counter is None:
            # Any text is a method for the parser.
            method = method if method in _METHODS else OTHER_METHOD
            counter = self._requests.labels(method, route, str(status))
            if method != OTHER_METHOD:
                self._requests_by[key] = counter
        counter.inc()

    def count_refusal(self, code: ProblemCode) -> None:
        """A request was answered with a problem."""
        self._refusals.labels(code.value).inc()

    def count_admission(self, outcome: str) -> None:
        """A request that limits its wait was admitted or refused."""
        self._admissions.labels(outcome).inc()

    def count_dead_letter(self, outcome: str) -> None:
        """A dead letter was `replayed`, `refused` or `discarded`."""
        self._dead_letters.labels(outcome).inc()

    def count_feedback(self, kind: Literal["rating", "comparison", "withdrawal"]) -> None:
        """The broker has acknowledged a record of the feedback topic."""
        self._feedback.labels(kind).inc()

    def count_accepted(self, priority: str, *, produce_seconds: float) -> None:
        """The broker has acknowledged the record of a task."""
        counter = self._accepted_by.get(priority)
        if counter is None:
            counter = self._accepted_by[priority] = self._accepted.labels(priority)
        counter.inc()
        self._produce.observe(produce_seconds)


def open_metrics(folder: Path | None) -> GatewayMetrics:
    """The metrics of this process, shared with the others where there is a folder for that."""
    if folder is None:
        return GatewayMetrics()
    try:
        return GatewayMetrics(SharedValues.join(folder))
    except OSError as error:
        # Requests do not depend on it.
        logger.warning("metrics_not_shared", folder=str(folder), reason=str(error))
        return GatewayMetrics()
