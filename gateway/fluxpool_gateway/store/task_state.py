"""Folds records of several topics, in any order, into the state of one task.

Pure. Topics are not ordered among each other, so every record carries its place in a task's life (`version_of`) and
an older one never undoes a newer one.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Final, NamedTuple, Self, assert_never

from fluxpool_gateway.usage.figures import NOTHING, Figures


class TaskStatus(StrEnum):
    """The status of a task; all but the first two are terminal."""

    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    EXPIRED = "expired"
    CANCELED = "canceled"
    DELETED = "deleted"
    """Its client had it deleted: the row keeps the id from being used again, and no route shows it."""

    @property
    def terminal(self) -> bool:
        """Whether the task has ended."""
        return self not in {TaskStatus.QUEUED, TaskStatus.RUNNING}


SHOWN_STATUSES: Final = tuple(status for status in TaskStatus if status is not TaskStatus.DELETED)

Position = tuple[str, int]
"""Topic and partition."""
RecordRef = tuple[str, int, int]
"""Topic, partition and offset of one record."""


class TaskKey(NamedTuple):
    """What a task is known by: clients choose ids, so those of two tenants may be equal."""

    request_id: str
    tenant: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskSeen:
    """A record of a task topic."""

    request_id: str
    body: str
    """The record's value."""
    priority: str
    tenant: str
    """Whose task it is, as for every record: `TenantTrust.owner`."""
    created_at_ms: int
    group_id: str | None = None
    epoch: int = 0
    attempt: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class ProgressSeen:
    """A record of the progress topic."""

    request_id: str
    status: TaskStatus
    at_ms: int
    started: bool
    """Whether it says that an attempt began."""
    tenant: str
    epoch: int = 0
    attempt: int = 1
    step: int | None = None
    total_steps: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ResultSeen:
    """A record of the results topic."""

    request_id: str
    status: TaskStatus
    body: str
    """The record's value."""
    completed_at_ms: int
    tenant: str
    epoch: int = 0
    attempt: int = 1
    used: Figures = NOTHING


@dataclass(frozen=True, slots=True, kw_only=True)
class DeletionSeen:
    """A record of the results topic without a value: the task's client had it deleted."""

    request_id: str
    tenant: str


Change = TaskSeen | ProgressSeen | ResultSeen | DeletionSeen


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskState:
    """One row of the store. Times are milliseconds since 1970, UTC."""

    request_id: str
    tenant: str
    version: int
    status: TaskStatus
    attempts: int
    step: int | None = None
    total_steps: int | None = None
    body: str | None = None
    """The task as sent; None while only its results are known."""
    priority: str | None = None
    created_at_ms: int | None = None
    started_at_ms: int | None = None
    completed_at_ms: int | None = None
    result: str | None = None
    """The result as published; there exactly when the task has ended and is not deleted."""
    group_id: str | None = None
    place: RecordRef | None = field(default=None, compare=False)
    """Where its latest record lies, of a queued task that is read from the store; not a part of what is known of it."""

    @property
    def key(self) -> TaskKey:
        """What it is known by."""
        return TaskKey(self.request_id, self.tenant)


_MAX_EPOCH: Final = 999_999
_MAX_ATTEMPT: Final = 9_999
_MAX_STEP: Final = 999
_EPOCH: Final = 10**12
"""By so much the versions of two epochs differ."""
DELETED_VERSION: Final = (_MAX_EPOCH + 1) * _EPOCH
"""Later than every other: a deletion is final, also for replays, so that the order of reading does not matter."""


def version_of(*, status: TaskStatus, epoch: int, attempt: int, step: int | None = None) -> int:
    """The place of a record in the life of its task; a higher one is later.

    By replay epoch first, then ended or not (an end counts more than any attempt, since workers number attempts in
    place differently from results), then attempt, queued before running, and step (none before the first). Fits into
    63 bits, whatever the numbers.
    """
    steps_begun = 0 if step is None else _within(step, _MAX_STEP) + 1
    match status:
        case TaskStatus.QUEUED:
            rank = 10
        case TaskStatus.RUNNING:
            rank = 20
        case TaskStatus.SUCCEEDED | TaskStatus.FAILED | TaskStatus.EXPIRED | TaskStatus.CANCELED:
            rank = 90
        case TaskStatus.DELETED:
            return DELETED_VERSION
        case _:
            assert_never(status)
    within_epoch = int(status.terminal) * 10**11 + _within(attempt, _MAX_ATTEMPT) * 10**6 + rank * 10**4 + steps_begun
    return _within(epoch, _MAX_EPOCH) * _EPOCH + within_epoch


def epoch_of(version: int) -> int:
    """The replay epoch of a version."""
    return version // _EPOCH


def _within(number: int, maximum: int) -> int:
    return max(0, min(number, maximum))


def fold(state: TaskState | None, change: Change) -> TaskState:
    """The state after one more record of the same key; the very same object when the record says nothing new."""
    if state is not None and state.status is TaskStatus.DELETED:
        return state
    match change:
        case TaskSeen():
            if state is None:
                return _first(change)
            later = _advance(state, change, status=TaskStatus.QUEUED)
            # Of several records with one id the earliest tells when the request came, whichever is read first.
            if later.body is None or (change.created_at_ms, change.body) < (later.created_at_ms, later.body):
                later = replace(
                    later,
                    body=change.body,
                    priority=change.priority,
                    created_at_ms=change.created_at_ms,
                    group_id=change.group_id,
                )
            return later
        case ProgressSeen():
            later = _advance(state, change, status=change.status, step=change.step, total_steps=change.total_steps)
            if change.started and (later.started_at_ms is None or change.at_ms < later.started_at_ms):
                later = replace(later, started_at_ms=change.at_ms)
            return later
        case ResultSeen():
            return _advance(
                state, change, status=change.status, result=change.body, completed_at_ms=change.completed_at_ms
            )
        case DeletionSeen():
            # Nothing of the task itself is kept: that is what its client asked for.
            return TaskState(
                request_id=change.request_id,
                tenant=change.tenant,
                version=DELETED_VERSION,
                status=TaskStatus.DELETED,
                attempts=0,
            )
        case _:
            assert_never(change)


def _first(task: TaskSeen) -> TaskState:
    """The state of a task that nothing was known of: by far the most frequent case, hence without detours."""
    return TaskState(
        request_id=task.request_id,
        version=version_of(status=TaskStatus.QUEUED, epoch=task.epoch, attempt=task.attempt),
        status=TaskStatus.QUEUED,
        attempts=task.attempt,
        body=task.body,
        priority=task.priority,
        tenant=task.tenant,
        created_at_ms=task.created_at_ms,
        group_id=task.group_id,
    )


def _advance(
    state: TaskState | None,
    change: TaskSeen | ProgressSeen | ResultSeen,
    *,
    status: TaskStatus,
    step: int | None = None,
    total_steps: int | None = None,
    result: str | None = None,
    completed_at_ms: int | None = None,
) -> TaskState:
    """The state with the part that only the latest record decides."""
    version = version_of(status=status, epoch=change.epoch, attempt=change.attempt, step=step)
    if state is None:
        state = TaskState(
            request_id=change.request_id, tenant=change.tenant, version=-1, status=status, attempts=change.attempt
        )
    if change.attempt > state.attempts:
        state = replace(state, attempts=change.attempt)
    if version <= state.version:
        return state
    return replace(
        state,
        version=version,
        status=status,
        step=step if status is TaskStatus.RUNNING else None,
        total_steps=total_steps if status is TaskStatus.RUNNING else None,
        result=result,
        completed_at_ms=completed_at_ms,
    )


_RANK_OF_PROGRESS: Final = -(10**18)
"""Puts the rank of progress below that of every other record: no version is as large."""


class Source(NamedTuple):
    """The record that a row lasts as long as: once Kafka has deleted it, the row is deleted too. The greatest counts.

    A task's progress is kept for hours, its record, its result and its deletion for days. So it is the deletion, else
    the result, else the task's record, and progress alone where none was read; of several of a kind the latest in the
    life of the task.
    """

    rank: int
    topic: str
    partition: int
    offset: int

    @classmethod
    def of(cls, change: Change, place: RecordRef) -> Self:
        """Of a record that was read at a place; the same in every rebuild, whatever the order of the topics."""
        return cls(_rank(change), *place)


def is_deleted(topic: str | None, partition: int | None, offset: int | None, *, starts: Mapping[Position, int]) -> bool:
    """Whether Kafka has deleted the record that a row lasts as long as; `starts` is where each log begins now.

    A row of an earlier release has no place until its records are read again. To be asked once all were read.
    """
    if topic is None or partition is None or offset is None:
        return True
    start = starts.get((topic, partition))
    return start is not None and offset < start


def _rank(change: Change) -> int:
    match change:
        case TaskSeen():
            return version_of(status=TaskStatus.QUEUED, epoch=change.epoch, attempt=change.attempt)
        case ProgressSeen():
            version = version_of(status=change.status, epoch=change.epoch, attempt=change.attempt, step=change.step)
            return version + _RANK_OF_PROGRESS
        case ResultSeen():
            return version_of(status=change.status, epoch=change.epoch, attempt=change.attempt)
        case DeletionSeen():
            return DELETED_VERSION
        case _:
            assert_never(change)
