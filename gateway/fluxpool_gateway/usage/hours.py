"""The sums of what tenants used in each hour, which are kept in step with the ends of tasks.

An hour has the ends that tasks have now, by the time of each: a task that is replayed is taken out, and one that ends
otherwise is moved. So a store that is built again from Kafka has the same sums, in whatever order it reads the topics.
Two kinds go on counting: tasks that their client has deleted, and tasks whose records Kafka's retention has deleted. A
rebuild lacks the second, and those of the first that were replayed after their deletion.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from sqlalchemy import Connection, bindparam, select, text

from fluxpool_gateway.store.tables import usage_hours
from fluxpool_gateway.store.task_state import Change, ResultSeen, TaskState, TaskStatus
from fluxpool_gateway.usage.figures import NOTHING, Figures

HOUR_MS: Final = 3_600_000
USAGE_DAYS: Final = 92
"""For so long hours are kept: a quarter. One tenant has at most 9,000 rows in it, where tasks may be many millions."""
_OUTCOMES: Final = frozenset({TaskStatus.SUCCEEDED, TaskStatus.FAILED, TaskStatus.EXPIRED, TaskStatus.CANCELED})

_SUMS: Final = ("tasks", "images", "pixels", "gpu_ms")
_AT: Final = "tenant = :tenant AND hour = :hour AND outcome = :outcome"
# Names of our own columns.
_ADD: Final = text(
    f"INSERT INTO usage_hour (tenant, hour, outcome, {', '.join(_SUMS)})"  # noqa: S608
    f" VALUES (:tenant, :hour, :outcome, {', '.join(f':{name}' for name in _SUMS)})"
    f" ON CONFLICT (tenant, hour, outcome) DO UPDATE SET"
    f" {', '.join(f'{name} = usage_hour.{name} + excluded.{name}' for name in _SUMS)}"
)
_TAKE: Final = text(
    f"UPDATE usage_hour SET {', '.join(f'{name} = {name} + :{name}' for name in _SUMS)} WHERE {_AT}"  # noqa: S608
)
_DELETE_EMPTY: Final = text(f"DELETE FROM usage_hour WHERE {_AT} AND tasks <= 0")  # noqa: S608
_DELETE_OLD: Final = text("DELETE FROM usage_hour WHERE hour < :hour")
_FIND: Final = (
    select(usage_hours)
    .where(usage_hours.c.tenant == bindparam("tenant"))
    .where(usage_hours.c.hour >= bindparam("first"), usage_hours.c.hour < bindparam("end"))
    .order_by(usage_hours.c.hour, usage_hours.c.outcome)
)


def hour_of(at_ms: int) -> int:
    """Whole hours between 1970, UTC, and the one that a moment lies in."""
    return at_ms // HOUR_MS


class _RowKey(NamedTuple):
    """The key of a row."""

    tenant: str
    hour: int
    outcome: str


@dataclass(frozen=True, slots=True)
class UsageDeltas:
    """What the changes of one transaction add to the sums, and take from them."""

    _by_place: dict[_RowKey, list[int]] = field(default_factory=dict)

    def note(self, before: TaskState | None, after: TaskState, change: Change) -> None:
        """A change made the second state of the first. To be told of each that has an end before or after it."""
        if before is not None and before.version == after.version:
            return
        # What a task used stays used when its client deletes it.
        if before is not None and before.result is not None and after.status is not TaskStatus.DELETED:
            # Rare: replays, and second results.
            self._add(before, Figures.of_stored(before.result), sign=-1)
        if after.result is not None:
            self._add(after, change.used if isinstance(change, ResultSeen) else NOTHING, sign=1)

    def _add(self, ended: TaskState, used: Figures, *, sign: int) -> None:
        if ended.status not in _OUTCOMES or ended.completed_at_ms is None:
            return
        place = _RowKey(ended.tenant, hour_of(ended.completed_at_ms), ended.status.value)
        sums = self._by_place.setdefault(place, [0] * len(_SUMS))
        for number, value in enumerate((1, used.images, used.pixels, used.gpu_ms)):
            sums[number] += sign * value

    def save(self, connection: Connection) -> None:
        """Apply them to the stored sums."""
        added: list[dict[str, Any]] = []
        taken: list[dict[str, Any]] = []
        for place, sums in self._by_place.items():
            if any(sums):
                row = {**place._asdict(), **dict(zip(_SUMS, sums, strict=True))}
                (added if row["tasks"] > 0 else taken).append(row)
        if added:
            connection.execute(_ADD, added)
        if taken:
            # What was taken was counted before, unless its hour is too old to be kept: then there is no row.
            connection.execute(_TAKE, taken)
            connection.execute(_DELETE_EMPTY, taken)


@dataclass(frozen=True, slots=True, kw_only=True)
class HourOfUsage:
    """What a tenant's tasks with one outcome used, which ended in one hour."""

    hour: int
    """As `hour_of` has it."""
    outcome: TaskStatus
    tasks: int
    used: Figures


def read_hours(connection: Connection, tenant: str, *, first: int, end: int) -> Sequence[HourOfUsage]:
    """The hours of a tenant from the first to before the end, in order; those without any are left out."""
    found = connection.execute(_FIND, {"tenant": tenant, "first": first, "end": end})
    return [
        HourOfUsage(
            hour=row.hour,
            outcome=TaskStatus(row.outcome),
            tasks=row.tasks,
            used=Figures(row.images, row.pixels, row.gpu_ms),
        )
        for row in found
    ]


def oldest_hour(now_ms: int) -> int:
    """The first hour that is kept."""
    return hour_of(now_ms) - USAGE_DAYS * 24


def delete_old_hours(connection: Connection, *, now_ms: int) -> None:
    """Delete those that are no longer kept."""
    connection.execute(_DELETE_OLD, {"hour": oldest_hour(now_ms)})
