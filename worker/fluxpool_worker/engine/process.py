"""The engine process: jobs in over a socket, images out, one model on one device.

It owns the process's threads, its signals and its end; it must not import torch, so that a stand-in for the model can
be served by the very same loop. Three kinds of threads:

- the main thread loads the model and runs the jobs in order, and alone touches the device;
- a reader receives; whatever the device does, the end of the agent or `Shutdown` ends the process from there;
- a small pool encodes image files while the device already runs the next job.

Signals to stop are ignored: a service manager sends them to the whole process group, and a task that is being finished
must not lose its engine. The agent ends an engine by `Shutdown`, by closing the socket or with SIGKILL; the end of
the agent itself, however sudden, ends it too.
"""

import argparse
import queue
import signal
import socket
import threading
import time
import traceback
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Final, NoReturn, assert_never

import structlog

from fluxpool_transport.process import ParentGoneError, die_with_parent, fault_point
from fluxpool_worker.engine.files.images import encode_image
from fluxpool_worker.engine.files.preview_file import encode_preview
from fluxpool_worker.engine.generator import (
    DeviceLostError,
    DeviceMemoryError,
    GenerationCanceledError,
    Generator,
    InputsError,
    LatentPreview,
    Load,
    NotFiniteError,
    RejectedError,
    Rendering,
    StartPhases,
)
from fluxpool_worker.engine.jobs import CancelOutcome, JobQueue
from fluxpool_worker.engine.link import EXIT_AGENT_GONE, SendQueue, exit_now, received
from fluxpool_worker.engine.logs import configure_logging
from fluxpool_worker.engine.protocol import (
    Cancel,
    DeviceFree,
    EngineSpec,
    Failed,
    FailureKind,
    Generate,
    Generated,
    LoadFailed,
    Preview,
    Ready,
    Shutdown,
    Started,
    Step,
)
from fluxpool_worker.engine.start_mark import StartMark
from fluxpool_worker.marks import DigitalSourceType

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

EXIT_LOAD_FAILED: Final = 4
EXIT_PROTOCOL: Final = 5
EXIT_DEVICE_LOST: Final = 6

ENCODE_THREADS: Final = 2
"""An image is encoded in a tenth of the time that its generation takes; two keep up with jobs of several images."""

MAX_STACK_BYTES: Final = 8 * 1024
"""A stack travels in the headers of dead-letter records."""

MAX_MESSAGE_CHARACTERS: Final = 2_000

LAST_WORDS_SECONDS: Final = 5.0
"""How long the last messages may take to leave before the process ends anyway."""

job_started = fault_point("engine-job-started")
step_done = fault_point("engine-step")
before_generated = fault_point("engine-before-generated")


def run_engine(load: Load, argv: Sequence[str] | None = None) -> NoReturn:
    """Be an engine process: read the command line, then serve until the agent ends it."""
    parser = argparse.ArgumentParser(description="The engine of a Fluxpool worker; started by its agent.")
    parser.add_argument("--socket-fd", type=int, required=True, help="inherited descriptor of one end of a socket pair")
    parser.add_argument("--started-fd", type=int, required=True, help="inherited descriptor of the agent's start mark")
    parser.add_argument("--parent-pid", type=int, required=True, help="the agent's process id, as the engine sees it")
    arguments = parser.parse_args(argv)
    try:
        die_with_parent(arguments.parent_pid)
    except ParentGoneError:
        exit_now(EXIT_AGENT_GONE)
    for ignored in (signal.SIGINT, signal.SIGTERM):
        signal.signal(ignored, signal.SIG_IGN)
    configure_logging()
    with _inherited_socket(parser, arguments.socket_fd) as sock:
        serve(sock, load, mark=_inherited_mark(parser, arguments.started_fd))


def _inherited_socket(parser: argparse.ArgumentParser, descriptor: int) -> socket.socket:
    try:
        return socket.socket(fileno=descriptor)
    except OSError as error:
        parser.error(f"--socket-fd {descriptor} is not an inherited socket ({error}); the agent passes it by pass_fds")


def _inherited_mark(parser: argparse.ArgumentParser, descriptor: int) -> StartMark:
    try:
        return StartMark(descriptor)
    except (OSError, ValueError) as error:
        parser.error(f"--started-fd {descriptor} is not an inherited mark ({error}); the agent passes it by pass_fds")


def serve(sock: socket.socket, load: Load, *, mark: StartMark) -> NoReturn:
    """Serve jobs over `sock` with the model that `load` makes of the first message; ends the process, never returns.

    Must be called from the main thread, which becomes the one that owns the device.
    """
    send_queue = SendQueue(sock)
    jobs = JobQueue()
    specs: queue.SimpleQueue[EngineSpec] = queue.SimpleQueue()
    threading.Thread(
        target=_receive,
        kwargs={"sock": sock, "send_queue": send_queue, "jobs": jobs, "specs": specs},
        name="reader",
        daemon=True,
    ).start()
    spec = specs.get()
    generator = _load(spec, load, send_queue)
    with ThreadPoolExecutor(ENCODE_THREADS, thread_name_prefix="encode") as encoders:
        while True:
            job = jobs.take()
            # Should this job kill the process, the agent must know that it was this one.
            mark.set(job.job_id)
            try:
                rendering = _run_job(job, generator=generator, jobs=jobs, send_queue=send_queue, encoders=encoders)
            except DeviceLostError:
                break
            if rendering is not None:
                encoders.submit(_encode, job, rendering=rendering, model=generator.model, send_queue=send_queue)
    # Earlier images are encoded and sent by now. The next job must not start: it would fail like this one.
    send_queue.flush(timeout_seconds=LAST_WORDS_SECONDS)
    exit_now(EXIT_DEVICE_LOST)


def _load(spec: EngineSpec, load: Load, send_queue: SendQueue) -> Generator:
    started, phases = time.monotonic(), StartPhases()
    try:
        generator = load(spec, phases)
    except Exception as error:
        # torch, diffusers and the hub raise what they like; the agent decides whether another start may help.
        log.exception("load_failed", model=spec.model)
        send_queue.put(LoadFailed(message=_describe(error), stack=_stack()))
        send_queue.flush(timeout_seconds=LAST_WORDS_SECONDS)
        exit_now(EXIT_LOAD_FAILED)
    load_seconds = time.monotonic() - started
    log.info(
        "model_ready",
        model=generator.model,
        device=generator.device,
        load_seconds=round(load_seconds, 3),
        phases={phase: round(seconds, 3) for phase, seconds in phases.seconds.items()},
    )
    send_queue.put(
        Ready(
            model=generator.model,
            device=generator.device,
            load_seconds=load_seconds,
            family=generator.family.name,
            phase_seconds=phases.seconds,
        )
    )
    return generator


def _receive(
    *, sock: socket.socket, send_queue: SendQueue, jobs: JobQueue, specs: "queue.SimpleQueue[EngineSpec]"
) -> NoReturn:
    """Take what the agent sends until it is gone; the reader's whole life."""
    try:
        for message in received(sock):
            match message:
                case EngineSpec():
                    specs.put(message)
                case Generate():
                    jobs.put(message)
                case Cancel():
                    _cancel(message.job_id, jobs=jobs, send_queue=send_queue)
                case Shutdown():
                    log.info("shutdown_asked")
                    send_queue.flush(timeout_seconds=LAST_WORDS_SECONDS)
                    exit_now(0)
                case Ready() | LoadFailed() | Started() | Step() | Preview() | DeviceFree() | Generated() | Failed():
                    raise TypeError(f"{type(message).__name__} is a message of engines, not of agents")
                case _:
                    assert_never(message)
    except Exception:
        # A thread has no caller to raise to, and without this one the engine would hear of no cancellation or end.
        log.exception("protocol_broken")
        exit_now(EXIT_PROTOCOL)
    exit_now(EXIT_AGENT_GONE)


def _cancel(job_id: int, *, jobs: JobQueue, send_queue: SendQueue) -> None:
    outcome = jobs.cancel(job_id)
    log.info("cancel_asked", job_id=job_id, outcome=outcome.value)
    if outcome is CancelOutcome.DROPPED:
        send_queue.put(Failed(job_id=job_id, kind=FailureKind.CANCELED, message="canceled while it was waiting"))


def _run_job(
    job: Generate, *, generator: Generator, jobs: JobQueue, send_queue: SendQueue, encoders: ThreadPoolExecutor
) -> Rendering | None:
    """Run one job on the device; None when it failed, which has been reported then.

    Raises `DeviceLostError`, reported too, when no further job can be run.
    """

    def on_step(step: int, total_steps: int) -> None:
        send_queue.put(Step(job_id=job.job_id, step=step, total_steps=total_steps))
        step_done()

    preview_under_way: Future[None] | None = None

    def on_preview(preview: LatentPreview) -> None:
        nonlocal preview_under_way
        # The latest matters: one is left out while the one before it waits for an encoder.
        if preview_under_way is None or preview_under_way.done():
            preview_under_way = encoders.submit(_send_preview, job, preview=preview, send_queue=send_queue)

    send_queue.put(Started(job_id=job.job_id))
    try:
        job_started()
        rendering = generator.generate(
            job.inputs, on_step=on_step, is_canceled=jobs.is_running_canceled, on_preview=on_preview
        )
    except DeviceLostError as error:
        send_queue.put(_failure(job.job_id, error))
        raise
    except Exception as error:  # noqa: BLE001 - the engine must outlive any job; the failure is sent and logged
        failure = _failure(job.job_id, error)
        jobs.finish()
        send_queue.put(failure)
        return None
    jobs.finish()
    send_queue.put(DeviceFree(job_id=job.job_id))
    return rendering


def _send_preview(job: Generate, *, preview: LatentPreview, send_queue: SendQueue) -> None:
    """Encode a preview and send it; in a thread of the pool."""
    try:
        payload = encode_preview(preview.pixels(), source_type=_source_type(job))
    except Exception as error:  # noqa: BLE001 - what ails the device ends the job, and nothing waits for a preview
        log.warning("preview_failed", job_id=job.job_id, reason=_describe(error))
        return
    if payload is not None:
        send_queue.put(
            Preview(
                job_id=job.job_id,
                step=preview.step,
                total_steps=preview.total_steps,
                index=preview.index,
                payload=payload,
            )
        )


def _source_type(job: Generate) -> DigitalSourceType:
    if job.inputs.image is None:
        return DigitalSourceType.TRAINED_ALGORITHMIC_MEDIA
    return DigitalSourceType.COMPOSITE_WITH_TRAINED_ALGORITHMIC_MEDIA


def _encode(job: Generate, *, rendering: Rendering, model: str, send_queue: SendQueue) -> None:
    """Encode a job's images and send them; in a thread of the pool."""
    started = time.monotonic()
    source_type = _source_type(job)
    try:
        images = tuple(
            encode_image(pixels, inputs=job.inputs, index=index, model=model, source_type=source_type)
            for index, pixels in enumerate(rendering.images)
        )
        timings_ms = {**rendering.timings_ms, "image_encode": 1000 * (time.monotonic() - started)}
        before_generated()
        # Logged before it is sent: an agent may store and die at once, and this process dies with it.
        log.info(
            "job_done",
            job_id=job.job_id,
            images=len(images),
            warnings=len(rendering.warnings),
            quality=job.inputs.quality,
            path=rendering.path,
        )
        send_queue.put(
            Generated(
                job_id=job.job_id,
                images=images,
                timings_ms=timings_ms,
                warnings=rendering.warnings,
                path=rendering.path,
            )
        )
    except Exception as error:  # noqa: BLE001 - a pool's thread has no caller to raise to; the failure is sent and logged
        send_queue.put(_failure(job.job_id, error))


def _failure(job_id: int, error: Exception) -> Failed:
    """The message that ends a failed job; must be called while `error` is being handled."""
    stack = ""
    match error:
        case GenerationCanceledError():
            kind = FailureKind.CANCELED
        case InputsError():
            kind = FailureKind.INVALID
        case RejectedError():
            kind = FailureKind.REJECTED
        case DeviceLostError():
            kind = FailureKind.DEVICE_LOST
            stack = _stack()
        case DeviceMemoryError():
            kind = FailureKind.OUT_OF_MEMORY
        case NotFiniteError():
            kind = FailureKind.NOT_FINITE
        case _:
            kind = FailureKind.ERROR
            stack = _stack()
    log.warning("job_failed", job_id=job_id, kind=kind.value, reason=_describe(error), stack=stack or None)
    return Failed(job_id=job_id, kind=kind, message=_describe(error), stack=stack)


def _describe(error: Exception) -> str:
    """The message alone for errors of our own, which explain themselves; with the class for all others."""
    ours = type(error).__module__.startswith("fluxpool_worker.")
    text = str(error) if ours else f"{type(error).__name__}: {error}"
    return text[:MAX_MESSAGE_CHARACTERS]


def _stack() -> str:
    """The stack of the error being handled; its end when it is long, for that is where the fault is."""
    return traceback.format_exc().encode("utf-8", "replace")[-MAX_STACK_BYTES:].decode("utf-8", "ignore")
