"""Getting images out of the engine: attempts, progress, and giving up in good order.

Owns what a generation's failure leads to; knows the engine but neither the store nor Kafka.
"""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

import structlog

from fluxpool_contract.decoding import DecodedTask
from fluxpool_contract.derived import derive_seed
from fluxpool_contract.headers import Envelope
from fluxpool_contract.progress import ProgressEvent, ProgressType
from fluxpool_worker.agent.answers import Failure
from fluxpool_worker.agent.engine_client import EngineClient, EngineDiedError, EngineJob, GenerationError
from fluxpool_worker.agent.lane import PartitionLostError, Taken
from fluxpool_worker.agent.outcome import (
    Action,
    Verdict,
    judge_engine_death,
    judge_generation,
    orphan_is_worth_finishing,
)
from fluxpool_worker.engine.protocol import Generated, GenerationInputs

PROGRESS_SECONDS: Final = 0.5
"""Least time between two progress events of a task."""

log = structlog.get_logger(__name__)


class TaskReleasedError(Exception):
    """The task is given up in good order; its offset stays uncommitted and somebody else does it."""


@dataclass(frozen=True, slots=True)
class Success:
    """Images, and the number of the attempt that made them."""

    generated: Generated
    attempt: int


class Attempts:
    """Runs generations, each up to `max_attempts` times in place."""

    def __init__(
        self, engine: EngineClient, *, max_attempts: int, report: Callable[[ProgressEvent, Envelope], None]
    ) -> None:
        self._engine = engine
        self._max_attempts = max_attempts
        self._report_event = report
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
        self, taken: Taken, decoded: DecodedTask, *, free_engine: Callable[[], None]
    ) -> Success | Failure:
        """The task's images, or why there are none.

        `free_engine` is called when the device is done with an attempt. Raises `TaskReleasedError` when the pod drains
        and `PartitionLostError` when the task is somebody else's and not worth finishing here.
        """
        inputs = _inputs(decoded)
        attempt = 1
        while True:
            if taken.lost:
                raise PartitionLostError
            if self._draining:
                raise TaskReleasedError
            try:
                return Success(
                    await self._try(taken, decoded, inputs, attempt=attempt, free_engine=free_engine), attempt
                )
            except GenerationError as error:
                verdict = judge_generation(error.kind, attempt=attempt, max_attempts=self._max_attempts)
                message, stack = str(error), error.stack
            except EngineDiedError as error:
                verdict = judge_engine_death(
                    job_started=error.job_started, attempt=attempt, max_attempts=self._max_attempts
                )
                message, stack = str(error), ""
                if not error.job_started:
                    continue
            log.warning(
                "generation_failed",
                request_id=decoded.task.request_id,
                code=verdict.code,
                action=verdict.action,
                attempt=attempt,
                error=message,
            )
            match verdict.action:
                case Action.RETRY_IN_PLACE:
                    attempt += 1
                    self._report(decoded, ProgressType.RETRYING, attempt=attempt)
                case Action.RELEASE:
                    raise _given_up(taken)
                case Action.DEAD_LETTER:
                    return _exhausted(verdict, message, stack, attempt)

    async def _try(
        self,
        taken: Taken,
        decoded: DecodedTask,
        inputs: GenerationInputs,
        *,
        attempt: int,
        free_engine: Callable[[], None],
    ) -> Generated:
        last_report = 0.0

        def on_step(step: int, total_steps: int) -> None:
            nonlocal last_report
            now = time.monotonic()
            if now - last_report >= PROGRESS_SECONDS or step == total_steps:
                last_report = now
                self._report(decoded, ProgressType.STEP, attempt=attempt, step=step, total_steps=total_steps)

        job = await self._engine.submit(inputs, on_step=on_step, on_device_free=free_engine)
        # No await lies between the sending and this, so the engine's word that it began has not been read yet.
        job.on_started = lambda: self._report(decoded, ProgressType.STARTED, attempt=attempt)
        self._jobs.add(job)

        def on_lost() -> None:
            if job.started_at is None or not orphan_is_worth_finishing(job.fraction_done()):
                self._engine.cancel(job)

        taken.on_lost = on_lost
        taken.remaining_seconds = lambda: job.remaining_seconds(now=time.monotonic())
        if taken.lost:
            on_lost()
        if self._draining:
            self._engine.cancel(job)
        try:
            return await asyncio.shield(job.result)
        finally:
            self._jobs.discard(job)

    def _report(
        self,
        decoded: DecodedTask,
        kind: ProgressType,
        *,
        attempt: int,
        step: int | None = None,
        total_steps: int | None = None,
    ) -> None:
        self._report_event(
            ProgressEvent(
                request_id=decoded.task.request_id,
                type=kind,
                attempt=attempt,
                step=step,
                total_steps=total_steps,
                at=datetime.now(UTC),
            ),
            decoded.envelope,
        )


def _given_up(taken: Taken) -> Exception:
    return PartitionLostError() if taken.lost else TaskReleasedError()


def _inputs(decoded: DecodedTask) -> GenerationInputs:
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
    )


def _exhausted(verdict: Verdict, message: str, stack: str, attempts: int) -> Failure:
    return Failure(
        error_class=verdict.error_class,
        code=verdict.code,
        disposition=verdict.disposition,
        message=message,
        stack=stack,
        attempts=attempts,
    )
