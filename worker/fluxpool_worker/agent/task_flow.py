"""The way of one task through this pod, from a record to its committed end.

Order is what keeps the promises: claim the id, record the start, generate, store the images, store the manifest,
publish (dead letter, result) and await the acks, and only then finish the offset. A crash between any two steps leads
to a redelivery that finds what was done and goes on from there.
"""

import hashlib
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import TypeVar

import structlog
from aiokafka.structs import ConsumerRecord

from fluxpool_contract import derived
from fluxpool_contract.dead_letter import Disposition
from fluxpool_contract.decoding import DecodedTask, decode_task
from fluxpool_contract.headers import Envelope, parse_envelope
from fluxpool_contract.ledger import LedgerEntry
from fluxpool_contract.problems import ErrorClass, ErrorCode, InvalidTaskError
from fluxpool_contract.progress import ProgressEvent
from fluxpool_contract.result import GenerationResult, ImageDescription, ResultStatus
from fluxpool_contract.settings import WorkerSettings
from fluxpool_transport.backoff import retry_forever
from fluxpool_transport.faults import fault_point
from fluxpool_transport.object_store import ObjectStore, StorageUnavailableError
from fluxpool_transport.task_objects import (
    Claim,
    Claimed,
    CorruptObjectError,
    IdConflictError,
    Manifest,
    claim_task,
    read_manifest,
    store_image,
    store_manifest,
)
from fluxpool_worker.agent.answers import (
    Failure,
    Signature,
    answer_envelope,
    dead_letter_record,
    failed_result,
    progress_record,
    result_record,
    success_result,
)
from fluxpool_worker.agent.attempts import Attempts, Success, TaskReleasedError
from fluxpool_worker.agent.engine_client import EngineClient
from fluxpool_worker.agent.lane import PartitionLostError, Taken
from fluxpool_worker.agent.publisher import ProgressPublisher, ReliablePublisher
from fluxpool_worker.engine.protocol import EncodedImage

_after_record = fault_point("agent-after-record")
_after_generate = fault_point("agent-after-generate")
_after_manifest = fault_point("agent-after-manifest")
_after_result = fault_point("agent-after-result")

log = structlog.get_logger(__name__)
T = TypeVar("T")


class TaskFlow:
    """Runs tasks; one instance serves all lanes of a pod."""

    def __init__(
        self,
        *,
        settings: WorkerSettings,
        worker_name: str,
        store: ObjectStore,
        engine: EngineClient,
        publisher: ReliablePublisher,
        progress: ProgressPublisher,
        on_end: Callable[[str, float], None],
    ) -> None:
        self._settings = settings
        self._store = store
        self._publisher = publisher
        self._progress = progress
        self._on_end = on_end
        self.attempts = Attempts(engine, max_attempts=settings.attempts_in_place, report=self._report)
        self._signature = Signature(worker=worker_name, pool=settings.pool, model=None)

    def set_model(self, model: str) -> None:
        """Name the loaded model in answers."""
        self._signature = Signature(worker=self._signature.worker, pool=self._signature.pool, model=model)

    async def run(self, taken: Taken, *, free_engine: Callable[[], None]) -> None:
        """Bring one record to its end; `free_engine` is called once, when the engine can take another job."""
        began = time.monotonic()
        outcome = "error"
        try:
            outcome = await self._run(taken, free_engine)
        except PartitionLostError:
            outcome = "lost"
        except TaskReleasedError:
            outcome = "released"
            await taken.lane.release(taken)
        finally:
            free_engine()
            self._on_end(outcome, time.monotonic() - began)
            log.info(
                "task_ended",
                outcome=outcome,
                lane=taken.lane.name,
                partition=taken.record.partition,
                offset=taken.record.offset,
                seconds=round(time.monotonic() - began, 3),
            )

    async def _run(self, taken: Taken, free_engine: Callable[[], None]) -> str:
        try:
            decoded = decode_task(taken.record.value, taken.record.headers)
        except InvalidTaskError as error:
            free_engine()
            return await self._refuse(taken, error)
        try:
            claimed = await self._claim(taken.record, decoded.task.request_id, decoded.envelope, decoded.digest)
        except IdConflictError as error:
            free_engine()
            return await self._refuse_conflict(taken, decoded.task.request_id, str(error))
        if not claimed.fresh:
            manifest = await self._hold(lambda: read_manifest(self._store, claimed.claim))
            if manifest is not None:
                free_engine()
                return await self._answer(taken, manifest, decoded.envelope)
        await taken.lane.record(
            taken,
            LedgerEntry(
                task=decoded.task.request_id,
                worker=self._signature.worker,
                started_at=int(time.time()),
                crashes=decoded.envelope.crashes,
            ),
        )
        _after_record()
        ended = await self.attempts.generate(taken, decoded, free_engine=free_engine)
        _after_generate()
        if isinstance(ended, Failure):
            result = failed_result(
                decoded.task.request_id,
                ended,
                signature=self._signature,
                completed_at=datetime.now(UTC),
                metadata=decoded.task.metadata,
            )
        else:
            result = await self._store_images(taken.record, decoded, claimed.claim, ended)
        stored = await self._conclude(claimed.claim, result)
        failure = ended if isinstance(ended, Failure) and stored.result == result else None
        return await self._answer(taken, stored, decoded.envelope, failure=failure)

    # Store

    async def _claim(self, record: ConsumerRecord, request_id: str, envelope: Envelope, digest: str) -> Claimed:
        return await self._hold(
            lambda: claim_task(
                self._store,
                tenant=envelope.tenant,
                request_id=request_id,
                epoch=envelope.epoch,
                digest=digest,
                first_seen=derived.first_seen(envelope, record.timestamp),
            )
        )

    async def _store_images(
        self, record: ConsumerRecord, decoded: DecodedTask, claim: Claim, ended: Success
    ) -> GenerationResult:
        generated = ended.generated
        began = time.monotonic()
        images = [await self._store_image(decoded, claim, image) for image in generated.images]
        timings = {f"{name}_ms": value for name, value in generated.timings_ms.items()}
        timings["store_ms"] = (time.monotonic() - began) * 1000
        timings["queue_ms"] = max(0.0, time.time() * 1000 - record.timestamp - sum(timings.values()))
        return success_result(
            decoded,
            images=images,
            signature=self._signature,
            attempt=ended.attempt,
            timings_ms=timings,
            warnings=generated.warnings,
            completed_at=datetime.now(UTC),
        )

    async def _store_image(self, decoded: DecodedTask, claim: Claim, image: EncodedImage) -> ImageDescription:
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
            bytes=stored.bytes,
            sha256=stored.sha256,
        )

    def _image_url(self, request_id: str, index: int, key: str) -> str:
        if self._settings.gateway_url is not None:
            return f"{self._settings.gateway_url}v1/generations/{request_id}/images/{index}"
        if self._settings.storage.public_base_url is not None:
            return f"{self._settings.storage.public_base_url}{key}"
        return self._store.location(key)

    async def _conclude(self, claim: Claim, result: GenerationResult) -> Manifest:
        """The manifest that decides the outcome: ours, or that of whoever was first."""
        manifest = Manifest(
            request_id=claim.request_id,
            tenant=claim.tenant,
            epoch=claim.epoch,
            digest=claim.digest,
            event_id=derived.result_event_id(claim.tenant, claim.request_id, claim.epoch),
            result=result,
        )
        stored = await self._hold(lambda: store_manifest(self._store, claim, manifest))
        _after_manifest()
        return stored

    async def _hold(self, operation: Callable[[], Awaitable[T]]) -> T:
        """Repeat a store operation until the store is back; an outage is nobody's failed attempt."""
        return await retry_forever(
            operation, name="object-store", retry_on=(StorageUnavailableError, CorruptObjectError)
        )

    def _report(self, event: ProgressEvent, envelope: Envelope) -> None:
        signed = event.model_copy(update={"worker": self._signature.worker, "pool": self._signature.pool})
        self._progress.offer(
            progress_record(
                signed,
                event_id=f"{event.request_id}/{event.attempt}/{event.type}/{event.step or 0}",
                envelope=answer_envelope(envelope),
                source=self._signature.source,
                topics=self._settings.topics,
            )
        )

    # Answers

    async def _answer(
        self, taken: Taken, manifest: Manifest, envelope: Envelope, *, failure: Failure | None = None
    ) -> str:
        """Publish what the manifest says and finish the record."""
        result = manifest.result
        if result.status is ResultStatus.FAILED:
            await self._dead_letter(taken, failure or _failure_of(result), request_id=manifest.request_id)
        await self._publish_result(
            result, request_id=manifest.request_id, event_id=manifest.event_id, envelope=envelope
        )
        await taken.lane.finish(taken)
        return result.status.value

    async def _refuse(self, taken: Taken, error: InvalidTaskError) -> str:
        failure = Failure(
            error_class=ErrorClass.INVALID,
            code=error.code,
            disposition=Disposition.OVERSIZE if error.code is ErrorCode.TOO_LARGE else Disposition.INVALID,
            message=str(error),
            field=error.problems[0].field or None,
        )
        record = taken.record
        result = failed_result(error.request_id, failure, signature=self._signature, completed_at=datetime.now(UTC))
        if error.request_id is None:
            event_id = derived.record_event_id(record.topic, record.partition, record.offset)
            await self._dead_letter(taken, failure, request_id=None)
            await self._publish_result(result, request_id=None, event_id=event_id, envelope=Envelope())
            await taken.lane.finish(taken)
            return "invalid"
        try:
            envelope = parse_envelope(record.headers)
        except InvalidTaskError:
            envelope = Envelope()
        digest = "raw:" + hashlib.sha256(record.value or b"").hexdigest()
        try:
            claimed = await self._claim(record, error.request_id, envelope, digest)
        except IdConflictError as conflict:
            return await self._refuse_conflict(taken, error.request_id, f"{conflict}; besides, {error}")
        await self._answer(taken, await self._conclude(claimed.claim, result), envelope)
        return "invalid"

    async def _refuse_conflict(self, taken: Taken, request_id: str, message: str) -> str:
        """The id belongs to another task: that one's result is the answer to it, and stands."""
        failure = Failure(
            error_class=ErrorClass.INVALID,
            code=ErrorCode.ID_CONFLICT,
            disposition=Disposition.INVALID,
            message=message,
            field="request_id",
        )
        await self._dead_letter(taken, failure, request_id=request_id)
        await taken.lane.finish(taken)
        return "id-conflict"

    async def _dead_letter(self, taken: Taken, failure: Failure, *, request_id: str | None) -> None:
        log.warning(
            "task_dead_lettered",
            request_id=request_id,
            code=failure.code,
            partition=taken.record.partition,
            offset=taken.record.offset,
        )
        await self._publisher.publish(
            dead_letter_record(
                taken.record,
                failure,
                request_id=request_id,
                signature=self._signature,
                failed_at=datetime.now(UTC),
                topics=self._settings.topics,
            )
        )

    async def _publish_result(
        self, result: GenerationResult, *, request_id: str | None, event_id: str, envelope: Envelope
    ) -> None:
        await self._publisher.publish(
            result_record(
                result.to_json(),
                request_id=request_id,
                event_id=event_id,
                envelope=answer_envelope(envelope),
                completed_at=result.completed_at or datetime.now(UTC),
                source=self._signature.source,
                topics=self._settings.topics,
            )
        )
        _after_result()


def _failure_of(result: GenerationResult) -> Failure:
    """The failure that a stored result tells of, for a dead letter that a crash may have kept from being written."""
    error = result.error
    if error is None:
        raise ValueError(f"the stored result of {result.request_id} has failed without an error")
    invalid = error.error_class == ErrorClass.INVALID
    return Failure(
        error_class=error.error_class,
        code=error.code,
        disposition=Disposition.INVALID if invalid else Disposition.EXHAUSTED,
        message=error.message,
        field=error.field,
        attempts=result.attempt or 1,
    )
