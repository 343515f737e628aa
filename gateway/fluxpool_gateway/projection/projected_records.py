"""Decodes records of the task, results, progress and feedback topics into changes of the task store. Pure.

An invalid task changes nothing: a worker answers it with a result, and that is projected. Any other invalid record gets
no answer, so it is refused with the reason, and `projector` quarantines it.
"""

from collections.abc import Collection
from typing import Final

from pydantic import ValidationError

from fluxpool_contract.bounds import clamped_milliseconds, milliseconds_of
from fluxpool_contract.kafka import TopicNames
from fluxpool_contract.messages import (
    REQUEST_ID,
    Envelope,
    GenerationResult,
    ProgressEvent,
    ProgressType,
    RawHeaders,
    ResultStatus,
    first_seen,
    parse_envelope,
    parse_task,
)
from fluxpool_contract.problems import ErrorCode, InvalidTaskError, explain
from fluxpool_contract.tenants import TenantTrust
from fluxpool_gateway.feedback.records import PROOF_PREFIX, FeedbackSeen, InvalidFeedbackError, read_feedback
from fluxpool_gateway.http.generation_request import Priority
from fluxpool_gateway.store.task_state import Change, DeletionSeen, ProgressSeen, ResultSeen, TaskSeen, TaskStatus
from fluxpool_gateway.usage.figures import Figures

MAX_EVENT_BYTES: Final = 1024 * 1024
"""Of a result or progress event: what Kafka takes as one record unless its topic is set otherwise."""

_STATUS = {
    ResultStatus.SUCCESS: TaskStatus.SUCCEEDED,
    ResultStatus.FAILED: TaskStatus.FAILED,
    ResultStatus.EXPIRED: TaskStatus.EXPIRED,
    ResultStatus.CANCELED: TaskStatus.CANCELED,
}


def projected_topics(topics: TopicNames) -> tuple[str, ...]:
    """The topics that the store is built from."""
    return (*topics_of_tasks(topics), topics.feedback, topics.dead_letters)


def topics_of_tasks(topics: TopicNames) -> tuple[str, ...]:
    """Those that say what becomes of tasks; a store without the others has all that these have."""
    return (*task_topics(topics), topics.results, topics.progress)


def task_topics(topics: TopicNames) -> tuple[str, ...]:
    """The topics that requests are accepted into."""
    return topics.tasks, topics.tasks_vip


class UnreadableRecordError(Exception):
    """An invalid record that no other part reports; the message says what is wrong with it."""


def read_change(
    topics: TopicNames,
    *,
    topic: str,
    key: bytes | None = None,
    value: bytes | None,
    headers: RawHeaders,
    timestamp_ms: int,
    trust: TenantTrust,
) -> Change | FeedbackSeen | None:
    """The change that a record makes; None for an invalid task, which a worker answers, and for what concerns no task.

    As everywhere in Kafka a record without a value deletes what its key names: a result's deletes the task.

    Raises `UnreadableRecordError` for an invalid result, progress event, rating or comparison.
    """
    if topic == topics.feedback:
        return _feedback(key, value, headers, timestamp_ms, topic=topic, trust=trust)
    if value is None and topic == topics.results:
        return _deletion(key, headers, named_in=(topic, *task_topics(topics)), trust=trust)
    if not value:
        return None
    if topic in task_topics(topics):
        priority = Priority.VIP if topic == topics.tasks_vip else Priority.STANDARD
        try:
            return _task(value, headers, timestamp_ms, topic=topic, priority=priority, trust=trust)
        except (InvalidTaskError, ValidationError):
            return None
    # A worker passes the tenant of the task on, so that the task's writer may have named it.
    named_in = (topic, *task_topics(topics))
    if len(value) > MAX_EVENT_BYTES:
        raise UnreadableRecordError(f"is {len(value)} bytes long; at most {MAX_EVENT_BYTES} are projected")
    try:
        if topic == topics.results:
            return _result(value, headers, timestamp_ms, named_in=named_in, trust=trust)
        return _progress(value, headers, named_in=named_in, trust=trust)
    except ValidationError as error:
        raise UnreadableRecordError("; ".join(map(str, explain(error, body=value)))) from error


def _task(
    value: bytes, headers: RawHeaders, timestamp_ms: int, *, topic: str, priority: Priority, trust: TenantTrust
) -> TaskSeen | None:
    """What a worker would accept, without the digest, which costs as much as all other checks."""
    task = parse_task(value)
    envelope = parse_envelope(headers, request_id=task.request_id)
    return TaskSeen(
        request_id=task.request_id,
        body=value.decode(),
        priority=priority.value,
        tenant=trust.owner(envelope, topics=(topic,), request_id=task.request_id),
        created_at_ms=milliseconds_of(first_seen(envelope, timestamp_ms)),
        group_id=task.group_id,
        epoch=envelope.epoch,
        attempt=envelope.attempt,
    )


def _progress(
    value: bytes, headers: RawHeaders, *, named_in: Collection[str], trust: TenantTrust
) -> ProgressSeen | None:
    event = ProgressEvent.model_validate_json(value)
    if event.type == ProgressType.PREVIEW:
        # Of no use once it is old, and the steps have events of their own: `live.previews` passes it on.
        return None
    # A type of a later release: whatever it is, a worker runs the task.
    status = TaskStatus.QUEUED if event.type == ProgressType.RETRYING else TaskStatus.RUNNING
    envelope = _lenient_envelope(headers)
    return ProgressSeen(
        request_id=event.request_id,
        status=status,
        at_ms=milliseconds_of(event.at),
        started=event.type == ProgressType.STARTED,
        tenant=trust.owner(envelope, topics=named_in, request_id=event.request_id),
        epoch=envelope.epoch,
        attempt=max(1, event.attempt),
        step=event.step,
        total_steps=event.total_steps,
    )


def _result(
    value: bytes, headers: RawHeaders, timestamp_ms: int, *, named_in: Collection[str], trust: TenantTrust
) -> ResultSeen | None:
    result = GenerationResult.model_validate_json(value)
    if result.request_id is None:
        return None
    # It reports a second body under a used id; the task of that id has a result of its own.
    if result.error is not None and result.error.code == ErrorCode.ID_CONFLICT:
        return None
    envelope = _lenient_envelope(headers)
    return ResultSeen(
        request_id=result.request_id,
        status=_STATUS[result.status],
        body=value.decode(),
        completed_at_ms=clamped_milliseconds(timestamp_ms)
        if result.completed_at is None
        else milliseconds_of(result.completed_at),
        tenant=trust.owner(envelope, topics=named_in, request_id=result.request_id),
        epoch=envelope.epoch,
        attempt=max(1, result.attempt or 1),
        used=Figures.of(result),
    )


def _deletion(
    key: bytes | None, headers: RawHeaders, *, named_in: Collection[str], trust: TenantTrust
) -> DeletionSeen | None:
    request_id = (key or b"").decode(errors="replace")
    if not REQUEST_ID.fullmatch(request_id):
        return None
    tenant = trust.owner(_lenient_envelope(headers), topics=named_in, request_id=request_id)
    return DeletionSeen(request_id=request_id, tenant=tenant)


def _feedback(
    key: bytes | None, value: bytes | None, headers: RawHeaders, timestamp_ms: int, *, topic: str, trust: TenantTrust
) -> FeedbackSeen:
    rating_id = (key or b"").decode(errors="replace")
    if not REQUEST_ID.fullmatch(rating_id):
        raise UnreadableRecordError("key: must be the rating_id; the topic is compacted by it")
    if value is not None and len(value) > MAX_EVENT_BYTES:
        raise UnreadableRecordError(f"is {len(value)} bytes long; at most {MAX_EVENT_BYTES} are projected")
    tenant = trust.owner(_lenient_envelope(headers), topics=(topic,), request_id=PROOF_PREFIX + rating_id)
    try:
        return read_feedback(value, key=rating_id, tenant=tenant, at_ms=clamped_milliseconds(timestamp_ms))
    except InvalidFeedbackError as error:
        raise UnreadableRecordError(str(error)) from error


def _lenient_envelope(headers: RawHeaders) -> Envelope:
    try:
        return parse_envelope(headers)
    except InvalidTaskError:
        return Envelope()
