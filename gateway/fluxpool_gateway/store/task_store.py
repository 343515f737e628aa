"""Reading and writing the task store; the only place with SQL statements.

One process writes (`TaskStoreWriter`, the projector), any number read (`TaskStoreReader`). Both block: asynchronous
callers use a thread.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from operator import attrgetter
from typing import Any, Final

from sqlalchemy import Connection, Engine, Table, bindparam, select
from sqlalchemy.dialects.sqlite import Insert, insert
from sqlalchemy.engine import RowMapping

from fluxpool_gateway.store.tables import projected_offsets, projector_heartbeat, tasks
from fluxpool_gateway.store.task_state import Change, TaskState, TaskStatus, fold

Position = tuple[str, int]
"""Topic and partition."""

_LOOKUP_CHUNK: Final = 500
_FIELDS: Final = tuple(field.name for field in fields(TaskState))
_VALUES: Final = attrgetter(*_FIELDS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Heartbeat:
    """What the projector last said of itself. Times are milliseconds since 1970, UTC."""

    pid: int
    beat_at_ms: int
    caught_up_at_ms: int | None
    """When it last had read everything; None when never since it started."""
    lag_records: int | None
    """How many records it had still to read; None while it does not know."""


def _upsert(table: Table) -> Insert:
    statement = insert(table)
    changed = {column.name: statement.excluded[column.name] for column in table.columns if not column.primary_key}
    return statement.on_conflict_do_update(index_elements=list(table.primary_key.columns), set_=changed)


_SAVE_TASKS: Final = _upsert(tasks)
_SAVE_OFFSETS: Final = _upsert(projected_offsets)
_SAVE_HEARTBEAT: Final = _upsert(projector_heartbeat)
_FIND_TASKS: Final = select(tasks).where(tasks.c.request_id.in_(bindparam("request_ids", expanding=True)))
_FIND_TASK: Final = select(tasks).where(tasks.c.request_id == bindparam("request_id"))


class TaskStoreWriter:
    """The projector's side."""

    def __init__(self, engine: Engine) -> None:
        """`engine` comes from `open_writer` and its schema is current."""
        self._engine = engine

    def apply(self, changes: Sequence[Change], offsets: Mapping[Position, int]) -> None:
        """Fold records into their tasks and save how far Kafka was read, both or neither.

        `offsets` are the next offsets to read.
        """
        with self._engine.begin() as connection:
            changed = _fold_all(connection, changes)
            if changed:
                connection.execute(_SAVE_TASKS, [_to_row(state) for state in changed])
            if offsets:
                connection.execute(
                    _SAVE_OFFSETS,
                    [
                        {"topic": topic, "partition": partition, "next_offset": offset}
                        for (topic, partition), offset in offsets.items()
                    ],
                )

    def offsets(self) -> dict[Position, int]:
        """The next offset to read of every partition that was ever read."""
        return _read_offsets(self._engine)

    def beat(self, heartbeat: Heartbeat) -> None:
        """Replace the heartbeat."""
        row = {name: getattr(heartbeat, name) for name in Heartbeat.__slots__}
        with self._engine.begin() as connection:
            connection.execute(_SAVE_HEARTBEAT, [{"id": 1, **row}])


class TaskStoreReader:
    """The servers' side. Raises SQLAlchemy's `OperationalError` while there is no store yet."""

    def __init__(self, engine: Engine) -> None:
        """`engine` comes from `open_reader`."""
        self._engine = engine

    def find(self, request_id: str) -> TaskState | None:
        """The task with this id."""
        with self._engine.connect() as connection:
            row = connection.execute(_FIND_TASK, {"request_id": request_id}).mappings().first()
        return None if row is None else _to_state(row)

    def offsets(self) -> dict[Position, int]:
        """The next offset that the projector will read, of every partition that it ever read."""
        return _read_offsets(self._engine)

    def heartbeat(self) -> Heartbeat | None:
        """What the projector last said of itself; None when none ever ran."""
        with self._engine.connect() as connection:
            row = connection.execute(select(projector_heartbeat)).mappings().first()
        if row is None:
            return None
        return Heartbeat(**{name: row[name] for name in Heartbeat.__slots__})


def _fold_all(connection: Connection, changes: Sequence[Change]) -> list[TaskState]:
    """The states that differ from what is stored."""
    stored = _load(connection, list({change.request_id for change in changes}))
    states: dict[str, TaskState | None] = dict(stored)
    for change in changes:
        states[change.request_id] = fold(states.get(change.request_id), change)
    return [state for name, state in states.items() if state is not None and state is not stored.get(name)]


def _load(connection: Connection, request_ids: Sequence[str]) -> dict[str, TaskState]:
    found: dict[str, TaskState] = {}
    for start in range(0, len(request_ids), _LOOKUP_CHUNK):
        rows: Iterable[RowMapping] = connection.execute(
            _FIND_TASKS, {"request_ids": request_ids[start : start + _LOOKUP_CHUNK]}
        ).mappings()
        found.update((row["request_id"], _to_state(row)) for row in rows)
    return found


def _read_offsets(engine: Engine) -> dict[Position, int]:
    with engine.connect() as connection:
        rows = connection.execute(select(projected_offsets)).all()
    return {(row.topic, row.partition): row.next_offset for row in rows}


def _to_row(state: TaskState) -> dict[str, Any]:
    row = dict(zip(_FIELDS, _VALUES(state), strict=True))
    row["status"] = state.status.value
    return row


def _to_state(row: RowMapping) -> TaskState:
    values = {name: row[name] for name in _FIELDS}
    values["status"] = TaskStatus(values["status"])
    return TaskState(**values)
