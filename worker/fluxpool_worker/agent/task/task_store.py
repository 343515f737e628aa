"""A task's objects: claim, images, manifest; every call outlasts an outage of the store.

Owns the retries and the addresses of images. The protocol between workers that have the same task is
`fluxpool_transport.storage.task_objects`.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from aiokafka.structs import ConsumerRecord

from fluxpool_contract.messages import (
    DecodedTask,
    GenerationResult,
    ImageDescription,
    first_seen,
    input_folder,
    result_event_id,
)
from fluxpool_contract.problems import ErrorCode, FieldProblem, InvalidTaskError
from fluxpool_contract.settings import WorkerSettings
from fluxpool_transport.process import fault_point
from fluxpool_transport.storage import (
    Claim,
    Claimed,
    ConditionalWritesError,
    CorruptObjectError,
    IdConflictError,
    Manifest,
    ObjectStore,
    StorageCredentialsError,
    StorageUnavailableError,
    claim_task,
    discard_if_deleted,
    is_deleted,
    read_input,
    read_manifest,
    store_image,
    store_manifest,
)
from fluxpool_worker.agent.clock import Clock
from fluxpool_worker.agent.consumer.lane_choice import waited_ms
from fluxpool_worker.agent.image_signing import ImageSigning
from fluxpool_worker.agent.task.attempts import Success
from fluxpool_worker.agent.task.holds import HoldCause, Holds
from fluxpool_worker.agent.task.outgoing_records import WorkerIdentity, success_result
from fluxpool_worker.agent.task.task_records import TaskRecord
from fluxpool_worker.engine.protocol import EncodedImage

_after_manifest = fault_point("agent-after-manifest")

T = TypeVar("T")


class TaskStore:
    """The object store as tasks use it; every method waits for a store that is away.

    All raise `HoldExpiredError` past the limit of holds and `CorruptObjectError` for what no worker wrote.
    """

    def __init__(
        self, store: ObjectStore, *, settings: WorkerSettings, identity: WorkerIdentity, holds: Holds, clock: Clock
    ) -> None:
        self._store = store
        self._settings = settings
        self._identity = identity
        self._holds = holds
        self._clock = clock
        self.signing = ImageSigning(settings.image.signing_folder, holds=holds)
        self._cause = HoldCause.OBJECT_STORE if settings.storage.folder is None else HoldCause.DISK

    async def probe(self, *, on_trouble: Callable[[str], None]) -> None:
        """Return when the store keeps the promises that tasks rest on; `on_trouble` gets the reason while it does not.

        Raises `ConditionalWritesError` and `StorageCredentialsError`: waiting mends neither.
        """

        async def probe() -> StorageUnavailableError | None:
            try:
                await self._store.probe()
            except (ConditionalWritesError, StorageCredentialsError) as error:
                return error
            except StorageUnavailableError as error:
                on_trouble(str(error))
                raise
            return None

        if error := await self._hold(probe):
            raise error

    async def claim(self, task: TaskRecord, *, abandoned: asyncio.Event | None = None) -> Claimed:
        """Bind the id to this body; raises `IdConflictError`, and `AbandonedError` soon after `abandoned` is set."""
        assert task.request_id is not None  # noqa: S101 - what names no task has no objects
        request_id = task.request_id
        return await self._hold(
            lambda: claim_task(
                self._store,
                tenant=task.tenant,
                request_id=request_id,
                epoch=task.envelope.epoch,
                digest=task.digest,
                value_digest=task.value_digest,
                first_seen=first_seen(task.envelope, task.record.timestamp),
            ),
            abandoned,
        )

    async def claim_and_conclude(
        self, task: TaskRecord, result: GenerationResult
    ) -> Manifest | IdConflictError | CorruptObjectError:
        """The manifest of the task, with `result` unless there is one already; else why there can be none."""
        try:
            return await self.conclude((await self.claim(task)).claim, result)
        except (IdConflictError, CorruptObjectError) as error:
            return error

    async def put(self, key: str, payload: bytes, *, content_type: str) -> None:
        """Store an object of another kind, unless it is there."""
        await self._hold(lambda: self._store.put_if_absent(key, payload, content_type=content_type))

    async def outcome(self, claim: Claim, *, abandoned: asyncio.Event | None = None) -> Manifest | None:
        """The task's manifest; None while there is none. Raises `AbandonedError` soon after `abandoned` is set."""
        return await self._hold(lambda: read_manifest(self._store, claim), abandoned)

    async def is_deleted(self, claim: Claim, *, abandoned: asyncio.Event | None = None) -> bool:
        """Whether a task without manifest was deleted. Raises `AbandonedError` soon after `abandoned` is set."""
        return await self._hold(lambda: is_deleted(self._store, claim), abandoned)

    async def discard_if_deleted(self, claim: Claim) -> bool:
        """Delete what was stored of a task that was deleted meanwhile; whether it was."""
        return await self._hold(lambda: discard_if_deleted(self._store, claim))

    async def input_image(self, task: TaskRecord, decoded: DecodedTask, *, abandoned: asyncio.Event) -> bytes | None:
        """The picture that the task starts from; None when it names none.

        Raises `InvalidTaskError` when there is no such picture, and `AbandonedError` soon after `abandoned` is set.
        """
        address, limits = decoded.task.image, self._settings.image
        if address is None:
            return None
        prefix = input_folder(limits.input_prefix, task.tenant)
        claimed = decoded.envelope.tenant
        if claimed != task.tenant and input_folder(limits.input_prefix, claimed) in address:
            raise InvalidTaskError(ErrorCode.INVALID_FIELD, [_unproven(claimed)], request_id=decoded.task.request_id)
        return await self._hold(
            lambda: read_input(
                self._store,
                address,
                prefix=prefix,
                max_bytes=limits.input_max_bytes,
                request_id=decoded.task.request_id,
            ),
            abandoned,
        )

    async def keep_images(
        self, record: ConsumerRecord, decoded: DecodedTask, claim: Claim, success: Success
    ) -> GenerationResult:
        """Sign and store the images; returns the result that describes them."""
        generated = success.generated
        timings = {f"{name}_ms": value for name, value in generated.timings_ms.items()}
        began = self._clock.monotonic()
        files = [await self.signing.sign(image) for image in generated.images]
        if self.signing.is_on:
            timings["signing_ms"] = (self._clock.monotonic() - began) * 1000
        began = self._clock.monotonic()
        images = [await self._keep_image(decoded, claim, image) for image in files]
        timings["store_ms"] = (self._clock.monotonic() - began) * 1000
        waited = waited_ms(record.timestamp, now_ms=self._clock.time() * 1000)
        if waited is not None:
            timings["queue_ms"] = max(0.0, waited - sum(timings.values()))
        return success_result(
            decoded,
            images=images,
            identity=self._identity,
            attempt=success.attempt,
            quality=decoded.task.quality or self._settings.model.quality.default,
            engine_path=generated.path,
            timings_ms=timings,
            warnings=generated.warnings,
            completed_at=self._clock.now(),
        )

    async def conclude(self, claim: Claim, result: GenerationResult) -> Manifest:
        """Store the manifest; returns the one that decides, ours or that of the worker that was first."""
        manifest = Manifest(
            request_id=claim.request_id,
            tenant=claim.tenant,
            epoch=claim.epoch,
            digest=claim.digest,
            event_id=result_event_id(claim.tenant, claim.request_id, claim.epoch),
            result=result,
        )
        stored = await self._hold(lambda: store_manifest(self._store, claim, manifest))
        _after_manifest()
        return stored

    async def _keep_image(self, decoded: DecodedTask, claim: Claim, image: EncodedImage) -> ImageDescription:
        stored = await self._hold(
            lambda: store_image(
                self._store,
                claim,
                index=image.index,
                extension=decoded.task.output_format.extension,
                payload=image.payload,
                content_type=image.content_type,
            )
        )
        return ImageDescription(
            index=image.index,
            url=self._image_url(decoded.task.request_id, image.index, stored.key),
            object=stored.key,
            width=image.width,
            height=image.height,
            seed=image.seed,
            format=image.format,
            content_type=image.content_type,
            bytes=len(stored.payload),
            sha256=stored.sha256,
            marks=self.signing.marks_of(image) if stored.created else await self.signing.marks_in(stored.payload),
        )

    def _image_url(self, request_id: str, index: int, key: str) -> str:
        if self._settings.gateway_url is not None:
            return f"{self._settings.gateway_url}v1/generations/{request_id}/images/{index}"
        if self._settings.storage.public_base_url is not None:
            return f"{self._settings.storage.public_base_url}{key}"
        return self._store.location(key)

    async def _hold(self, operation: Callable[[], Awaitable[T]], abandoned: asyncio.Event | None = None) -> T:
        return await self._holds.through(
            operation, cause=self._cause, retry_on=(StorageUnavailableError,), abandoned=abandoned
        )


def _unproven(tenant: str) -> FieldProblem:
    return FieldProblem(
        "image",
        f"is in the folder of the tenant {tenant}, which nothing proves to this worker; give workers the keys of the "
        "gateway (FLUXPOOL_TENANT_SECRET_FILE), or list the topic in FLUXPOOL_FOREIGN_TENANT_TOPICS",
    )
