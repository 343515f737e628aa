"""The agent as a whole: wires lanes, engine and publishers together, runs them, and drains them on SIGTERM."""

import asyncio
import contextlib
import os
import signal
import time
from datetime import timedelta
from functools import partial
from typing import Final, TypeVar

import structlog
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.errors import KafkaError

from fluxpool_contract.settings import Lane, WorkerSettings
from fluxpool_transport.backoff import retry_forever
from fluxpool_transport.health_server import HealthServer
from fluxpool_transport.kafka_clients import aiokafka_options
from fluxpool_transport.object_store import open_object_store
from fluxpool_worker.agent.engine_client import EngineClient
from fluxpool_worker.agent.lane import LaneConsumer, Taken
from fluxpool_worker.agent.lane_choice import WaitingLane, choose_lane
from fluxpool_worker.agent.membership import keep_offsets_for, own_sticky_assignor
from fluxpool_worker.agent.metrics import WorkerMetrics
from fluxpool_worker.agent.publisher import ProgressPublisher, ReliablePublisher
from fluxpool_worker.agent.task_flow import TaskFlow
from fluxpool_worker.engine.protocol import Device, EngineSpec

ENGINE_JOBS: Final = 2
"""One on the device, one that stands ready, so that the device never waits for Kafka or the store."""
TASKS_IN_FLIGHT: Final = 4
"""Those, and two being stored and published: what a crash may cost besides the image under way. A store or a broker
that is away stops intake here."""
POLL_FENCE_SECONDS: Final = 60.0
"""A loop that does not poll for this long is stuck; the consumer then leaves the group by itself."""
STOP_RUNNING_SECONDS: Final = 10.0
"""From asking a running task to stop until its step must have ended."""
LEAVE_SECONDS: Final = 10.0
MAX_REQUEST_BYTES: Final = 4 * 1024 * 1024
"""Above the largest dead letter; the topics' own limits decide."""

log = structlog.get_logger(__name__)
T = TypeVar("T")


class WorkerAgent:
    """One pod's agent; `run()` once."""

    def __init__(self, settings: WorkerSettings, *, worker_name: str) -> None:
        self._settings = settings
        self._client_id = f"fluxpool-worker-{worker_name}"
        self._stop = asyncio.Event()
        self._wake = asyncio.Event()
        self._metrics = WorkerMetrics()
        self._tasks: set[asyncio.Task[None]] = set()
        self._engine_slots = asyncio.Semaphore(ENGINE_JOBS)
        self._room = asyncio.Semaphore(TASKS_IN_FLIGHT)
        self._turn = 0
        self._engine = EngineClient(
            EngineSpec(
                model=settings.model.id,
                revision=settings.model.revision,
                device=Device(settings.model.device.value),
                transformer_dtype=settings.model.transformer_dtype.value,
                encoder_dtype=settings.model.encoder_dtype.value,
                offline=settings.model.offline,
            ),
            command=settings.engine_command,
            job_limit_seconds=settings.task_hard_limit_seconds,
        )
        self._publisher = ReliablePublisher(self._build_reliable_producer)
        self._progress = ProgressPublisher(self._build_progress_producer)
        self._flow = TaskFlow(
            settings=settings,
            worker_name=worker_name,
            store=open_object_store(settings.storage),
            engine=self._engine,
            publisher=self._publisher,
            progress=self._progress,
            on_end=self._count_end,
        )
        self._lanes = [
            LaneConsumer(
                name=lane.name,
                topic=lane.topic,
                build_consumer=partial(self._build_consumer, lane),
                revoke_wait_seconds=settings.revoke_wait_seconds,
                wake=self._wake,
            )
            for lane in settings.lanes
        ]

    async def run(self) -> None:
        """Serve until SIGTERM or SIGINT, then drain.

        Raises an `ExceptionGroup` with `EngineLoadError`, `EngineUnstableError` or whatever else keeps the pod from
        working; Kubernetes starts it again.
        """
        keep_offsets_for(timedelta(days=self._settings.offset_retention_days))
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_signal, number)
        health = HealthServer(
            host=self._settings.health_host,
            port=self._settings.health_port,
            why_not_alive=self._why_not_alive,
            why_not_ready=self._why_not_ready,
            registry=self._metrics.registry,
        )
        async with health, asyncio.TaskGroup() as group:
            log.info("agent_started", health_port=health.port, lanes=[lane.name for lane in self._lanes])
            background = [
                group.create_task(self._engine.run(), name="engine"),
                group.create_task(self._progress.run(), name="progress"),
            ]
            try:
                await self._serve(group)
            finally:
                await self._engine.stop()
                await self._publisher.stop()
                for task in background:
                    task.cancel()
        log.info("agent_stopped")

    def _on_signal(self, number: int) -> None:
        if self._stop.is_set():
            log.warning("second_signal", signal=signal.Signals(number).name)
            # At once: no commit, no goodbye; what was in flight is redelivered.
            os._exit(128 + number)
        log.info("drain_requested", signal=signal.Signals(number).name)
        self._stop.set()

    async def _serve(self, group: asyncio.TaskGroup) -> None:
        # The model first: a member that cannot work yet would only hold partitions back from others.
        ready = await self._unless_stopped(group.create_task(self._engine.wait_ready()))
        if ready is None:
            return
        self._flow.set_model(ready.model)
        connect = partial(retry_forever, self._publisher.connect, name="kafka", retry_on=(KafkaError,))
        connected = group.create_task(connect())
        await self._unless_stopped(connected)
        if self._stop.is_set():
            return
        memberships = [group.create_task(lane.run(), name=f"lane-{lane.name}") for lane in self._lanes]
        dispatcher = group.create_task(self._dispatch(group), name="dispatcher")
        await self._stop.wait()
        await self._drain(dispatcher)
        # A poll waits without bound for a rebalance that a broker which is away will not finish.
        _, stuck = await asyncio.wait(memberships, timeout=LEAVE_SECONDS)
        for membership in stuck:
            membership.cancel()

    async def _unless_stopped(self, task: asyncio.Task[T]) -> T | None:
        """The task's result, or None when the stop came first."""
        stop = asyncio.ensure_future(self._stop.wait())
        try:
            await asyncio.wait({task, stop}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            stop.cancel()
        if task.done():
            return task.result()
        task.cancel()
        return None

    # Dispatch

    async def _dispatch(self, group: asyncio.TaskGroup) -> None:
        while True:
            await self._room.acquire()
            await self._engine_slots.acquire()
            taken = await self._next()
            task = group.create_task(self._run_task(taken))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _next(self) -> Taken:
        while True:
            self._wake.clear()
            waiting = [
                WaitingLane(index=index, preference=self._settings.lanes[index].preference, oldest_head_ms=oldest)
                for index, lane in enumerate(self._lanes)
                if (oldest := lane.oldest_head_ms()) is not None
            ]
            chosen = choose_lane(waiting, turn=self._turn + 1)
            taken = self._lanes[chosen].take() if chosen is not None else None
            if taken is not None:
                self._turn += 1
                return taken
            await self._wake.wait()

    async def _run_task(self, taken: Taken) -> None:
        freed = False

        def free_engine() -> None:
            nonlocal freed
            if not freed:
                freed = True
                self._engine_slots.release()

        self._metrics.tasks_in_flight.inc()
        try:
            await self._flow.run(taken, free_engine=free_engine)
        finally:
            self._metrics.tasks_in_flight.dec()
            self._room.release()

    def _count_end(self, outcome: str, seconds: float) -> None:
        self._metrics.tasks.labels(outcome).inc()
        self._metrics.task_seconds.labels(outcome).observe(seconds)
        self._metrics.engine_restarts.set(self._engine.restarts)

    # Drain

    async def _drain(self, dispatcher: asyncio.Task[None]) -> None:
        """Take nothing more, finish what runs as far as the grace allows, commit, leave the groups."""
        began = time.monotonic()
        dispatcher.cancel()
        for lane in self._lanes:
            lane.stop_intake()
        self._flow.attempts.drain()
        await self._wait_for_tasks(self._settings.drain_grace_seconds)
        self._flow.attempts.stop_running()
        await self._wait_for_tasks(STOP_RUNNING_SECONDS)
        for task in self._tasks:
            task.cancel()
        await self._wait_for_tasks(STOP_RUNNING_SECONDS)
        await asyncio.gather(*(lane.leave() for lane in self._lanes))
        log.info("drained", seconds=round(time.monotonic() - began, 2))

    async def _wait_for_tasks(self, seconds: float) -> None:
        if self._tasks:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait(set(self._tasks), timeout=seconds)

    # Health

    def _why_not_alive(self) -> str | None:
        now = time.monotonic()
        for lane in self._lanes:
            if lane.last_poll is not None and lane.is_joined and now - lane.last_poll > POLL_FENCE_SECONDS:
                return f"lane {lane.name} has not polled for {now - lane.last_poll:.0f} s"
        return None

    def _why_not_ready(self) -> str | None:
        if self._stop.is_set():
            return "draining"
        if not self._engine.is_ready:
            return "the engine is loading the model"
        missing = [lane.name for lane in self._lanes if lane.last_poll is None]
        return f"not yet a member of the group: {', '.join(missing)}" if missing else None

    # Connections

    def _build_consumer(self, lane: Lane) -> AIOKafkaConsumer:
        settings = self._settings
        rebalance_ms = int(settings.rebalance_timeout_seconds * 1000)
        session_ms = int(settings.session_timeout_seconds * 1000)
        options = aiokafka_options(settings.kafka, client_id=self._client_id)
        # A JoinGroup request is answered only when all members have joined: it must outlast the rebalance.
        options["request_timeout_ms"] = max(options["request_timeout_ms"], rebalance_ms + 5000)
        return AIOKafkaConsumer(
            **options,
            group_id=settings.group_of(lane),
            partition_assignment_strategy=[own_sticky_assignor()],
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            isolation_level="read_committed",
            session_timeout_ms=session_ms,
            heartbeat_interval_ms=min(3000, session_ms // 3),
            rebalance_timeout_ms=rebalance_ms,
            max_poll_interval_ms=int(POLL_FENCE_SECONDS * 1000),
            max_partition_fetch_bytes=64 * 1024,
            fetch_max_wait_ms=100,
        )

    def _build_reliable_producer(self) -> AIOKafkaProducer:
        return AIOKafkaProducer(
            **aiokafka_options(self._settings.kafka, client_id=self._client_id),
            acks="all",
            enable_idempotence=True,
            max_request_size=MAX_REQUEST_BYTES,
        )

    def _build_progress_producer(self) -> AIOKafkaProducer:
        return AIOKafkaProducer(
            **aiokafka_options(self._settings.kafka, client_id=f"{self._client_id}-progress"), acks=1, linger_ms=20
        )
