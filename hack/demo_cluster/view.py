"""Shows an observation of the demo: a table on a terminal, a line otherwise."""

from dataclasses import dataclass

from rich.console import Group

from fluxpool_cli.watch.display import Displayed, plain_table


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolObservation:
    """State of one pool, from Kafka and the API server."""

    name: str
    lag_records: int | None
    """Lag of its group; None when not all partitions could be read."""
    planned: int | None
    """Planned workers in its status; None before the first plan."""
    ready: int
    """Ready worker pods."""
    pods: int
    """All its worker pods, including starting and terminating ones."""
    succeeded: int
    """Tasks that succeeded."""
    failed: int
    """Tasks with any other result."""
    constraint: str = ""
    """The constraint of the plan."""
    reason: str = ""
    """The reason of the plan."""

    @property
    def asleep(self) -> bool:
        """Whether there is no lag, no planned worker and no pod."""
        return self.lag_records == 0 and self.planned == 0 and self.pods == 0

    def plan(self) -> str:
        """The number of replicas with its reason."""
        number = "no plan yet" if self.planned is None else f"{self.planned} replica{'' if self.planned == 1 else 's'}"
        return f"{self.name}: {number}" + (f" ({self.constraint}). {self.reason}" if self.reason else "")


@dataclass(frozen=True, slots=True)
class Observation(Displayed):
    """State of all pools at one time."""

    pools: tuple[PoolObservation, ...]

    def line(self) -> str:
        """The counts of each pool."""
        return " | ".join(
            f"{pool.name} lag {_number(pool.lag_records)}, planned {_number(pool.planned)}, ready {pool.ready}, "
            f"pods {pool.pods}, images {pool.succeeded}" + (f", failed {pool.failed}" if pool.failed else "")
            for pool in self.pools
        )

    def __rich__(self) -> Group:
        """The table of the live view, with the plans' reasons below it."""
        rows = [
            (
                pool.name,
                _number(pool.lag_records),
                _number(pool.planned),
                str(pool.ready),
                str(pool.pods),
                str(pool.succeeded),
                str(pool.failed),
            )
            for pool in self.pools
        ]
        columns = ("POOL", "LAG", "PLANNED", "READY", "PODS", "IMAGES", "FAILED")
        reasons = [(pool.name, pool.reason or "-") for pool in self.pools]
        return Group(plain_table(columns, rows), "", plain_table(("PLAN", ""), reasons))


def _number(value: int | None) -> str:
    return "?" if value is None else str(value)
