"""The task as clients see it: a row of the store as the response of `GET /v1/generations/{id}`. Pure."""

import json
from datetime import UTC, datetime
from typing import Annotated, Any, Self

import structlog
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fluxpool_contract.bounds import moment_at
from fluxpool_contract.messages import GenerationResult, PresetChoice
from fluxpool_gateway.queue.place import Estimate
from fluxpool_gateway.store.task_list import GroupCounts
from fluxpool_gateway.store.task_state import SHOWN_STATUSES, TaskState, TaskStatus
from fluxpool_gateway.tasks.lookup import RecentTask

logger = structlog.stdlib.get_logger(__name__)


class _View(BaseModel):
    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)


class ProgressView(_View):
    """How far a running task is."""

    step: int
    total_steps: int
    percent: Annotated[int, Field(ge=0, le=100)]


class ImageView(_View):
    """One finished image."""

    index: int
    url: str
    width: int
    height: int
    seed: int
    format: str
    content_type: str
    bytes: int
    sha256: str
    marks: tuple[str, ...] = ()
    """How the file says that a model made it: xmp, c2pa. Empty in results of earlier releases."""


class ErrorView(_View):
    """Why there is no image."""

    code: str
    message: str
    field: str | None
    retryable: bool


class QueueView(_View):
    """The place of a task that waits: an estimate, by the workers and their speed as they are now."""

    position: int | None
    """Waiting tasks that are likely to begin before it, 0 for the next one; null when that is not known."""
    eta_seconds: float | None
    """Until its result; null when that is not known."""
    why: str
    """What the numbers come from, and what is missing."""


class TaskView(_View):
    """The state of one task."""

    request_id: str
    status: TaskStatus
    progress: ProgressView | None = None
    """While the task is running and its worker reports progress."""
    queue: QueueView | None = None
    """While the task is queued."""
    images: tuple[ImageView, ...] = ()
    image_url: str | None = None
    """Address of the first image."""
    error: ErrorView | None = None
    attempts: int = 1
    priority: str | None = None
    """Null while only the task's result is known."""
    seed: int | None = None
    """The seed that was used; null until the task succeeded."""
    model: str | None = None
    model_family: str | None = None
    model_license: str | None = None
    """Licence of the family's published weights."""
    warnings: tuple[str, ...] = ()
    metadata: dict[str, str] = {}
    group_id: str | None = None
    """As given with the task."""
    parent_id: str | None = None
    """The task that this one is a retry of."""
    preset: str | None = None
    """The preset whose parameters the task has."""
    preset_reason: str | None = None
    """Why it has this preset."""
    preset_probability: float | None = None
    """Of this choice; null when the preset was asked for by its name."""
    created_at: datetime | None = None
    started_at: datetime | None = None
    completed_at: datetime | None = None
    timings: dict[str, float] = {}
    """Milliseconds by stage."""
    status_url: str

    @classmethod
    def of_state(cls, state: TaskState, *, status_url: str, place: Estimate | None = None) -> Self:
        """The view of a row; `place` of a queued task in the queue."""
        result = read_result(state)
        ended = {} if result is None else _ended(result)
        return cls(
            request_id=state.request_id,
            status=state.status,
            progress=_progress(state),
            queue=_queue(place),
            attempts=state.attempts,
            priority=state.priority,
            group_id=state.group_id,
            parent_id=_parent_of(state),
            **_preset_of(state),
            created_at=_moment(state.created_at_ms),
            started_at=_moment(state.started_at_ms),
            completed_at=_moment(state.completed_at_ms),
            status_url=status_url,
            **ended,
        )

    @classmethod
    def of_recent(cls, request_id: str, task: RecentTask, *, status_url: str, place: Estimate | None = None) -> Self:
        """The view of a request that this process accepted and the store does not show yet."""
        return cls(
            request_id=request_id,
            status=TaskStatus.QUEUED,
            queue=_queue(place),
            priority=task.priority,
            group_id=task.group_id,
            created_at=_whole_milliseconds(task.accepted_at),
            status_url=status_url,
        )


class TaskPageView(_View):
    """Some tasks of a list."""

    data: tuple[TaskView, ...]
    has_more: bool
    """Whether there may be further tasks."""
    next_cursor: str | None
    """`cursor` of the next page; null on the last one."""


class GroupView(_View):
    """How far the tasks of a group are."""

    group_id: str
    total: int
    """How many tasks it has so far."""
    counts: dict[TaskStatus, int]
    """Tasks by status; every status is there, but no deleted task is counted."""
    ended: bool
    """Whether all of them have ended."""
    eta_seconds: float | None
    """Until the last of them has its result, by the place of the one that was accepted last; null when that is not
    known, or all have ended."""
    why: str | None
    """What the estimate comes from; null when all have ended."""
    first_created_at: datetime
    last_created_at: datetime
    tasks_url: str
    """The tasks themselves."""

    @classmethod
    def of(cls, group_id: str, counted: GroupCounts, *, tasks_url: str, last: Estimate | None) -> Self:
        """The view of a group that has tasks; `last` is when the last of them is done."""
        return cls(
            group_id=group_id,
            total=counted.total,
            counts={status: counted.counts.get(status, 0) for status in SHOWN_STATUSES},
            ended=all(status.terminal for status in counted.counts),
            eta_seconds=None if last is None or last.eta_seconds is None else round(last.eta_seconds, 1),
            why=None if last is None else last.why,
            first_created_at=moment_at(counted.first_at_ms),
            last_created_at=moment_at(counted.last_at_ms),
            tasks_url=tasks_url,
        )


def read_result(state: TaskState) -> GenerationResult | None:
    """The task's result; None while there is none, and when an earlier release took one that this one refuses."""
    if state.result is None:
        return None
    try:
        return GenerationResult.model_validate_json(state.result)
    except ValidationError as error:
        logger.warning("result_unreadable", request_id=state.request_id, problems=error.error_count())
        return None


def _parent_of(state: TaskState) -> str | None:
    # Most tasks are no retries, and a body is up to 64 KiB.
    if state.body is None or '"parent_id"' not in state.body:
        return None
    parent_id = json.loads(state.body).get("parent_id")
    return parent_id if isinstance(parent_id, str) else None


def _preset_of(state: TaskState) -> dict[str, Any]:
    # As for parents: most tasks have none.
    if state.body is None or '"preset_choice"' not in state.body:
        return {}
    try:
        choice = PresetChoice.model_validate(json.loads(state.body).get("preset_choice"))
    except ValidationError:
        return {}
    return {"preset": choice.name, "preset_reason": choice.reason, "preset_probability": choice.probability}


def _queue(place: Estimate | None) -> QueueView | None:
    if place is None:
        return None
    eta_seconds = None if place.eta_seconds is None else round(place.eta_seconds, 1)
    return QueueView(position=place.position, eta_seconds=eta_seconds, why=place.why)


def _progress(state: TaskState) -> ProgressView | None:
    # Any producer may write progress records: numbers that make no sense are ignored.
    if state.step is None or state.step < 0 or state.total_steps is None or state.total_steps <= 0:
        return None
    percent = min(100, 100 * state.step // state.total_steps)
    return ProgressView(step=state.step, total_steps=state.total_steps, percent=percent)


def _ended(result: GenerationResult) -> dict[str, object]:
    error = result.error
    return {
        "images": tuple(ImageView.model_validate(image, from_attributes=True) for image in result.images),
        "image_url": result.image_url,
        "error": None
        if error is None
        else ErrorView(code=error.code, message=error.message, field=error.field, retryable=error.retryable),
        "seed": result.seed,
        "model": result.model,
        "model_family": result.model_family,
        "model_license": result.model_license,
        "warnings": result.warnings,
        "metadata": result.metadata,
        "timings": result.timings,
    }


def _moment(milliseconds: int | None) -> datetime | None:
    return None if milliseconds is None else datetime.fromtimestamp(milliseconds / 1000, UTC)


def _whole_milliseconds(moment: datetime) -> datetime:
    """Rounded down as in the record's header, so that the time does not change once the store answers."""
    return moment.replace(microsecond=moment.microsecond // 1000 * 1000)
