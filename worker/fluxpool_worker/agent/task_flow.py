"""The way of one task through this pod, from a record to its committed end.

Order is what keeps the promises: claim the id, record the start, generate, store the images, store the manifest,
publish (retry, dead letter, result) and await the acks, and only then finish the offset. A crash between any two steps
leads to a redelivery that finds what was done and goes on from there.
"""

import asyncio
import contextlib
import hashlib
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from typing import assert_never

import structlog
from aiokafka.structs import ConsumerRecord

from fluxpool_contract import derived
from fluxpool_contract.dead_letter import Disposition
from fluxpool_contract.decoding import DecodedTask
from fluxpool_contract.headers import Envelope, parse_envelope
from fluxpool_contract.problems import ErrorClass, ErrorCode, InvalidTaskError
from fluxpool_contract.progress import ProgressEvent, ProgressType
from fluxpool_contract.result import GenerationResult
from fluxpool_contract.retries import due_at
from fluxpool_contract.settings import WorkerSettings
from fluxpool_transport.faults import fault_point
from fluxpool_transport.object_store import ObjectStore
from fluxpool_transport.task_objects import Claim, CorruptObjectError, IdConflictError, Manifest
from fluxpool_worker.agent.answers import (
    Failure,
    Signature,
    answer_envelope,
    failed_result,
    failure_of,
    is_dead_lettered,
    progress_record,
    result_record,
    retry_record,
)
from fluxpool_worker.agent.attempts import Attempts, GivenUp, Success, TaskReleasedError
from fluxpool_worker.agent.cancellations import Cancellations, TaskName
from fluxpool_worker.agent.dead_letters import DeadLetterWriter
from fluxpool_worker.agent.engine_client import EngineClient
from fluxpool_worker.agent.engine_turns import EngineTurn, EngineTurns
from fluxpool_worker.agent.holds import HoldExpiredError, Holds
from fluxpool_worker.agent.lane import PartitionLostError, Taken
from fluxpool_worker.agent.outcome import Action, Budgets, Spent, judge_attempt, judge_deadline
from fluxpool_worker.agent.publisher import ProgressPublisher, RecordRefusedError, ReliablePublisher
from fluxpool_worker.agent.task_records import decode_record
from fluxpool_worker.agent.task_store import TaskStore, store_cause
from fluxpool_worker.agent.unwanted import NoLongerWantedError

_after_generate = fault_point("agent-after-generate")
_after_manifest = fault_point("agent-after-manifest")
_after_retry = fault_point("agent-after-retry")
_after_result = fault_point("agent-after-result")

log = structlog.get_logger(__name__)


class TaskFlow:
    """Runs tasks; one instance serves all lanes of a pod."""

    def __init__(
        self,
        *,
        settings: WorkerSettings,
        worker_name: str,
        store: ObjectStore,
        engine: EngineClient,
        turns: EngineTurns,
        publisher: ReliablePublisher,
        progress: ProgressPublisher,
        holds: Holds,
        cancellations: Cancellations,
        on_end: Callable[[str, float], None],
    ) -> None:
        self._topics = settings.topics
        self._retry_delays_seconds = settings.retry_delays_seconds
        self._budgets = Budgets(
            max_attempts=settings.max_attempts,
            max_crashes=settings.max_crashes,
            retry_tiers=len(settings.topics.retry),
        )
        self._store = TaskStore(store, settings=settings, holds=holds)
        self._publisher = publisher
        self._progress = progress
        self._dead_letters = DeadLetterWriter(
            store=store, store_cause=store_cause(settings), publisher=publisher, holds=holds, topics=settings.topics
        )
        self._cancellations = cancellations
        self._on_end = on_end
        self._attempts = Attempts(engine, turns=turns, budgets=self._budgets, worker=worker_name, report=self._report)
        self._signature = Signature(worker=worker_name, pool=settings.pool, model=None)
        self._unwanted: set[asyncio.Event] = set()
        self._draining = False

    def set_model(self, model: str) -> None:
        """Name the loaded model in answers."""
        self._signature = Signature(worker=self._signature.worker, pool=self._signature.pool, model=model)

    def drain(self) -> None:
        """Give up what the engine has not begun; what it works on, and what has images, may finish."""
        self._draining = True
        self._attempts.drain()
        for unwanted in self._unwanted:
            unwanted.set()

    def stop_running(self) -> None:
        """Give up what the engine works on at its next step."""
        self._attempts.stop_running()

    async def run(self, taken: Taken, *, turn: EngineTurn) -> None:
        """Bring one record to its end; `turn` ends when the engine can take another job.

        Raises `HoldExpiredError` when the infrastructure was away for too long; the task is released then.
        """
        began = time.monotonic()
        outcome = "error"
        try:
            outcome = await self._run(taken, turn)
        except PartitionLostError:
            outcome = "lost"
        except TaskReleasedError:
            outcome = "released"
            await taken.lane.release(taken)
        except HoldExpiredError:
            outcome = "released"
            await taken.lane.release(taken)
            raise
        finally:
            turn.end()
            self._on_end(outcome, time.monotonic() - began)
            log.info(
                "task_ended",
                outcome=outcome,
                lane=taken.lane.name,
                partition=taken.record.partition,
                offset=taken.record.offset,
                seconds=round(time.monotonic() - began, 3),
            )

    async def _run(self, taken: Taken, turn: EngineTurn) -> str:
        try:
            decoded = decode_record(taken.record)
        except InvalidTaskError as error:
            turn.end()
            return await self._refuse(taken, error)
        spent = Spent(attempt=decoded.envelope.attempt, crashes=max(decoded.envelope.crashes, taken.crashes))
        try:
            return await self._pursue(taken, decoded, spent=spent, turn=turn)
        except IdConflictError as error:
            turn.end()
            return await self._refuse_conflict(taken, decoded.task.request_id, str(error))
        except CorruptObjectError as error:
            turn.end()
            verdict = judge_attempt(ErrorCode.CORRUPT_OBJECT, spent=spent, budgets=self._budgets)
            given_up = GivenUp(verdict=verdict, attempt=spent.attempt, message=str(error))
            if verdict.action is Action.RETRY_LATER:
                return await self._retry_later(taken, decoded, given_up)
            return await self._fail_without_manifest(taken, decoded, _failure(given_up))

    async def _pursue(self, taken: Taken, decoded: DecodedTask, *, spent: Spent, turn: EngineTurn) -> str:
        name = TaskName(
            tenant=decoded.envelope.tenant, request_id=decoded.task.request_id, epoch=decoded.envelope.epoch
        )
        with self._until_unwanted(taken) as unwanted, self._cancellations.watch(name) as canceling:
            try:
                claimed = await self._store.claim(
                    taken.record,
                    request_id=decoded.task.request_id,
                    envelope=decoded.envelope,
                    digest=decoded.digest,
                    value_digest=decoded.value_digest,
                    unwanted=unwanted,
                )
                manifest = None if claimed.fresh else await self._store.outcome(claimed.claim, unwanted=unwanted)
            except NoLongerWantedError:
                raise (PartitionLostError if taken.lost else TaskReleasedError) from None
            if manifest is not None:
                turn.end()
                return await self._answer(taken, manifest, decoded.envelope)
            ended = await self._attempts.generate(
                taken, decoded, spent=spent, turn=turn, unwanted=unwanted, canceling=canceling
            )
        _after_generate()
        match ended:
            case Success():
                taken.lane.drawn(taken)
                result = await self._store.keep_images(
                    taken.record, decoded, claimed.claim, ended, signature=self._signature
                )
                return await self._conclude(taken, claimed.claim, result, decoded.envelope)
            case GivenUp():
                if taken.lost:
                    raise PartitionLostError
                if ended.verdict.action is Action.RETRY_LATER:
                    return await self._retry_later(taken, decoded, ended)
                failure = _failure(ended)
                return await self._conclude(
                    taken, claimed.claim, self._failed(decoded, failure), decoded.envelope, failure=failure
                )
            case _:
                assert_never(ended)

    @contextlib.contextmanager
    def _until_unwanted(self, taken: Taken) -> Iterator[asyncio.Event]:
        """An event that is set when the task is not to be begun here any more."""
        unwanted = asyncio.Event()
        if taken.lost or self._draining:
            unwanted.set()
        taken.on_lost = unwanted.set
        self._unwanted.add(unwanted)
        try:
            yield unwanted
        finally:
            self._unwanted.discard(unwanted)

    def _report(self, event: ProgressEvent, envelope: Envelope) -> None:
        signed = event.model_copy(update={"worker": self._signature.worker, "pool": self._signature.pool})
        self._progress.offer(
            progress_record(
                signed,
                event_id=f"{event.request_id}/{event.attempt}/{event.type}/{event.step or 0}",
                envelope=answer_envelope(envelope),
                source=self._signature.source,
                topics=self._topics,
            )
        )

    # Later

    async def _retry_later(self, taken: Taken, decoded: DecodedTask, given_up: GivenUp) -> str:
        """Send the task to its retry topic, and only then finish its record here."""
        verdict = given_up.verdict
        tier = verdict.tier or 0
        not_before = due_at(
            datetime.now(UTC),
            self._retry_delays_seconds[tier],
            jitter=random.random(),  # noqa: S311 - it spreads load, nobody is kept out by it
        )
        if late := judge_deadline(decoded.envelope.deadline, now=not_before, needed_seconds=0, spent=verdict.spent):
            why = "and the deadline will have passed before another try"
            failure = _failure(replace(given_up, verdict=late), and_besides=why)
            return await self._end_here(taken, decoded, failure)
        topic = self._topics.retry[tier]
        record = retry_record(taken.record, decoded.envelope, topic=topic, verdict=verdict, not_before=not_before)
        try:
            await self._publisher.publish(record, refusable=True)
        except RecordRefusedError as error:
            failure = _failure(given_up, and_besides=f"and it could not be kept for another try: {error}")
            return await self._end_here(taken, decoded, failure)
        _after_retry()
        self._report(
            ProgressEvent(
                request_id=decoded.task.request_id,
                type=ProgressType.RETRYING,
                attempt=verdict.spent.attempt,
                at=datetime.now(UTC),
            ),
            decoded.envelope,
        )
        log.info("task_retried_later", request_id=decoded.task.request_id, topic=topic, attempt=verdict.spent.attempt)
        await taken.lane.finish(taken)
        return "retry"

    async def _end_here(self, taken: Taken, decoded: DecodedTask, failure: Failure) -> str:
        await self._end_failed(taken.record, decoded, failure)
        await taken.lane.finish(taken)
        return "failed"

    async def give_up_due(self, record: ConsumerRecord, failure: Failure) -> None:
        """End a record of a retry topic that cannot be sent back; its offset is the caller's."""
        try:
            decoded = decode_record(record)
        except InvalidTaskError:
            await self._dead_letter(record, failure, request_id=None)
            return
        await self._end_failed(record, decoded, failure)

    async def _end_failed(self, record: ConsumerRecord, decoded: DecodedTask, failure: Failure) -> None:
        """Whatever the store says of the task; failed when it says nothing yet."""
        try:
            claimed = await self._store.claim(
                record,
                request_id=decoded.task.request_id,
                envelope=decoded.envelope,
                digest=decoded.digest,
                value_digest=decoded.value_digest,
            )
            manifest = await self._store.conclude(claimed.claim, self._failed(decoded, failure))
        except (IdConflictError, CorruptObjectError):
            await self._dead_letter(record, failure, request_id=decoded.task.request_id)
            return
        await self._publish_answer(record, manifest, decoded.envelope, failure=failure)

    # Answers

    def _failed(self, decoded: DecodedTask, failure: Failure) -> GenerationResult:
        return failed_result(
            decoded.task.request_id,
            failure,
            signature=self._signature,
            completed_at=datetime.now(UTC),
            metadata=decoded.task.metadata,
        )

    async def _conclude(
        self,
        taken: Taken,
        claim: Claim,
        result: GenerationResult,
        envelope: Envelope,
        *,
        failure: Failure | None = None,
    ) -> str:
        stored = await self._store.conclude(claim, result)
        _after_manifest()
        return await self._answer(taken, stored, envelope, failure=failure if stored.result == result else None)

    async def _answer(
        self, taken: Taken, manifest: Manifest, envelope: Envelope, *, failure: Failure | None = None
    ) -> str:
        """Publish what the manifest says and finish the record."""
        await self._publish_answer(taken.record, manifest, envelope, failure=failure)
        await taken.lane.finish(taken)
        return manifest.result.status.value

    async def _publish_answer(
        self, record: ConsumerRecord, manifest: Manifest, envelope: Envelope, *, failure: Failure | None
    ) -> None:
        result = manifest.result
        if is_dead_lettered(result):
            await self._dead_letter(record, failure or failure_of(result), request_id=manifest.request_id)
        await self._publish_result(
            result, request_id=manifest.request_id, event_id=manifest.event_id, envelope=envelope
        )

    async def _fail_without_manifest(self, taken: Taken, decoded: DecodedTask, failure: Failure) -> str:
        """End a task whose own objects stand in its way; what they are is left for people to look at."""
        envelope, request_id = decoded.envelope, decoded.task.request_id
        await self._dead_letter(taken.record, failure, request_id=request_id)
        await self._publish_result(
            self._failed(decoded, failure),
            request_id=request_id,
            event_id=derived.result_event_id(envelope.tenant, request_id, envelope.epoch),
            envelope=envelope,
        )
        await taken.lane.finish(taken)
        return "failed"

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
            await self._dead_letter(record, failure, request_id=None)
            await self._publish_result(result, request_id=None, event_id=event_id, envelope=Envelope())
            await taken.lane.finish(taken)
            return "invalid"
        try:
            envelope = parse_envelope(record.headers)
        except InvalidTaskError:
            envelope = Envelope()
        digest = "raw:" + hashlib.sha256(record.value or b"").hexdigest()
        try:
            claimed = await self._store.claim(record, request_id=error.request_id, envelope=envelope, digest=digest)
            await self._conclude(taken, claimed.claim, result, envelope)
        except IdConflictError as conflict:
            return await self._refuse_conflict(taken, error.request_id, f"{conflict}; besides, {error}")
        except CorruptObjectError as corrupt:
            return await self._refuse_conflict(taken, error.request_id, f"{error}; besides, {corrupt}")
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
        await self._dead_letter(taken.record, failure, request_id=request_id)
        await taken.lane.finish(taken)
        return "id-conflict"

    async def _dead_letter(self, record: ConsumerRecord, failure: Failure, *, request_id: str | None) -> None:
        await self._dead_letters.write(record, failure, request_id=request_id, signature=self._signature)

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
                topics=self._topics,
            )
        )
        _after_result()


def _failure(given_up: GivenUp, *, and_besides: str | None = None) -> Failure:
    verdict = given_up.verdict
    return Failure(
        error_class=verdict.error_class,
        code=verdict.code,
        disposition=verdict.disposition,
        message=given_up.message if and_besides is None else f"{given_up.message}; {and_besides}",
        stack=given_up.stack,
        attempts=given_up.attempt,
        crashes=verdict.spent.crashes,
    )
