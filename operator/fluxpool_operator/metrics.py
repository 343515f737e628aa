"""Prometheus metrics of the operator. Labels are pools and closed sets, never tasks."""

from typing import TypeVar

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.metrics import MetricWrapperBase

Metric = TypeVar("Metric", bound=MetricWrapperBase)

_POOL = ("namespace", "pool")


class OperatorMetrics:
    """The metrics of `/metrics`, with a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.cycle_seconds = Histogram(
            "fluxpool_pool_cycle_seconds",
            "Seconds from the start of a reconcile to its plan.",
            buckets=(0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2, 4, 8, 16),
            registry=self.registry,
        )
        self.reconciles = Counter(
            "fluxpool_reconciles", "Reconciles of pools by outcome.", ["outcome"], registry=self.registry
        )
        self.states = Counter(
            "fluxpool_pool_states", "States of pools for gateways, by outcome.", ["outcome"], registry=self.registry
        )
        self.pools = Gauge("fluxpool_pools", "Pools with a running loop.", registry=self.registry)
        self._of_pools: list[MetricWrapperBase] = []
        self.pending_records = self._of_pool(Gauge, "pending_records", "Tasks not begun, as last read.")
        self.desired_replicas = self._of_pool(Gauge, "desired_replicas", "Desired number of workers.")
        self.ready_replicas = self._of_pool(Gauge, "ready_replicas", "Ready workers.")
        self.lag_age_seconds = self._of_pool(Gauge, "lag_age_seconds", "Age of the last complete reading.")
        self.expired_records = self._of_pool(
            Counter, "expired_records", "Tasks lost to retention since the pool was created."
        )
        self.loop_failures = self._of_pool(
            Counter, "loop_failures", "Loops of pools that a defect ended; each begins again."
        )
        self.scalings = self._of_pool(
            Counter, "scalings", "Changes of the number of workers by direction.", "direction"
        )

    def _of_pool(self, kind: type[Metric], name: str, description: str, *labels: str) -> Metric:
        metric = kind(f"fluxpool_pool_{name}", description, [*_POOL, *labels], registry=self.registry)
        self._of_pools.append(metric)
        return metric

    def count_states(self, written: int, failed: int) -> None:
        """States of pools were written to Kafka, or not."""
        self.states.labels(outcome="written").inc(written)
        self.states.labels(outcome="failed").inc(failed)

    def count_loop_failure(self, namespace: str, pool: str) -> None:
        """A defect ended a pool's loop; also a failed reconcile, for which the chart has an alert."""
        self.loop_failures.labels(namespace=namespace, pool=pool).inc()
        self.reconciles.labels(outcome="failed").inc()

    def remove_pool(self, namespace: str, pool: str) -> None:
        """Remove the series of a deleted pool."""
        for metric in self._of_pools:
            metric.remove_by_labels({"namespace": namespace, "pool": pool})
