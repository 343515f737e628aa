"""How an observation of the demo is shown: a table on a terminal, a line elsewhere."""

from dataclasses import dataclass

from rich.console import Group

from fluxpool_cli.terminal import plain_table
from fluxpool_cli.watch.display import Displayed


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolObservation:
    """One pool, as Kafka and the API server have it."""

    name: str
    lag_records: int | None
    """Unfinished tasks in its group; None when not all partitions could be read."""
    planned: int | None
    """Workers that there should be, as its status says; None before the operator said so."""
    ready: int
    """Worker pods that can work."""
    pods: int
    """All its worker pods, those on their way in or out included."""
    succeeded: int
    """Tasks with a result of success."""
    failed: int
    """Tasks with any other result."""
    constraint: str = ""
    """What decided the number of replicas."""
    reason: str = ""
    """The plan in sentences."""

    @property
    def asleep(self) -> bool:
        """Whether there is no lag, no planned worker and no pod."""
        return self.lag_records == 0 and self.planned == 0 and self.pods == 0

    def plan(self) -> str:
        """The number of replicas and why it is that."""
        number = "no plan yet" if self.planned is None else f"{self.planned} replica{'' if self.planned == 1 else 's'}"
        return f"{self.name}: {number}" + (f" ({self.constraint}). {self.reason}" if self.reason else "")


@dataclass(frozen=True, slots=True)
class Observation(Displayed):
    """All pools at once."""

    pools: tuple[PoolObservation, ...]

    def line(self) -> str:
        """The counts of each pool."""
        return " | ".join(
            f"{pool.name} lag {_number(pool.lag_records)}, planned {_number(pool.planned)}, ready {pool.ready}, "
            f"pods {pool.pods}, images {pool.succeeded}" + (f", failed {pool.failed}" if pool.failed else "")
            for pool in self.pools
        )

    def __rich__(self) -> Group:
        """The table of the live view, the plans' reasons below it."""
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
