"""A worker pod for state machines: the real lane, task flow and attempts, with models of everything outside.

Owns the wiring of one pod and the behaviour of its engine, store and producer; its driver decides when.
"""

import asyncio
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Final, cast

from aiokafka.structs import ConsumerRecord

from fluxpool_contract.kafka.ledger import LedgerEntry
from fluxpool_contract.settings.worker import WorkerSettings
from fluxpool_contract.tenants import TenantTrust
from fluxpool_transport.storage.object_store import ObjectStore
from fluxpool_worker.agent.clock import Clock
from fluxpool_worker.agent.consumer.events import LaneEvents
from fluxpool_worker.agent.consumer.lane import ClaimedRecord, LaneConsumer
from fluxpool_worker.agent.engine.client import EngineClient, EngineDiedError, GenerationError
from fluxpool_worker.agent.engine.job import EngineJob
from fluxpool_worker.agent.engine.slots import EngineSlots
from fluxpool_worker.agent.task.cancellations import Cancellations
from fluxpool_worker.agent.task.holds import Holds
from fluxpool_worker.agent.task.outcome import inherited_crashes
from fluxpool_worker.agent.task.outgoing_records import WorkerIdentity
from fluxpool_worker.agent.task.progress import ProgressPublisher
from fluxpool_worker.agent.task.publisher import OutgoingRecord, ReliablePublisher
from fluxpool_worker.agent.task.task_flow import TaskFlow
from fluxpool_worker.engine.protocol import EncodedImage, FailureKind, Generated, GenerationInputs
from kit.models.modelled_kafka import Link, LinkState, ModelConsumer, ModelGroup, SteppedLoop

IN_FLIGHT: Final = 4
ENGINE_JOBS: Final = 2
DRAIN_SECONDS: Final = 10.0


@dataclass(slots=True, eq=False)
class Run:
    """A record in one pod."""

    taken: ClaimedRecord
    is_recorded: bool = False
    """It was sent to the engine, so its ledger entry was committed before."""
    is_begun: bool = False
    """The engine has worked on it."""
    is_generated: bool = False
    """It has its images."""

    @property
    def record(self) -> ConsumerRecord:
        """The record."""
        return self.taken.record


_current_run: ContextVar[Run] = ContextVar("current_run")
OnPublished = Callable[[OutgoingRecord, Run], None]


class ModelEngine:
    """The part of `EngineClient` that tasks use: jobs run one by one, in order."""

    def __init__(self, loop: SteppedLoop) -> None:
        self._loop = loop
        self._jobs: list[tuple[EngineJob, Run]] = []

    @property
    def is_busy(self) -> bool:
        """Whether there is a job to step, finish or fail."""
        return bool(self._jobs)

    async def submit(self, inputs: GenerationInputs, **callbacks: Any) -> EngineJob:
        """Queue a job."""
        run = _current_run.get()
        job = EngineJob(job_id=0, inputs=inputs, result=self._loop.create_future(), **callbacks)
        self._jobs.append((job, run))
        run.is_recorded = True
        self._start_next()
        return job

    def cancel(self, job: EngineJob) -> None:
        """Drop a job, or stop it at its next step, which is now."""
        remaining = [(other, run) for other, run in self._jobs if other is not job]
        if remaining != self._jobs:
            self._jobs = remaining
            self._fail(job, GenerationError(FailureKind.CANCELED, "canceled"))
            self._start_next()

    def step(self) -> None:
        """Half of the present job is done."""
        job, _ = self._jobs[0]
        job.step, job.total_steps = 1, 2

    def finish(self) -> None:
        """The present job has its image."""
        job, run = self._jobs.pop(0)
        job.free_device()
        run.is_generated = True
        image = EncodedImage(0, 1, 16, 16, "png", "image/png", b"image")
        job.result.set_result(Generated(job.job_id, (image,), {"denoise": 1.0}))
        self._start_next()

    def fail(self) -> None:
        """The present job fails by itself, and the engine continues."""
        job, _ = self._jobs.pop(0)
        self._fail(job, GenerationError(FailureKind.ERROR, "failed"))
        self._start_next()

    def die(self) -> list[Run]:
        """All jobs fail, and another engine is ready; returns the runs that may have killed this one."""
        jobs, self._jobs = self._jobs, []
        for job, _ in jobs:
            self._fail(job, EngineDiedError("killed", job_started=job.started_at is not None))
        return [run for job, run in jobs if job.started_at is not None]

    def _start_next(self) -> None:
        if self._jobs and self._jobs[0][0].started_at is None:
            job, run = self._jobs[0]
            job.started_at = self._loop.time()
            run.is_begun = True
            job.on_started()

    @staticmethod
    def _fail(job: EngineJob, error: Exception) -> None:
        job.free_device()
        job.result.set_exception(error)
        job.result.exception()


class ModelStore:
    """The part of `ObjectStore` that tasks use: objects in memory, behind a link."""

    def __init__(self, objects: dict[str, bytes], link: Link) -> None:
        self._objects = objects
        self._link = link

    def location(self, key: str) -> str:
        """Address of an object."""
        return f"s3://images/{key}"

    async def put_if_absent(self, key: str, payload: bytes, *, content_type: str) -> bool:  # noqa: ARG002 - as the real one
        """Create the object; False when it is there."""
        return await self._link.call(
            lambda: key not in self._objects and self._objects.setdefault(key, payload) is payload
        )

    async def get(self, key: str) -> bytes | None:
        """The object; None when there is none."""
        return await self._link.call(lambda: self._objects.get(key))


class ModelPublisher:
    """The part of both publishers that tasks use."""

    def __init__(self, link: Link, on_published: OnPublished) -> None:
        self._link = link
        self._on_published = on_published

    async def publish(self, record: OutgoingRecord, *, refusable: bool = False) -> None:  # noqa: ARG002 - as the real one
        """Return when the record was acknowledged."""
        run = _current_run.get()
        await self._link.call(lambda: self._on_published(record, run))

    def report(self, *_event: object, **_fields: object) -> None:
        """Progress is lossy; here it is always dropped."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelLaneEvents(LaneEvents):
    """Counts crashes as the worker does, and ignores all else."""

    worker: str
    started_at: int

    def crashes_of(self, entry: LedgerEntry) -> int:
        """By the rule of the worker."""
        return inherited_crashes(entry, worker=self.worker, worker_started_at=self.started_at)


async def _unknown_id() -> None:
    """The topic's id is never known."""


@dataclass(slots=True)
class Surroundings:
    """The environment of all pods."""

    loop: SteppedLoop
    settings: WorkerSettings
    group: ModelGroup
    on_published: OnPublished
    clock: Clock
    objects: dict[str, bytes] = field(default_factory=dict)


class _NoMetrics:
    """Counts nothing."""

    def count_end(self, outcome: str, seconds: float) -> None:
        """A record left the worker."""

    def count_refused(self, topic: str) -> None:
        """A topic refused a record."""

    def observe_phases(self, timings_ms: Mapping[str, float]) -> None:
        """A generation has its images."""


class ModelPod:
    """One pod from its start to its end."""

    def __init__(self, around: Surroundings, *, name: str, started_at: int) -> None:
        """`started_at` in seconds since 1970."""
        self.name = name
        self.kafka, self.store, self.producer = Link(), Link(), Link()
        self.engine = ModelEngine(around.loop)
        self.runs: set[Run] = set()
        self.released: set[Run] = set()
        """Tasks in flight when the drain began."""
        self.is_alive = True
        self.is_draining = False
        self.is_cut_off = False
        """Whether a request to its group may not have arrived, or its response is unknown."""
        self.consumers: list[ModelConsumer] = []
        self._around = around
        self._slots = EngineSlots(jobs=ENGINE_JOBS)
        holds = Holds(limit_seconds=float("inf"), clock=around.loop.time)
        self.lane = LaneConsumer(
            name="standard",
            topic=around.settings.lanes[0].topic,
            build_consumer=self._build_consumer,
            ask_topic_id=_unknown_id,
            events=ModelLaneEvents(worker=name, started_at=started_at),
            holds=holds,
            revoke_wait_seconds=around.settings.revoke_wait_seconds,
            clock=around.clock,
        )
        publisher = ModelPublisher(self.producer, around.on_published)
        self._flow = TaskFlow(
            around.settings,
            identity=WorkerIdentity(worker=name, pool=around.settings.pool),
            store=cast("ObjectStore", ModelStore(around.objects, self.store)),
            trust=TenantTrust(),
            engine=cast("EngineClient", self.engine),
            slots=self._slots,
            publisher=cast("ReliablePublisher", publisher),
            progress=cast("ProgressPublisher", publisher),
            holds=holds,
            cancellations=Cancellations(),
            metrics=_NoMetrics(),
            clock=around.clock,
        )
        self._tasks: set[asyncio.Task[None]] = set()
        self._membership = self._spawn(self.lane.run())

    def __repr__(self) -> str:
        return self.name

    @property
    def links(self) -> tuple[Link, ...]:
        """To the group, the store and the topics it publishes on."""
        return (self.kafka, self.store, self.producer)

    @property
    def is_in_order(self) -> bool:
        """Whether the ledger matches what this pod knows."""
        return (
            not self.is_cut_off
            and self.kafka.state is LinkState.UP
            and self.lane.is_joined
            and self._around.group.owns(self.consumers[-1])
        )

    @property
    def may_begin(self) -> bool:
        """Whether a record is pending and there is room for it."""
        has_room = self.is_alive and not self.is_draining and len(self.runs) < IN_FLIGHT
        return has_room and self.lane.oldest_head_ms() is not None

    def begin(self) -> None:
        """Take a record and bring it to its end."""
        self._spawn(self._run_one())

    def drain(self) -> None:
        """Handle SIGTERM."""
        self.is_draining = True
        self.released = set(self.runs)
        self._spawn(self._drain())

    def kill(self, *, deliver: bool) -> None:
        """Die at once; `deliver`: delayed requests still arrive."""
        self.is_alive = False
        for link in self.links:
            link.state = LinkState.SLOW
            if deliver:
                link.deliver()
            link.drop()
        for task in self._tasks:
            task.cancel()
        self._around.loop.run_for()
        for link in self.links:
            link.drop()

    def _build_consumer(self) -> Any:
        self.consumers.append(ModelConsumer(self._around.group, self.kafka))
        return self.consumers[-1]

    async def _run_one(self) -> None:
        slot = await self._slots.acquire()
        taken = self.lane.claim_next() if len(self.runs) < IN_FLIGHT else None
        if taken is None:
            slot.release()
            return
        run = Run(taken)
        _current_run.set(run)
        self.runs.add(run)
        try:
            await self._flow.run(taken, slot=slot)
        finally:
            self.runs.discard(run)

    async def _drain(self) -> None:
        """As `WorkerAgent` does it."""
        self.lane.stop_intake()
        self._flow.drain()
        tasks = self._tasks - {asyncio.current_task(), self._membership}
        leaving = asyncio.create_task(self.lane.leave_when_done())
        for stop in (self._flow.stop_running, lambda: [task.cancel() for task in tasks]):
            if tasks:
                await asyncio.wait(tasks, timeout=DRAIN_SECONDS)
            stop()
        leaving.cancel()
        await self.lane.leave()
        await asyncio.wait({self._membership}, timeout=DRAIN_SECONDS)
        self._membership.cancel()
        self.is_alive = False

    def _spawn(self, work: Any) -> asyncio.Task[None]:
        task: asyncio.Task[None] = self._around.loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._around.loop.call_exception_handler({"message": f"{self.name} failed", "exception": error})
