"""The way of one task through this worker, from its record to the commit of its offset.

Claim the id, record the start in the ledger, generate (`attempts`), store images and manifest (`task_store`), write how
it ends (`ending_writer`). A crash between any two steps leads to a redelivery, which finds what is stored and
continues from there.
"""

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Final

import structlog
from aiokafka.structs import ConsumerRecord

from fluxpool_contract.header_names import TENANT_PROOF
from fluxpool_contract.kafka import origin_topic
from fluxpool_contract.messages import DecodedTask
from fluxpool_contract.problems import ErrorCode, InvalidTaskError
from fluxpool_contract.settings import WorkerSettings
from fluxpool_contract.tenants import NO_TENANT, TenantTrust
from fluxpool_transport.process import fault_point
from fluxpool_transport.storage import CorruptObjectError, IdConflictError, Manifest, ObjectStore
from fluxpool_worker.agent.clock import SYSTEM_CLOCK, Clock
from fluxpool_worker.agent.consumer.lane import ClaimedRecord, PartitionLostError
from fluxpool_worker.agent.engine.client import EngineClient
from fluxpool_worker.agent.engine.slots import EngineSlot, EngineSlots
from fluxpool_worker.agent.task.attempts import AttemptContext, Attempts, Success, TaskReleasedError
from fluxpool_worker.agent.task.cancellations import Cancellations, CancelWatch, TaskName
from fluxpool_worker.agent.task.ending_writer import EndingWriter, TaskMetrics
from fluxpool_worker.agent.task.endings import refusal
from fluxpool_worker.agent.task.holds import HoldExpiredError, Holds
from fluxpool_worker.agent.task.outcome import Budgets, Failed, Spent, expired_or_canceled, invalid, judge_attempt
from fluxpool_worker.agent.task.outgoing_records import Failure, WorkerIdentity
from fluxpool_worker.agent.task.progress import ProgressPublisher
from fluxpool_worker.agent.task.publisher import ReliablePublisher
from fluxpool_worker.agent.task.run_until import AbandonedError
from fluxpool_worker.agent.task.task_records import TaskRecord, read_task, with_defaults
from fluxpool_worker.agent.task.task_store import TaskStore

_after_generate = fault_point("agent-after-generate")

REFUSALS_IN_FLIGHT: Final = 32
"""Records that are no tasks cost two acknowledgements of the brokers each, which they wait for side by side: a producer
that writes garbage delays the tasks behind it by about a millisecond a record."""

log = structlog.get_logger(__name__)


class TaskDeletedError(Exception):
    """The task had ended, with its result published, and was deleted since."""


class TaskFlow:
    """Runs tasks; one instance serves all lanes of a pod."""

    def __init__(
        self,
        settings: WorkerSettings,
        *,
        identity: WorkerIdentity,
        store: ObjectStore,
        trust: TenantTrust,
        engine: EngineClient,
        slots: EngineSlots,
        publisher: ReliablePublisher,
        progress: ProgressPublisher,
        holds: Holds,
        cancellations: Cancellations,
        metrics: TaskMetrics,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self._budgets = Budgets(
            max_attempts=settings.max_attempts,
            max_crashes=settings.max_crashes,
            retry_tiers=len(settings.topics.retry),
        )
        self._quality = settings.model.quality
        self._trust = trust
        self._identity = identity
        self._cancellations = cancellations
        self._metrics = metrics
        self._clock = clock
        self.store = TaskStore(store, settings=settings, identity=identity, holds=holds, clock=clock)
        self._attempts = Attempts(
            engine,
            slots=slots,
            budgets=self._budgets,
            default_quality=self._quality.default,
            embed_limit=settings.image.embed_parameters,
            preview_every_steps=settings.image.preview_every_steps,
            worker=identity.worker,
            progress=progress,
            clock=clock,
        )
        self._endings = EndingWriter(
            settings=settings,
            identity=identity,
            store=self.store,
            publisher=publisher,
            progress=progress,
            holds=holds,
            metrics=metrics,
            clock=clock,
        )
        self._abandonable: set[asyncio.Event] = set()
        self._draining = False
        self._refusals = asyncio.Semaphore(REFUSALS_IN_FLIGHT)

    def drain(self) -> None:
        """Release what the engine has not begun; what it works on, and what has images, may finish."""
        self._draining = True
        self._attempts.drain()
        for abandoned in self._abandonable:
            abandoned.set()

    def stop_running(self) -> None:
        """Release what the engine works on at its next step."""
        self._attempts.stop_running()

    async def run(
        self, claimed: ClaimedRecord, *, slot: EngineSlot, make_room: Callable[[], None] = lambda: None
    ) -> None:
        """Bring one record to its end; `slot` is released when the engine can take another job.

        `make_room` is called early for a record that is no task, because it delays no task; it may be called twice.
        Raises `HoldExpiredError` when an outage lasts too long; the task is released then.
        """
        began = self._clock.monotonic()
        outcome = "error"
        try:
            outcome = await self._run(claimed, slot, make_room)
        except PartitionLostError:
            outcome = "lost"
        except TaskReleasedError:
            outcome = "released"
            await claimed.lane.release(claimed)
        except HoldExpiredError:
            outcome = "released"
            await claimed.lane.release(claimed)
            raise
        finally:
            slot.release()
            seconds = self._clock.monotonic() - began
            self._metrics.count_end(outcome, seconds)
            log.info(
                "task_ended",
                outcome=outcome,
                lane=claimed.lane.name,
                partition=claimed.record.partition,
                offset=claimed.record.offset,
                seconds=round(seconds, 3),
            )

    async def fail(self, record: ConsumerRecord, failure: Failure) -> None:
        """End a record of a retry topic that cannot return to its lane; its offset is the caller's."""
        topic = origin_topic(record.headers)
        task = read_task(record, trust=self._trust, topic=topic, allowed=self._quality.allowed)
        known = failure if isinstance(task.content, DecodedTask) else refusal(task.content)
        await self._endings.finish(task, known)

    async def _run(self, claimed: ClaimedRecord, slot: EngineSlot, make_room: Callable[[], None]) -> str:
        task = read_task(claimed.record, trust=self._trust, allowed=self._quality.allowed)

        async def commit() -> None:
            await claimed.lane.finish(claimed)

        if not isinstance(task.content, DecodedTask):
            slot.release()
            async with self._refusals:
                make_room()
                return await self._endings.finish(task, refusal(task.content), commit=commit)
        spent = Spent(attempt=task.envelope.attempt, crashes=max(task.envelope.crashes, claimed.crashes))
        if task.tenant == NO_TENANT:
            slot.release()
            return await self._endings.finish(task, self._unproven(task, spent), commit=commit)
        expected = True
        found: Manifest | IdConflictError | Failed
        try:
            found = await self._generate(claimed, task, task.content, spent=spent, slot=slot)
        except (PartitionLostError, TaskReleasedError, HoldExpiredError):
            raise
        except TaskDeletedError:
            # Readers have its result, and the gateway shows none any more: a second one would contradict both.
            slot.release()
            await commit()
            return "deleted"
        except IdConflictError as error:
            found = error
        except Exception as error:
            # To raise would end each worker that gets the task, and count as a crash of the tasks in flight beside it.
            # It may be the store that fails so: the last attempt ends without it.
            log.exception("task_failed_unexpectedly", request_id=task.request_id)
            verdict = judge_attempt(ErrorCode.GENERATION_FAILED, spent=spent, budgets=self._budgets)
            message = f"the worker met an error: {type(error).__name__}"
            found, expected = Failed(verdict=verdict, attempt=spent.attempt, message=message), False
        slot.release()
        # A failure is the next owner's to judge; a manifest that was stored decides for every owner.
        if claimed.lost and isinstance(found, Failed):
            raise PartitionLostError
        return await self._endings.finish(task, found, commit=commit, ask_store=expected)

    async def _generate(
        self, claimed: ClaimedRecord, task: TaskRecord, decoded: DecodedTask, *, spent: Spent, slot: EngineSlot
    ) -> Manifest | Failed:
        """The task's manifest, after its images are stored; or why it has none.

        Raises `PartitionLostError`, `TaskReleasedError`, `HoldExpiredError`, `IdConflictError` and `TaskDeletedError`.
        """
        decoded = replace(decoded, task=with_defaults(decoded.task, self._identity.family))
        # Also by the claim: a gateway whose keys this worker lacks knows the task by that.
        names = {
            TaskName(tenant=tenant, request_id=decoded.task.request_id, epoch=task.envelope.epoch)
            for tenant in (task.tenant, task.envelope.tenant)
        }
        with self._abandonment(claimed) as abandoned, self._cancellations.watch(*names) as canceling:
            try:
                stored = await self.store.claim(task, abandoned=abandoned)
                if not stored.fresh:
                    if manifest := await self.store.outcome(stored.claim, abandoned=abandoned):
                        return manifest
                    if await self.store.is_deleted(stored.claim, abandoned=abandoned):
                        raise TaskDeletedError
                context = AttemptContext(
                    claimed=claimed,
                    decoded=decoded,
                    image=await self.store.input_image(task, decoded, abandoned=abandoned),
                    spent=spent,
                    slot=slot,
                    abandoned=abandoned,
                    canceling=canceling,
                )
                ended = await self._attempts.generate(context)
                _after_generate()
                if not isinstance(ended, Success):
                    return ended
                self._metrics.observe_phases(ended.generated.timings_ms)
                # Before the images are stored: a crash from here on is not the fault of the generation.
                claimed.lane.mark_generated(claimed)
                result = await self.store.keep_images(claimed.record, decoded, stored.claim, ended)
                manifest = await self.store.conclude(stored.claim, result)
                # Another worker may have ended the task, and a client deleted it, while this one generated its images.
                if await self.store.discard_if_deleted(stored.claim):
                    raise TaskDeletedError
                return manifest
            except AbandonedError:
                raise (PartitionLostError if claimed.lost else TaskReleasedError) from None
            except IdConflictError:
                raise
            except InvalidTaskError as error:
                late = expired_or_canceled(
                    decoded.envelope.deadline, canceling.command, now=self._clock.now(), spent=spent
                )
                return late or invalid(str(error), spent=spent)
            except CorruptObjectError as error:
                return self._judge_corrupt(task, error, spent=spent, canceling=canceling)

    def _unproven(self, task: TaskRecord, spent: Spent) -> Failed:
        """The failure of a task with a false proof: one attempt, for the file with a new key may reach us later."""
        message = (
            f"{TENANT_PROOF}: does not prove the tenant {task.envelope.tenant} with any key of this worker; if a "
            "gateway wrote it, add its key to FLUXPOOL_TENANT_SECRET_FILE, and replay the dead letter"
        )
        verdict = judge_attempt(ErrorCode.TENANT_UNPROVEN, spent=spent, budgets=self._budgets)
        return Failed(verdict=verdict, attempt=spent.attempt, message=message)

    def _judge_corrupt(
        self, task: TaskRecord, error: CorruptObjectError, *, spent: Spent, canceling: CancelWatch
    ) -> Failed:
        """The failure of a task whose own objects cannot be read: one attempt, unless it expired or was canceled."""
        ended = expired_or_canceled(task.envelope.deadline, canceling.command, now=self._clock.now(), spent=spent)
        if ended is not None:
            return replace(ended, message=f"{ended.message}; {error}")
        verdict = judge_attempt(ErrorCode.CORRUPT_OBJECT, spent=spent, budgets=self._budgets)
        return Failed(verdict=verdict, attempt=spent.attempt, message=str(error))

    @contextlib.contextmanager
    def _abandonment(self, claimed: ClaimedRecord) -> Iterator[asyncio.Event]:
        """An event that is set when the task is not to begin on this worker: its partition is lost, the pod drains."""
        abandoned = asyncio.Event()
        if claimed.lost or self._draining:
            abandoned.set()
        # Checked above and connected here without an await: a loss in between would be missed.
        claimed.on_lost = abandoned.set
        self._abandonable.add(abandoned)
        try:
            yield abandoned
        finally:
            self._abandonable.discard(abandoned)
