"""Decodes records of the dead-letter topic into changes of the task store: a dead letter, or its resolution. Pure."""

from collections.abc import Collection
from dataclasses import dataclass

from aiokafka.structs import ConsumerRecord

from fluxpool_contract import header_names
from fluxpool_contract.messages import RawHeaders, Resolution, is_resolution, parse_envelope
from fluxpool_contract.problems import InvalidTaskError
from fluxpool_contract.tenants import NO_TENANT, TenantTrust
from fluxpool_transport.dlq import DeadLetterEntry, entry_of, parse_resolution

_OF_THE_TENANT = frozenset({header_names.TENANT, header_names.TENANT_PROOF})


@dataclass(frozen=True, slots=True)
class DeadLetterSeen:
    """A dead letter was read, or a record of another origin on its topic."""

    entry: DeadLetterEntry
    tenant: str
    """Whose it is; `NO_TENANT`: shown to holders of the scope admin alone."""


@dataclass(frozen=True, slots=True)
class ResolutionSeen:
    """What was done about a dead letter in the same partition."""

    resolution: Resolution


DeadLetterChange = DeadLetterSeen | ResolutionSeen


def read_dead_letter(
    record: ConsumerRecord, *, trust: TenantTrust, task_topics: Collection[str]
) -> DeadLetterChange | None:
    """What a record of the dead-letter topic says; None for a resolution that cannot be read.

    A tenant counts as in a task: with the proof of a gateway, or where every writer of the original topic may name it.
    """
    if is_resolution(record.headers):
        resolution = parse_resolution(record)
        return None if resolution is None else ResolutionSeen(resolution)
    entry = entry_of(record)
    return DeadLetterSeen(entry, _owner(entry, record.headers, trust=trust, task_topics=task_topics))


def _owner(entry: DeadLetterEntry, headers: RawHeaders, *, trust: TenantTrust, task_topics: Collection[str]) -> str:
    try:
        # These alone: another header may be why the task was refused, and it is its tenant's all the same.
        envelope = parse_envelope([(name, raw) for name, raw in headers if name in _OF_THE_TENANT])
    except InvalidTaskError:
        return NO_TENANT
    origin = "" if entry.dead_letter is None else entry.dead_letter.origin_topic
    # Of a retry topic it is not known where the task was sent to first.
    topics = (origin,) if origin in task_topics else tuple(task_topics)
    return trust.owner(envelope, topics=topics, request_id=entry.request_id or "")
