"""The agent as a whole: wires lanes, engine and publishers together, runs them, and drains them on SIGTERM."""

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import Callable, Collection, Coroutine
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Any, Final

import structlog
from aiokafka import TopicPartition
from aiokafka.errors import KafkaError
from aiokafka.structs import ConsumerRecord

from fluxpool_contract.kafka import LedgerEntry
from fluxpool_contract.settings import WorkerSettings
from fluxpool_transport.health_server import HealthServer
from fluxpool_transport.kafka import TopicIds
from fluxpool_transport.lag import MemberlessOffsets
from fluxpool_transport.partitioner import IdleAwarePartitioner, LoadAwarePartitioner
from fluxpool_transport.storage import StorageUnavailableError, open_object_store
from fluxpool_worker.agent.connections import (
    POLL_FENCE_SECONDS,
    build_consumer,
    build_control_reader,
    build_progress_producer,
    build_reliable_producer,
    build_retry_reader,
)
from fluxpool_worker.agent.consumer.assignment_loader import TopicReplacedError
from fluxpool_worker.agent.consumer.events import LaneEvents
from fluxpool_worker.agent.consumer.lane import ClaimedRecord, LaneConsumer
from fluxpool_worker.agent.consumer.lane_choice import WaitingLane, choose_lane
from fluxpool_worker.agent.consumer.membership import keep_offsets_for
from fluxpool_worker.agent.engine.client import EngineClient, EngineLimits, EngineLoadError, EngineUnstableError
from fluxpool_worker.agent.engine.slots import EngineSlot, EngineSlots
from fluxpool_worker.agent.metrics import WorkerMetrics
from fluxpool_worker.agent.retry.relay_duty import RelayDuty
from fluxpool_worker.agent.retry.retry_relay import RelayEvents, RetryRelay
from fluxpool_worker.agent.task.cancellations import Cancellations, ControlListener
from fluxpool_worker.agent.task.holds import HoldCause, HoldExpiredError, Holds
from fluxpool_worker.agent.task.outcome import inherited_crashes
from fluxpool_worker.agent.task.outgoing_records import Failure, WorkerIdentity
from fluxpool_worker.agent.task.progress import ProgressPublisher
from fluxpool_worker.agent.task.publisher import ReliablePublisher
from fluxpool_worker.agent.task.run_until import AbandonedError, run_until
from fluxpool_worker.agent.task.task_flow import TaskFlow
from fluxpool_worker.engine.protocol import Device, EngineSpec

ENGINE_JOBS: Final = 2
"""One on the device, one that is queued there, so that the device never waits for Kafka or the store."""
TASKS_IN_FLIGHT: Final = 4
"""Those, and two being stored and published: what a crash may cost besides the image under way."""
STOP_RUNNING_SECONDS: Final = 10.0
"""From asking a running task to stop until its step must have ended."""
LEAVE_SECONDS: Final = 10.0

log = structlog.get_logger(__name__)


class MissingTopicsError(Exception):
    """Topics that the worker cannot do without do not exist; the message names them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _LaneEvents(LaneEvents):
    """Passes on what one lane reports."""

    lane: str
    wake: asyncio.Event
    metrics: WorkerMetrics
    duty: RelayDuty | None
    count_crashes: Callable[[LedgerEntry], int]

    def on_record_waiting(self) -> None:
        self.wake.set()

    def on_records_lost(self, count: int) -> None:
        self.metrics.records_lost.labels(self.lane).inc(count)

    def on_consumer_failed(self) -> None:
        self.metrics.lane_failures.labels(self.lane).inc()

    def on_assigned(self, partitions: Collection[TopicPartition]) -> None:
        if self.duty is not None:
            self.duty.assigned(partitions)

    async def on_revoked(self) -> None:
        if self.duty is not None:
            await self.duty.revoked()

    def crashes_of(self, entry: LedgerEntry) -> int:
        return self.count_crashes(entry)


@dataclass(frozen=True, slots=True)
class _RelayEvents(RelayEvents):
    flow: TaskFlow
    metrics: WorkerMetrics

    async def on_undeliverable(self, record: ConsumerRecord, failure: Failure) -> None:
        await self.flow.fail(record, failure)

    def on_relayed(self, retry_topic: str) -> None:
        self.metrics.retries_relayed.labels(retry_topic).inc()


class WorkerAgent:
    """One pod's agent; `run()` once."""

    def __init__(self, settings: WorkerSettings, *, worker_name: str) -> None:
        self._settings = settings
        self._worker_name = worker_name
        self._client_id = f"fluxpool-worker-{worker_name}"
        self._started_at = int(time.time())
        self._stop = asyncio.Event()
        self._signaled = False
        self._failure: Exception | None = None
        self._start_trouble: str | None = None
        """What the start waits for, other than the model."""
        self._wake = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._slots = EngineSlots(jobs=ENGINE_JOBS)
        self._room = asyncio.Semaphore(TASKS_IN_FLIGHT)
        self._tasks_taken = 0
        self._holds = Holds(
            limit_seconds=settings.infra_hold_limit_seconds,
            # A shorter outage removes no member from a group.
            outage_seconds=settings.session_timeout_seconds,
        )
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
            limits=EngineLimits(
                job=settings.task_hard_limit_seconds,
                silence_soft=settings.step_soft_limit_seconds,
                silence_hard=settings.step_hard_limit_seconds,
                load=settings.engine_load_limit_seconds,
            ),
        )
        self._publisher = ReliablePublisher(
            partial(build_reliable_producer, settings, client_id=self._client_id), holds=self._holds
        )
        self._identity = WorkerIdentity(worker=worker_name, pool=settings.pool)
        self._progress = ProgressPublisher(
            partial(build_progress_producer, settings, client_id=self._client_id),
            identity=self._identity,
            topics=settings.topics,
        )
        self._metrics = WorkerMetrics(engine=self._engine, publisher=self._publisher, holds=self._holds)
        self._cancellations = Cancellations()
        self._control = ControlListener(
            settings.topics.control,
            build_consumer=partial(build_control_reader, settings, client_id=self._client_id),
            cancellations=self._cancellations,
        )
        self._flow = TaskFlow(
            settings,
            identity=self._identity,
            store=open_object_store(settings.storage),
            engine=self._engine,
            slots=self._slots,
            publisher=self._publisher,
            progress=self._progress,
            holds=self._holds,
            cancellations=self._cancellations,
            metrics=self._metrics,
        )
        self._topic_ids = TopicIds(settings.kafka, client_id=self._client_id)
        duty = RelayDuty()
        self._lanes = [
            LaneConsumer(
                name=lane.name,
                topic=lane.topic,
                build_consumer=partial(
                    build_consumer, settings, client_id=self._client_id, group=settings.group_of(lane)
                ),
                ask_topic_id=partial(self._topic_ids.ask, lane.topic),
                events=_LaneEvents(
                    lane=lane.name,
                    wake=self._wake,
                    metrics=self._metrics,
                    duty=duty if lane == settings.lanes[0] else None,
                    count_crashes=self._count_crashes,
                ),
                holds=self._holds,
                revoke_wait_seconds=settings.revoke_wait_seconds,
            )
            for lane in settings.lanes
        ]
        self._choice = IdleAwarePartitioner(
            LoadAwarePartitioner(settings.kafka, {settings.group_of(lane): lane.topic for lane in settings.lanes})
        )
        self._relay = RetryRelay(
            settings,
            duty=duty,
            build_reader=partial(build_retry_reader, settings, client_id=self._client_id),
            offsets=MemberlessOffsets(
                settings.kafka,
                client_id=f"{self._client_id}-retry",
                retention=timedelta(days=settings.offset_retention_days),
            ),
            ask_topic_id=self._topic_ids.ask,
            publisher=self._publisher,
            choice=self._choice,
            events=_RelayEvents(self._flow, self._metrics),
        )
        self._metrics.relays_retries.set_function(lambda: duty.is_held)

    def _count_crashes(self, entry: LedgerEntry) -> int:
        since = self._holds.seconds_since_outage(HoldCause.KAFKA)
        return inherited_crashes(
            entry,
            worker=self._worker_name,
            worker_started_at=self._started_at,
            outage_ended_at=None if since is None else time.time() - since,
        )

    async def run(self) -> None:
        """Serve until SIGTERM or SIGINT, then drain.

        Raises `EngineLoadError`, `EngineUnstableError`, `MissingTopicsError`, `StorageUnavailableError` (of a
        store that is configured wrongly), `HoldExpiredError`, `TopicReplacedError`, or an `ExceptionGroup` of whatever
        else keeps the pod from working; Kubernetes starts it again.
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
                group.create_task(self._until_failure(self._engine.run()), name="engine"),
                group.create_task(self._progress.run(), name="progress"),
                group.create_task(self._control.run(), name="control"),
                group.create_task(self._choice.run(), name="partition-choice"),
            ]
            try:
                await self._serve(group)
            finally:
                await self._engine.stop()
                await self._publisher.stop()
                for task in background:
                    task.cancel()
        log.info("agent_stopped")
        if self._failure is not None:
            raise self._failure

    def _on_signal(self, number: int) -> None:
        if self._signaled:
            log.warning("second_signal", signal=signal.Signals(number).name)
            # At once: no commit, no goodbye; what was in flight is redelivered.
            os._exit(128 + number)
        log.info("drain_requested", signal=signal.Signals(number).name)
        self._signaled = True
        self._stop.set()

    async def _until_failure(self, work: Coroutine[Any, Any, None]) -> None:
        """Run to the end; a failure that this pod cannot mend makes it drain in good order and end with it."""
        try:
            await work
        except (EngineLoadError, EngineUnstableError, HoldExpiredError, TopicReplacedError) as error:
            log.error("agent_failing", error=str(error))  # noqa: TRY400 - it is raised again at the end
            self._failure = self._failure or error
            self._stop.set()

    async def _serve(self, group: asyncio.TaskGroup) -> None:
        try:
            await run_until(self._stop, self._check_topics())
            await run_until(self._stop, self._flow.store.probe(on_trouble=self._note_start_trouble))
            self._start_trouble = None
            # The model first: a member that cannot work yet would only hold partitions back from others.
            self._identity.model = (await run_until(self._stop, self._engine.wait_ready())).model
        except AbandonedError:
            return
        except (MissingTopicsError, StorageUnavailableError, HoldExpiredError) as error:
            self._failure = error
            return
        memberships = [
            group.create_task(self._until_failure(member.run()), name=f"lane-{member.name}") for member in self._lanes
        ]
        dispatcher = group.create_task(self._dispatch(group), name="dispatcher")
        relaying = group.create_task(self._until_failure(self._relay.run()), name="retry-relay")
        await self._stop.wait()
        await self._drain(dispatcher, relaying)
        # A poll waits without bound for a rebalance that a broker which is away will not finish.
        _, stuck = await asyncio.wait(memberships, timeout=LEAVE_SECONDS)
        for membership in stuck:
            membership.cancel()

    def _note_start_trouble(self, reason: str) -> None:
        self._start_trouble = reason

    async def _check_topics(self) -> None:
        topics = self._settings.topics
        needed = (*(lane.topic for lane in self._lanes), topics.results, topics.dead_letters, *topics.retry)

        async def ask() -> list[str]:
            try:
                return await self._publisher.missing(needed)
            except KafkaError as error:
                self._note_start_trouble(f"Kafka does not answer: {error!r}")
                raise

        missing = await self._holds.through(ask, cause=HoldCause.KAFKA, retry_on=(KafkaError,))
        if missing:
            raise MissingTopicsError(
                f"topics: {', '.join(missing)}: not there, or the Kafka user may not DESCRIBE them; "
                "create them, or name others in FLUXPOOL_TOPICS_* and FLUXPOOL_LANES"
            )

    # Dispatch

    async def _dispatch(self, group: asyncio.TaskGroup) -> None:
        while True:
            await self._room.acquire()
            taken, slot = await self._next()
            task = group.create_task(self._until_failure(self._run_task(taken, slot)))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _next(self) -> tuple[ClaimedRecord, EngineSlot]:
        """The next task, and its slot with the engine. No slot is held while there is nothing to do."""
        while True:
            self._wake.clear()
            await self._holds.wait_clear()
            if self._choose() is None:
                await self._wake.wait()
                continue
            slot = await self._slots.acquire()
            chosen = None if self._holds.causes else self._choose()
            taken = chosen.claim_next() if chosen is not None else None
            if taken is not None:
                self._tasks_taken += 1
                return taken, slot
            slot.release()

    def _choose(self) -> LaneConsumer | None:
        waiting = [
            WaitingLane(index=index, preference=self._settings.lanes[index].preference, oldest_head_ms=oldest)
            for index, lane in enumerate(self._lanes)
            if (oldest := lane.oldest_head_ms()) is not None
        ]
        chosen = choose_lane(
            waiting,
            turn=self._tasks_taken + 1,
            now_ms=time.time() * 1000,
            wait_limit_seconds=self._settings.lane_wait_limit_seconds,
        )
        return self._lanes[chosen] if chosen is not None else None

    async def _run_task(self, taken: ClaimedRecord, slot: EngineSlot) -> None:
        with contextlib.ExitStack() as room, self._metrics.tasks_in_flight.track_inprogress():
            room.callback(self._room.release)
            await self._flow.run(taken, slot=slot, make_room=room.close)

    # Drain

    async def _drain(self, dispatcher: asyncio.Task[None], relaying: asyncio.Task[None]) -> None:
        """Take nothing more, finish what runs as far as the grace allows, commit, leave the groups."""
        began = time.monotonic()
        dispatcher.cancel()
        self._relay.stop()
        for member in self._lanes:
            member.stop_intake()
        self._flow.drain()
        async with asyncio.TaskGroup() as group:
            # Lanes without a task in flight leave at once: others serve their partitions while a task runs on here.
            leaving = [group.create_task(member.leave_when_done()) for member in self._lanes]
            await self._end_tasks(relaying)
            for waiting in leaving:
                waiting.cancel()
        await asyncio.gather(*(member.leave() for member in self._lanes))
        log.info("drained", seconds=round(time.monotonic() - began, 2))

    async def _end_tasks(self, relaying: asyncio.Task[None]) -> None:
        # What has failed for good is not waited for: others can do it sooner.
        await self._wait_for(self._tasks, seconds=0.0 if self._failure else self._settings.drain_grace_seconds)
        self._flow.stop_running()
        await self._wait_for({*self._tasks, relaying}, seconds=STOP_RUNNING_SECONDS)
        leftover = [task for task in (*self._tasks, relaying) if not task.done()]
        for task in leftover:
            task.cancel()
        await self._wait_for(leftover, seconds=STOP_RUNNING_SECONDS)

    @staticmethod
    async def _wait_for(tasks: Collection[asyncio.Task[None]], *, seconds: float) -> None:
        if tasks:
            await asyncio.wait(set(tasks), timeout=seconds)

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
        if self._start_trouble is not None:
            return self._start_trouble
        if not self._engine.is_ready:
            return "the engine is loading the model"
        missing = [lane.name for lane in self._lanes if lane.last_poll is None]
        return f"not yet a member of the group: {', '.join(missing)}" if missing else None
