"""Prometheus metrics of the operator. Labels are pools and closed sets, never tasks."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

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
        self.pools = Gauge("fluxpool_pools", "Pools with a running loop.", registry=self.registry)
        self.pending_records = Gauge(
            "fluxpool_pool_pending_records", "Tasks not begun, as last read.", _POOL, registry=self.registry
        )
        self.desired_replicas = Gauge(
            "fluxpool_pool_desired_replicas", "Desired number of workers.", _POOL, registry=self.registry
        )
        self.ready_replicas = Gauge("fluxpool_pool_ready_replicas", "Ready workers.", _POOL, registry=self.registry)
        self.lag_age_seconds = Gauge(
            "fluxpool_pool_lag_age_seconds", "Age of the last complete reading.", _POOL, registry=self.registry
        )
        self.expired_records = Counter(
            "fluxpool_pool_expired_records", "Tasks lost to retention since the pool was created.", _POOL,
            registry=self.registry,
        )  # fmt: skip
        self.loop_failures = Counter(
            "fluxpool_pool_loop_failures", "Loops of pools that a defect ended; each begins again.", _POOL,
            registry=self.registry,
        )  # fmt: skip
        self.scalings = Counter(
            "fluxpool_pool_scalings", "Changes of the number of workers by direction.", [*_POOL, "direction"],
            registry=self.registry,
        )  # fmt: skip

    def count_loop_failure(self, namespace: str, pool: str) -> None:
        """A defect ended a pool's loop; also a failed reconcile, for which the chart has an alert."""
        self.loop_failures.labels(namespace=namespace, pool=pool).inc()
        self.reconciles.labels(outcome="failed").inc()

    def remove_pool(self, namespace: str, pool: str) -> None:
        """Remove the series of a deleted pool."""
        for metric in (
            self.pending_records,
            self.desired_replicas,
            self.ready_replicas,
            self.lag_age_seconds,
            self.expired_records,
            self.loop_failures,
            self.scalings,
        ):
            metric.remove_by_labels({"namespace": namespace, "pool": pool})
