"""Getting images out of the engine: the tries that are made here, progress, and giving up in good order.

Owns what is done at once about a generation's failure; knows the engine but neither the store nor topics. What is to be
done later or elsewhere is its caller's.
"""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final, assert_never

import structlog

from fluxpool_contract.kafka import LedgerEntry
from fluxpool_contract.messages import (
    CancelCommand,
    DecodedTask,
    Envelope,
    GenerationTask,
    ProgressEvent,
    ProgressType,
    derive_seed,
    format_time,
)
from fluxpool_transport.process import fault_point
from fluxpool_worker.agent.consumer.lane import ClaimedRecord, PartitionLostError
from fluxpool_worker.agent.engine.client import EngineClient, EngineDiedError, GenerationError
from fluxpool_worker.agent.engine.job import EngineJob
from fluxpool_worker.agent.engine.slots import EngineSlot, EngineSlots
from fluxpool_worker.agent.engine.step_times import StepTimes
from fluxpool_worker.agent.task.cancellations import CancelWatch
from fluxpool_worker.agent.task.outcome import (
    Action,
    Budgets,
    Spent,
    Verdict,
    judge_canceled,
    judge_crashes,
    judge_deadline,
    judge_engine_death,
    judge_generation,
    orphan_is_worth_finishing,
    runs_alone,
)
from fluxpool_worker.agent.task.run_until import AbandonedError, run_until
from fluxpool_worker.engine.protocol import FailureKind, Generated, GenerationInputs

PROGRESS_SECONDS: Final = 0.5
"""Least time between two progress events of a task."""

_after_record = fault_point("agent-after-record")

log = structlog.get_logger(__name__)


class TaskReleasedError(Exception):
    """The task is given up in good order; its offset stays uncommitted and somebody else does it."""


@dataclass(frozen=True, slots=True)
class Success:
    """Images, and the number of the attempt that made them."""

    generated: Generated
    attempt: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Failed:
    """No images from here: the verdict is to retry later, to dead-letter or to fail."""

    verdict: Verdict
    attempt: int
    """Number of the attempt that failed."""
    message: str
    stack: str = ""


@dataclass(slots=True, eq=False)
class AttemptContext:
    """One task on its way to images."""

    taken: ClaimedRecord
    decoded: DecodedTask
    spent: Spent
    slot: EngineSlot
    abandoned: asyncio.Event
    """Set when the pod drains, the partition is lost or the task is canceled; counts until the device begins."""
    canceling: CancelWatch
    low_memory: bool = False
    job: EngineJob | None = None
    """The one with the engine now."""

    def expired_or_canceled(self, *, needed_seconds: float = 0.0) -> Failed | None:
        """As the function of that name."""
        return expired_or_canceled(
            self.decoded.envelope, self.canceling.command, spent=self.spent, needed_seconds=needed_seconds
        )


def expired_or_canceled(
    envelope: Envelope, command: CancelCommand | None, *, spent: Spent, needed_seconds: float = 0.0
) -> Failed | None:
    """The task's end without images when it was canceled, or would come too late, needing so long from now on."""
    if command is not None:
        return Failed(verdict=judge_canceled(spent=spent), attempt=spent.attempt, message=_canceled_by(command))
    deadline = envelope.deadline
    verdict = judge_deadline(deadline, now=datetime.now(UTC), needed_seconds=needed_seconds, spent=spent)
    if verdict is None or deadline is None:
        return None
    return Failed(verdict=verdict, attempt=spent.attempt, message=_too_late(deadline, needed_seconds=needed_seconds))


class Attempts:
    """Runs generations."""

    def __init__(
        self,
        engine: EngineClient,
        *,
        slots: EngineSlots,
        budgets: Budgets,
        worker: str,
        report: Callable[[ProgressEvent, Envelope], None],
    ) -> None:
        """`worker` is this worker's name in the ledger."""
        self._engine = engine
        self._slots = slots
        self._budgets = budgets
        self._worker = worker
        self._report_event = report
        self._step_times = StepTimes()
        self._jobs: set[EngineJob] = set()
        self._draining = False

    def drain(self) -> None:
        """Give up what the engine has not begun; what it works on may finish."""
        self._draining = True
        for job in self._jobs:
            if job.started_at is None:
                self._engine.cancel(job)

    def stop_running(self) -> None:
        """Give up everything at its next step."""
        self._draining = True
        for job in self._jobs:
            self._engine.cancel(job)

    async def generate(
        self,
        taken: ClaimedRecord,
        decoded: DecodedTask,
        *,
        spent: Spent,
        slot: EngineSlot,
        abandoned: asyncio.Event,
        canceling: CancelWatch,
    ) -> Success | Failed:
        """The task's images, or why there are none.

        `slot` ends when the device is done with the task. Raises `TaskReleasedError` when the pod drains and
        `PartitionLostError` when the task is somebody else's and not worth finishing here.
        """
        if verdict := judge_crashes(spent=spent, budgets=self._budgets):
            return Failed(verdict=verdict, attempt=spent.attempt, message=_crashed_too_often(spent.crashes))
        context = AttemptContext(
            taken=taken, decoded=decoded, spent=spent, slot=slot, abandoned=abandoned, canceling=canceling
        )
        canceling.on_cancel = abandoned.set
        try:
            while True:
                ended = await self._attempt(context)
                if isinstance(ended, Success):
                    # Drawn, but too late to be of use; a cancel command comes too late itself now.
                    return expired_or_canceled(decoded.envelope, None, spent=context.spent) or ended
                if ended is not None:
                    return ended
        except AbandonedError:
            return self._end_abandoned(context)
        finally:
            canceling.on_cancel = lambda: None
            context.slot.release()

    def _end_abandoned(self, context: AttemptContext) -> Failed:
        """The end of a task that was stopped, or whatever tells that it is not this worker's to end."""
        if not context.taken.lost and (ended := context.expired_or_canceled()):
            return ended
        raise self._stop_reason(context.taken)

    async def _attempt(self, context: AttemptContext) -> Success | Failed | None:
        """One try; None when another one is due at once."""
        if context.taken.lost or self._draining:
            raise self._stop_reason(context.taken)
        await self._take_slot(context)
        if pointless := context.expired_or_canceled(needed_seconds=self._least_seconds(context.decoded.task)):
            return pointless
        try:
            return Success(await self._try(context), context.spent.attempt)
        except GenerationError as error:
            verdict = judge_generation(
                error.kind, spent=context.spent, budgets=self._budgets, low_memory=context.low_memory
            )
            message, stack, crashed = str(error), error.stack, error.kind is FailureKind.DEVICE_LOST
        except EngineDiedError as error:
            verdict = judge_engine_death(spent=context.spent, budgets=self._budgets, suspected=error.job_started)
            message, stack, crashed = str(error), "", error.job_started
        log.warning(
            "generation_failed",
            request_id=context.decoded.task.request_id,
            code=verdict.code,
            action=verdict.action,
            attempt=context.spent.attempt,
            crashes=verdict.spent.crashes,
            error=message,
        )
        failed_attempt, context.spent = context.spent.attempt, verdict.spent
        match verdict.action:
            case Action.TRY_LOW_MEMORY:
                context.low_memory = True
            case Action.TRY_AGAIN:
                self._report(context, ProgressType.RETRYING)
            case Action.RELEASE:
                return self._end_abandoned(context)
            case Action.RETRY_LATER | Action.DEAD_LETTER | Action.FAIL:
                if crashed and verdict.action is Action.DEAD_LETTER:
                    message = f"{_crashed_too_often(verdict.spent.crashes)}; the last time: {message}"
                return Failed(verdict=verdict, attempt=failed_attempt, message=message, stack=stack)
            case _:
                assert_never(verdict.action)
        return None

    async def _take_slot(self, context: AttemptContext) -> None:
        alone = runs_alone(context.spent.crashes)
        if context.slot.is_released or (alone and not context.slot.alone):
            context.slot.release()
            context.slot = await run_until(context.abandoned, self._slots.acquire(alone=alone))

    async def _try(self, context: AttemptContext) -> Generated:
        taken = context.taken
        await run_until(context.abandoned, taken.lane.record(taken, self._entry(context)))
        _after_record()
        last_report = 0.0

        def on_step(step: int, total_steps: int) -> None:
            nonlocal last_report
            if step < total_steps and context.job is not None and context.expired_or_canceled():
                self._engine.cancel(context.job)
            now = time.monotonic()
            if now - last_report >= PROGRESS_SECONDS or step == total_steps:
                last_report = now
                self._report(context, ProgressType.STEP, step=step, total_steps=total_steps)

        submitting = self._engine.submit(
            _inputs(context.decoded, low_memory=context.low_memory),
            on_started=lambda: self._report(context, ProgressType.STARTED),
            on_step=on_step,
            on_device_free=context.slot.release,
        )
        context.job = job = await run_until(context.abandoned, submitting)
        self._jobs.add(job)

        def on_lost() -> None:
            context.abandoned.set()
            if job.started_at is None or not orphan_is_worth_finishing(job.fraction_done()):
                self._engine.cancel(job)

        def on_cancel() -> None:
            context.abandoned.set()
            self._engine.cancel(job)

        context.canceling.on_cancel = on_cancel
        if context.canceling.command is not None:
            on_cancel()
        taken.on_lost = on_lost
        task = context.decoded.task
        # A job that stands ready in the engine begins while its lane waits for the one before it.
        taken.remaining_seconds = lambda: job.remaining_seconds(
            now=time.monotonic(), whole_seconds=self._least_seconds(task) or None
        )
        if taken.lost:
            on_lost()
        if self._draining and job.started_at is None:
            self._engine.cancel(job)
        try:
            generated = await asyncio.shield(job.result)
        finally:
            self._jobs.discard(job)
            context.job = None
            taken.on_lost = context.canceling.on_cancel = context.abandoned.set
        self._step_times.learn(
            pixels=task.width * task.height,
            steps=_passes(task),
            seconds=generated.timings_ms.get("denoise", 0.0) / 1000,
        )
        return generated

    def _least_seconds(self, task: GenerationTask) -> float:
        """What the task takes on the device at least; 0 when nothing of its size was drawn before."""
        return self._step_times.least_seconds(pixels=task.width * task.height, steps=_passes(task))

    def _entry(self, context: AttemptContext) -> LedgerEntry:
        return LedgerEntry(
            task=context.decoded.task.request_id,
            worker=self._worker,
            started_at=int(time.time()),
            crashes=context.spent.crashes,
        )

    def _report(
        self, context: AttemptContext, kind: ProgressType, *, step: int | None = None, total_steps: int | None = None
    ) -> None:
        self._report_event(
            ProgressEvent(
                request_id=context.decoded.task.request_id,
                type=kind,
                attempt=context.spent.attempt,
                step=step,
                total_steps=total_steps,
                at=datetime.now(UTC),
            ),
            context.decoded.envelope,
        )

    @staticmethod
    def _stop_reason(taken: ClaimedRecord) -> Exception:
        return PartitionLostError() if taken.lost else TaskReleasedError()


def _crashed_too_often(crashes: int) -> str:
    return f"{crashes} engines or workers died while they worked on this task"


def _canceled_by(command: CancelCommand) -> str:
    by = f" by {command.requested_by}" if command.requested_by else ""
    return f"canceled{by}: {command.reason}" if command.reason else f"canceled{by}"


def _too_late(deadline: datetime, *, needed_seconds: float) -> str:
    when = format_time(deadline)
    if needed_seconds == 0:
        return f"the deadline, {when}, has passed"
    return f"the deadline, {when}, would have passed: the images take {needed_seconds:.1f} s at the least"


def _passes(task: GenerationTask) -> int:
    """Steps of all images; classifier-free guidance makes each twice as long."""
    guided = task.negative_prompt is not None and task.true_cfg_scale > 1
    return task.steps * task.n * (2 if guided else 1)


def _inputs(decoded: DecodedTask, *, low_memory: bool) -> GenerationInputs:
    task = decoded.task
    return GenerationInputs(
        prompt=task.prompt,
        negative_prompt=task.negative_prompt,
        width=task.width,
        height=task.height,
        steps=task.steps,
        seed=task.seed if task.seed is not None else derive_seed(task.request_id),
        n=task.n,
        guidance=task.guidance,
        true_cfg_scale=task.true_cfg_scale,
        output_format=task.output_format.value,
        embedded={"request_id": task.request_id},
        low_memory=low_memory,
    )
