"""The objects of a task in the object store: a claim, its images, and a manifest that decides the outcome.

Owns the protocol between workers that may hold the same task: each object is created once, and a second writer takes
the existing one. Knows nothing of Kafka. Nothing depends on the clock, so that every copy of a task does the same.

The claim binds a `request_id` to one body and one prefix. Images lie below the prefix. The manifest carries the result
as it is published, so that a redelivered task is answered with the very same record.
"""

import hashlib
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from fluxpool_contract.messages import GenerationResult, claim_key, deletion_key, image_key, manifest_key, object_prefix
from fluxpool_contract.problems import ErrorCode, FieldProblem, InvalidTaskError
from fluxpool_transport.process.faults import fault_point
from fluxpool_transport.storage.object_store import ObjectStore, StorageUnavailableError

_after_claim = fault_point("store-after-claim")
_after_image = fault_point("store-after-image")
_after_manifest = fault_point("store-after-manifest")

MANIFEST_VERSION: Final = 1
_JSON: Final = "application/json"
_ANY_DAY: Final = datetime(1970, 1, 1, tzinfo=UTC)
_CREATE_ROUNDS: Final = 3
"""An object can only vanish between "exists" and reading when another client deletes it at that moment."""


class IdConflictError(InvalidTaskError):
    """A second task uses the `request_id` of another one; its body differs, so it is not a repetition."""

    def __init__(self, *, tenant: str, request_id: str) -> None:
        self.tenant = tenant
        problem = FieldProblem(
            "request_id", f"{request_id} was used for another task of tenant {tenant}; choose a new request_id"
        )
        super().__init__(ErrorCode.ID_CONFLICT, [problem], request_id=request_id)


class CorruptObjectError(Exception):
    """A claim or manifest in the store is not one; the message names the object."""


class _StoredJson(BaseModel):
    model_config = ConfigDict(extra="allow", frozen=True, use_attribute_docstrings=True)

    def to_json(self) -> bytes:
        """The object's bytes; equal values give equal bytes."""
        return self.model_dump_json().encode()


StoredT = TypeVar("StoredT", bound=_StoredJson)


class Claim(_StoredJson):
    """Binds a `request_id` to the body of its task and to the prefix of its objects."""

    request_id: str
    tenant: str
    epoch: int
    digest: str
    """Of the task's body, see `task_digest_as_written`."""
    prefix: str
    """Folder of the task's objects."""
    value_digest: str | None = None
    """Of what the body says, see `task_digest`; null in claims of release 0.1."""


class Manifest(_StoredJson):
    """The outcome of a task, successful or not."""

    version: int = MANIFEST_VERSION
    request_id: str
    tenant: str
    epoch: int
    digest: str
    event_id: str
    """`ce_id` of the terminal event."""
    result: GenerationResult
    """As it is published: reading it back and writing it again gives the same bytes, unknown fields included."""


@dataclass(frozen=True, slots=True)
class Claimed:
    """The valid claim, of this worker or another one."""

    claim: Claim
    fresh: bool
    """False when it was there before: this task, or a try whose answer got lost, has been here."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredImage:
    """An image in the store; describes the stored bytes, also when they are another worker's."""

    key: str
    payload: bytes = field(repr=False)
    sha256: str
    """Lower-case hex."""
    created: bool


async def claim_task(
    store: ObjectStore,
    *,
    tenant: str,
    request_id: str,
    epoch: int,
    digest: str,
    first_seen: datetime,
    value_digest: str | None = None,
) -> Claimed:
    """Bind the id to this body, or find out that it is bound.

    A claim from another day keeps its prefix. Raises `IdConflictError` when the id is bound to another body,
    `CorruptObjectError`, `StorageUnavailableError`.
    """
    proposed = Claim(
        request_id=request_id,
        tenant=tenant,
        epoch=epoch,
        digest=digest,
        value_digest=value_digest,
        prefix=object_prefix(tenant, first_seen, request_id, epoch),
    )
    key = claim_key(tenant, request_id, epoch)
    stored, fresh = await _create_or_read(store, key, proposed.to_json(), content_type=_JSON)
    if fresh:
        _after_claim()
        return Claimed(proposed, fresh=True)
    claim = _parse_claim(store, key, stored, expected=proposed)
    if claim.digest != digest and (claim.value_digest is None or claim.value_digest != value_digest):
        raise IdConflictError(tenant=tenant, request_id=request_id)
    return Claimed(claim, fresh=False)


async def delete_task_objects(store: ObjectStore, *, tenant: str, request_id: str, epoch: int) -> None:
    """Delete the images of a task that has ended, and its manifest; again is harmless.

    The claim stays: it holds digests alone, and keeps the id from being used for another body. A worker that gets the
    task once more finds it deleted (`is_deleted`). Raises `CorruptObjectError`, `StorageUnavailableError`.
    """
    key = claim_key(tenant, request_id, epoch)
    stored = await store.get(key)
    if stored is None:
        return
    # Not the keys of a result, which any producer may write, but those that no other task can have.
    expected = Claim(request_id=request_id, tenant=tenant, epoch=epoch, digest="", prefix="")
    claim = _parse_claim(store, key, stored, expected=expected)
    # Before the manifest is deleted: a claim without a manifest is that of a task to be continued.
    await store.put_if_absent(deletion_key(tenant, request_id, epoch), b"{}", content_type=_JSON)
    await store.delete_below(claim.prefix)


async def discard_if_deleted(store: ObjectStore, claim: Claim) -> bool:
    """Delete what was stored of a task after its deletion; whether it was deleted. Ask once all of it is stored.

    The deletion is marked before the objects are deleted. So either they were stored before the mark, and are deleted
    by who made it, or the mark is found here. Raises `StorageUnavailableError`.
    """
    if not await is_deleted(store, claim):
        return False
    await store.delete_below(claim.prefix)
    return True


async def is_deleted(store: ObjectStore, claim: Claim) -> bool:
    """Whether the task had ended and was deleted; ask after its manifest. Raises `StorageUnavailableError`."""
    return await store.get(deletion_key(claim.tenant, claim.request_id, claim.epoch)) is not None


async def store_image(
    store: ObjectStore, claim: Claim, *, index: int, extension: str, payload: bytes, content_type: str
) -> StoredImage:
    """Create image `index` (0-based) of the task, or describe the one that is there: the first writer's is the image.

    Raises `StorageUnavailableError`.
    """
    key = image_key(claim.prefix, index, extension)
    stored, created = await _create_or_read(store, key, payload, content_type=content_type)
    _after_image()
    return StoredImage(key=key, payload=stored, sha256=hashlib.sha256(stored).hexdigest(), created=created)


async def store_manifest(store: ObjectStore, claim: Claim, manifest: Manifest) -> Manifest:
    """Create the manifest; returns the one that holds, which is another worker's when that was first.

    Raises `CorruptObjectError`, `StorageUnavailableError`.
    """
    key = manifest_key(claim.prefix)
    stored, created = await _create_or_read(store, key, manifest.to_json(), content_type=_JSON)
    _after_manifest()
    return manifest if created else _parse_manifest(store, claim, stored)


async def read_manifest(store: ObjectStore, claim: Claim) -> Manifest | None:
    """The outcome of the task; None while there is none. Raises `CorruptObjectError`, `StorageUnavailableError`."""
    stored = await store.get(manifest_key(claim.prefix))
    return None if stored is None else _parse_manifest(store, claim, stored)


async def _create_or_read(store: ObjectStore, key: str, payload: bytes, *, content_type: str) -> tuple[bytes, bool]:
    """The bytes that lie under the key, and whether they are the given ones, written now."""
    for _ in range(_CREATE_ROUNDS):
        if await store.put_if_absent(key, payload, content_type=content_type):
            return payload, True
        stored = await store.get(key)
        if stored is not None:
            return stored, False
    raise StorageUnavailableError(
        f"object store: {store.location(key)} is reported to exist but cannot be read; is something deleting objects?"
    )


def _parse(kind: type[StoredT], store: ObjectStore, key: str, stored: bytes) -> StoredT:
    try:
        return kind.model_validate_json(stored)
    except ValidationError as error:
        raise _corrupt(kind, store, key) from error


def _parse_claim(store: ObjectStore, key: str, stored: bytes, *, expected: Claim) -> Claim:
    """The claim of the same task, whatever its body."""
    claim = _parse(Claim, store, key, stored)
    named = (claim.request_id, claim.tenant, claim.epoch)
    if named != (expected.request_id, expected.tenant, expected.epoch) or not _is_prefix(claim):
        raise _corrupt(Claim, store, key)
    return claim


def _parse_manifest(store: ObjectStore, claim: Claim, stored: bytes) -> Manifest:
    key = manifest_key(claim.prefix)
    manifest = _parse(Manifest, store, key, stored)
    named = (manifest.request_id, manifest.tenant, manifest.epoch)
    if named != (claim.request_id, claim.tenant, claim.epoch) or manifest.result.request_id != claim.request_id:
        raise _corrupt(Manifest, store, key)
    return manifest


def _is_prefix(claim: Claim) -> bool:
    """Whether the claim's folder belongs to this task: a forged claim must not lead to another's objects."""
    folder = object_prefix(claim.tenant, _ANY_DAY, claim.request_id, claim.epoch).rsplit("/", 1)[1]
    tenant, *between = claim.prefix.split("/")
    return tenant == claim.tenant and between[-1:] == [folder] and not {"", ".", ".."} & set(between)


def _corrupt(kind: type[_StoredJson], store: ObjectStore, key: str) -> CorruptObjectError:
    return CorruptObjectError(
        f"{store.location(key)} is not a {kind.__name__.lower()} of this task; move it away, then replay the task"
    )
