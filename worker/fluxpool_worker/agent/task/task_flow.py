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
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Final, Self

import structlog
from aiokafka.structs import ConsumerRecord

from fluxpool_contract.kafka import due_at
from fluxpool_contract.messages import (
    DecodedTask,
    Envelope,
    GenerationResult,
    ProgressEvent,
    ProgressType,
    parse_envelope,
)
from fluxpool_contract.problems import ErrorCode, InvalidTaskError
from fluxpool_contract.settings import WorkerSettings
from fluxpool_transport.process import fault_point
from fluxpool_transport.storage import Claim, CorruptObjectError, IdConflictError, Manifest, ObjectStore
from fluxpool_worker.agent.consumer.lane import ClaimedRecord, PartitionLostError
from fluxpool_worker.agent.engine.client import EngineClient
from fluxpool_worker.agent.engine.slots import EngineSlot, EngineSlots
from fluxpool_worker.agent.task.attempts import Attempts, Failed, Success, TaskReleasedError, expired_or_canceled
from fluxpool_worker.agent.task.cancellations import Cancellations, CancelWatch, TaskName
from fluxpool_worker.agent.task.dead_letters import DeadLetterWriter
from fluxpool_worker.agent.task.ending_writer import EndingWriter
from fluxpool_worker.agent.task.endings import (
    RETRIED,
    Ending,
    and_besides,
    anonymous,
    concluded,
    conflicting,
    given_up,
    id_of_key,
    refused,
    unconcluded,
)
from fluxpool_worker.agent.task.holds import HoldExpiredError, Holds
from fluxpool_worker.agent.task.outcome import Action, Budgets, Spent, judge_attempt, judge_deadline
from fluxpool_worker.agent.task.outgoing_records import (
    Failure,
    WorkerIdentity,
    failed_result,
    progress_record,
    retry_record,
)
from fluxpool_worker.agent.task.publisher import ProgressPublisher, RecordRefusedError, ReliablePublisher
from fluxpool_worker.agent.task.run_until import AbandonedError
from fluxpool_worker.agent.task.task_records import decode_record
from fluxpool_worker.agent.task.task_store import TaskStore, store_cause

_after_generate = fault_point("agent-after-generate")
_after_manifest = fault_point("agent-after-manifest")
_after_retry = fault_point("agent-after-retry")

REFUSALS_IN_FLIGHT: Final = 32
"""Records that are no tasks cost two acknowledgements of the brokers each, which they wait for side by side: a producer
that writes garbage delays the tasks behind it by about a millisecond a record."""

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
        slots: EngineSlots,
        publisher: ReliablePublisher,
        progress: ProgressPublisher,
        holds: Holds,
        cancellations: Cancellations,
        on_end: Callable[[str, float], None],
        on_refused: Callable[[str], None] = lambda _topic: None,
    ) -> None:
        """`on_end` is told outcome and seconds of each record, `on_refused` is that of `EndingWriter`."""
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
        self._endings = EndingWriter(
            dead_letters=DeadLetterWriter(
                store=store, store_cause=store_cause(settings), publisher=publisher, holds=holds, topics=settings.topics
            ),
            publisher=publisher,
            topics=settings.topics,
            on_refused=on_refused,
        )
        self._cancellations = cancellations
        self._on_end = on_end
        self._attempts = Attempts(engine, slots=slots, budgets=self._budgets, worker=worker_name, report=self._report)
        self._identity = WorkerIdentity(worker=worker_name, pool=settings.pool, model=None)
        self._abandoned: set[asyncio.Event] = set()
        self._draining = False
        self._refusals = asyncio.Semaphore(REFUSALS_IN_FLIGHT)

    async def probe_store(self, *, on_trouble: Callable[[str], None]) -> None:
        """Look whether the store can be used before any task is taken; the contract is that of `TaskStore.probe`."""
        await self._store.probe(on_trouble=on_trouble)

    def set_model(self, model: str) -> None:
        """Name the loaded model in answers."""
        self._identity = WorkerIdentity(worker=self._identity.worker, pool=self._identity.pool, model=model)

    def drain(self) -> None:
        """Give up what the engine has not begun; what it works on, and what has images, may finish."""
        self._draining = True
        self._attempts.drain()
        for abandoned in self._abandoned:
            abandoned.set()

    def stop_running(self) -> None:
        """Give up what the engine works on at its next step."""
        self._attempts.stop_running()

    async def run(
        self, taken: ClaimedRecord, *, slot: EngineSlot, make_room: Callable[[], None] = lambda: None
    ) -> None:
        """Bring one record to its end; `slot` ends when the engine can take another job.

        `make_room` is called early for a record that is no task, and may be called again: it holds up no task.
        Raises `HoldExpiredError` when the infrastructure was away for too long; the task is released then.
        """
        began = time.monotonic()
        outcome = "error"
        try:
            outcome = await self._run(taken, slot, make_room)
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
            slot.release()
            self._on_end(outcome, time.monotonic() - began)
            log.info(
                "task_ended",
                outcome=outcome,
                lane=taken.lane.name,
                partition=taken.record.partition,
                offset=taken.record.offset,
                seconds=round(time.monotonic() - began, 3),
            )

    async def _run(self, taken: ClaimedRecord, slot: EngineSlot, make_room: Callable[[], None]) -> str:
        try:
            decoded = decode_record(taken.record)
        except InvalidTaskError as error:
            slot.release()
            async with self._refusals:
                make_room()
                return await self._end(taken, await self._refuse(taken.record, error))
        try:
            ending = await self._pursue(taken, decoded, slot)
        except (PartitionLostError, TaskReleasedError, HoldExpiredError):
            raise
        except Exception as error:
            # It would end every worker that takes the task, and count against those in flight beside it.
            log.exception("task_failed_unexpectedly", request_id=decoded.task.request_id)
            slot.release()
            ending = await self._end_unforeseen(taken, decoded, error)
        slot.release()
        return await self._end(taken, ending)

    async def _end(self, taken: ClaimedRecord, ending: Ending) -> str:
        await self._endings.write(taken.record, ending, identity=self._identity)
        await taken.lane.finish(taken)
        return ending.outcome

    async def give_up_due(self, record: ConsumerRecord, failure: Failure) -> None:
        """End a record of a retry topic that cannot be sent back; its offset is the caller's."""
        try:
            task = _Task.of(decode_record(record))
        except InvalidTaskError as error:
            ending = await self._refuse(record, error)
        else:
            ending = await self._fail(record, task, failure)
        await self._endings.write(record, ending, identity=self._identity)

    async def _pursue(self, taken: ClaimedRecord, decoded: DecodedTask, slot: EngineSlot) -> Ending:
        """Bring a valid task to its end, or to a retry topic."""
        record, task = taken.record, _Task.of(decoded)
        spent = Spent(attempt=decoded.envelope.attempt, crashes=max(decoded.envelope.crashes, taken.crashes))
        name = TaskName(tenant=task.envelope.tenant, request_id=task.request_id, epoch=task.envelope.epoch)
        with self._abandonment(taken) as abandoned, self._cancellations.watch(name) as canceling:
            try:
                claim, manifest = await self._claim(record, task, abandoned)
                if manifest is not None:
                    return concluded(manifest, task.envelope)
                ended = await self._attempts.generate(
                    taken, decoded, spent=spent, slot=slot, abandoned=abandoned, canceling=canceling
                )
                _after_generate()
                if isinstance(ended, Success):
                    taken.lane.mark_generated(taken)
                    result = await self._store.keep_images(record, decoded, claim, ended, identity=self._identity)
                    return await self._conclude(claim, task, result)
            except AbandonedError:
                raise (PartitionLostError if taken.lost else TaskReleasedError) from None
            except IdConflictError as error:
                return conflicting(task.request_id, str(error))
            except CorruptObjectError as error:
                slot.release()
                ended = self._judge_corrupt(task.envelope, error, spent=spent, canceling=canceling)
        if taken.lost:
            raise PartitionLostError
        failure = given_up(ended)
        if ended.verdict.action is Action.RETRY_LATER:
            refusal = await self._retry_later(record, task, ended)
            if refusal is None:
                return RETRIED
            failure = refusal
        return await self._fail(record, task, failure)

    async def _end_unforeseen(self, taken: ClaimedRecord, decoded: DecodedTask, error: Exception) -> Ending:
        """The error costs the task an attempt; the last one ends it, if need be without the store."""
        if taken.lost:
            raise PartitionLostError
        task = _Task.of(decoded)
        spent = Spent(attempt=decoded.envelope.attempt, crashes=max(decoded.envelope.crashes, taken.crashes))
        verdict = judge_attempt(ErrorCode.GENERATION_FAILED, spent=spent, budgets=self._budgets)
        ended = Failed(
            verdict=verdict, attempt=spent.attempt, message=f"the worker met an error: {type(error).__name__}"
        )
        failure: Failure | None = given_up(ended)
        if verdict.action is Action.RETRY_LATER:
            failure = await self._retry_later(taken.record, task, ended)
        if failure is None:
            return RETRIED
        return unconcluded(
            task.request_id,
            task.envelope,
            failure,
            identity=self._identity,
            completed_at=datetime.now(UTC),
            metadata=task.metadata,
        )

    async def _claim(
        self, record: ConsumerRecord, task: "_Task", abandoned: asyncio.Event
    ) -> tuple[Claim, Manifest | None]:
        claimed = await self._store.claim(
            record,
            request_id=task.request_id,
            envelope=task.envelope,
            digest=task.digest,
            value_digest=task.value_digest,
            abandoned=abandoned,
        )
        if claimed.fresh:
            return claimed.claim, None
        return claimed.claim, await self._store.outcome(claimed.claim, abandoned=abandoned)

    def _judge_corrupt(
        self, envelope: Envelope, error: CorruptObjectError, *, spent: Spent, canceling: CancelWatch
    ) -> Failed:
        """What becomes of a task whose own objects stand in its way: another try, unless nobody waits for it."""
        verdict = expired_or_canceled(envelope, canceling.command, spent=spent)
        if verdict is None:
            attempt = judge_attempt(ErrorCode.CORRUPT_OBJECT, spent=spent, budgets=self._budgets)
            return Failed(verdict=attempt, attempt=spent.attempt, message=str(error))
        return replace(verdict, message=f"{verdict.message}; {error}")

    @contextlib.contextmanager
    def _abandonment(self, taken: ClaimedRecord) -> Iterator[asyncio.Event]:
        """An event that is set when the task is not to be begun here any more."""
        abandoned = asyncio.Event()
        if taken.lost or self._draining:
            abandoned.set()
        taken.on_lost = abandoned.set
        self._abandoned.add(abandoned)
        try:
            yield abandoned
        finally:
            self._abandoned.discard(abandoned)

    def _report(self, event: ProgressEvent, envelope: Envelope) -> None:
        signed = event.model_copy(update={"worker": self._identity.worker, "pool": self._identity.pool})
        self._progress.offer(
            progress_record(
                signed,
                event_id=f"{event.request_id}/{event.attempt}/{event.type}/{event.step or 0}",
                envelope=envelope,
                source=self._identity.source,
                topics=self._topics,
            )
        )

    async def _retry_later(self, record: ConsumerRecord, task: "_Task", ended: Failed) -> Failure | None:
        """Send the task to its retry topic; returns why that cannot be, None when it is there."""
        verdict = ended.verdict
        tier = verdict.tier or 0
        not_before = due_at(
            datetime.now(UTC),
            self._retry_delays_seconds[tier],
            jitter=random.random(),  # noqa: S311 - it spreads load, nobody is kept out by it
        )
        if late := judge_deadline(task.envelope.deadline, now=not_before, needed_seconds=0, spent=verdict.spent):
            return given_up(
                replace(ended, verdict=late), and_besides="and the deadline will have passed before another try"
            )
        topic = self._topics.retry[tier]
        try:
            await self._publisher.publish(
                retry_record(record, task.envelope, topic=topic, verdict=verdict, not_before=not_before),
                refusable=True,
            )
        except RecordRefusedError as error:
            return given_up(ended, and_besides=f"and it could not be kept for another try: {error}")
        _after_retry()
        self._report(
            ProgressEvent(
                request_id=task.request_id,
                type=ProgressType.RETRYING,
                attempt=verdict.spent.attempt,
                at=datetime.now(UTC),
            ),
            task.envelope,
        )
        log.info("task_retried_later", request_id=task.request_id, topic=topic, attempt=verdict.spent.attempt)
        return None

    async def _refuse(self, record: ConsumerRecord, error: InvalidTaskError) -> Ending:
        """End a record that is no task."""
        failure = refused(error)
        request_id = error.request_id or (id_of_key(record) if not record.value else None)
        if request_id is None:
            return anonymous(record, failure, identity=self._identity, completed_at=datetime.now(UTC))
        try:
            envelope = parse_envelope(record.headers)
        except InvalidTaskError:
            envelope = Envelope()
        digest = "raw:" + hashlib.sha256(record.value or b"").hexdigest()
        ending = await self._fail(record, _Task(request_id=request_id, envelope=envelope, digest=digest), failure)
        return replace(ending, outcome="invalid") if ending.result is not None else ending

    async def _fail(self, record: ConsumerRecord, task: "_Task", failure: Failure) -> Ending:
        """End a task without images, unless the store knows another end of it."""
        try:
            claimed = await self._store.claim(
                record,
                request_id=task.request_id,
                envelope=task.envelope,
                digest=task.digest,
                value_digest=task.value_digest,
            )
            result = failed_result(
                task.request_id,
                failure,
                identity=self._identity,
                completed_at=datetime.now(UTC),
                metadata=task.metadata,
            )
            return await self._conclude(claimed.claim, task, result, failure=failure)
        except IdConflictError as conflict:
            return conflicting(task.request_id, f"{conflict}; besides, {failure.message}")
        except CorruptObjectError as corrupt:
            return unconcluded(
                task.request_id,
                task.envelope,
                failure if str(corrupt) in failure.message else and_besides(failure, corrupt),
                identity=self._identity,
                completed_at=datetime.now(UTC),
                metadata=task.metadata,
            )

    async def _conclude(
        self, claim: Claim, task: "_Task", result: GenerationResult, *, failure: Failure | None = None
    ) -> Ending:
        """Store the manifest; the one that holds decides, ours or that of whoever was first."""
        stored = await self._store.conclude(claim, result)
        _after_manifest()
        return concluded(stored, task.envelope, failure if stored.result == result else None)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Task:
    """What of a task its end needs, also when its body was refused."""

    request_id: str
    envelope: Envelope
    digest: str
    value_digest: str | None = None
    metadata: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, decoded: DecodedTask) -> Self:
        """Of a valid one."""
        return cls(
            request_id=decoded.task.request_id,
            envelope=decoded.envelope,
            digest=decoded.digest,
            value_digest=decoded.value_digest,
            metadata=decoded.task.metadata,
        )
