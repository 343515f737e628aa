"""What the worker counts, as Prometheus metrics."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram


class WorkerMetrics:
    """What `/metrics` shows; labels are bounded."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.tasks = Counter(
            "fluxpool_tasks", "Tasks by how they left this worker.", ["outcome"], registry=self.registry
        )
        self.task_seconds = Histogram(
            "fluxpool_task_seconds",
            "Seconds from taking a record to its end, by outcome.",
            ["outcome"],
            buckets=(0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 80, 160),
            registry=self.registry,
        )
        self.tasks_in_flight = Gauge("fluxpool_tasks_in_flight", "Tasks under way.", registry=self.registry)
        self.engine_restarts = Gauge(
            "fluxpool_engine_restarts", "Engines that died and were replaced.", registry=self.registry
        )
