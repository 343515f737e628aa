"""The rows of dead letters: written in the projector's transaction, read by the servers. Owns the statements.

Each record has its row. Records about one failure, which a worker writes twice when it is killed at the wrong moment,
have one resolution and are shown as one: the first of those that are there. So the rows of a rebuild are equal, in
whatever order it reads the partitions.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from itertools import groupby
from typing import Any, Final

from sqlalchemy import (
    ColumnElement,
    Connection,
    Row,
    Select,
    and_,
    bindparam,
    case,
    delete,
    func,
    insert,
    or_,
    select,
    tuple_,
    update,
)

from fluxpool_contract.bounds import cut_text, milliseconds_of, moment_at
from fluxpool_contract.messages import DeadLetter, Resolution, ResolutionAction
from fluxpool_gateway.dead_letters.records import DeadLetterChange, DeadLetterSeen, ResolutionSeen
from fluxpool_gateway.store.tables import dead_letters, tasks
from fluxpool_gateway.store.task_state import TaskStatus
from fluxpool_transport.dlq import DeadLetterEntry, RecordRef

OPEN: Final = "open"
"""State of a dead letter without a resolution; the others are the actions of resolutions."""
DELETED: Final = ResolutionAction.DELETED.value
"""State of a dead letter whose task was deleted: its row keeps no more than what it is known by, and is not shown."""
_MAX_TEXT_BYTES: Final = 4096
"""Of a message or problem. A worker's has 1 KiB; any producer may write a megabyte into a header."""
_CHUNK: Final = 500
_T: Final = dead_letters.c

_OF_PLACE: Final = (
    _T.topic == bindparam("of_topic"),
    _T.partition == bindparam("of_partition"),
    _T.offset == bindparam("of_offset"),
)
_DELETE: Final = delete(dead_letters).where(*_OF_PLACE)
_OF_FAILURE: Final = (
    _T.topic == bindparam("of_topic"),
    _T.failure == select(_T.failure).where(*_OF_PLACE).scalar_subquery(),
)
_RESOLVE: Final = (
    update(dead_letters)
    .where(
        *_OF_FAILURE,
        _T.state != DELETED,
        # Of several resolutions the last one counts, whichever partition is read first.
        or_(_T.resolved_at_ms.is_(None), _T.resolved_at_ms <= bindparam("at_ms")),
    )
    .values(state=bindparam("action"), resolution=bindparam("told"), resolved_at_ms=bindparam("at_ms"))
)
_ERASED: Final[Mapping[str, Any]] = {
    "state": DELETED, "body": None, "problem": "", "resolution": None, "resolved_at_ms": None,
}  # fmt: skip
_ERASE: Final = update(dead_letters).where(*_OF_FAILURE).values(**_ERASED)
_ERASE_OF_TASK: Final = (
    update(dead_letters)
    .where(_T.request_id == bindparam("of_request_id"), _T.tenant == bindparam("of_tenant"))
    .values(**_ERASED)
)


def save_dead_letters(connection: Connection, topic: str, changes: Sequence[DeadLetterChange]) -> None:
    """Apply what was read of the topic, in the order of each partition."""
    for kind, run in groupby(changes, key=type):
        if kind is DeadLetterSeen:
            _add(connection, topic, [change for change in run if isinstance(change, DeadLetterSeen)])
        else:
            resolutions = [change.resolution for change in run if isinstance(change, ResolutionSeen)]
            _resolve(connection, topic, resolutions)


def erase_dead_letters_of(connection: Connection, deleted: Iterable[tuple[str, str]]) -> None:
    """Erase the dead letters of tasks that were deleted, each by its id and tenant."""
    values = [{"of_request_id": request_id, "of_tenant": tenant} for request_id, tenant in deleted]
    if values:
        connection.execute(_ERASE_OF_TASK, values)


def _resolve(connection: Connection, topic: str, resolutions: Iterable[Resolution]) -> None:
    for is_deletion, run in groupby(resolutions, key=lambda resolution: resolution.action == ResolutionAction.DELETED):
        if is_deletion:
            connection.execute(_ERASE, [_place_values(topic, resolution) for resolution in run])
        else:
            connection.execute(_RESOLVE, [_resolution_values(topic, resolution) for resolution in run])


def _add(connection: Connection, topic: str, seen: Sequence[DeadLetterSeen]) -> None:
    # The last one of a place: the end of a log may have been truncated and written again.
    rows = {change.entry.ref: _values(topic, change) for change in seen}
    failures = [row["failure"] for row in rows.values()]
    resolved: dict[str, Row[Any]] = {}
    for start in range(0, len(failures), _CHUNK):
        found = connection.execute(
            select(_T.failure, _T.state, _T.resolution, _T.resolved_at_ms)
            .where(_T.topic == topic, _T.failure.in_(failures[start : start + _CHUNK]), _T.state != OPEN)
            # A deletion last: it counts.
            .order_by(case((_T.state == DELETED, 1), else_=0), _T.resolved_at_ms)
        )
        resolved |= {row.failure: row for row in found}
    deleted = _deleted_tasks(connection, {values["request_id"] for values in rows.values()} - {None})
    for values in rows.values():
        known = resolved.get(values["failure"])
        if (values["request_id"], values["tenant"]) in deleted or (known is not None and known.state == DELETED):
            values.update(_ERASED)
        elif known is not None:
            values.update(state=known.state, resolution=known.resolution, resolved_at_ms=known.resolved_at_ms)
    places = [{"of_topic": topic, "of_partition": ref.partition, "of_offset": ref.offset} for ref in rows]
    connection.execute(_DELETE, places)
    connection.execute(insert(dead_letters), list(rows.values()))


def _deleted_tasks(connection: Connection, request_ids: Iterable[str]) -> set[tuple[str, str]]:
    """Id and tenant of those tasks with one of these ids that were deleted."""
    found: set[tuple[str, str]] = set()
    names = sorted(request_ids)
    for start in range(0, len(names), _CHUNK):
        query = select(tasks.c.request_id, tasks.c.tenant).where(
            tasks.c.request_id.in_(names[start : start + _CHUNK]), tasks.c.status == TaskStatus.DELETED.value
        )
        found |= {(row.request_id, row.tenant) for row in connection.execute(query)}
    return found


def _values(topic: str, seen: DeadLetterSeen) -> dict[str, Any]:
    entry = seen.entry
    dead_letter = entry.dead_letter
    if dead_letter is not None:
        dead_letter = dead_letter.model_copy(update={"message": cut_text(dead_letter.message, _MAX_TEXT_BYTES)})
    return {
        "topic": topic,
        "partition": entry.ref.partition,
        "offset": entry.ref.offset,
        # Equal texts for equal failures, and no more than that.
        "failure": hashlib.sha256(repr(entry.failure).encode(errors="replace")).hexdigest()[:32],
        "tenant": seen.tenant,
        "failed_at_ms": milliseconds_of(entry.failed_at),
        "stored_at_ms": milliseconds_of(entry.stored_at),
        "state": OPEN,
        "error_class": _plain(entry.error_class),
        "error_code": None if dead_letter is None else _plain(dead_letter.error_code),
        "disposition": None if dead_letter is None else _plain(dead_letter.disposition),
        "origin_topic": None if dead_letter is None else _plain(dead_letter.origin_topic),
        "pool": None if dead_letter is None else _plain(dead_letter.pool),
        "model": None if dead_letter is None else _plain(dead_letter.model),
        "worker": None if dead_letter is None else _plain(dead_letter.worker),
        "request_id": _plain(entry.request_id),
        "epoch": entry.epoch,
        "value_bytes": entry.value_bytes,
        "body": None if dead_letter is None else dead_letter.model_dump_json(exclude_none=True),
        "problem": _plain(cut_text(entry.problem, _MAX_TEXT_BYTES)),
        "resolution": None,
        "resolved_at_ms": None,
    }


def _plain(text: str | None) -> str | None:
    """Text that PostgreSQL takes: a null character is not part of any."""
    return None if text is None else str(text).replace("\0", "\ufffd")


def _place_values(topic: str, resolution: Resolution) -> dict[str, Any]:
    return {"of_topic": topic, "of_partition": resolution.partition, "of_offset": resolution.offset}


def _resolution_values(topic: str, resolution: Resolution) -> dict[str, Any]:
    return {
        **_place_values(topic, resolution),
        "action": _plain(resolution.action),
        "told": resolution.model_dump_json(exclude_none=True),
        "at_ms": milliseconds_of(resolution.at),
    }


def forget_dead_letters(connection: Connection, topic: str) -> None:
    """Delete all of a topic that is another one now."""
    connection.execute(delete(dead_letters).where(_T.topic == topic))


def delete_expired_dead_letters(connection: Connection, starts: Mapping[tuple[str, int], int]) -> None:
    """Delete those whose records Kafka has deleted; `starts` is where the log of each partition begins."""
    places = [
        {"of_topic": topic, "of_partition": partition, "start": start} for (topic, partition), start in starts.items()
    ]
    if places:
        before = delete(dead_letters).where(*_OF_PLACE[:2], _T.offset < bindparam("start"))
        connection.execute(before, places)


@dataclass(frozen=True, slots=True)
class StoredDeadLetter:
    """One entry as it is projected, and whose it is."""

    entry: DeadLetterEntry
    tenant: str
    state: str

    @property
    def place(self) -> "ListPosition":
        """Its place in a list."""
        return ListPosition(milliseconds_of(self.entry.failed_at), self.entry.ref)


@dataclass(frozen=True, slots=True)
class ListPosition:
    """A place in the order of failures."""

    failed_at_ms: int
    ref: RecordRef


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadLetterQuery:
    """Which dead letters; an empty field selects all, several fields must all match."""

    tenant: str | None = None
    refs: frozenset[RecordRef] = frozenset()
    """Also by a further record about the same failure."""
    states: frozenset[str] = frozenset()
    fields: Mapping[str, frozenset[str]] | None = None
    """Texts by the name of a column of `FILTERS`."""
    since: datetime | None = None
    until: datetime | None = None


class Dimension(StrEnum):
    """What dead letters are counted by."""

    ERROR_CLASS = "error_class"
    ERROR_CODE = "error_code"
    POOL = "pool"
    MODEL = "model"
    WORKER = "worker"
    HOUR = "hour"


HOUR_MS: Final = 3_600_000
FILTERS: Final = ("error_class", "error_code", "disposition", "pool", "model", "worker", "topic", "request_id")
_COLUMNS: Final = {name: _T.origin_topic if name == "topic" else _T[name] for name in FILTERS}
_HOURS: Final = _T.failed_at_ms - _T.failed_at_ms % HOUR_MS
_OTHER: Final = dead_letters.alias("other")
_IS_FIRST: Final = ~(
    select(_OTHER.c.offset)
    .where(
        _OTHER.c.topic == _T.topic,
        _OTHER.c.failure == _T.failure,
        or_(
            _OTHER.c.partition < _T.partition,
            and_(_OTHER.c.partition == _T.partition, _OTHER.c.offset < _T.offset),
        ),
    )
    .exists()
)


def _conditions(topic: str, wanted: DeadLetterQuery) -> Iterator[ColumnElement[bool]]:
    yield _T.topic == topic
    yield _T.state != DELETED
    yield _IS_FIRST
    if wanted.tenant is not None:
        yield _T.tenant == wanted.tenant
    if wanted.refs:
        # Not as pairs: PostgreSQL compares lists of those one in the other, and thousands exceed its stack.
        offsets: dict[int, list[int]] = {}
        for ref in wanted.refs:
            offsets.setdefault(ref.partition, []).append(ref.offset)
        places = [and_(_T.partition == partition, _T.offset.in_(of)) for partition, of in offsets.items()]
        yield _T.failure.in_(select(_T.failure).where(_T.topic == topic, or_(*places)))
    if wanted.states:
        yield _T.state.in_(wanted.states)
    for name, texts in (wanted.fields or {}).items():
        if texts:
            yield _COLUMNS[name].in_(texts)
    if wanted.since is not None:
        yield _T.failed_at_ms >= milliseconds_of(wanted.since)
    if wanted.until is not None:
        yield _T.failed_at_ms < milliseconds_of(wanted.until)


def is_task_deleted(connection: Connection, topic: str, ref: RecordRef) -> bool:
    """Whether the task of the dead letter at a place was deleted."""
    places = {"of_topic": topic, "of_partition": ref.partition, "of_offset": ref.offset}
    return connection.execute(select(_T.offset).where(*_OF_PLACE, _T.state == DELETED), places).first() is not None


def count_dead_letters(connection: Connection, topic: str, wanted: DeadLetterQuery) -> int:
    """How many there are."""
    return int(connection.execute(select(func.count()).where(*_conditions(topic, wanted))).scalar_one())


def list_dead_letters(
    connection: Connection,
    topic: str,
    wanted: DeadLetterQuery,
    *,
    after: ListPosition | None = None,
    newest_first: bool,
    limit: int,
) -> Sequence[StoredDeadLetter]:
    """At most `limit` behind a place, in the order of their failures."""
    order = (_T.failed_at_ms, _T.partition, _T.offset)
    query = select(dead_letters).where(*_conditions(topic, wanted)).limit(limit)
    query = query.order_by(*(column.desc() if newest_first else column for column in order))
    if after is not None:
        place = tuple_(after.failed_at_ms, after.ref.partition, after.ref.offset)
        query = query.where(tuple_(*order) < place if newest_first else tuple_(*order) > place)
    rows = connection.execute(query).all()
    copies = _copies(connection, topic, rows)
    return [_stored(row, copies.get(row.failure, ())) for row in rows]


def _copies(connection: Connection, topic: str, rows: Iterable[Row[Any]]) -> dict[str, list[RecordRef]]:
    """Every record about each of these failures, in order."""
    failures = [row.failure for row in rows]
    found: dict[str, list[RecordRef]] = {}
    for start in range(0, len(failures), _CHUNK):
        query = select(_T.failure, _T.partition, _T.offset).where(
            _T.topic == topic, _T.failure.in_(failures[start : start + _CHUNK])
        )
        for row in connection.execute(query.order_by(_T.partition, _T.offset)):
            found.setdefault(row.failure, []).append(RecordRef(row.partition, row.offset))
    return found


def _stored(row: Row[Any], refs: Sequence[RecordRef]) -> StoredDeadLetter:
    ref = RecordRef(row.partition, row.offset)
    entry = DeadLetterEntry(
        ref=ref,
        stored_at=moment_at(row.stored_at_ms),
        value_bytes=row.value_bytes,
        dead_letter=None if row.body is None else DeadLetter.model_validate_json(row.body),
        problem=row.problem,
        epoch=row.epoch,
        copies=tuple(copy for copy in refs if copy != ref),
        resolution=None if row.resolution is None else Resolution.model_validate_json(row.resolution),
    )
    return StoredDeadLetter(entry, row.tenant, row.state)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cause:
    """Dead letters that are alike."""

    dimensions: Mapping[Dimension, str | int | None]
    """An hour is the milliseconds since 1970 of its start."""
    open: int
    resolved: int
    first_failed_at: datetime
    last_failed_at: datetime
    example: RecordRef
    """The latest."""


def summarize_dead_letters(
    connection: Connection, topic: str, wanted: DeadLetterQuery, *, by: Sequence[Dimension], limit: int
) -> Sequence[Cause]:
    """At most `limit` causes, those with the most open dead letters first."""
    columns = [(_HOURS if name is Dimension.HOUR else _T[name.value]).label(f"by_{name.value}") for name in by]
    partition_by = [_HOURS if name is Dimension.HOUR else _T[name.value] for name in by]
    latest = (_T.failed_at_ms.desc(), _T.partition.desc(), _T.offset.desc())
    is_open = case((_T.state == OPEN, 1), else_=0)
    inner: Select[Any] = select(
        *columns,
        _T.partition,
        _T.offset,
        func.row_number().over(partition_by=partition_by, order_by=latest).label("rank"),
        func.count().over(partition_by=partition_by).label("total"),
        func.sum(is_open).over(partition_by=partition_by).label("open"),
        func.min(_T.failed_at_ms).over(partition_by=partition_by).label("first_ms"),
        func.max(_T.failed_at_ms).over(partition_by=partition_by).label("last_ms"),
    ).where(*_conditions(topic, wanted))
    ranked = inner.subquery()
    query = (
        select(ranked)
        .where(ranked.c.rank == 1)
        .order_by(ranked.c.open.desc(), ranked.c.total.desc(), ranked.c.partition, ranked.c.offset)
        .limit(limit)
    )
    return [
        Cause(
            dimensions={name: row[number] for number, name in enumerate(by)},
            open=row.open,
            resolved=row.total - row.open,
            first_failed_at=moment_at(row.first_ms),
            last_failed_at=moment_at(row.last_ms),
            example=RecordRef(row.partition, row.offset),
        )
        for row in connection.execute(query)
    ]
