"""Who reads events in this process: how many may, of each tenant and in all, and the metrics of that.

Knows nothing of events.
"""

import os
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from fluxpool_gateway.http.problem import RETRY_AFTER_SECONDS, ProblemCode, ProblemError

PREFIX: Final = "fluxpool_event_stream_"
_LABELS: Final = ("process",)
"""Each server process of a gateway has numbers of its own, and any of them answers a scrape."""


class EventReaders(Collector):
    """The places for readers in one process; its metrics are collected from it."""

    def __init__(self, *, most: int, most_of_tenant: int) -> None:
        self._most = most
        self._most_of_tenant = most_of_tenant
        self._reading: Counter[str] = Counter()
        self._dropped = 0

    @contextmanager
    def place(self, tenant: str) -> Iterator[None]:
        """Take one of the places for a block; raises `ProblemError` (429) when there is none."""
        if self._reading[tenant] >= self._most_of_tenant:
            raise _too_many(
                f"the tenant {tenant} reads {self._most_of_tenant} event streams of this process, which is its limit "
                "(FLUXPOOL_EVENT_STREAMS_OF_TENANT)"
            )
        if self._reading.total() >= self._most:
            raise _too_many(f"{self._most} event streams of this process are read, its limit (FLUXPOOL_EVENT_STREAMS)")
        self._reading[tenant] += 1
        try:
            yield
        finally:
            self._reading[tenant] -= 1
            if not self._reading[tenant]:
                # Tenants that read no more would stay for ever.
                del self._reading[tenant]

    def drop(self) -> None:
        """Count a reader that was too slow."""
        self._dropped += 1

    def collect(self) -> Iterator[Metric]:
        """Yield how many there are, and were dropped."""
        readers = GaugeMetricFamily(f"{PREFIX}readers", "Clients that read events now.", labels=_LABELS)
        readers.add_metric([str(os.getpid())], self._reading.total())
        yield readers
        dropped = CounterMetricFamily(
            f"{PREFIX}dropped_readers", "Readers that were dropped because they read too slowly.", labels=_LABELS
        )
        dropped.add_metric([str(os.getpid())], self._dropped)
        yield dropped


def _too_many(reason: str) -> ProblemError:
    return ProblemError(
        ProblemCode.TOO_MANY_EVENT_STREAMS,
        f"{reason}; close one, or read the state with `Prefer: wait`",
        headers=[("retry-after", str(RETRY_AFTER_SECONDS))],
    )
