"""Who reads events in this process: how many may, of each tenant and in all, and the metrics of that.

Knows nothing of events.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from fluxpool_gateway.http.problem import RETRY_AFTER_SECONDS, ProblemCode, ProblemError
from fluxpool_gateway.metrics.gateway_metrics import GatewayMetrics


class EventReaders:
    """The places for readers in one process."""

    def __init__(self, *, most: int, most_of_tenant: int, metrics: GatewayMetrics) -> None:
        self._most = most
        self._most_of_tenant = most_of_tenant
        self._metrics = metrics
        self._reading: Counter[str] = Counter()

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
        self._metrics.event_readers.inc()
        try:
            yield
        finally:
            self._metrics.event_readers.dec()
            self._reading[tenant] -= 1
            if not self._reading[tenant]:
                # Tenants that read no more would stay for ever.
                del self._reading[tenant]

    def drop(self) -> None:
        """Count a reader that was too slow."""
        self._metrics.dropped_event_readers.inc()


def _too_many(reason: str) -> ProblemError:
    return ProblemError(
        ProblemCode.TOO_MANY_EVENT_STREAMS,
        f"{reason}; close one, or read the state with `Prefer: wait`",
        headers=[("retry-after", str(RETRY_AFTER_SECONDS))],
    )
