"""The agent's end of the engine: starts the child process, sends it jobs, and restarts it when it dies or hangs.

Knows nothing of Kafka or tasks. The engine has the other end of a socket pair (`fluxpool_worker.engine.link`) and dies
with this process; this process survives it. `task.attempts` submits jobs and decides what a failure means.
"""

import asyncio
import contextlib
import itertools
import os
import socket
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, assert_never

import structlog

from fluxpool_contract.families import FAMILIES
from fluxpool_contract.messages import MAX_PREVIEW_BYTES, Quality
from fluxpool_transport.process import Backoff
from fluxpool_worker.agent.clock import SYSTEM_CLOCK, Clock
from fluxpool_worker.agent.engine.job import EngineJob
from fluxpool_worker.agent.task.outcome import MAX_ENGINE_DEATHS_IN_A_ROW
from fluxpool_worker.engine.protocol import (
    FRAME_HEADER,
    Cancel,
    DeviceFree,
    EnginePath,
    EngineSpec,
    Failed,
    FailureKind,
    FromEngine,
    Generate,
    Generated,
    GenerationInputs,
    LoadFailed,
    Preview,
    ProtocolError,
    Ready,
    Shutdown,
    Started,
    Step,
    ToEngine,
    encode_frame,
    head_bytes,
    head_for_agent,
)
from fluxpool_worker.engine.start_mark import StartMark

DEFAULT_COMMAND: Final = (sys.executable, "-m", "fluxpool_worker.engine")
RESTART_SECONDS: Final = 0.5
MAX_RESTART_SECONDS: Final = 5.0
SHUTDOWN_SECONDS: Final = 5.0
KILLED_SECONDS: Final = 30.0
"""A process in an uninterruptible wait, for a driver or a network file system, outlives its SIGKILL."""
LAST_WORDS_SECONDS: Final = 1.0
"""From the end of an engine until its end of the socket is closed, unless another process has inherited it."""
WATCHDOG_SECONDS: Final = 1.0
AGENT_ONLY_VARIABLES: Final = ("FLUXPOOL_IMAGE_SIGNING_", "FLUXPOOL_KAFKA_", "FLUXPOOL_STORAGE_", "AWS_")
MAX_HUNG_LOADS: Final = 2
"""A second hung load means that the model cannot be read, not that this moment is bad."""
LOST_DEVICE_SECONDS: Final = 10.0
"""How long an engine that lost its device may take to end by itself: a driver may keep it."""

log = structlog.get_logger(__name__)


class EngineLoadError(Exception):
    """The checkpoint cannot be loaded; trying again in this pod will not help."""


class EngineUnstableError(Exception):
    """The engine died too often in a row."""


class GenerationError(Exception):
    """A job ended without images while the engine lives on."""

    def __init__(self, kind: FailureKind, message: str, stack: str = "") -> None:
        self.kind = kind
        self.stack = stack
        super().__init__(message)


class EngineDiedError(Exception):
    """The engine process ended with the job unfinished."""

    def __init__(self, message: str, *, job_started: bool) -> None:
        self.job_started = job_started
        super().__init__(message)


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineLimits:
    """How long an engine may take before it counts as stuck, seconds."""

    job: float
    """A whole job, from its beginning; the engine is killed then."""
    silence_soft: float
    """Between two steps; reported."""
    silence_hard: float
    """Between two steps; the engine is killed then."""
    load: float
    """From the start of the process until the model is loaded; the engine is killed then."""


class EngineClient:
    """Keeps one engine alive and gives it jobs; `run()` must be running meanwhile."""

    def __init__(
        self, spec: EngineSpec, *, command: Sequence[str] = (), limits: EngineLimits, clock: Clock = SYSTEM_CLOCK
    ) -> None:
        self._spec = spec
        self._monotonic = clock.monotonic
        self._limits = limits
        self._command = tuple(command) or DEFAULT_COMMAND
        self._ids = itertools.count(1)
        self._jobs: dict[int, EngineJob] = {}
        self._ready: Ready | None = None
        self._ready_event = asyncio.Event()
        self._writer: asyncio.StreamWriter | None = None
        self._process: asyncio.subprocess.Process | None = None
        self._stopping = False
        self._deaths_in_a_row = 0
        self._backoff = Backoff(initial_seconds=RESTART_SECONDS, maximum_seconds=MAX_RESTART_SECONDS)
        self._device_lost_at: float | None = None
        self._device_free_at = 0.0
        """Monotonic time of the last sign that the device can begin a job."""
        self._load_started_at: float | None = None
        self._hung_loads = 0
        self.restarts = 0
        self.stalls = 0
        """Generations that were silent for longer than the soft limit."""
        self.generated: Counter[tuple[Quality, EnginePath]] = Counter()
        """Jobs that ended with images."""

    @property
    def is_ready(self) -> bool:
        """Whether an engine has loaded its model."""
        return self._ready_event.is_set()

    @property
    def start_seconds(self) -> Mapping[str, float]:
        """How long each phase of the present engine's start took; empty before it is ready."""
        return self._ready.phase_seconds if self._ready is not None and self.is_ready else {}

    @property
    def pid(self) -> int | None:
        """Process id of the present engine."""
        return self._process.pid if self._process is not None else None

    async def wait_ready(self) -> Ready:
        """Wait until the engine has loaded the model; returns what it loaded."""
        await self._ready_event.wait()
        assert self._ready is not None  # noqa: S101 - set before the event
        return self._ready

    async def run(self) -> None:
        """Start engines until `stop()`.

        Raises `EngineLoadError` when the model cannot be loaded and `EngineUnstableError` when engines keep dying.
        """
        while not self._stopping:
            mark = StartMark.create()
            try:
                process, reader = await self._spawn(mark)
            except BaseException:
                mark.close()
                raise
            watchdog = asyncio.create_task(self._kill_when_stuck(process), name="engine-watchdog")
            try:
                await self._receive(reader)
            except ProtocolError as error:
                log.error("engine_protocol_broken", pid=process.pid, error=str(error))  # noqa: TRY400 - no bug of ours
            finally:
                watchdog.cancel()
                await self._reap(process, mark)
            if self._is_stopping():
                return
            if self._hung_loads >= MAX_HUNG_LOADS:
                raise EngineLoadError(
                    f"model {self._spec.model!r} was not loaded within engine_load_limit_seconds, "
                    f"{self._limits.load:g} s, {self._hung_loads} times in a row; check the disk, mount or network "
                    "that it is read from, or allow more time"
                )
            self.restarts += 1
            self._deaths_in_a_row += 1
            log.error("engine_died", exit_code=process.returncode, deaths_in_a_row=self._deaths_in_a_row)
            if self._deaths_in_a_row >= MAX_ENGINE_DEATHS_IN_A_ROW:
                raise EngineUnstableError(
                    f"the engine died {self._deaths_in_a_row} times without finishing a job; last exit code "
                    f"{process.returncode}"
                )
            await self._backoff.sleep()

    async def submit(
        self,
        inputs: GenerationInputs,
        *,
        on_started: Callable[[], None],
        on_step: Callable[[int, int], None],
        on_device_free: Callable[[], None],
    ) -> EngineJob:
        """Queue a job as soon as an engine is ready; await `job.result` for its end.

        The callbacks are those of `EngineJob`. The result raises `GenerationError`, or `EngineDiedError` when the
        process ended first.
        """
        await self._ready_event.wait()
        # No await until `_send`: the engine that is ready could be reaped meanwhile, and nothing would end the job.
        job = EngineJob(
            job_id=next(self._ids),
            inputs=inputs,
            on_started=on_started,
            on_step=on_step,
            on_device_free=on_device_free,
            result=asyncio.get_running_loop().create_future(),
            sent_at=self._monotonic(),
        )
        self._jobs[job.job_id] = job
        self._send(Generate(job.job_id, inputs))
        return job

    def cancel(self, job: EngineJob) -> None:
        """Ask the engine to drop the job or stop it at its next step; its result then raises `GenerationError`."""
        if not job.cancel_requested and job.job_id in self._jobs:
            job.cancel_requested = True
            self._send(Cancel(job.job_id))

    async def stop(self) -> None:
        """End the engine; no other is started."""
        self._stopping = True
        process = self._process
        if process is None or process.returncode is not None:
            return
        self._send(Shutdown())
        try:
            async with asyncio.timeout(SHUTDOWN_SECONDS):
                await process.wait()
        except TimeoutError:
            process.kill()
            await _ended(process)

    def _is_stopping(self) -> bool:
        return self._stopping

    def _send(self, message: ToEngine) -> None:
        if self._writer is not None and not self._writer.is_closing():
            self._writer.writelines(encode_frame(message))

    async def _spawn(self, mark: StartMark) -> tuple[asyncio.subprocess.Process, asyncio.StreamReader]:
        ours, theirs = socket.socketpair()
        try:
            process = await asyncio.create_subprocess_exec(
                *self._command,
                "--socket-fd",
                str(theirs.fileno()),
                "--started-fd",
                str(mark.descriptor),
                "--parent-pid",
                str(os.getpid()),
                pass_fds=[theirs.fileno(), mark.descriptor],
                stdin=asyncio.subprocess.DEVNULL,
                env=_engine_environment(os.environ),
            )
        except BaseException:
            ours.close()
            raise
        finally:
            # The engine has its own copy; with ours open its death would not close the socket.
            theirs.close()
        reader, self._writer = await asyncio.open_connection(sock=ours)
        self._process = process
        self._load_started_at = self._monotonic()
        self._send(self._spec)
        log.info("engine_started", pid=process.pid, model=self._spec.model)
        return process, reader

    async def _kill_when_stuck(self, process: asyncio.subprocess.Process) -> None:
        while process.returncode is None:
            await asyncio.sleep(WATCHDOG_SECONDS)
            now = self._monotonic()
            self._report_stalls(now)
            reason = self._why_stuck(now)
            if reason is not None:
                if self._load_started_at is not None:
                    self._hung_loads += 1
                log.error("engine_stuck", pid=process.pid, reason=reason)
                process.kill()
                break
        # A process that the dead engine started may hold its end of the socket open: end `_receive` from here.
        await asyncio.sleep(LAST_WORDS_SECONDS)
        if self._writer is not None:
            self._writer.transport.abort()

    def _report_stalls(self, now: float) -> None:
        for job in self._jobs.values():
            silent = job.silent_seconds(now=now)
            if silent > self._limits.silence_soft and not job.is_stalled:
                job.is_stalled = True
                self.stalls += 1
                log.warning("engine_stalled", step=job.step, total_steps=job.total_steps, silent_seconds=round(silent))

    def _why_stuck(self, now: float) -> str | None:
        if self._load_started_at is not None and now - self._load_started_at > self._limits.load:
            return f"loading took longer than engine_load_limit_seconds, {self._limits.load:g} s"
        if self._device_lost_at is not None and now - self._device_lost_at > LOST_DEVICE_SECONDS:
            return f"lost its device and did not end within {LOST_DEVICE_SECONDS:.0f} s"
        for job in self._jobs.values():
            if job.started_at is not None and now - job.started_at > self._limits.job:
                return f"a job took longer than task_hard_limit_seconds, {self._limits.job:g} s"
            if job.silent_seconds(now=now) > self._limits.silence_hard:
                return f"no step for longer than step_hard_limit_seconds, {self._limits.silence_hard:g} s"
        if self._idle_seconds(now) > self._limits.silence_hard:
            return f"a job was not begun within step_hard_limit_seconds, {self._limits.silence_hard:g} s"
        return None

    def _idle_seconds(self, now: float) -> float:
        """For how long jobs have waited while the device works for none."""
        waiting = [job.sent_at for job in self._jobs.values() if job.started_at is None]
        is_busy = any(job.started_at is not None and not job.is_device_free for job in self._jobs.values())
        return 0.0 if is_busy or not waiting else now - max(min(waiting), self._device_free_at)

    async def _receive(self, reader: asyncio.StreamReader) -> None:
        """Handle messages until the engine is gone; raises `ProtocolError`."""
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                length = head_bytes(await reader.readexactly(FRAME_HEADER.size))
                head = head_for_agent(await reader.readexactly(length))
                payloads = [await reader.readexactly(size) for size in head.payload_bytes]
                self._handle(head.complete(payloads))

    def _handle(self, message: ToEngine | FromEngine) -> None:
        match message:
            case Ready():
                family = FAMILIES.get(message.family)
                log.info(
                    "engine_ready",
                    device=message.device,
                    load_seconds=round(message.load_seconds, 2),
                    family=message.family,
                    licence=None if family is None else str(family.licence),
                    phases={phase: round(seconds, 2) for phase, seconds in message.phase_seconds.items()},
                )
                self._load_started_at, self._hung_loads = None, 0
                self._ready = message
                self._ready_event.set()
            case LoadFailed():
                log.error("engine_load_failed", error=message.message, stack=message.stack)
                raise EngineLoadError(message.message)
            case Started() | Step() | DeviceFree() | Generated() | Failed():
                # An unknown job failed already, when its engine was reaped.
                if job := self._jobs.get(message.job_id):
                    self._handle_job(job, message)
            case Preview():
                # Made by another thread than the device's: no sign of life, and of any size.
                if (job := self._jobs.get(message.job_id)) and len(message.payload) <= MAX_PREVIEW_BYTES:
                    job.on_preview(message)
            case EngineSpec() | Generate() | Cancel() | Shutdown():
                raise ProtocolError(f"the engine sent a message meant for it: {type(message).__name__}")
            case _:
                assert_never(message)

    def _handle_job(self, job: EngineJob, message: Started | Step | DeviceFree | Generated | Failed) -> None:
        self._device_free_at = self._monotonic()
        match message:
            case Started():
                job.started_at = job.last_sign_at = self._monotonic()
                job.on_started()
            case Step():
                job.step, job.total_steps = message.step, message.total_steps
                job.last_sign_at, job.is_stalled = self._monotonic(), False
                job.on_step(message.step, message.total_steps)
            case DeviceFree():
                job.free_device()
            case Generated():
                _check_images(message, job.inputs)
                self._deaths_in_a_row = 0
                self._backoff.reset()
                if message.path is not None:
                    self.generated[job.inputs.quality, message.path] += 1
                del self._jobs[job.job_id]
                job.free_device()
                if not job.result.done():
                    job.result.set_result(message)
            case Failed():
                if message.kind is FailureKind.DEVICE_LOST:
                    self._device_lost_at = self._monotonic()
                    self._ready_event.clear()
                del self._jobs[job.job_id]
                self._fail(job, GenerationError(message.kind, message.message, message.stack))
            case _:
                assert_never(message)

    async def _reap(self, process: asyncio.subprocess.Process, mark: StartMark) -> None:
        """End the process, then fail its jobs."""
        self._ready_event.clear()
        self._device_lost_at = self._load_started_at = None
        writer, self._writer = self._writer, None
        if writer is not None:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()
        if process.returncode is None:
            # Its end of the socket is closed, so it is useless, whatever it still does.
            with contextlib.suppress(ProcessLookupError):
                process.kill()
        has_ended = await _ended(process)
        # Read after its end: a living engine may begin a job at any moment, and a job that was begun counts as a crash.
        # The job's `Started` message does not tell: it may be lost in the socket.
        last_started = mark.last_started()
        mark.close()
        # `submit` waits for the next `Ready`, so no job of the next engine is among these.
        jobs, self._jobs = self._jobs, {}
        for job in jobs.values():
            started = job.job_id <= last_started
            self._fail(job, EngineDiedError(f"the engine ended with code {process.returncode}", job_started=started))
        if not has_ended:
            raise EngineUnstableError(
                f"the engine, process {process.pid}, did not end within {KILLED_SECONDS:g} s of SIGKILL: it waits in "
                "the kernel; check the node's driver, disk and network file systems"
            )

    @staticmethod
    def _fail(job: EngineJob, error: Exception) -> None:
        job.free_device()
        if not job.result.done():
            job.result.set_exception(error)
            # Retrieved here, because the task of an abandoned job does not: asyncio would log it.
            job.result.exception()


async def _ended(process: asyncio.subprocess.Process) -> bool:
    """Whether a process that was killed has ended in time."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(KILLED_SECONDS):
            await process.wait()
            return True
    return False


def _check_images(generated: Generated, inputs: GenerationInputs) -> None:
    """Raise `ProtocolError` unless these are the images that were asked for: they become a result unchecked."""
    wanted = [
        (index, inputs.seed + index, inputs.width, inputs.height, inputs.output_format, f"image/{inputs.output_format}")
        for index in range(inputs.n)
    ]
    sent = [
        (image.index, image.seed, image.width, image.height, image.format, image.content_type)
        for image in generated.images
    ]
    if sent != wanted:
        raise ProtocolError(f"job {generated.job_id}: other images than requested: {sent[:2]}")


def _engine_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """The engine's environment: without the credentials of Kafka and the object store, which it does not need."""
    return {name: value for name, value in environment.items() if not name.startswith(AGENT_ONLY_VARIABLES)}
