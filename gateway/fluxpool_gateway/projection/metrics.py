"""Prometheus metrics of the projection: `GET /metrics` of any server process, read from the store.

Owns names and help texts. The values are the projector's, so every process of a gateway shows the same.
"""

import time
from collections.abc import Iterator
from typing import Final

from fastapi import APIRouter, Response
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from fluxpool_gateway.http.routes import WithServices
from fluxpool_gateway.store.reading import StoreUnavailableError
from fluxpool_gateway.store.task_store import Heartbeat, Quarantine

PREFIX: Final = "fluxpool_projection_"

router = APIRouter()


@router.get("/metrics", include_in_schema=False)
async def get_metrics(services: WithServices) -> Response:
    """The current values; `fluxpool_projection_readable` alone while the store cannot be read."""
    try:
        heartbeat, quarantine = await services.store.heartbeat(), await services.store.quarantine()
    except StoreUnavailableError:
        return _answer(None, None)
    return _answer(heartbeat, quarantine)


def _answer(heartbeat: Heartbeat | None, quarantine: Quarantine | None) -> Response:
    registry = CollectorRegistry()
    registry.register(_Numbers(heartbeat, quarantine, now_seconds=time.time()))
    return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)


class _Numbers(Collector):
    def __init__(self, heartbeat: Heartbeat | None, quarantine: Quarantine | None, *, now_seconds: float) -> None:
        self._heartbeat = heartbeat
        self._quarantine = quarantine
        self._now_seconds = now_seconds

    def collect(self) -> Iterator[Metric]:
        """Yield what is known."""
        readable = self._quarantine is not None
        yield GaugeMetricFamily(f"{PREFIX}readable", "Whether the task store can be read.", value=int(readable))
        if self._quarantine is not None:
            yield CounterMetricFamily(
                f"{PREFIX}quarantined_records",
                "Records quarantined because they cannot be projected, since the store was built.",
                value=self._quarantine.count,
            )
        if self._heartbeat is None:
            return
        yield GaugeMetricFamily(
            f"{PREFIX}heartbeat_age_seconds",
            "Time since the projector's last heartbeat.",
            value=max(0.0, self._now_seconds - self._heartbeat.beat_at_ms / 1000),
        )
        yield GaugeMetricFamily(
            f"{PREFIX}caught_up",
            "Whether the projector has reached the end of every partition since it started.",
            value=int(self._heartbeat.caught_up_at_ms is not None),
        )
        if self._heartbeat.lag_records is not None:
            yield GaugeMetricFamily(
                f"{PREFIX}lag_records", "Records that are not projected yet.", value=self._heartbeat.lag_records
            )
