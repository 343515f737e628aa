"""From a dead letter to the task that is sent again, or to the reasons why it would only fail again. Pure.

Owns what a replay changes: the epoch, the headers about the failure, and what a patch says. The same dead letter with
the same choices always gives the same record, so that sending it twice is harmless.
"""

import json
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final

from aiokafka.structs import ConsumerRecord

from fluxpool_contract import header_names
from fluxpool_contract.messages import (
    DEAD_LETTER_PREFIX,
    DEFAULT_TENANT,
    DeadLetter,
    DecodedTask,
    RawHeaders,
    decode_task,
    encode_headers,
    first_seen,
    format_time,
)
from fluxpool_contract.problems import ErrorCode, FieldProblem, InvalidTaskError
from fluxpool_contract.tenants import TenantTrust
from fluxpool_transport.dlq.reading import DeadLetterEntry

DEFAULT_MAX_REPLAYS: Final = 3
REQUEST_ID_FIELD: Final = "request_id"
NO_KEYS: Final = TenantTrust()
_OF_THE_FAILURE: Final = frozenset(
    {
        header_names.ATTEMPT,
        header_names.CRASHES,
        header_names.NOT_BEFORE,
        header_names.ERROR_CLASS,
        header_names.ERROR_CODE,
        header_names.ORIGIN_TOPIC,
        header_names.ORIGIN_PARTITION,
        header_names.ORIGIN_OFFSET,
    }
)
"""A replayed task has new budgets and no delay of a retry."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayChoices:
    """How tasks are sent again."""

    patch: dict[str, Any] | None = None
    """JSON merge patch (RFC 7396) for the task; the dead letter keeps its own bytes."""
    drop_headers: frozenset[str] = field(default=frozenset())
    """Headers of the original that are left out."""
    to_topic: str | None = None
    """Where to send; None: where the task came from."""
    retry_topics: frozenset[str] = field(default=frozenset())
    """Where workers write the header that says where a task belongs; on other topics anybody may have written it."""
    max_replays: int = DEFAULT_MAX_REPLAYS
    """Refuse a task that was replayed this often."""
    ignore_max_replays: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class PreparedReplay:
    """A record that is ready to be sent."""

    entry: DeadLetterEntry
    topic: str
    key: bytes | None
    value: bytes
    headers: list[tuple[str, bytes]]
    request_id: str
    epoch: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RefusedReplay:
    """A dead letter whose task would fail again, or may not be sent."""

    entry: DeadLetterEntry
    problems: tuple[FieldProblem, ...]
    """Never empty; the field is one of the task, or a header."""


def check_choices(choices: ReplayChoices, *, count: int) -> FieldProblem | None:
    """Why these choices cannot be applied to `count` dead letters, or None."""
    if choices.patch is not None and REQUEST_ID_FIELD in choices.patch and count > 1:
        return FieldProblem(
            REQUEST_ID_FIELD, f"one new id cannot serve {count} tasks; choose a single dead letter, or leave it out"
        )
    return None


def prepare_replay(
    entry: DeadLetterEntry,
    record: ConsumerRecord,
    choices: ReplayChoices,
    *,
    topic: str,
    now: datetime,
    trust: TenantTrust = NO_KEYS,
) -> PreparedReplay | RefusedReplay:
    """The record that sends the task of a dead letter again, checked as a worker would check it.

    `record` is the dead letter as it lies on `topic`, the dead-letter topic. Who has the keys of `trust` proves a
    tenant that was proven once more, for the id of now and with the key of now. Never raises for what is in the record.
    """
    if entry.is_deleted:
        return refuse_deleted_task(entry)
    if entry.dead_letter is None:
        return RefusedReplay(
            entry=entry,
            problems=(FieldProblem("", f"is no dead letter of a worker's ({entry.problem}); copy it by other means"),),
        )
    if entry.dead_letter.object is not None and choices.patch is None:
        stored = f"was too large for the topic; it is in the object store under {entry.dead_letter.object}"
        return RefusedReplay(
            entry=entry, problems=(FieldProblem("", f"{stored}; patch in all fields of a smaller task"),)
        )
    kept = [
        (name, raw or b"")
        for name, raw in record.headers
        if not name.startswith(DEAD_LETTER_PREFIX) and name not in choices.drop_headers
    ]
    value = record.value or b"" if choices.patch is None else patch_value(record.value, choices.patch)
    problems = _forbidden(entry, entry.dead_letter, choices)
    try:
        decoded = decode_task(value, kept)
    except InvalidTaskError as error:
        return RefusedReplay(entry=entry, problems=(*problems, *error.problems))
    target = choices.to_topic or entry.dead_letter.origin_topic
    if target in choices.retry_topics:
        target = decoded.envelope.origin_topic or target
    if target == topic:
        problems.append(FieldProblem("topic", f"{topic} holds dead letters; name a task topic"))
    headers = _proven(entry, kept, decoded, trust)
    if headers is None:
        problems.append(_proof_of_another_id(decoded))
    deadline = decoded.envelope.deadline
    if deadline is not None and deadline <= now:
        problems.append(FieldProblem(header_names.DEADLINE, f"passed at {format_time(deadline)}"))
    if problems or headers is None:
        return RefusedReplay(entry=entry, problems=tuple(problems))
    # Not the envelope's: a dropped header must not bring an epoch back whose result is stored already.
    epoch = entry.epoch + 1
    return PreparedReplay(
        entry=entry,
        topic=target,
        # Keys are request ids; what a foreign producer chose stays, unless a patch may have changed the id.
        key=record.key if record.key is not None and choices.patch is None else decoded.task.request_id.encode(),
        value=value,
        headers=_replay_headers(headers, entry.dead_letter, decoded, epoch=epoch, replay_of=f"{topic}/{entry.ref}"),
        request_id=decoded.task.request_id,
        epoch=epoch,
    )


def _proven(entry: DeadLetterEntry, headers: RawHeaders, decoded: DecodedTask, trust: TenantTrust) -> RawHeaders | None:
    """The headers with a proof of the tenant for the task's id; None where the one there is for another id."""
    envelope, request_id = decoded.envelope, decoded.task.request_id
    if envelope.tenant_proof is None:
        return headers
    if trust.owner(envelope, topics=(), request_id=entry.request_id or "") == envelope.tenant:
        proof = trust.prove(tenant=envelope.tenant, request_id=request_id)
        if proof is not None:
            kept = [(name, raw) for name, raw in headers if name != header_names.TENANT_PROOF]
            return [*kept, (header_names.TENANT_PROOF, proof.encode())]
    # Not ours to judge: a false proof stays one, and the default tenant needs none.
    is_valid_still = request_id == entry.request_id or envelope.tenant == DEFAULT_TENANT
    return headers if is_valid_still else None


def _proof_of_another_id(decoded: DecodedTask) -> FieldProblem:
    return FieldProblem(
        header_names.TENANT_PROOF,
        f"proves the tenant {decoded.envelope.tenant} for the former request_id alone; replay it by a gateway that "
        "knows the key (`fluxpool dlq replay --url`), or leave this header out, and the task is of the tenant default",
    )


def patch_value(value: bytes | None, patch: dict[str, Any]) -> bytes:
    """The value after a merge patch; one that is no JSON object counts as an empty one, which the patch must fill."""
    try:
        body = json.loads(value or b"")
    except (ValueError, RecursionError):
        body = {}
    merged = json.dumps(merge_patch(body, patch), ensure_ascii=False, separators=(",", ":"))
    # JSON may escape half a character, which is no UTF-8: the decoding refuses it, and names the field.
    return merged.encode(errors="surrogatepass")


def merge_patch(target: Any, patch: Any) -> Any:
    """The result of a JSON merge patch, by the algorithm of RFC 7396 section 2."""
    if not isinstance(patch, dict):
        return patch
    merged = dict(target) if isinstance(target, dict) else {}
    for name, value in patch.items():
        if value is None:
            merged.pop(name, None)
        else:
            merged[name] = merge_patch(merged.get(name), value)
    return merged


def refuse_deleted_task(entry: DeadLetterEntry) -> RefusedReplay:
    """The refusal of a replay whose task its client has deleted."""
    problem = FieldProblem(REQUEST_ID_FIELD, f"{entry.request_id} was deleted; submit it as a new task")
    return RefusedReplay(entry=entry, problems=(problem,))


def refuse_missing_topic(prepared: PreparedReplay) -> RefusedReplay:
    """The refusal of a replay whose topic does not exist."""
    problem = FieldProblem("topic", f"{prepared.topic} does not exist any more; name another one to send to")
    return RefusedReplay(entry=prepared.entry, problems=(problem,))


def _forbidden(entry: DeadLetterEntry, dead_letter: DeadLetter, choices: ReplayChoices) -> list[FieldProblem]:
    problems = []
    if entry.epoch >= choices.max_replays and not choices.ignore_max_replays:
        times = "once" if entry.epoch == 1 else f"{entry.epoch} times"
        problems.append(
            FieldProblem(
                header_names.EPOCH,
                f"was replayed {times} already and failed again, and {choices.max_replays} is the most; "
                "find the cause first, then force it",
            )
        )
    if dead_letter.error_code == ErrorCode.ID_CONFLICT and REQUEST_ID_FIELD not in (choices.patch or {}):
        problems.append(
            FieldProblem(
                REQUEST_ID_FIELD, f"{dead_letter.request_id} belongs to another task; patch in a new request_id"
            )
        )
    return problems


def _replay_headers(
    kept: RawHeaders, dead_letter: DeadLetter, decoded: DecodedTask, *, epoch: int, replay_of: str
) -> list[tuple[str, bytes]]:
    replaced = _OF_THE_FAILURE | {header_names.EPOCH, header_names.REPLAY_OF, header_names.FIRST_SEEN}
    # The day in the object key stays that of the first sending, however late the replay is.
    entered_ms = dead_letter.origin_timestamp_ms
    if entered_ms < 0:
        entered_ms = round(dead_letter.failed_at.astimezone(UTC).timestamp() * 1000)
    return [
        *((name, raw or b"") for name, raw in kept if name not in replaced),
        *encode_headers(
            [
                (header_names.EPOCH, str(epoch)),
                (header_names.REPLAY_OF, replay_of),
                (header_names.FIRST_SEEN, format_time(first_seen(decoded.envelope, entered_ms))),
            ]
        ),
    ]
