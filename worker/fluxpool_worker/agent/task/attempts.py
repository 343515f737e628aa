"""Attempts of a task on this worker's engine, with progress, cancellation and release.

Owns what happens at once after a failed generation; knows the engine but neither the store nor topics. `task_flow`
stores the images, `ending_writer` writes a failure.
"""

import asyncio
from dataclasses import KW_ONLY, dataclass, field, replace
from typing import assert_never

import structlog

from fluxpool_contract.kafka import LedgerEntry
from fluxpool_contract.messages import (
    DEFAULT_STRENGTH,
    DecodedTask,
    EmbedParameters,
    GenerationTask,
    ProgressType,
    Quality,
    derive_seed,
)
from fluxpool_transport.process import fault_point
from fluxpool_worker.agent.clock import Clock
from fluxpool_worker.agent.consumer.lane import ClaimedRecord, PartitionLostError
from fluxpool_worker.agent.engine.client import EngineClient, EngineDiedError, GenerationError
from fluxpool_worker.agent.engine.job import EngineJob, StepTimes, TaskSize
from fluxpool_worker.agent.engine.slots import EngineSlot, EngineSlots
from fluxpool_worker.agent.task.cancellations import CancelWatch
from fluxpool_worker.agent.task.outcome import (
    Action,
    Budgets,
    Failed,
    Spent,
    crashed_too_often,
    expired_or_canceled,
    judge_crashes,
    judge_engine_death,
    judge_generation,
    orphan_is_worth_finishing,
)
from fluxpool_worker.agent.task.progress import AttemptProgress, ProgressPublisher
from fluxpool_worker.agent.task.run_until import AbandonedError, run_until
from fluxpool_worker.engine.protocol import AppliedLora, FailureKind, Generated, GenerationInputs

_after_record = fault_point("agent-after-record")

log = structlog.get_logger(__name__)


class TaskReleasedError(Exception):
    """The task is released: its offset stays uncommitted and another worker gets it."""


@dataclass(frozen=True, slots=True)
class Success:
    """Images, and the number of the attempt that made them."""

    generated: Generated
    attempt: int


@dataclass(slots=True, eq=False, kw_only=True)
class AttemptContext:
    """One task on its way to images."""

    claimed: ClaimedRecord
    decoded: DecodedTask
    image: bytes | None = None
    """The file that the task starts from."""
    spent: Spent
    slot: EngineSlot
    """Released when the device is done with the task."""
    abandoned: asyncio.Event
    """Set when the pod drains, the partition is lost or the task is canceled; counts until the device begins."""
    canceling: CancelWatch
    low_memory: bool = False
    job: EngineJob | None = None
    """The one with the engine now."""


@dataclass(slots=True, eq=False)
class Attempts:
    """Runs generations."""

    engine: EngineClient
    _: KW_ONLY
    slots: EngineSlots
    budgets: Budgets
    default_quality: Quality
    """Of tasks that name none."""
    embed_limit: EmbedParameters
    preview_every_steps: int = 0
    """Of tasks that ask for previews; 0: none."""
    worker: str
    """This worker's name in the ledger."""
    progress: ProgressPublisher
    clock: Clock
    _step_times: StepTimes = field(default_factory=StepTimes, init=False)
    _jobs: set[EngineJob] = field(default_factory=set, init=False)
    _draining: bool = field(default=False, init=False)

    def drain(self) -> None:
        """Cancel what the engine has not begun; what it works on may finish."""
        self._draining = True
        for job in self._jobs:
            if job.started_at is None:
                self.engine.cancel(job)

    def stop_running(self) -> None:
        """Cancel every job at its next step."""
        self._draining = True
        for job in self._jobs:
            self.engine.cancel(job)

    async def generate(self, context: AttemptContext) -> Success | Failed:
        """The task's images, or why there are none.

        Raises `TaskReleasedError` when the pod drains and `PartitionLostError` when another member owns the partition
        and the task is not worth finishing here.
        """
        spent = context.spent
        if verdict := judge_crashes(spent=spent, budgets=self.budgets):
            return Failed(verdict=verdict, attempt=spent.attempt, message=crashed_too_often(spent.crashes))
        context.canceling.on_cancel = context.abandoned.set
        try:
            while True:
                ended = await self._attempt(context)
                if isinstance(ended, Success):
                    # Generated, but too late to be of use; a cancel command comes too late itself now.
                    late = expired_or_canceled(
                        context.decoded.envelope.deadline, None, now=self.clock.now(), spent=context.spent
                    )
                    return late or ended
                if ended is not None:
                    return ended
        except AbandonedError:
            return self._abandon(context)
        finally:
            context.canceling.on_cancel = lambda: None
            context.slot.release()

    def _expired_or_canceled(self, context: AttemptContext, *, needed_seconds: float = 0.0) -> Failed | None:
        return expired_or_canceled(
            context.decoded.envelope.deadline,
            context.canceling.command,
            now=self.clock.now(),
            spent=context.spent,
            needed_seconds=needed_seconds,
        )

    def _abandon(self, context: AttemptContext) -> Failed:
        """The failure of a task that was stopped; raises when another worker is to end it."""
        if not context.claimed.lost and (ended := self._expired_or_canceled(context)):
            return ended
        raise PartitionLostError if context.claimed.lost else TaskReleasedError

    async def _attempt(self, context: AttemptContext) -> Success | Failed | None:
        """One try; None when another one is due at once."""
        if context.claimed.lost or self._draining:
            raise PartitionLostError if context.claimed.lost else TaskReleasedError
        await self._take_slot(context)
        if ended := self._expired_or_canceled(context, needed_seconds=self._least_seconds(context.decoded.task)):
            return ended
        try:
            return Success(await self._try(context), context.spent.attempt)
        except GenerationError as error:
            verdict = judge_generation(
                error.kind, spent=context.spent, budgets=self.budgets, low_memory=context.low_memory
            )
            message, stack, crashed = str(error), error.stack, error.kind is FailureKind.DEVICE_LOST
        except EngineDiedError as error:
            verdict = judge_engine_death(spent=context.spent, budgets=self.budgets, suspected=error.job_started)
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
                self.progress.report(context.decoded, ProgressType.RETRYING, attempt=verdict.spent.attempt)
            case Action.RELEASE:
                return self._abandon(context)
            case Action.RETRY_LATER | Action.DEAD_LETTER | Action.FAIL:
                if crashed and verdict.action is Action.DEAD_LETTER:
                    message = f"{crashed_too_often(verdict.spent.crashes)}; the last time: {message}"
                return Failed(verdict=verdict, attempt=failed_attempt, message=message, stack=stack)
            case _:
                assert_never(verdict.action)
        return None

    async def _take_slot(self, context: AttemptContext) -> None:
        # If it crashes again, no other task beside it counts a crash.
        alone = context.spent.crashes > 0
        if context.slot.is_released or (alone and not context.slot.alone):
            # Released first: a task that waits for the whole engine and holds a slot would wait for itself.
            context.slot.release()
            context.slot = await run_until(context.abandoned, self.slots.acquire(alone=alone))

    async def _submit(self, context: AttemptContext) -> EngineJob:
        """Give the task to the engine, once its attempt is in the ledger."""
        claimed, decoded = context.claimed, context.decoded
        await run_until(context.abandoned, claimed.lane.record(claimed, self._entry(context)))
        _after_record()
        inputs = _inputs(
            decoded,
            quality=self._quality(decoded.task),
            embed_limit=self.embed_limit,
            low_memory=context.low_memory,
            image=context.image,
            preview_every_steps=self.preview_every_steps,
        )
        progress = AttemptProgress(self.progress, decoded, attempt=context.spent.attempt, clock=self.clock)

        def on_step(step: int, total_steps: int) -> None:
            if step < total_steps and context.job is not None and self._expired_or_canceled(context):
                self.engine.cancel(context.job)
            progress.report_step(step, total_steps)

        def on_started() -> None:
            context.canceling.begun = True
            progress.report_started()

        async def submit() -> EngineJob:
            # The engine runs jobs in the order of their submission.
            async with context.slot.in_order():
                return await self.engine.submit(
                    inputs, on_started=on_started, on_step=on_step, on_device_free=context.slot.release
                )

        job = await run_until(context.abandoned, submit())
        job.on_preview = progress.report_preview
        return job

    async def _try(self, context: AttemptContext) -> Generated:
        claimed, task = context.claimed, context.decoded.task
        context.job = job = await self._submit(context)
        self._jobs.add(job)

        def on_lost() -> None:
            context.abandoned.set()
            if job.started_at is None or not orphan_is_worth_finishing(job.fraction_done()):
                self.engine.cancel(job)

        def on_cancel() -> None:
            context.abandoned.set()
            self.engine.cancel(job)

        # From here on events reach the job. One that came while the job was being submitted only set `abandoned`, which
        # is not awaited any more: each is checked again below, after its callback is in place.
        context.canceling.on_cancel, claimed.on_lost = on_cancel, on_lost
        # A job that is queued in the engine begins while its lane waits for the one before it.
        claimed.remaining_seconds = lambda: job.remaining_seconds(
            now=self.clock.monotonic(), whole_seconds=self._least_seconds(task) or None
        )
        if context.canceling.command is not None:
            on_cancel()
        if claimed.lost:
            on_lost()
        if self._draining and job.started_at is None:
            self.engine.cancel(job)
        try:
            # The engine sets the result, also after this task was cancelled: it must not meet a cancelled future.
            generated = await asyncio.shield(job.result)
        finally:
            self._jobs.discard(job)
            context.job = None
            claimed.on_lost = context.canceling.on_cancel = context.abandoned.set
        self._step_times.learn(
            size=self._size(task),
            steps=_passes(task),
            seconds=generated.timings_ms.get("denoise", 0.0) / 1000,
        )
        warning = _embeds_less(task, self.embed_limit)
        return generated if warning is None else replace(generated, warnings=(*generated.warnings, warning))

    def _least_seconds(self, task: GenerationTask) -> float:
        """What the task takes on the device at least; 0 when nothing of its size was generated before."""
        return self._step_times.least_seconds(size=self._size(task), steps=_passes(task))

    def _size(self, task: GenerationTask) -> TaskSize:
        return TaskSize(pixels=task.width * task.height, quality=self._quality(task))

    def _quality(self, task: GenerationTask) -> Quality:
        return task.quality or self.default_quality

    def _entry(self, context: AttemptContext) -> LedgerEntry:
        return LedgerEntry(
            task=context.decoded.task.request_id,
            worker=self.worker,
            started_at=int(self.clock.time()),
            crashes=context.spent.crashes,
        )


def _passes(task: GenerationTask) -> int:
    """Steps of all images; classifier-free guidance makes each twice as long."""
    guided = task.negative_prompt is not None and task.true_cfg_scale > 1
    return task.steps_to_run * task.n * (2 if guided else 1)


def _embeds_less(task: GenerationTask, limit: EmbedParameters) -> str | None:
    """A warning for the result when the image file says less of the task than was asked for."""
    asked = task.embed_parameters
    if asked is None or asked.within(limit) is asked:
        return None
    return f"embed_parameters: {asked} is more than the pool allows; {limit} was used"


def _inputs(
    decoded: DecodedTask,
    *,
    quality: Quality,
    embed_limit: EmbedParameters,
    low_memory: bool,
    image: bytes | None,
    preview_every_steps: int,
) -> GenerationInputs:
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
        loras=tuple(AppliedLora(name=lora.name, scale=lora.scale) for lora in task.loras),
        output_format=task.output_format.value,
        quality=quality,
        embed_parameters=(task.embed_parameters or embed_limit).within(embed_limit),
        embedded={"request_id": task.request_id},
        low_memory=low_memory,
        image=image,
        strength=task.strength or DEFAULT_STRENGTH,
        preview_every_steps=preview_every_steps if task.preview else 0,
    )
