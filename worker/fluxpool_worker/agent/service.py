"""The life of a worker: start, dispatch of tasks, drain on SIGTERM, probes. `wiring` builds the parts that it runs.

A record that a lane has fetched is claimed here, with a slot of the engine, and continues in `task.task_flow`.
"""

import asyncio
import contextlib
import os
import signal
from collections.abc import Collection, Coroutine
from datetime import timedelta
from typing import Any, Final

import structlog
from aiokafka.errors import KafkaError

from fluxpool_contract.settings import WorkerSettings
from fluxpool_transport.health_server import HealthServer
from fluxpool_transport.storage import StorageUnavailableError
from fluxpool_worker.agent.clock import SYSTEM_CLOCK, Clock
from fluxpool_worker.agent.connections import POLL_FENCE_SECONDS
from fluxpool_worker.agent.consumer.assignment_loader import TopicReplacedError
from fluxpool_worker.agent.consumer.lane import ClaimedRecord, LaneConsumer
from fluxpool_worker.agent.consumer.lane_choice import WaitingLane, choose_lane
from fluxpool_worker.agent.consumer.membership import keep_offsets_for
from fluxpool_worker.agent.engine.client import EngineLoadError, EngineUnstableError
from fluxpool_worker.agent.engine.slots import EngineSlot
from fluxpool_worker.agent.task.holds import HoldCause, HoldExpiredError
from fluxpool_worker.agent.task.run_until import AbandonedError, run_until
from fluxpool_worker.agent.wiring import WorkerParts
from fluxpool_worker.marks.signing import SigningError

TASKS_IN_FLIGHT: Final = 4
"""Two that the engine has, and two being stored and published: what a crash may cost besides the image under way."""
STOP_RUNNING_SECONDS: Final = 10.0
"""From canceling a running task until its step must have ended."""
LEAVE_SECONDS: Final = 10.0

log = structlog.get_logger(__name__)


class MissingTopicsError(Exception):
    """Topics that the worker needs do not exist; the message names them."""


class WorkerAgent:
    """One pod's agent; `run()` once."""

    def __init__(self, settings: WorkerSettings, *, worker_name: str, clock: Clock = SYSTEM_CLOCK) -> None:
        self._settings = settings
        self._clock = clock
        self._parts = WorkerParts(settings, worker_name=worker_name, clock=clock)
        self._stop = asyncio.Event()
        self._signaled = False
        self._failure: Exception | None = None
        self._start_trouble: str | None = None
        """What the start waits for, other than the model."""
        self._tasks: set[asyncio.Task[None]] = set()
        self._room = asyncio.Semaphore(TASKS_IN_FLIGHT)
        self._claimed = 0

    async def run(self) -> None:
        """Serve until SIGTERM or SIGINT, then drain.

        Raises `EngineLoadError`, `EngineUnstableError`, `MissingTopicsError`, `SigningError`, `StorageUnavailableError`
        (of a store that is configured wrongly), `HoldExpiredError`, `TopicReplacedError`, or an `ExceptionGroup` of
        whatever else keeps the pod from working; Kubernetes starts it again.
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
            registry=self._parts.metrics.registry,
        )
        async with health, asyncio.TaskGroup() as group:
            log.info("agent_started", health_port=health.port, lanes=[lane.name for lane in self._parts.lanes])
            background = [
                group.create_task(self._until_failure(self._parts.engine.run()), name="engine"),
                group.create_task(self._parts.progress.run(), name="progress"),
                group.create_task(self._parts.control.run(), name="control"),
                group.create_task(self._parts.partitioner.run(), name="partition-choice"),
            ]
            try:
                await self._serve(group)
            finally:
                # After the lanes have left: tasks that run on need the engine, and their endings the publisher.
                await self._parts.engine.stop()
                await self._parts.publisher.stop()
                for task in background:
                    task.cancel()
        log.info("agent_stopped")
        if self._failure is not None:
            raise self._failure

    def _on_signal(self, number: int) -> None:
        if self._signaled:
            log.warning("second_signal", signal=signal.Signals(number).name)
            # At once, without commit and LeaveGroup; what was in flight is redelivered.
            os._exit(128 + number)
        log.info("drain_requested", signal=signal.Signals(number).name)
        self._signaled = True
        self._stop.set()

    async def _until_failure(self, work: Coroutine[Any, Any, None]) -> None:
        """Run to the end; after a failure that this pod cannot repair, drain and end with it."""
        try:
            await work
        except (EngineLoadError, EngineUnstableError, HoldExpiredError, TopicReplacedError) as error:
            log.error("agent_failing", error=str(error))  # noqa: TRY400 - it is raised again at the end
            self._failure = self._failure or error
            self._stop.set()

    async def _serve(self, group: asyncio.TaskGroup) -> None:
        try:
            await run_until(self._stop, self._parts.flow.store.signing.probe())
            await run_until(self._stop, self._check_topics())
            await run_until(self._stop, self._parts.flow.store.probe(on_trouble=self._note_start_trouble))
            self._start_trouble = None
            # The model first: a member that cannot work yet would only keep partitions from others.
            self._parts.identity.serve(await run_until(self._stop, self._parts.engine.wait_ready()))
        except AbandonedError:
            return
        except (MissingTopicsError, SigningError, StorageUnavailableError, HoldExpiredError) as error:
            self._failure = error
            return
        memberships = [
            group.create_task(self._until_failure(member.run()), name=f"lane-{member.name}")
            for member in self._parts.lanes
        ]
        dispatcher = group.create_task(self._dispatch(group), name="dispatcher")
        relaying = group.create_task(self._until_failure(self._parts.relay.run()), name="retry-relay")
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
        needed = (*(lane.topic for lane in self._parts.lanes), topics.results, topics.dead_letters, *topics.retry)

        async def ask() -> list[str]:
            try:
                return await self._parts.publisher.missing(needed)
            except KafkaError as error:
                self._note_start_trouble(f"Kafka does not answer: {error!r}")
                raise

        missing = await self._parts.holds.through(ask, cause=HoldCause.KAFKA, retry_on=(KafkaError,))
        if missing:
            raise MissingTopicsError(
                f"topics: {', '.join(missing)}: not there, or the Kafka user may not DESCRIBE them; "
                "create them, or name others in FLUXPOOL_TOPICS_* and FLUXPOOL_LANES"
            )

    # Dispatch

    async def _dispatch(self, group: asyncio.TaskGroup) -> None:
        while True:
            await self._room.acquire()
            claimed, slot = await self._next()
            task = group.create_task(self._until_failure(self._run_task(claimed, slot)))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _next(self) -> tuple[ClaimedRecord, EngineSlot]:
        """The next record, and a slot of the engine. No slot is held while no record waits."""
        while True:
            # Cleared before the check: a record that arrives after the check sets it again.
            self._parts.record_waiting.clear()
            await self._parts.holds.wait_clear()
            if self._choose() is None:
                await self._parts.record_waiting.wait()
                continue
            slot = await self._parts.slots.acquire()
            # Chosen again: while this waited for its slot, an outage may have started or the partition been revoked.
            chosen = None if self._parts.holds.causes else self._choose()
            claimed = chosen.claim_next() if chosen is not None else None
            if claimed is not None:
                self._claimed += 1
                return claimed, slot
            slot.release()

    def _choose(self) -> LaneConsumer | None:
        waiting = [
            WaitingLane(index=index, preference=self._settings.lanes[index].preference, oldest_head_ms=oldest)
            for index, lane in enumerate(self._parts.lanes)
            if (oldest := lane.oldest_head_ms()) is not None
        ]
        chosen = choose_lane(
            waiting,
            number=self._claimed + 1,
            now_ms=self._clock.time() * 1000,
            wait_limit_seconds=self._settings.lane_wait_limit_seconds,
        )
        return self._parts.lanes[chosen] if chosen is not None else None

    async def _run_task(self, claimed: ClaimedRecord, slot: EngineSlot) -> None:
        with contextlib.ExitStack() as room, self._parts.metrics.tasks_in_flight.track_inprogress():
            room.callback(self._room.release)
            await self._parts.flow.run(claimed, slot=slot, make_room=room.close)

    # Drain

    async def _drain(self, dispatcher: asyncio.Task[None], relaying: asyncio.Task[None]) -> None:
        """Claim nothing more, finish what runs within the grace period, commit, leave the groups."""
        began = self._clock.monotonic()
        # First: a record that is claimed from here on would only be released again.
        dispatcher.cancel()
        self._parts.relay.stop()
        for member in self._parts.lanes:
            member.stop_intake()
        self._parts.flow.drain()
        async with asyncio.TaskGroup() as group:
            # Lanes without a task in flight leave at once: others serve their partitions while a task runs on here.
            leaving = [group.create_task(member.leave_when_done()) for member in self._parts.lanes]
            await self._end_tasks(relaying)
            # `leave()` below does the same for all, without waiting for tasks that did not end.
            for waiting in leaving:
                waiting.cancel()
        await asyncio.gather(*(member.leave() for member in self._parts.lanes))
        log.info("drained", seconds=round(self._clock.monotonic() - began, 2))

    async def _end_tasks(self, relaying: asyncio.Task[None]) -> None:
        # After a failure of this pod nothing is awaited: other workers end the tasks sooner.
        await self._wait_for(self._tasks, seconds=0.0 if self._failure else self._settings.drain_grace_seconds)
        self._parts.flow.stop_running()
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
        now = self._clock.monotonic()
        for lane in self._parts.lanes:
            if lane.last_poll is not None and lane.is_joined and now - lane.last_poll > POLL_FENCE_SECONDS:
                return f"lane {lane.name} has not polled for {now - lane.last_poll:.0f} s"
        return None

    def _why_not_ready(self) -> str | None:
        if self._stop.is_set():
            return "draining"
        if self._start_trouble is not None:
            return self._start_trouble
        if not self._parts.engine.is_ready:
            return "the engine is loading the model"
        missing = [lane.name for lane in self._parts.lanes if lane.last_poll is None]
        return f"not yet a member of the group: {', '.join(missing)}" if missing else None
