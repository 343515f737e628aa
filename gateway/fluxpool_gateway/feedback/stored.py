"""Ratings and comparisons in the task store: kept in step with Kafka in the projector's transactions.

Of the records with one key the last one counts, whatever was read before; a task that its client had deleted has none.
So a store that is built again from Kafka has the same rows, in whatever order it reads the topics.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, TypeVar

from sqlalchemy import Connection, Table, bindparam, delete, insert, select, tuple_

from fluxpool_contract.bounds import milliseconds_of
from fluxpool_contract.messages import Comparison, ImageOrigin, Rating, prompt_key
from fluxpool_gateway.feedback.records import FeedbackSeen
from fluxpool_gateway.store.tables import comparisons, ratings, tasks

T = TypeVar("T")

_CHUNK: Final = 300
"""Of keys in one statement, each with two values: SQLite takes 999 in old builds."""
_Key = tuple[str, str]
"""Tenant and rating_id."""
_RecordPosition = tuple[int, int, int]
"""Time, partition and offset of the record."""
_DELETED: Final = (
    select(tasks.c.tenant, tasks.c.request_id)
    .where(tasks.c.status == "deleted")
    .where(tasks.c.request_id.in_(bindparam("request_ids", expanding=True)))
)
_OF_TASK: Final = (
    delete(ratings).where(ratings.c.tenant == bindparam("of"), ratings.c.request_id == bindparam("task")),
    delete(comparisons).where(comparisons.c.tenant == bindparam("of"), comparisons.c.a_request_id == bindparam("task")),
    delete(comparisons).where(comparisons.c.tenant == bindparam("of"), comparisons.c.b_request_id == bindparam("task")),
)


def save_feedback(connection: Connection, changes: Sequence[tuple[tuple[str, int, int], FeedbackSeen]]) -> None:
    """Apply records, each with its topic, partition and offset. After the tasks of the same transaction."""
    latest: dict[_Key, tuple[_RecordPosition, FeedbackSeen]] = {}
    known = _places(connection, {(change.tenant, change.rating_id) for _, change in changes})
    for (_, partition, offset), change in changes:
        key, place = (change.tenant, change.rating_id), (change.at_ms, partition, offset)
        before = latest[key][0] if key in latest else known.get(key)
        if before is None or _is_later(place, before):
            latest[key] = (place, change)
    if not latest:
        return
    for chunk in _chunks(list(latest)):
        for table in (ratings, comparisons):
            connection.execute(delete(table).where(tuple_(table.c.tenant, table.c.rating_id).in_(chunk)))
    deleted = _deleted(connection, [change for _, change in latest.values()])
    rows: dict[Table, list[dict[str, Any]]] = {ratings: [], comparisons: []}
    for (at_ms, partition, offset), change in latest.values():
        if change.judgement is None or not deleted.isdisjoint(
            (change.tenant, name) for name in _task_ids(change.judgement)
        ):
            continue
        row = (
            _rating_row(change.judgement) if isinstance(change.judgement, Rating) else _comparison_row(change.judgement)
        )
        row |= {"tenant": change.tenant, "at_ms": at_ms, "partition": partition, "offset": offset}
        rows[ratings if isinstance(change.judgement, Rating) else comparisons].append(row)
    for table, new in rows.items():
        if new:
            connection.execute(insert(table), new)


def delete_feedback_of(connection: Connection, deleted: Iterable[tuple[str, str]]) -> None:
    """Delete the judgements of tasks that were deleted, each by its id and tenant."""
    values = [{"task": request_id, "of": tenant} for request_id, tenant in deleted]
    if values:
        for statement in _OF_TASK:
            connection.execute(statement, values)


def _is_later(place: _RecordPosition, before: _RecordPosition) -> bool:
    """Whether a record came later than another with the same key: by its offset where both lie in one partition."""
    if place[1] == before[1]:
        return place[2] > before[2]
    # Partitions were added since, or its producer has another partitioner.
    return place[:2] > before[:2]


def _places(connection: Connection, keys: set[_Key]) -> Mapping[_Key, _RecordPosition]:
    found: dict[_Key, _RecordPosition] = {}
    for chunk in _chunks(sorted(keys)):
        for table in (ratings, comparisons):
            columns = (table.c.tenant, table.c.rating_id, table.c.at_ms, table.c.partition, table.c.offset)
            wanted = tuple_(table.c.tenant, table.c.rating_id).in_(chunk)
            found |= {
                (row[0], row[1]): (row[2], row[3], row[4]) for row in connection.execute(select(*columns).where(wanted))
            }
    return found


def _deleted(connection: Connection, changes: Sequence[FeedbackSeen]) -> set[tuple[str, str]]:
    """Tenant and id of those of their tasks that were deleted."""
    names = sorted({name for change in changes if change.judgement is not None for name in _task_ids(change.judgement)})
    found: set[tuple[str, str]] = set()
    for chunk in _chunks(names):
        found |= {(row.tenant, row.request_id) for row in connection.execute(_DELETED, {"request_ids": chunk})}
    return found


def _chunks(items: Sequence[T]) -> Iterable[Sequence[T]]:
    return (items[start : start + _CHUNK] for start in range(0, len(items), _CHUNK))


def _task_ids(judgement: Rating | Comparison) -> tuple[str, ...]:
    return (
        (judgement.request_id,) if isinstance(judgement, Rating) else (judgement.a.request_id, judgement.b.request_id)
    )


def _rating_row(judgement: Rating) -> dict[str, Any]:
    origin = judgement.origin or ImageOrigin()
    return {
        "rating_id": judgement.rating_id,
        "request_id": judgement.request_id,
        "image_index": judgement.image_index,
        "rater_hash": judgement.rater_hash or "",
        "score": judgement.score,
        "reward_quarters": None if judgement.reward is None else round(judgement.reward * 4),
        **_origin(origin),
        "prompt_key": None if origin.prompt is None else prompt_key(origin.prompt),
        "created_at_ms": milliseconds_of(judgement.created_at),
        "body": judgement.model_dump_json(exclude_none=True),
    }


def _comparison_row(judgement: Comparison) -> dict[str, Any]:
    sides = {"a": judgement.a, "b": judgement.b}
    row: dict[str, Any] = {
        "rating_id": judgement.rating_id,
        "rater_hash": judgement.rater_hash or "",
        "preferred": judgement.preferred.value,
        "created_at_ms": milliseconds_of(judgement.created_at),
        "body": judgement.model_dump_json(exclude_none=True),
    }
    for side, image in sides.items():
        row |= {f"{side}_request_id": image.request_id, f"{side}_index": image.image_index}
        row |= {f"{side}_{name}": value for name, value in _origin(image.origin or ImageOrigin()).items()}
    return row


def _origin(origin: ImageOrigin) -> dict[str, Any]:
    return {"model": origin.model, "pool": origin.pool, "preset": origin.preset, "steps": origin.steps}
