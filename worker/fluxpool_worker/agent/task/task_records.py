"""From a consumer's record to a task, or to the reason why it is none. Pure; `task_flow` handles both."""

import contextlib
import hashlib
from collections.abc import Collection
from dataclasses import dataclass

import structlog
from aiokafka.structs import ConsumerRecord

from fluxpool_contract.families import Family
from fluxpool_contract.messages import (
    REQUEST_ID,
    DecodedTask,
    Envelope,
    GenerationTask,
    Quality,
    decode_task,
    parse_envelope,
    peek_request_id,
    record_event_id,
    result_event_id,
)
from fluxpool_contract.problems import ErrorCode, FieldProblem, InvalidTaskError
from fluxpool_contract.tenants import TenantTrust
from fluxpool_transport.kafka import UndecodableRecord

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskRecord:
    """A record of a task topic, and what of it an ending needs."""

    record: ConsumerRecord
    request_id: str | None
    """None when the record names no task."""
    envelope: Envelope
    tenant: str
    """Whose it is, which the envelope only claims: names its objects. `NO_TENANT`: the claim has a false proof."""
    digest: str
    value_digest: str | None = None
    content: DecodedTask | InvalidTaskError

    @property
    def event_id(self) -> str:
        """Of the task's result."""
        if self.request_id is None:
            return record_event_id(self.record.topic, self.record.partition, self.record.offset)
        return result_event_id(self.tenant, self.request_id, self.envelope.epoch)

    @property
    def metadata(self) -> dict[str, str]:
        """The labels that its result carries on."""
        return self.content.task.metadata if isinstance(self.content, DecodedTask) else {}


def read_task(
    record: ConsumerRecord,
    *,
    trust: TenantTrust,
    topic: str | None = None,
    allowed: Collection[Quality] = tuple(Quality),
) -> TaskRecord:
    """The task in a record, or why there is none; never raises.

    `topic` is where it was sent to first, if not where it lies; `allowed` are the qualities that it may ask for.
    """
    topics = (topic or record.topic,)
    try:
        decoded = decode_record(record)
        _check_quality(decoded.task, allowed)
    except InvalidTaskError as error:
        return _refused(record, error, topics=topics, trust=trust)
    return TaskRecord(
        record=record,
        request_id=decoded.task.request_id,
        envelope=decoded.envelope,
        tenant=trust.owner(decoded.envelope, topics=topics, request_id=decoded.task.request_id),
        digest=decoded.digest,
        value_digest=decoded.value_digest,
        content=decoded,
    )


def decode_record(record: ConsumerRecord) -> DecodedTask:
    """The task in a record.

    Raises `InvalidTaskError` and nothing else, also for a record that the client library cannot decode: any other error
    would end each worker that meets the record.
    """
    if not isinstance(record, UndecodableRecord):
        try:
            return decode_task(record.value, record.headers)
        except InvalidTaskError:
            raise
        except Exception as error:  # a record that any producer may write must not end the worker
            log.exception("decoding_failed", topic=record.topic, partition=record.partition, offset=record.offset)
            problem = FieldProblem("", f"the record cannot be read: {type(error).__name__}")
            raise InvalidTaskError(ErrorCode.UNDECODABLE, [problem], request_id=None) from error
    request_id = peek_request_id(record.value or b"") if record.has_contents else None
    raise InvalidTaskError(ErrorCode.UNDECODABLE, [FieldProblem("", _explain(record))], request_id=request_id)


def _check_quality(task: GenerationTask, allowed: Collection[Quality]) -> None:
    if task.quality is not None and task.quality not in allowed:
        names = " or ".join(quality.value for quality in allowed)
        problem = FieldProblem("quality", f"{task.quality.value} is not allowed in this pool; use {names}")
        raise InvalidTaskError(ErrorCode.INVALID_FIELD, [problem], request_id=task.request_id)


def with_defaults(task: GenerationTask, family: Family | None) -> GenerationTask:
    """The task, with the family's defaults for fields that it leaves out; the contract's are FLUX.1-dev's."""
    if family is None:
        return task
    defaults = {"steps": family.default_steps, "guidance": family.default_guidance or 0.0}
    return task.model_copy(update={name: defaults[name] for name in defaults.keys() - task.model_fields_set})


def _refused(
    record: ConsumerRecord, error: InvalidTaskError, *, topics: Collection[str], trust: TenantTrust
) -> TaskRecord:
    request_id = error.request_id or (_id_of_key(record) if not record.value else None)
    envelope = Envelope()
    if request_id is not None:
        with contextlib.suppress(InvalidTaskError):
            envelope = parse_envelope(record.headers)
    return TaskRecord(
        record=record,
        request_id=request_id,
        envelope=envelope,
        tenant=trust.owner(envelope, topics=topics, request_id=request_id or ""),
        digest="raw:" + hashlib.sha256(record.value or b"").hexdigest(),
        content=error,
    )


def _id_of_key(record: ConsumerRecord) -> str | None:
    """The key of a record whose value names no task: tasks have their ids as keys."""
    key = (record.key or b"").decode(errors="replace")
    return key if REQUEST_ID.fullmatch(key) else None


def _explain(record: UndecodableRecord) -> str:
    if record.has_contents:
        return f"the record cannot be decoded: {record.problem}; send names and text as UTF-8"
    offsets = f"offset {record.offset}"
    if record.first_offset < record.offset:
        offsets = f"offsets {record.first_offset} to {record.offset}"
    kept = "the value holds the batch as Kafka keeps it" if record.value else "its bytes could not be read"
    return f"the batch at {offsets} of {record.topic}-{record.partition} cannot be decoded: {record.problem}; {kept}"
