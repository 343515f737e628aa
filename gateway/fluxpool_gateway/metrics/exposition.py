"""`GET /metrics`: the metrics of the server processes, and those of the projection, read from the store.

Owns names and help texts of the latter. Every process of a gateway answers the same.
"""

import asyncio
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from fastapi import APIRouter, Response
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from fluxpool_gateway.http.routes import WithServices
from fluxpool_gateway.store.reading import StoreUnavailableError
from fluxpool_gateway.store.task_store import Heartbeat, Quarantine
from fluxpool_gateway.webhooks.database import WebhooksUnavailableError
from fluxpool_gateway.webhooks.deliveries import Outcome
from fluxpool_gateway.webhooks.delivery_log import QueueNumbers

PREFIX: Final = "fluxpool_projection_"
WEBHOOK_PREFIX: Final = "fluxpool_webhook_"

router = APIRouter()


@router.get("/metrics", include_in_schema=False)
async def get_metrics(services: WithServices) -> Response:
    """The current values; `fluxpool_projection_readable` alone while the store cannot be read."""
    heartbeat, quarantine = None, None
    with suppress(StoreUnavailableError):
        heartbeat, quarantine = await services.store.heartbeat(), await services.store.quarantine()
    registry = CollectorRegistry()
    registry.register(_Numbers(heartbeat, quarantine, time.time()))
    with suppress(WebhooksUnavailableError):
        registry.register(_WebhookNumbers(await services.webhooks.numbers(), time.time()))
    for collector in services.metrics.collectors:
        registry.register(collector)
    # Files of dozens of processes take milliseconds, for which requests would wait.
    return Response(await asyncio.to_thread(generate_latest, registry), media_type=CONTENT_TYPE_LATEST)


@dataclass(frozen=True, slots=True, eq=False)
class _Numbers(Collector):
    heartbeat: Heartbeat | None
    quarantine: Quarantine | None
    now_seconds: float

    def collect(self) -> Iterator[Metric]:
        """Yield what is known."""
        readable = self.quarantine is not None
        yield GaugeMetricFamily(f"{PREFIX}readable", "Whether the task store can be read.", value=int(readable))
        if self.quarantine is not None:
            yield CounterMetricFamily(
                f"{PREFIX}quarantined_records",
                "Records quarantined because they cannot be projected, since the store was built.",
                value=self.quarantine.count,
            )
        if self.heartbeat is None:
            return
        yield GaugeMetricFamily(
            f"{PREFIX}heartbeat_age_seconds",
            "Time since the projector's last heartbeat.",
            value=max(0.0, self.now_seconds - self.heartbeat.beat_at_ms / 1000),
        )
        yield GaugeMetricFamily(
            f"{PREFIX}caught_up",
            "Whether the projector has reached the end of every partition since it started.",
            value=int(self.heartbeat.caught_up_at_ms is not None),
        )
        if self.heartbeat.caught_up_at_ms is not None:
            yield GaugeMetricFamily(
                f"{PREFIX}lag_seconds",
                "Time since the projector had read every partition to its end; also grows while it does not run.",
                value=max(0.0, self.now_seconds - self.heartbeat.caught_up_at_ms / 1000),
            )
        if self.heartbeat.lag_records is not None:
            yield GaugeMetricFamily(
                f"{PREFIX}lag_records", "Records that are not projected yet.", value=self.heartbeat.lag_records
            )


@dataclass(frozen=True, slots=True, eq=False)
class _WebhookNumbers(Collector):
    numbers: QueueNumbers
    now_seconds: float

    def collect(self) -> Iterator[Metric]:
        """Yield the numbers of all tenants."""
        ended = CounterMetricFamily(
            f"{WEBHOOK_PREFIX}attempts",
            "Attempts to deliver a webhook: succeeded, retried later, or failed, with those that were given up.",
            labels=["outcome"],
        )
        for outcome in Outcome:
            ended.add_metric([outcome.value], self.numbers.ended.get(outcome, 0))
        yield ended
        yield GaugeMetricFamily(
            f"{WEBHOOK_PREFIX}pending_deliveries",
            "Deliveries of webhooks that wait for an attempt.",
            value=self.numbers.pending,
        )
        oldest_ms = self.numbers.oldest_pending_ms
        yield GaugeMetricFamily(
            f"{WEBHOOK_PREFIX}oldest_pending_seconds",
            "Age of the oldest of these; 0 without one.",
            value=0 if oldest_ms is None else max(0.0, self.now_seconds - oldest_ms / 1000),
        )
