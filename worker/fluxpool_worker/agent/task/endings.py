"""How a record leaves a worker: what is written about it, once that is decided. Pure.

Every record ends with one `Ending`. Exactly one terminal result belongs to each task: the one that its manifest holds,
or, where no manifest can be had, the one that is made here. Only a record that uses another task's id has none: that
task's result answers for the id.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Final

from aiokafka.structs import ConsumerRecord

from fluxpool_contract.bounds import cut_text
from fluxpool_contract.messages import (
    REQUEST_ID,
    Disposition,
    Envelope,
    GenerationResult,
    record_event_id,
    result_event_id,
)
from fluxpool_contract.problems import ErrorClass, ErrorCode, InvalidTaskError
from fluxpool_transport.storage import Manifest
from fluxpool_worker.agent.task.attempts import Failed
from fluxpool_worker.agent.task.dead_letters import SHORT_TEXT_BYTES
from fluxpool_worker.agent.task.outgoing_records import (
    Failure,
    WorkerIdentity,
    failed_result,
    failure_of,
    is_dead_lettered,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """What is written about a record, in the order of the fields; then its offset is finished."""

    outcome: str
    """For metrics and the log."""
    request_id: str | None = None
    dead_letter: Failure | None = None
    result: GenerationResult | None = None
    """None: the task goes on by way of a retry topic, or the id is another task's."""
    event_id: str = ""
    """Of the result."""
    envelope: Envelope = field(default_factory=Envelope)
    """Of the task."""


RETRIED: Final = Ending(outcome="retry")
"""The task is in a retry topic already: its record there was the only thing to write."""


def concluded(manifest: Manifest, envelope: Envelope, failure: Failure | None = None, *, outcome: str = "") -> Ending:
    """The task has a manifest: it decides, whoever wrote it. `failure` is what this worker knows of it besides."""
    result = manifest.result
    return Ending(
        outcome=outcome or result.status.value,
        request_id=manifest.request_id,
        dead_letter=(failure or failure_of(result)) if is_dead_lettered(result) else None,
        result=result,
        event_id=manifest.event_id,
        envelope=envelope,
    )


def unconcluded(
    request_id: str,
    envelope: Envelope,
    failure: Failure,
    *,
    identity: WorkerIdentity,
    completed_at: datetime,
    metadata: dict[str, str] | None = None,
) -> Ending:
    """The task's own objects stand in its way: no manifest can be written, and people have to look at them."""
    result = failed_result(request_id, failure, identity=identity, completed_at=completed_at, metadata=metadata)
    return Ending(
        outcome=result.status.value,
        request_id=request_id,
        dead_letter=failure,
        result=result,
        event_id=result_event_id(envelope.tenant, request_id, envelope.epoch),
        envelope=envelope,
    )


def anonymous(record: ConsumerRecord, failure: Failure, *, identity: WorkerIdentity, completed_at: datetime) -> Ending:
    """Nobody can tell whose task it is: the result names none."""
    return Ending(
        outcome="invalid",
        dead_letter=failure,
        result=failed_result(None, failure, identity=identity, completed_at=completed_at),
        event_id=record_event_id(record.topic, record.partition, record.offset),
    )


def conflicting(request_id: str, message: str) -> Ending:
    """The id belongs to another task: that one's result is the answer to it."""
    failure = Failure(
        error_class=ErrorClass.INVALID,
        code=ErrorCode.ID_CONFLICT,
        disposition=Disposition.INVALID,
        message=message,
        field="request_id",
    )
    return Ending(outcome="id-conflict", request_id=request_id, dead_letter=failure)


def refused(error: InvalidTaskError) -> Failure:
    """Why a record is no task."""
    return Failure(
        error_class=ErrorClass.INVALID,
        code=error.code,
        disposition=Disposition.OVERSIZE if error.code is ErrorCode.TOO_LARGE else Disposition.INVALID,
        message=str(error),
        field=error.problems[0].field or None,
    )


def given_up(ended: Failed, *, and_besides: str | None = None) -> Failure:
    """Why a task gets no images from here."""
    verdict = ended.verdict
    return Failure(
        error_class=verdict.error_class,
        code=verdict.code,
        disposition=verdict.disposition,
        message=ended.message if and_besides is None else f"{ended.message}; {and_besides}",
        stack=ended.stack,
        attempts=ended.attempt,
        crashes=verdict.spent.crashes,
    )


def and_besides(failure: Failure, more: object) -> Failure:
    """The same failure with something more to say."""
    return replace(failure, message=f"{failure.message}; {more}")


def id_of_key(record: ConsumerRecord) -> str | None:
    """The key of a record whose value names no task: those of tasks are their ids."""
    try:
        key = (record.key or b"").decode()
    except UnicodeDecodeError:
        return None
    return key if REQUEST_ID.fullmatch(key) else None


def shorter_results(result: GenerationResult) -> Iterator[GenerationResult]:
    """The result, and what to send instead when a topic refuses it, shorter each time; the last has what must be there.

    A topic that others laid out may take less than ours. What is left out is in the manifest.
    """
    yield result
    error = result.error
    if error is not None:
        field = None if error.field is None else cut_text(error.field, SHORT_TEXT_BYTES)
        message = cut_text(error.message, SHORT_TEXT_BYTES)
        error = type(error).model_validate(
            {
                "code": error.code,
                "error_class": error.error_class,
                "message": message,
                "field": field,
                "retryable": error.retryable,
            }
        )
    known = {name: getattr(result, name) for name in GenerationResult.model_fields}
    short = GenerationResult.model_construct(**{**known, "error": error, "metadata": {}, "timings": {}, "warnings": ()})
    yield short
    yield GenerationResult(
        request_id=short.request_id, image_url=short.image_url, status=short.status, error=short.error
    )
