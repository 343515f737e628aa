"""How a record leaves a worker: what is written about it. Pure; `ending_writer` writes it.

Each task has exactly one terminal result: the one in its manifest or, where no manifest can be written, the one made
here. Only a record with another task's id has none: that task's result answers for the id.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Final

from fluxpool_contract.bounds import cut_text
from fluxpool_contract.kafka import due_at
from fluxpool_contract.messages import Disposition, GenerationResult, GenerationTask, TaskError
from fluxpool_contract.problems import ErrorClass, ErrorCode, InvalidTaskError
from fluxpool_transport.storage import CorruptObjectError, IdConflictError, Manifest
from fluxpool_worker.agent.task.outcome import Action, Failed, judge_deadline
from fluxpool_worker.agent.task.outgoing_records import (
    Failure,
    WorkerIdentity,
    failed_result,
    failure_of,
    is_dead_lettered,
)
from fluxpool_worker.agent.task.task_records import TaskRecord

SHORT_TEXT_BYTES: Final = 200
"""Of a message, where the whole one is refused."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Retry:
    """A record on a retry topic."""

    topic: str
    not_before: datetime
    failed: Failed
    """The attempt before; ends the task when the topic refuses the record."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """What is written about a record, in the order of the fields; then its offset is committed."""

    outcome: str
    """For metrics and the log."""
    retry: Retry | None = None
    dead_letter: Failure | None = None
    result: GenerationResult | None = None
    """None: the task is retried, or the id is another task's."""


def retry_of(
    failed: Failed,
    *,
    deadline: datetime | None,
    now: datetime,
    delays_seconds: Sequence[float],
    topics: Sequence[str],
    jitter: float,
) -> Retry | Failure:
    """The next attempt by way of a retry topic, if there is one; a failure also when the deadline is before it."""
    if failed.verdict.action is not Action.RETRY_LATER:
        return failure_from(failed)
    tier = failed.verdict.tier or 0
    not_before = due_at(now, delays_seconds[tier], jitter=jitter)
    if late := judge_deadline(deadline, now=not_before, needed_seconds=0, spent=failed.verdict.spent):
        return failure_from(
            replace(failed, verdict=late), besides="and the deadline will have passed before another try"
        )
    return Retry(topic=topics[tier], not_before=not_before, failed=failed)


def ending_of(
    task: TaskRecord,
    stored: Manifest | IdConflictError | CorruptObjectError | None,
    *,
    failure: Failure | None = None,
    identity: WorkerIdentity,
    now: datetime,
) -> Ending:
    """The terminal ending of a task, by what the store holds of it; None: the store was not asked.

    A manifest decides, whichever worker wrote it. `failure` is why this worker has no images, and is needed where there
    is no manifest.
    """
    if isinstance(stored, IdConflictError):
        message = str(stored) if failure is None else f"{stored}; besides, {failure.message}"
        return Ending(outcome="id-conflict", dead_letter=_id_conflict(message))
    if isinstance(stored, Manifest):
        result = stored.result
        is_ours = failure is not None and result == result_of(task, failure, identity=identity, now=now)
        dead_letter = (failure if is_ours else failure_of(result)) if is_dead_lettered(result) else None
    else:
        assert failure is not None  # noqa: S101 - a task without manifest and failure has not ended
        if stored is not None and str(stored) not in failure.message:
            failure = replace(failure, message=f"{failure.message}; {stored}")
        # Also for one that was canceled: its objects need attention.
        dead_letter, result = failure, result_of(task, failure, identity=identity, now=now)
    outcome = "invalid" if isinstance(task.content, InvalidTaskError) else result.status.value
    return Ending(outcome=outcome, dead_letter=dead_letter, result=result)


def result_of(task: TaskRecord, failure: Failure, *, identity: WorkerIdentity, now: datetime) -> GenerationResult:
    """The result of a task without images."""
    return failed_result(task.request_id, failure, identity=identity, completed_at=now, metadata=task.metadata)


def refusal(error: InvalidTaskError) -> Failure:
    """Why a record is no task, for its dead letter and result."""
    return Failure(
        error_class=ErrorClass.INVALID,
        code=error.code,
        disposition=Disposition.OVERSIZE if error.code is ErrorCode.TOO_LARGE else Disposition.INVALID,
        message=str(error),
        field=error.problems[0].field or None,
    )


def failure_from(failed: Failed, *, besides: str = "") -> Failure:
    """Why a task gets no images from this worker, for its dead letter and result."""
    verdict = failed.verdict
    # The engine and the store begin their message with the field, as `FieldProblem` does.
    field, _, _ = failed.message.partition(": ")
    is_named = verdict.error_class is ErrorClass.INVALID and field in GenerationTask.model_fields
    return Failure(
        error_class=verdict.error_class,
        code=verdict.code,
        disposition=verdict.disposition,
        message=f"{failed.message}; {besides}" if besides else failed.message,
        field=field if is_named else None,
        stack=failed.stack,
        attempts=failed.attempt,
        crashes=verdict.spent.crashes,
    )


def _id_conflict(message: str) -> Failure:
    return Failure(
        error_class=ErrorClass.INVALID,
        code=ErrorCode.ID_CONFLICT,
        disposition=Disposition.INVALID,
        message=message,
        field="request_id",
    )


def shorter_results(result: GenerationResult) -> Iterator[GenerationResult]:
    """The result, then shorter ones to send when a topic refuses it; the last has only the required fields.

    A topic that others laid out may take less than ours. What is left out is in the manifest.
    """
    yield result
    error = result.error
    if error is not None:
        short_texts = {
            "message": cut_text(error.message, SHORT_TEXT_BYTES),
            "field": None if error.field is None else cut_text(error.field, SHORT_TEXT_BYTES),
        }
        # Known fields alone: one of a newer release may be as long as those that are cut.
        error = TaskError.model_validate({name: getattr(error, name) for name in TaskError.model_fields} | short_texts)
    known = {name: getattr(result, name) for name in GenerationResult.model_fields}
    short = GenerationResult.model_construct(**{**known, "error": error, "metadata": {}, "timings": {}, "warnings": ()})
    yield short
    yield GenerationResult(
        request_id=short.request_id, image_url=short.image_url, status=short.status, error=short.error
    )
