"""Everything derived from a task, the same on every redelivery: ids, seeds, digests and object keys.

Nothing here looks at the clock or draws a random number, but for `new_request_id`.
"""

import hashlib
import json
import uuid
from datetime import UTC, datetime
from typing import Final

import uuid_utils

from fluxpool_contract.headers import Envelope
from fluxpool_contract.task import MAX_IMAGES, MAX_SEED

MAX_TIMESTAMP_MS: Final = 253_402_214_400_000
"""9999-12-31T00:00:00Z."""

_NAMESPACE = uuid.uuid5(uuid.NAMESPACE_DNS, "fluxpool.dev")


def new_request_id() -> str:
    """A fresh id, ordered by time (UUIDv7), so that stores keyed by it grow at one end."""
    return str(uuid_utils.uuid7())


def idempotent_request_id(tenant: str, idempotency_key: str) -> str:
    """The id that every gateway gives to this tenant's request with this key, without asking anybody."""
    return str(uuid.uuid5(_NAMESPACE, f"request/{tenant}/{idempotency_key}"))


def derive_seed(request_id: str) -> int:
    """The seed of a task that names none; leaves room for the seeds of further images."""
    digest = hashlib.sha256(f"seed/{request_id}".encode()).digest()
    return int.from_bytes(digest[:8], "big") % (MAX_SEED - MAX_IMAGES + 2)


def task_digest(value: bytes) -> str:
    """Identity of a task's body: SHA-256 (hex) of its JSON with sorted keys and no white space.

    Two records with one `request_id` are the same request when their digests are equal. Taken from the body itself and
    not from the parsed model, so that workers of different releases agree. `value` must be valid JSON.
    """
    canonical = json.dumps(json.loads(value), sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(canonical.encode()).hexdigest()


def first_seen(envelope: Envelope, record_timestamp_ms: int) -> datetime:
    """When the task entered the system: the header, else the record's own timestamp (milliseconds since 1970, UTC).

    A timestamp that is no date (a producer may write any number) counts as the nearest one that is.
    """
    if envelope.first_seen is not None:
        return envelope.first_seen
    return datetime.fromtimestamp(min(max(0, record_timestamp_ms), MAX_TIMESTAMP_MS) / 1000, UTC)


def result_event_id(tenant: str, request_id: str, epoch: int = 0) -> str:
    """`ce_id` of the one terminal event of a task."""
    return str(uuid.uuid5(_NAMESPACE, f"result/{tenant}/{request_id}/{epoch}"))


def record_event_id(topic: str, partition: int, offset: int) -> str:
    """`ce_id` of what is said about a record whose `request_id` cannot be read."""
    return str(uuid.uuid5(_NAMESPACE, f"record/{topic}/{partition}/{offset}"))


def object_prefix(tenant: str, day: datetime, request_id: str, epoch: int = 0) -> str:
    """Folder of a task's objects: `{tenant}/{yyyy}/{mm}/{dd}/{request_id}`; a replay has its own beside the first."""
    folder = request_id if epoch == 0 else f"{request_id}~{epoch}"
    return f"{tenant}/{day.astimezone(UTC):%Y/%m/%d}/{folder}"


def image_key(prefix: str, index: int, extension: str) -> str:
    """Key of one image below its task's prefix."""
    return f"{prefix}/{index}.{extension}"


def manifest_key(prefix: str) -> str:
    """Key of the manifest below its task's prefix."""
    return f"{prefix}/manifest.json"


def claim_key(tenant: str, request_id: str, epoch: int = 0) -> str:
    """Key of the claim that binds a `request_id` to one body and one prefix, whatever day a copy arrives on.

    Tenants cannot begin with an underscore, so claims never meet images.
    """
    folder = request_id if epoch == 0 else f"{request_id}~{epoch}"
    return f"_claims/{tenant}/{folder}.json"
