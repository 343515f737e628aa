"""The worker's Prometheus metrics; `HealthServer` serves them at `/metrics`."""

from collections.abc import Iterator, Mapping
from functools import partial

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from fluxpool_transport.kafka import UNDECODABLE
from fluxpool_worker.agent.engine.client import EngineClient
from fluxpool_worker.agent.task.holds import Holds
from fluxpool_worker.agent.task.publisher import ReliablePublisher


class WorkerMetrics:
    """All metrics of one worker; labels are bounded."""

    def __init__(self, *, engine: EngineClient, publisher: ReliablePublisher, holds: Holds) -> None:
        self.registry = CollectorRegistry()
        for collector in (holds, UNDECODABLE, _EngineCounters(engine)):
            self.registry.register(collector)
        counter, gauge = partial(Counter, registry=self.registry), partial(Gauge, registry=self.registry)
        self.tasks = counter("fluxpool_tasks", "Tasks by how they left this worker.", ["outcome"])
        self.task_seconds = Histogram(
            "fluxpool_task_seconds",
            "Seconds from taking a record to its end, by outcome.",
            ["outcome"],
            buckets=(0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 80, 160),
            registry=self.registry,
        )
        self.phase_seconds = Histogram(
            "fluxpool_generation_phase_seconds",
            "Seconds of a generation by phase: text_encode, denoise, vae, image_encode and others, as in its result.",
            ["phase"],
            buckets=(0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2, 3, 4, 6, 8, 12, 20, 40, 80),
            registry=self.registry,
        )
        self.tasks_in_flight = gauge("fluxpool_tasks_in_flight", "Tasks under way.")
        self.retries_relayed = counter("fluxpool_retries_relayed", "Due retries returned to a lane's topic.", ["topic"])
        self.relays_retries = gauge(
            "fluxpool_retry_relay",
            "1 while this worker relays the due retries of its pool; one worker of a pool does so at a time.",
        )
        self.records_lost = counter(
            "fluxpool_records_lost",
            "Records that retention or an administrator deleted before a worker finished them.",
            ["lane"],
        )
        self.records_refused = counter(
            "fluxpool_records_refused",
            "Results and dead letters that their topic refuses even when shortened: check its max.message.bytes.",
            ["topic"],
        )
        self.lane_failures = counter(
            "fluxpool_lane_failures", "Consumers of a lane that failed and were replaced.", ["lane"]
        )
        gauge(
            "fluxpool_records_unacknowledged",
            "Records that were sent some time ago and neither acknowledged nor refused.",
        ).set_function(lambda: publisher.unknown)

    def count_end(self, outcome: str, seconds: float) -> None:
        """A task left this worker."""
        self.tasks.labels(outcome).inc()
        self.task_seconds.labels(outcome).observe(seconds)

    def count_refused(self, topic: str) -> None:
        """A topic refused even the shortest record."""
        self.records_refused.labels(topic).inc()

    def observe_phases(self, timings_ms: Mapping[str, float]) -> None:
        """A generation took so many milliseconds in each of its phases."""
        for phase, milliseconds in timings_ms.items():
            self.phase_seconds.labels(phase).observe(milliseconds / 1000)


class _EngineCounters(Collector):
    """Counts that the engine's client keeps itself, read at each scrape."""

    def __init__(self, engine: EngineClient) -> None:
        self._engine = engine

    def collect(self) -> Iterator[Metric]:
        yield CounterMetricFamily(
            "fluxpool_engine_restarts", "Engines that died and were replaced.", value=self._engine.restarts
        )
        yield CounterMetricFamily(
            "fluxpool_engine_stalls",
            "Generations without a denoising step for longer than step_soft_limit_seconds.",
            value=self._engine.stalls,
        )
        generations = CounterMetricFamily(
            "fluxpool_generations",
            "Generations by quality and engine path.",
            labels=["quality", "path"],
        )
        for labels, count in self._engine.generated.items():
            generations.add_metric(labels, count)
        yield generations
        start = GaugeMetricFamily(
            "fluxpool_engine_start_seconds",
            "Seconds that the present engine's start took, by phase: imports, weights, kernels, warm_up.",
            labels=["phase"],
        )
        for phase, seconds in self._engine.start_seconds.items():
            start.add_metric([phase], seconds)
        yield start
