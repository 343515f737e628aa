"""Tasks of a tenant in the order of their time or of their last change, and the counts of a group.

Owns the statements, and the places in both orders. The work for a page is bounded whatever the filter: a page may be
short, or empty, and still have a next one. What is searched by content (`search`) is looked into row by row.
"""

import base64
import binascii
import json
import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final, Self

from sqlalchemy import ColumnElement, Connection, Select, bindparam, func, literal_column, select, text

from fluxpool_gateway.search import ANYTHING, ContentFilter
from fluxpool_gateway.store.database_faults import DamagedStoreError
from fluxpool_gateway.store.tables import JSON_ELEMENTS, LISTED_AT, NOT_ENDED, STARS, UNSUCCESSFUL, ratings, tasks
from fluxpool_gateway.store.task_state import SHOWN_STATUSES, TaskState, TaskStatus
from fluxpool_gateway.store.task_store import to_state

MAX_SCANNED_ROWS: Final = 5_000
"""Rows that are looked at for one page; about 50 ms."""
MAX_SCANNED_CHARACTERS: Final = 32 * 1024 * 1024
"""Of the requests and results that a search looks into for one page; about 100 ms. Usual ones have 2,500 a task."""
MAX_PAGE_CHARACTERS: Final = 4 * 1024 * 1024
"""Of the results on one page: a usual one has 2,000, but any producer may write a megabyte."""
_CURSOR: Final = re.compile(r"([0-9]{1,16})\.([A-Za-z0-9][A-Za-z0-9._-]{0,127})")
_INDEXED: Final = {
    NOT_ENDED: frozenset({TaskStatus.QUEUED, TaskStatus.RUNNING}),
    UNSUCCESSFUL: frozenset({TaskStatus.FAILED, TaskStatus.EXPIRED, TaskStatus.CANCELED}),
}
"""The statuses that have an index of their own, by its condition: other tasks are not looked at for these."""
_LISTED_AT: Final[ColumnElement[int]] = literal_column(LISTED_AT)


class ListOrder(StrEnum):
    """Which tasks come first."""

    DESC = "desc"
    """The newest."""
    ASC = "asc"
    """The oldest."""


@dataclass(frozen=True, slots=True)
class ListCursor:
    """The place of one task in a list. The id is part of it, because many tasks may have one time."""

    listed_at_ms: int
    request_id: str

    @classmethod
    def parse(cls, text: str) -> Self:
        """The place; raises `ValueError` for a text that `str` never makes."""
        try:
            decoded = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)).decode()
        except (binascii.Error, ValueError):
            decoded = ""
        found = _CURSOR.fullmatch(decoded)
        if found is None:
            raise ValueError("is not a cursor; take next_cursor of the page before as it is, or leave it out")
        return cls(int(found[1]), found[2])

    def __str__(self) -> str:
        return base64.urlsafe_b64encode(f"{self.listed_at_ms}.{self.request_id}".encode()).rstrip(b"=").decode()


@dataclass(frozen=True, slots=True, kw_only=True)
class ListFilter:
    """Which tasks of a tenant. Times are milliseconds since 1970, UTC, of when the task was accepted."""

    tenant: str
    statuses: frozenset[TaskStatus] = frozenset()
    """Any when empty."""
    group_id: str | None = None
    from_ms: int | None = None
    """Tasks accepted then or later."""
    before_ms: int | None = None
    content: ContentFilter = ANYTHING
    min_score: int | None = None
    """Tasks with an image that somebody gave at least this score."""
    starred: bool = False
    """Tasks with a star alone; in a list, as the score is."""

    def passes(self, task: TaskState) -> bool:
        """Whether a list with this filter has the task."""
        at_ms = task.created_at_ms or task.completed_at_ms or 0
        return (
            task.tenant == self.tenant
            and task.status is not TaskStatus.DELETED
            and (not self.statuses or task.status in self.statuses)
            and self.group_id in {None, task.group_id}
            and (self.from_ms is None or self.from_ms <= at_ms)
            and (self.before_ms is None or at_ms < self.before_ms)
            and (self.content.is_empty or self.content.passes(task.body, task.result))
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskPage:
    """Some tasks, and where the next ones begin."""

    tasks: Sequence[TaskState]
    next: ListCursor | None
    """None on the last page."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupCounts:
    """How many tasks of a group have each status."""

    counts: dict[TaskStatus, int] = field(default_factory=dict)
    first_at_ms: int = 0
    last_at_ms: int = 0
    last_waiting: TaskState | None = None
    """The queued task that was accepted last."""

    @property
    def total(self) -> int:
        """How many tasks it has."""
        return sum(self.counts.values())


def list_tasks(
    connection: Connection,
    wanted: ListFilter,
    *,
    order: ListOrder = ListOrder.DESC,
    after: ListCursor | None = None,
    limit: int,
) -> TaskPage:
    """At most `limit` tasks that pass the filter, those behind the cursor; in a transaction, which it leaves open."""
    places = _places(wanted, order=order, after=after)
    if wanted.starred:
        passing, scanned_to = _scan(_starred(connection, places, wanted, order=order), wanted, limit=limit)
    else:
        # Rows are read some at a time: neither database looks for rows that are not taken.
        with connection.execute(places, execution_options={"stream_results": True}) as found_places:
            passing, scanned_to = _scan(found_places, wanted, limit=limit)
    shown: list[TaskState] = []
    size = 0
    for start in range(0, min(len(passing), limit), _CHUNK):
        chunk = passing[start : min(start + _CHUNK, limit)]
        values = {"request_ids": [place.request_id for place in chunk], "tenant": wanted.tenant}
        rows = connection.execute(_FIND_TASKS, values).mappings()
        found = {row["request_id"]: to_state(row) for row in rows}
        for number, place in enumerate(chunk, start):
            state = found.get(place.request_id)
            if state is None:
                continue
            size += len(state.result or "") + len(state.body or "")
            if shown and size > MAX_PAGE_CHARACTERS:
                return TaskPage(tasks=shown, next=passing[number - 1])
            shown.append(state)
    return TaskPage(tasks=shown, next=passing[limit - 1] if len(passing) > limit else scanned_to)


def _scan(places: Iterable[Any], wanted: ListFilter, *, limit: int) -> tuple[list[ListCursor], ListCursor | None]:
    """The places that pass, one more than the limit if there are so many; and where a scan was given up."""
    passing: list[ListCursor] = []
    searches = not wanted.content.is_empty
    characters = 0
    for scanned, place in enumerate(places, 1):
        if place.status != TaskStatus.DELETED and (not wanted.statuses or place.status in wanted.statuses):
            passes = wanted.min_score is None or (place.score or 0) >= wanted.min_score
            if searches:
                characters += len(place.body or "") + len(place.result or "")
                passes = passes and wanted.content.passes(place.body, place.result)
            if passes:
                passing.append(_cursor(place))
                if len(passing) > limit:
                    return passing, None
        if scanned == MAX_SCANNED_ROWS or characters > MAX_SCANNED_CHARACTERS:
            return passing, _cursor(place)
    return passing, None


def _starred(connection: Connection, places: Select[Any], wanted: ListFilter, *, order: ListOrder) -> list[Any]:
    """The places of the tasks with a star, in their order: from the stars, which are few, to their tasks."""
    found: list[Any] = []
    starred = connection.execute(_STARRED, {"tenant": wanted.tenant}).scalars().all()
    for start in range(0, len(starred), _STARS_AT_ONCE):
        chunk = starred[start : start + _STARS_AT_ONCE]
        found += connection.execute(places.where(tasks.c.request_id.in_(chunk))).all()
    return sorted(found, key=lambda place: (place.listed_at_ms, place.request_id), reverse=order is ListOrder.DESC)


def count_group(connection: Connection, *, tenant: str, group_id: str) -> GroupCounts:
    """The tasks of a group by status; all zero when no task ever named it."""
    rows = connection.execute(_COUNT_GROUP, {"tenant": tenant, "group_id": group_id}).all()
    if not rows:
        return GroupCounts()
    counts = {TaskStatus(row.status): row.tasks for row in rows}
    last_waiting = None
    if TaskStatus.QUEUED in counts:
        last_waiting = connection.execute(_LAST_WAITING, {"tenant": tenant, "group_id": group_id}).mappings().first()
    return GroupCounts(
        counts=counts,
        first_at_ms=min(row.first_at_ms for row in rows),
        last_at_ms=max(row.last_at_ms for row in rows),
        last_waiting=None if last_waiting is None else to_state(last_waiting),
    )


_CHUNK: Final = 50
"""Read at once; a page that is full by its size has read so many in vain at most."""
_STARS_AT_ONCE: Final = 300
"""SQLite takes 999 values in old builds."""
_STARRED: Final = (
    select(ratings.c.request_id)
    .where(ratings.c.tenant == bindparam("tenant"), literal_column(STARS))
    .order_by(ratings.c.created_at_ms.desc())
    .limit(MAX_SCANNED_ROWS)
)
"""The condition is that of an index."""
_BEST_SCORE: Final = (
    select(func.max(ratings.c.score))
    .where(ratings.c.tenant == tasks.c.tenant, ratings.c.request_id == tasks.c.request_id)
    .scalar_subquery()
)
_FIND_TASKS: Final = select(tasks).where(
    tasks.c.request_id.in_(bindparam("request_ids", expanding=True)), tasks.c.tenant == bindparam("tenant")
)
_COUNT_GROUP: Final = (
    select(
        tasks.c.status,
        func.count().label("tasks"),
        func.min(_LISTED_AT).label("first_at_ms"),
        func.max(_LISTED_AT).label("last_at_ms"),
    )
    .where(tasks.c.tenant == bindparam("tenant"), tasks.c.group_id == bindparam("group_id"))
    .group_by(tasks.c.status)
)
# Tasks are done about in the order of their time, so that few entries of the index are passed over.
_LAST_WAITING: Final = (
    select(tasks)
    .where(
        tasks.c.tenant == bindparam("tenant"),
        tasks.c.group_id == bindparam("group_id"),
        tasks.c.status == TaskStatus.QUEUED,
    )
    .order_by(_LISTED_AT.desc(), tasks.c.request_id.desc())
    .limit(1)
)


def _places(wanted: ListFilter, *, order: ListOrder, after: ListCursor | None) -> Select[Any]:
    """The places that the range and the cursor leave, in their order; other statuses are still among them."""
    query = select(tasks.c.request_id, _LISTED_AT.label("listed_at_ms"), tasks.c.status)
    if not wanted.content.is_empty:
        query = query.add_columns(tasks.c.body, tasks.c.result)
    if wanted.min_score is not None:
        query = query.add_columns(_BEST_SCORE.label("score"))
    query = query.where(tasks.c.tenant == wanted.tenant)
    if wanted.group_id is not None:
        query = query.where(tasks.c.group_id == wanted.group_id)
    for condition, statuses in _INDEXED.items():
        if wanted.statuses and wanted.statuses <= statuses:
            query = query.where(literal_column(condition))
    if wanted.from_ms is not None:
        query = query.where(wanted.from_ms <= _LISTED_AT)
    if wanted.before_ms is not None:
        query = query.where(wanted.before_ms > _LISTED_AT)
    is_descending = order is ListOrder.DESC
    if after is not None:
        at, behind = after.listed_at_ms, tasks.c.request_id
        # The first condition is the one that SQLite takes from the index.
        if is_descending:
            query = query.where(at >= _LISTED_AT, (at > _LISTED_AT) | (behind < after.request_id))
        else:
            query = query.where(at <= _LISTED_AT, (at < _LISTED_AT) | (behind > after.request_id))
    columns = (_LISTED_AT, tasks.c.request_id)
    return query.order_by(*(column.desc() if is_descending else column.asc() for column in columns))


def _cursor(place: Any) -> ListCursor:
    return ListCursor(place.listed_at_ms, place.request_id)


_PLACE: Final = re.compile(r"([0-9]{1,18})\.([0-9]{1,18})")
_LATEST: Final = {
    dialect: text(
        # Names of functions. Both call their column `value`.
        "SELECT value AS tenant, (SELECT max(change_number) FROM task WHERE tenant = value) AS number"  # noqa: S608
        f" FROM {elements}(:tenants)"
    )
    for dialect, elements in JSON_ELEMENTS.items()
}
"""With a maximum for each tenant, which is one step in the index; grouped it would be a walk over all their tasks."""


_ENDED: Final = [status for status in SHOWN_STATUSES if status.terminal]
_NEWEST: Final = text(
    "SELECT first_number AS first, (SELECT max(change_number) FROM task WHERE tenant = :tenant) AS number"
    " FROM change_counter"
)


@dataclass(frozen=True, slots=True)
class ChangePlace:
    """A place in the order of the changes of a tenant's tasks in one store."""

    first: int
    """Names the store: one that is built later has a higher number."""
    number: int

    @classmethod
    def parse(cls, value: str) -> Self:
        """The place; raises `ValueError` for a text that `str` never makes."""
        found = _PLACE.fullmatch(value)
        if found is None:
            raise ValueError("is not the id of an event of this stream; leave it out to begin with the tasks")
        return cls(int(found[1]), int(found[2]))

    def is_within(self, newest: Self) -> bool:
        """Whether all that came after it is known, where the store is at `newest`."""
        return self.first == newest.first and self.number <= newest.number

    def __str__(self) -> str:
        return f"{self.first}.{self.number}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Changes:
    """Tasks that changed after a place, those that did so first before the others."""

    tasks: Sequence[tuple[ChangePlace, TaskState]]
    newest: ChangePlace
    """Where the tenant was."""
    has_more: bool


def read_place(connection: Connection, tenant: str) -> ChangePlace:
    """The place of the latest change of the tenant's tasks."""
    row = connection.execute(_NEWEST, {"tenant": tenant}).one_or_none()
    if row is None:
        raise DamagedStoreError("the number of the first change is lost")
    return ChangePlace(row.first, row.first if row.number is None else row.number)


def read_latest_changes(connection: Connection, tenants: Collection[str]) -> dict[str, int]:
    """The number of the latest change of each of these tenants that has any."""
    rows = connection.execute(_LATEST[connection.dialect.name], {"tenants": json.dumps(list(tenants))})
    return {row.tenant: row.number for row in rows if row.number is not None}


def read_changes(
    connection: Connection, tenant: str, *, after: ChangePlace, limit: int, ended: bool = False
) -> Changes:
    """At most `limit` tasks, fewer when they are large; none when the store does not know the place.

    With `ended` only tasks that have. In a transaction, or a task may have changed once more than its number says.
    """
    newest = read_place(connection, tenant)
    if not after.is_within(newest):
        return Changes(tasks=(), newest=newest, has_more=False)
    query = (
        select(tasks)
        .where(tasks.c.tenant == tenant, tasks.c.change_number > after.number)
        .order_by(tasks.c.change_number)
        .limit(limit + 1)
    )
    if ended:
        query = query.where(tasks.c.status.in_(_ENDED))
    found: list[tuple[ChangePlace, TaskState]] = []
    characters = 0
    for row in connection.execute(query).mappings():
        if len(found) == limit or characters > MAX_PAGE_CHARACTERS:
            return Changes(tasks=found, newest=newest, has_more=True)
        state = to_state(row)
        characters += len(state.body or "") + len(state.result or "")
        found.append((ChangePlace(newest.first, row["change_number"]), state))
    return Changes(tasks=found, newest=newest, has_more=False)
