"""Reading and writing the task store; the only place with SQL statements.

One process writes (`TaskStoreWriter`, the projector) and blocks: it is called in a thread. Any number read, by
`TaskStoreReader` in `store.reading`.
"""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from operator import attrgetter
from typing import Any, Final, Self

from sqlalchemy import Connection, Engine, Integer, Table, bindparam, delete, func, insert, select, text, tuple_, update
from sqlalchemy.engine import RowMapping

from fluxpool_gateway.dead_letters.records import DeadLetterChange, DeadLetterSeen, ResolutionSeen
from fluxpool_gateway.dead_letters.rows import (
    delete_expired_dead_letters,
    erase_dead_letters_of,
    forget_dead_letters,
    save_dead_letters,
)
from fluxpool_gateway.feedback.records import FeedbackSeen
from fluxpool_gateway.feedback.stored import delete_feedback_of, save_feedback
from fluxpool_gateway.store.database_faults import DamagedStoreError, is_record_fault
from fluxpool_gateway.store.tables import (
    change_counter,
    projected_offsets,
    projector_heartbeat,
    quarantined_records,
    tasks,
)
from fluxpool_gateway.store.task_state import (
    Change,
    Position,
    RecordRef,
    Source,
    TaskKey,
    TaskSeen,
    TaskState,
    TaskStatus,
    fold,
    is_deleted,
)
from fluxpool_gateway.usage.hours import UsageDeltas, delete_old_hours

StoreChange = Change | FeedbackSeen | DeadLetterChange
"""What one record says."""
MAX_QUARANTINED_RECORDS: Final = 1000
"""Rows that are kept, the newest: enough to find a producer by, too few to fill a disk."""
_MAX_REASON_CHARACTERS: Final = 300
_LOOKUP_CHUNK: Final = 500
_COLUMNS: Final = tuple(column.name for column in tasks.columns)
_FIELDS: Final = tuple(column.name for column in fields(TaskState) if column.compare)
_STATE_COLUMNS: Final = [column.name for column in tasks.columns if column.name in _FIELDS]
_ROW: Final = attrgetter(*("status.value" if name == "status" else name for name in _STATE_COLUMNS))
"""A state as the driver takes it, in the order of the columns; those of its source and of its change follow."""


@dataclass(frozen=True, slots=True)
class LogPosition:
    """An offset of a partition together with the id of the topic it belongs to.

    A topic that was deleted and recreated has another id, and the offsets of its predecessor say nothing of it.
    """

    offset: int
    topic_id: str | None = None
    """None when the brokers do not tell ids."""


@dataclass(frozen=True, slots=True, kw_only=True)
class QuarantinedRecord:
    """A record that was passed over because it cannot be applied."""

    topic: str
    partition: int
    offset: int
    reason: str
    at_ms: int
    """When it was passed over, in milliseconds since 1970, UTC."""

    @classmethod
    def at(cls, place: RecordRef, reason: str, now_ms: int) -> Self:
        """The record that lies there."""
        topic, partition, offset = place
        return cls(topic=topic, partition=partition, offset=offset, reason=reason, at_ms=now_ms)


@dataclass(frozen=True, slots=True, kw_only=True)
class Quarantine:
    """How many records were passed over since the store was built, and the latest of them."""

    count: int = 0
    latest: QuarantinedRecord | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Heartbeat:
    """What the projector last said of itself. Times are milliseconds since 1970, UTC."""

    pid: int
    beat_at_ms: int
    caught_up_at_ms: int | None
    """When it last had read everything; None when never since it started."""
    lag_records: int | None
    """How many records it had still to read; None while it does not know."""
    rebuilt_because: str | None = None
    """Why the store had to be built again; None once that is done, or when it is built for the first time."""


def _upsert(table: Table, values: str) -> str:
    """Insert these values, or replace what rows with their key have; equal in all dialects."""
    names = ", ".join(column.name for column in table.columns)
    key = ", ".join(column.name for column in table.primary_key.columns)
    changed = ", ".join(f"{column.name} = excluded.{column.name}" for column in table.columns if not column.primary_key)
    # Names of our own tables and columns.
    return f"INSERT INTO {table.name} ({names}) {values} ON CONFLICT ({key}) DO UPDATE SET {changed}"


def _named(table: Table) -> str:
    return f"VALUES ({', '.join(f':{column.name}' for column in table.columns)})"


# Given to the driver as it is, as is the look-up: SQLAlchemy's work for each row costs as much as SQLite's.
_SAVE_TASKS: Final = _upsert(tasks, f"VALUES ({', '.join('?' for _ in tasks.columns)})")
_SAVE_TASKS_AT_ONCE: Final = _upsert(
    tasks,
    "SELECT * FROM json_to_recordset(%s) AS rows("  # noqa: S608 - names and types of our columns
    + ", ".join(f"{column.name} {'bigint' if isinstance(column.type, Integer) else 'text'}" for column in tasks.columns)
    + ")",
)
"""One message to the server, where each row would be one; the driver takes longer to make arrays of texts than JSON."""
_SAVE_OFFSETS: Final = text(_upsert(projected_offsets, _named(projected_offsets)))
_SAVE_HEARTBEAT: Final = text(_upsert(projector_heartbeat, _named(projector_heartbeat)))
_COUNTER: Final = select(change_counter.c.first_number, change_counter.c.last_number).with_for_update()
_SAVE_LAST_CHANGE: Final = update(change_counter).values(last_number=bindparam("number"))
_FIND_VERSIONS: Final = select(tasks.c.request_id, tasks.c.tenant, tasks.c.version).where(
    tasks.c.request_id.in_(bindparam("request_ids", expanding=True))
)
_SCAN_SOURCES: Final = text(
    "SELECT request_id, tenant, source_topic, source_partition, source_offset FROM task"
    " WHERE (request_id, tenant) > (:request_id, :tenant) ORDER BY request_id, tenant LIMIT :rows"
)
_DELETE_TASK: Final = text("DELETE FROM task WHERE request_id = :request_id AND tenant = :tenant")
_FIND_TASKS: Final = f"{select(tasks)} WHERE request_id IN"
_FIND_TASKS_AT_ONCE: Final = f"{select(tasks)} WHERE request_id = ANY(%s)"


class TaskStoreWriter:
    """The projector's side."""

    def __init__(self, engine: Engine) -> None:
        """`engine` comes from `open_writer` or `open_projector`, and its schema is current."""
        self._engine = engine
        self._first_number: int | None = None
        """Names the store that the positions were read from; None before."""

    def apply(
        self,
        changes: Sequence[tuple[RecordRef, StoreChange]],
        positions: Mapping[Position, LogPosition],
        *,
        passed_over: Sequence[QuarantinedRecord] = (),
        now_ms: int,
    ) -> list[QuarantinedRecord]:
        """Fold records into their tasks and save how far Kafka was read, all or nothing.

        `positions` are the next to read; `passed_over` are records that could not even be read. A record that cannot be
        applied is quarantined, and all others are applied; returns what was quarantined so. Raises SQLAlchemy's
        `DatabaseError`, or `DamagedStoreError`, when the fault is the database's.
        """
        with self._engine.begin() as connection:
            numbers = _ChangeNumbers(max(now_ms * 1000, self._last_change(connection) + 1))
            refused = _apply_all(connection, changes, numbers, now_ms=now_ms)
            if numbers.taken:
                connection.execute(_SAVE_LAST_CHANGE, {"number": numbers.first + max(numbers.taken.values()) - 1})
            if passed_over or refused:
                _quarantine(connection, [*passed_over, *refused])
            if positions:
                connection.execute(
                    _SAVE_OFFSETS,
                    [
                        {
                            "topic": topic,
                            "partition": partition,
                            "next_offset": position.offset,
                            "topic_id": position.topic_id,
                        }
                        for (topic, partition), position in positions.items()
                    ],
                )
        return refused

    def positions(self) -> dict[Position, LogPosition]:
        """The next position to read of every partition that was ever read."""
        with self._engine.begin() as connection:
            self._first_number = None
            # In this order: positions of another store than the number's are never saved.
            self._last_change(connection)
            return read_positions(connection)

    def delete_expired(
        self, starts: Mapping[Position, int], *, after: TaskKey, rows: int
    ) -> tuple[TaskKey | None, int]:
        """Look at so many rows behind a key and delete those whose record Kafka has deleted.

        `starts` is where each log begins. Returns the last key that was looked at, None at the end, and the number of
        deleted rows. Only once everything was read that Kafka has: rows of an earlier release tell no record before.
        """
        with self._engine.begin() as connection:
            found = connection.execute(_SCAN_SOURCES, {**after._asdict(), "rows": rows}).all()
            expired = [
                {"request_id": request_id, "tenant": tenant}
                for request_id, tenant, *source in found
                if is_deleted(*source, starts=starts)
            ]
            if expired:
                connection.execute(_DELETE_TASK, expired)
        return (TaskKey(*found[-1][:2]) if len(found) == rows else None), len(expired)

    def delete_expired_dead_letters(self, starts: Mapping[Position, int]) -> None:
        """Delete the dead letters whose records Kafka has deleted; `starts` is where each log begins."""
        with self._engine.begin() as connection:
            delete_expired_dead_letters(connection, starts)

    def delete_old_usage(self, *, now_ms: int) -> None:
        """Delete the hours of usage that are no longer kept. Those of tasks whose rows were deleted stay until then."""
        with self._engine.begin() as connection:
            delete_old_hours(connection, now_ms=now_ms)

    def forget_positions(self, topic: str) -> None:
        """Forget how far a topic was read: it is another one now. The tasks stay; dead letters are gone with it."""
        with self._engine.begin() as connection:
            forget_dead_letters(connection, topic)
            connection.execute(delete(projected_offsets).where(projected_offsets.c.topic == topic))

    def heartbeat(self) -> Heartbeat | None:
        """The heartbeat of the projector before."""
        with self._engine.connect() as connection:
            return read_heartbeat(connection)

    def beat(self, heartbeat: Heartbeat) -> None:
        """Replace the heartbeat."""
        with self._engine.begin() as connection:
            # Not in a store that was emptied meanwhile: it has not caught up.
            self._last_change(connection)
            connection.execute(_SAVE_HEARTBEAT, [{"id": 1, **asdict(heartbeat)}])

    def _last_change(self, connection: Connection) -> int:
        """The number of the last change; the row is locked until the transaction ends, where others write as well.

        Raises `DamagedStoreError` when it is lost, or when the store is another one than before.
        """
        row = connection.execute(_COUNTER).one_or_none()
        if row is None:
            # Not the fault of a record: none could be applied.
            raise DamagedStoreError("the number of the last change is lost")
        if self._first_number not in {None, row.first_number}:
            raise DamagedStoreError("the store was emptied, to be built again")
        self._first_number = row.first_number
        return int(row.last_number)


def _apply_all(
    connection: Connection,
    changes: Sequence[tuple[RecordRef, StoreChange]],
    numbers: "_ChangeNumbers",
    *,
    now_ms: int,
) -> list[QuarantinedRecord]:
    """Apply records in one go; when one of them is at fault, bisect until it is found, and leave it out."""
    if not changes:
        return []
    try:
        with connection.begin_nested():
            usage = UsageDeltas()
            of_tasks, feedback, of_dead_letters = _divide(changes)
            for topic, seen in of_dead_letters.items():
                save_dead_letters(connection, topic, seen)
            changed = _fold_all(connection, of_tasks, usage)
            if changed:
                _save_tasks(connection, numbers.rows(changed))
                usage.save(connection)
                deleted = [state.key for state, _, _ in changed if state.status is TaskStatus.DELETED]
                delete_feedback_of(connection, deleted)
                erase_dead_letters_of(connection, deleted)
            # After the tasks: it is not kept for those that are deleted.
            save_feedback(connection, feedback)
    except Exception as error:  # no error of one record may stop those behind it
        if not is_record_fault(error):
            raise
        if len(changes) == 1:
            cause = getattr(error, "orig", None) or error
            return [QuarantinedRecord.at(changes[0][0], f"{type(cause).__name__}: {cause}", now_ms)]
        middle = len(changes) // 2
        return [
            *_apply_all(connection, changes[:middle], numbers, now_ms=now_ms),
            *_apply_all(connection, changes[middle:], numbers, now_ms=now_ms),
        ]
    return []


def _divide(
    changes: Sequence[tuple[RecordRef, StoreChange]],
) -> tuple[
    Sequence[tuple[RecordRef, Change]],
    Sequence[tuple[RecordRef, FeedbackSeen]],
    Mapping[str, Sequence[DeadLetterChange]],
]:
    """Those of tasks, of feedback, and of dead letters by their topic."""
    of_tasks: list[tuple[RecordRef, Change]] = []
    feedback: list[tuple[RecordRef, FeedbackSeen]] = []
    of_dead_letters: dict[str, list[DeadLetterChange]] = {}
    for place, change in changes:
        if isinstance(change, FeedbackSeen):
            feedback.append((place, change))
        elif isinstance(change, DeadLetterSeen | ResolutionSeen):
            of_dead_letters.setdefault(place[0], []).append(change)
        else:
            of_tasks.append((place, change))
    return of_tasks, feedback, of_dead_letters


def _save_tasks(connection: Connection, rows: list[tuple[Any, ...]]) -> None:
    if connection.dialect.name == "postgresql":
        named = [dict(zip(_COLUMNS, row, strict=True)) for row in rows]
        connection.exec_driver_sql(_SAVE_TASKS_AT_ONCE, (json.dumps(named, ensure_ascii=False),))
    else:
        connection.exec_driver_sql(_SAVE_TASKS, rows)


def _printable(text: str) -> str:
    """The text with everything escaped that a terminal would obey or a column refuse."""
    return "".join(character if character.isprintable() else ascii(character)[1:-1] for character in text)


def _quarantine(connection: Connection, records: Sequence[QuarantinedRecord]) -> None:
    """Keep the newest; the numbers of those that were removed still tell how many there were."""
    table = quarantined_records
    place = tuple_(table.c.topic, table.c.partition, table.c.offset)
    by_place = {(record.topic, record.partition, record.offset): record for record in records}
    for known in connection.execute(select(table).where(place.in_(list(by_place)))):
        del by_place[known.topic, known.partition, known.offset]
    # Numbered here: a sequence of the database would also count what is rolled back.
    newest = connection.execute(select(func.max(table.c.number))).scalar_one() or 0
    rows = [
        {**asdict(record), "number": number, "reason": _printable(record.reason)[:_MAX_REASON_CHARACTERS]}
        for number, record in enumerate(by_place.values(), newest + 1)
    ]
    if rows:
        connection.execute(insert(table), rows)
        connection.execute(delete(table).where(table.c.number <= newest + len(rows) - MAX_QUARANTINED_RECORDS))


_Row = tuple[TaskState, Source | None, int | None]
"""A task, its source, and the number of its last change, or None for a change that is not saved yet.

No source: written by an earlier release, and none of its records read since.
"""


@dataclass(frozen=True, slots=True)
class _ChangeNumbers:
    """The numbers of the changes of one transaction; each tenant has its own.

    They begin at the time in microseconds: what a client sees of them must not tell how much other tenants change.
    """

    first: int
    taken: Counter[str] = field(default_factory=Counter)

    def rows(self, changed: Iterable[tuple[TaskState, Source, int | None]]) -> list[tuple[Any, ...]]:
        """The rows to save, with the next numbers for those that changed."""
        return [
            (*_ROW(state), *source, self._next(state.tenant) if number is None else number)
            for state, source, number in changed
        ]

    def _next(self, tenant: str) -> int:
        taken = self.taken[tenant]
        self.taken[tenant] = taken + 1
        return self.first + taken


def _fold_all(
    connection: Connection, changes: Sequence[tuple[RecordRef, Change]], usage: UsageDeltas
) -> list[tuple[TaskState, Source, int | None]]:
    """The rows that differ from what is stored; `usage` gets what they add to it."""
    stored = _load(connection, list({change.request_id for _, change in changes}))
    changed: dict[tuple[str, str], tuple[TaskState, Source, int | None]] = {}
    for place, change in changes:
        # As a plain tuple, which equals a `TaskKey` and is made in a fifth of the time.
        key = (change.request_id, change.tenant)
        known = changed.get(key) or stored.get(key)
        if known is None:
            state = fold(None, change)
            # By far the most frequent case is a new task, whose rank is known already.
            rank_known = isinstance(change, TaskSeen)
            changed[key] = (state, Source(state.version, *place) if rank_known else Source.of(change, place), None)
            if state.result is not None:
                usage.note(None, state, change)
            continue
        state, source, number = known
        folded, read = fold(state, change), Source.of(change, place)
        if folded is not state or source is None or read > source:
            latest = read if source is None or read > source else source
            changed[key] = (folded, latest, number if folded is state else None)
            if folded.result is not None or state.result is not None:
                usage.note(state, folded, change)
    return list(changed.values())


def _load(connection: Connection, request_ids: Sequence[str]) -> dict[tuple[str, str], _Row]:
    """The tasks with these ids, of every tenant."""
    return {
        (row["request_id"], row["tenant"]): (to_state(row), _to_source(row), row["change_number"])
        for row in _find_tasks(connection, request_ids)
    }


def _find_tasks(connection: Connection, request_ids: Sequence[str]) -> Iterator[RowMapping]:
    if connection.dialect.name == "postgresql":
        yield from connection.exec_driver_sql(_FIND_TASKS_AT_ONCE, (list(request_ids),)).mappings()
        return
    for start in range(0, len(request_ids), _LOOKUP_CHUNK):
        chunk = tuple(request_ids[start : start + _LOOKUP_CHUNK])
        yield from connection.exec_driver_sql(f"{_FIND_TASKS} ({', '.join('?' * len(chunk))})", chunk).mappings()


def _to_source(row: RowMapping) -> Source | None:
    if row["source_rank"] is None:
        return None
    return Source(row["source_rank"], row["source_topic"], row["source_partition"], row["source_offset"])


def read_versions(connection: Connection, request_ids: Sequence[str]) -> dict[TaskKey, int]:
    """The version of each task with one of these ids."""
    found: dict[TaskKey, int] = {}
    for start in range(0, len(request_ids), _LOOKUP_CHUNK):
        chunk = request_ids[start : start + _LOOKUP_CHUNK]
        rows = connection.execute(_FIND_VERSIONS, {"request_ids": chunk})
        found.update((TaskKey(row.request_id, row.tenant), row.version) for row in rows)
    return found


def read_positions(connection: Connection) -> dict[Position, LogPosition]:
    """How far each partition was read."""
    rows = connection.execute(select(projected_offsets)).all()
    return {(row.topic, row.partition): LogPosition(row.next_offset, row.topic_id) for row in rows}


def read_heartbeat(connection: Connection) -> Heartbeat | None:
    """What the projector last said of itself; None when none ever ran."""
    row = connection.execute(select(projector_heartbeat)).mappings().first()
    return None if row is None else Heartbeat(**{name: row[name] for name in Heartbeat.__slots__})


def read_quarantine(connection: Connection) -> Quarantine:
    """How many records were passed over, and the latest."""
    newest = select(quarantined_records).order_by(quarantined_records.c.number.desc()).limit(1)
    row = connection.execute(newest).mappings().first()
    if row is None:
        return Quarantine()
    return Quarantine(
        count=row["number"], latest=QuarantinedRecord(**{name: row[name] for name in QuarantinedRecord.__slots__})
    )


def to_state(row: RowMapping) -> TaskState:
    """A row as it was saved; raises `DamagedStoreError` when no projector can have written it."""
    values = {name: row[name] for name in _FIELDS}
    if not (isinstance(values["version"], int) and isinstance(values["attempts"], int)):
        raise DamagedStoreError(f"task {values['request_id']!r:.140} has no version")
    try:
        values["status"] = TaskStatus(values["status"])
    except ValueError as error:
        raise DamagedStoreError(f"task {values['request_id']!r:.140} has no status") from error
    if values["status"] is TaskStatus.QUEUED and row["source_topic"] is not None:
        values["place"] = (row["source_topic"], row["source_partition"], row["source_offset"])
    return TaskState(**values)
