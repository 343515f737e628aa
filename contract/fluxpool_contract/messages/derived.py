"""Everything derived from a task, the same on every redelivery: ids, seeds, digests and object keys.

Nothing here looks at the clock or draws a random number, but for `new_request_id`.
"""

import hashlib
import json
import math
import uuid
from datetime import UTC, datetime
from decimal import Decimal
from typing import Final

import uuid_utils

from fluxpool_contract.bounds import moment_at
from fluxpool_contract.json_body import without_bom
from fluxpool_contract.messages.headers import Envelope
from fluxpool_contract.messages.task import MAX_IMAGES, MAX_SEED, PRESET_FIELDS

_LARGEST_EXACT_INTEGER: Final = 2**53
"""Up to here every whole number is a floating-point number too."""

_NAMESPACE = uuid.uuid5(uuid.NAMESPACE_DNS, "fluxpool.dev")


def new_request_id() -> str:
    """A fresh id, ordered by time (UUIDv7), so that stores keyed by it grow at one end."""
    return str(uuid_utils.uuid7())


def idempotent_request_id(tenant: str, idempotency_key: str) -> str:
    """The id that every gateway gives to this tenant's request with this key, without any request."""
    return str(uuid.uuid5(_NAMESPACE, f"request/{tenant}/{idempotency_key}"))


def derive_seed(request_id: str) -> int:
    """The seed of a task that names none; leaves room for the seeds of further images."""
    digest = hashlib.sha256(f"seed/{request_id}".encode()).digest()
    return int.from_bytes(digest[:8], "big") % (MAX_SEED - MAX_IMAGES + 2)


def task_digest(body: bytes) -> str:
    """Identity of what a task's body says: SHA-256 (hex) of its JSON with sorted keys and no white space.

    Two records with one `request_id` are the same request when their digests are equal. Taken from the body itself and
    not from the parsed model, so that workers of different releases agree. Equal for equal values however they are
    written: `4`, `4.0` and `0.4e1`, escapes, a byte order mark. Raises `ValueError` for a body that is not JSON as
    RFC 8259 defines it, and for numbers beyond 64-bit floating point. What a gateway chose for a preset is left out: a
    repeat of the request, for which it chose otherwise, is the same request.
    """
    value = json.loads(without_bom(body), parse_float=_number, parse_constant=_refuse_constant)
    return _digest_of(value)


def task_digest_as_written(body: bytes) -> str:
    """The digest as release 0.1 makes it, for which `4` and `4.0` are two numbers; raises as `task_digest`.

    Claims hold this one, so that workers of every release recognise each other's.
    """
    return _digest_of(json.loads(without_bom(body), parse_constant=_refuse_constant))


def _digest_of(value: object) -> str:
    if isinstance(value, dict) and isinstance(choice := value.get("preset_choice"), dict):
        sets = choice.get("sets")
        chosen = {"preset_choice"} | PRESET_FIELDS.intersection(
            name for name in (sets if isinstance(sets, list) else ()) if isinstance(name, str)
        )
        value = {name: item for name, item in value.items() if name not in chosen}
    canonical = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(canonical.encode()).hexdigest()


def _number(text: str) -> int | float:
    """A number with a fraction or an exponent; an integer when its value is one."""
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"the number {text[:40]} is out of range")
    if not number.is_integer():
        return number
    return int(number) if abs(number) < _LARGEST_EXACT_INTEGER else int(Decimal(text))


def _refuse_constant(name: str) -> object:
    raise ValueError(f"{name} is not a number in JSON")


def first_seen(envelope: Envelope, record_timestamp_ms: int) -> datetime:
    """When the task entered the system: the header, else the record's own timestamp (milliseconds since 1970, UTC).

    A timestamp that is no date (a producer may write any number) counts as the nearest one that is.
    """
    return moment_at(record_timestamp_ms) if envelope.first_seen is None else envelope.first_seen


def result_event_id(tenant: str, request_id: str, epoch: int = 0) -> str:
    """`ce_id` of the one terminal event of a task."""
    return str(uuid.uuid5(_NAMESPACE, f"result/{tenant}/{request_id}/{epoch}"))


def record_event_id(topic: str, partition: int, offset: int) -> str:
    """`ce_id` of the result of a record whose `request_id` cannot be read."""
    return str(uuid.uuid5(_NAMESPACE, f"record/{topic}/{partition}/{offset}"))


def object_prefix(tenant: str, day: datetime, request_id: str, epoch: int = 0) -> str:
    """Folder of a task's objects: `{tenant}/{yyyy}/{mm}/{dd}/{request_id}`; a replay has its own beside the first."""
    return f"{tenant}/{day.astimezone(UTC):%Y/%m/%d}/{_id_of_replay(request_id, epoch)}"


def input_folder(prefix: str, tenant: str) -> str:
    """Folder of the pictures that a tenant's tasks may start from, with a slash; `prefix` is the pool's."""
    return f"{prefix}{tenant}/"


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
    return f"_claims/{tenant}/{_id_of_replay(request_id, epoch)}.json"


def deletion_key(tenant: str, request_id: str, epoch: int = 0) -> str:
    """Key of the object that says that the other objects of a task were deleted."""
    return f"_deletions/{tenant}/{_id_of_replay(request_id, epoch)}.json"


def _id_of_replay(request_id: str, epoch: int) -> str:
    return request_id if epoch == 0 else f"{request_id}~{epoch}"
