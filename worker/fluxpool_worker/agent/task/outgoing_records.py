"""Records that a worker publishes about a task: result, dead letter, retry, progress. Pure: values in, records out."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from aiokafka.structs import ConsumerRecord

from fluxpool_contract.families import FAMILIES, Family
from fluxpool_contract.header_names import TYPE_COMPLETED, TYPE_PROGRESS
from fluxpool_contract.kafka import TopicNames, due_headers, retry_headers
from fluxpool_contract.messages import (
    DeadLetter,
    DecodedTask,
    Disposition,
    Envelope,
    GenerationResult,
    ImageDescription,
    ProgressEvent,
    Quality,
    ResultStatus,
    TaskError,
    cloud_event_headers,
    first_seen,
    render_envelope,
)
from fluxpool_contract.problems import ErrorClass, ErrorCode
from fluxpool_worker.agent.task.outcome import Verdict
from fluxpool_worker.agent.task.publisher import OutgoingRecord
from fluxpool_worker.agent.task.task_records import TaskRecord
from fluxpool_worker.engine.protocol import Ready

RECORD_OVERHEAD_BYTES: Final = 1024
"""What Kafka adds to a record and its batch; a few bytes for each header and under 100 for the rest."""
MAX_POINTER_KEY_BYTES: Final = 1024
"""A key may be as large as a value; the keys of tasks are request ids."""


@dataclass(slots=True, kw_only=True)
class WorkerIdentity:
    """What results and dead letters say of the worker."""

    worker: str
    pool: str
    model: str | None = None
    """Set once, when the engine has loaded it; so is `family`."""
    family: Family | None = None

    def serve(self, ready: Ready) -> None:
        """Name the model that the engine has loaded."""
        self.model, self.family = ready.model, FAMILIES.get(ready.family)

    @property
    def family_name(self) -> str | None:
        """As results report it."""
        return None if self.family is None else self.family.name

    @property
    def licence(self) -> str | None:
        """As results report it."""
        return None if self.family is None else str(self.family.licence)

    @property
    def source(self) -> str:
        """CloudEvents source."""
        return f"/pools/{self.pool}/workers/{self.worker}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """Why a task ends without images."""

    error_class: ErrorClass | str
    """A plain text when it was read from what a newer release stored."""
    code: ErrorCode | str
    disposition: Disposition
    message: str
    field: str | None = None
    stack: str | None = None
    attempts: int = 1
    crashes: int = 0


def success_result(
    decoded: DecodedTask,
    *,
    images: Sequence[ImageDescription],
    identity: WorkerIdentity,
    attempt: int,
    quality: Quality,
    engine_path: str | None,
    timings_ms: dict[str, float],
    warnings: Sequence[str],
    completed_at: datetime,
) -> GenerationResult:
    """The result of a task with images."""
    task = decoded.task
    return GenerationResult(
        request_id=task.request_id,
        image_url=images[0].url,
        status=ResultStatus.SUCCESS,
        images=tuple(images),
        seed=images[0].seed,
        width=task.width,
        height=task.height,
        steps=task.steps,
        model=identity.model,
        quality=quality,
        engine_path=engine_path,
        model_family=identity.family_name,
        model_license=identity.licence,
        attempt=attempt,
        worker=identity.worker,
        pool=identity.pool,
        timings={name: round(value, 1) for name, value in timings_ms.items()},
        warnings=tuple(warnings),
        metadata=task.metadata,
        completed_at=completed_at,
    )


def failed_result(
    request_id: str | None,
    failure: Failure,
    *,
    identity: WorkerIdentity,
    completed_at: datetime,
    metadata: dict[str, str] | None = None,
) -> GenerationResult:
    """The result of a task that ends without images."""
    return GenerationResult(
        request_id=request_id,
        image_url=None,
        status=_OTHER_STATUS.get(failure.error_class, ResultStatus.FAILED),
        error=TaskError(
            code=failure.code,
            error_class=failure.error_class,
            message=failure.message,
            field=failure.field,
            retryable=failure.error_class in {ErrorClass.TRANSIENT, ErrorClass.WORKER_FATAL},
        ),
        model=identity.model,
        model_family=identity.family_name,
        model_license=identity.licence,
        attempt=failure.attempts,
        worker=identity.worker,
        pool=identity.pool,
        metadata=metadata or {},
        completed_at=completed_at,
    )


_OTHER_STATUS: Final[Mapping[str, ResultStatus]] = {
    ErrorClass.EXPIRED: ResultStatus.EXPIRED,
    ErrorClass.CANCELED: ResultStatus.CANCELED,
}
"""Of a failed task, by the class of its error; `failed` for all other classes."""


def result_record(
    result: GenerationResult, task: TaskRecord, *, completed_at: datetime, source: str, topics: TopicNames
) -> OutgoingRecord:
    """The record on the results topic; the same result always has the same event id."""
    return OutgoingRecord(
        topic=topics.results,
        key=None if task.request_id is None else task.request_id.encode(),
        value=result.to_json(),
        headers=[
            *cloud_event_headers(
                event_id=task.event_id,
                event_type=TYPE_COMPLETED,
                source=source,
                subject=task.request_id,
                time=completed_at,
            ),
            *outgoing_headers(task.envelope),
        ],
    )


def dead_letter_record(
    record: ConsumerRecord,
    failure: Failure,
    *,
    request_id: str | None,
    identity: WorkerIdentity,
    failed_at: datetime,
    topics: TopicNames,
    object_key: str | None = None,
) -> OutgoingRecord:
    """The record on the dead-letter topic: the original's bytes, and why.

    With `object_key` a pointer: the value lies in the object store, and the original's headers beside it.
    """
    dead_letter = DeadLetter(
        origin_topic=record.topic,
        origin_partition=record.partition,
        origin_offset=record.offset,
        origin_timestamp_ms=record.timestamp,
        disposition=failure.disposition,
        error_class=failure.error_class,
        error_code=failure.code,
        message=failure.message,
        stack=failure.stack or None,
        attempts=failure.attempts,
        crashes=failure.crashes,
        worker=identity.worker,
        pool=identity.pool,
        model=identity.model,
        failed_at=failed_at,
        request_id=request_id,
        object=object_key,
    )
    if object_key is not None:
        key = record.key if len(record.key or b"") <= MAX_POINTER_KEY_BYTES else None
        value, headers = None, dead_letter.to_headers(())
    else:
        key, value, headers = record.key, record.value, dead_letter.to_headers(record.headers)
    if key is None and value is None:
        value = b""  # the client library refuses to send a record that has neither
    return OutgoingRecord(topic=topics.dead_letters, key=key, value=value, headers=headers)


def retry_record(
    record: ConsumerRecord,
    envelope: Envelope,
    *,
    topic: str,
    verdict: Verdict,
    not_before: datetime,
) -> OutgoingRecord:
    """The record on a retry topic: the task, unchanged, with its counts and the time of its next attempt."""
    return OutgoingRecord(
        topic=topic,
        key=record.key,
        value=record.value,
        headers=retry_headers(
            record.headers,
            envelope,
            attempt=verdict.spent.attempt,
            crashes=verdict.spent.crashes,
            first_seen=first_seen(envelope, record.timestamp),
            not_before=not_before,
            origin=(record.topic, record.partition, record.offset),
            error=(verdict.error_class, verdict.code),
        ),
    )


def due_record(record: ConsumerRecord, *, topic: str) -> OutgoingRecord:
    """The record that returns a task from a retry topic to its lane."""
    return OutgoingRecord(topic=topic, key=record.key, value=record.value, headers=due_headers(record.headers))


def outgoing_headers(task: Envelope) -> list[tuple[str, bytes]]:
    """The headers of a task that its result and its progress carry on: tenant with its proof, replay and trace."""
    return render_envelope(
        Envelope(
            tenant=task.tenant,
            tenant_proof=task.tenant_proof,
            epoch=task.epoch,
            traceparent=task.traceparent,
            tracestate=task.tracestate,
        )
    )


def progress_record(event: ProgressEvent, *, envelope: Envelope, source: str, topics: TopicNames) -> OutgoingRecord:
    """The record on the progress topic."""
    event_id = f"{event.request_id}/{event.attempt}/{event.type}/{event.step or 0}"
    return OutgoingRecord(
        topic=topics.progress,
        key=event.request_id.encode(),
        value=event.to_json(),
        headers=[
            *cloud_event_headers(
                event_id=event_id, event_type=TYPE_PROGRESS, source=source, subject=event.request_id, time=event.at
            ),
            *outgoing_headers(envelope),
        ],
    )


def record_bytes(record: OutgoingRecord) -> int:
    """Upper bound of what the record takes on a topic."""
    headers = sum(len(name.encode(errors="replace")) + len(value) + 10 for name, value in record.headers)
    return len(record.key or b"") + len(record.value or b"") + headers + RECORD_OVERHEAD_BYTES


def is_dead_lettered(result: GenerationResult) -> bool:
    """Whether the task gets a dead letter: it failed, and was not rejected by the model, expired or canceled."""
    rejected = result.error is not None and result.error.error_class == ErrorClass.REJECTED
    return result.status is ResultStatus.FAILED and not rejected


def failure_of(result: GenerationResult) -> Failure:
    """The failure in a stored result: a worker may have crashed between its manifest and its dead letter."""
    error = result.error
    if error is None:  # no worker writes such a result
        return Failure(
            error_class=ErrorClass.TRANSIENT,
            code=ErrorCode.GENERATION_FAILED,
            disposition=Disposition.EXHAUSTED,
            message="the stored result has status failed, without a reason",
        )
    if error.error_class == ErrorClass.INVALID:
        disposition = Disposition.OVERSIZE if error.code == ErrorCode.TOO_LARGE else Disposition.INVALID
    else:
        disposition = Disposition.CRASH_LOOP if error.code == ErrorCode.CRASH_LOOP else Disposition.EXHAUSTED
    return Failure(
        error_class=error.error_class,
        code=error.code,
        disposition=disposition,
        message=error.message,
        field=error.field,
        attempts=result.attempt or 1,
    )
