"""Jobs reach the engine in the order in which their tasks were taken. The tests move the clock."""

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, cast

from aiokafka.structs import ConsumerRecord
from hypothesis import given, settings
from hypothesis import strategies as st

from fluxpool_contract.messages.control import CancelCommand
from fluxpool_contract.messages.decoding import decode_task
from fluxpool_contract.messages.task import EmbedParameters, Quality
from fluxpool_worker.agent.clock import Clock
from fluxpool_worker.agent.consumer.lane import ClaimedRecord, LaneConsumer
from fluxpool_worker.agent.engine.client import EngineClient, GenerationError
from fluxpool_worker.agent.engine.job import EngineJob
from fluxpool_worker.agent.engine.slots import PREPARATION_SECONDS, EngineSlot, EngineSlots
from fluxpool_worker.agent.task.attempts import AttemptContext, Attempts
from fluxpool_worker.agent.task.cancellations import CancelWatch
from fluxpool_worker.agent.task.outcome import Budgets, Spent
from fluxpool_worker.agent.task.progress import ProgressPublisher
from fluxpool_worker.engine.protocol import EncodedImage, FailureKind, Generated, GenerationInputs
from kit.models.modelled_kafka import SteppedLoop
from kit.workers.task_flow import ScriptedTopics, task_record

LONG_SECONDS = 1000.0
"""More than all tasks of a test take together."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What becomes of one task."""

    prepares_seconds: float = 0.0
    """Before it is given to the attempts, as for an input image."""
    records_seconds: float = 0.0
    """The ledger entry."""
    runs_seconds: float = 1.0
    failures: int = 0
    """Attempts that fail before the one with images."""
    canceled_after_seconds: float | None = None
    crashes: int = 0
    """With one, the task runs alone."""


class OneDevice:
    """An engine that runs one job at a time, in the order of their submission."""

    def __init__(self, plans: list[Plan]) -> None:
        self.plans = plans
        self.submitted: list[tuple[int, float]] = []
        """Task and time of each job."""
        self._waiting: asyncio.Queue[EngineJob] = asyncio.Queue()

    async def submit(
        self,
        inputs: GenerationInputs,
        *,
        on_started: Callable[[], None],
        on_step: Callable[[int, int], None],
        on_device_free: Callable[[], None],
    ) -> EngineJob:
        loop = asyncio.get_running_loop()
        self.submitted.append((inputs.seed, loop.time()))
        job = EngineJob(
            job_id=len(self.submitted),
            inputs=inputs,
            on_started=on_started,
            on_step=on_step,
            on_device_free=on_device_free,
            result=loop.create_future(),
        )
        self._waiting.put_nowait(job)
        return job

    def cancel(self, job: EngineJob) -> None:
        if not job.result.done():
            job.result.set_exception(GenerationError(FailureKind.CANCELED, "canceled"))
        job.free_device()

    async def run(self) -> None:
        while True:
            job = await self._waiting.get()
            if job.result.done():
                continue
            job.started_at = asyncio.get_running_loop().time()
            job.on_started()
            plan = self.plans[job.inputs.seed]
            await asyncio.wait({job.result}, timeout=plan.runs_seconds)
            job.free_device()
            if job.result.done():
                continue
            if sum(task == job.inputs.seed for task, _ in self.submitted) <= plan.failures:
                job.result.set_exception(GenerationError(FailureKind.ERROR, "told to fail"))
            else:
                job.result.set_result(Generated(job.job_id, cast("tuple[EncodedImage, ...]", ()), {}))


@dataclass(slots=True)
class Lane:
    """The ledger of each task takes its own time."""

    plans: list[Plan]
    ready_at: dict[int, float] = field(default_factory=dict)

    async def record(self, claimed: ClaimedRecord, _entry: object) -> None:
        task = claimed.record.offset
        await asyncio.sleep(self.plans[task].records_seconds)
        self.ready_at.setdefault(task, asyncio.get_running_loop().time())


class Worker:
    """Slots, attempts and engine, with a dispatcher like the agent's."""

    def __init__(self, plans: list[Plan]) -> None:
        self.loop = SteppedLoop()
        self.plans = plans
        self.engine = OneDevice(plans)
        self.lane = Lane(plans)
        self.taken_at: dict[int, float] = {}
        self.ended: list[int] = []
        self._slots = EngineSlots(jobs=2)
        self._attempts = Attempts(
            cast("EngineClient", self.engine),
            slots=self._slots,
            budgets=Budgets(max_attempts=9, max_crashes=9, retry_tiers=0),
            default_quality=Quality.EXACT,
            embed_limit=EmbedParameters.ALL,
            worker="worker-1",
            progress=cast("ProgressPublisher", ScriptedTopics()),
            clock=Clock(monotonic=self.loop.time, time=self.loop.time),
        )

    def run(self) -> None:
        """Take every task and bring it to its end."""
        device = self.loop.create_task(self.engine.run())
        dispatcher = self.loop.create_task(self._dispatch())
        self.loop.run_for(LONG_SECONDS)
        device.cancel()
        self.loop.run_for()
        assert dispatcher.done()
        dispatcher.result()
        self.loop.close()

    @property
    def order(self) -> list[int]:
        """Tasks in the order of their first jobs."""
        return list(dict.fromkeys(task for task, _ in self.engine.submitted))

    async def _dispatch(self) -> None:
        async with asyncio.TaskGroup() as group:
            for task in range(len(self.plans)):
                slot = await self._slots.acquire()
                self.taken_at[task] = self.loop.time()
                group.create_task(self._work(task, slot))

    async def _work(self, task: int, slot: EngineSlot) -> None:
        plan = self.plans[task]
        record = _record(task)
        canceling = CancelWatch()
        if plan.canceled_after_seconds is not None:
            self.loop.call_later(plan.canceled_after_seconds, _cancel, canceling)
        await asyncio.sleep(plan.prepares_seconds)
        await self._attempts.generate(
            AttemptContext(
                claimed=ClaimedRecord(lane=cast("LaneConsumer", self.lane), record=record),
                decoded=decode_task(record.value, record.headers),
                spent=Spent(crashes=plan.crashes),
                slot=slot,
                abandoned=asyncio.Event(),
                canceling=canceling,
            )
        )
        self.ended.append(task)


def _record(task: int) -> ConsumerRecord:
    body: dict[str, Any] = {"request_id": f"task-{task}", "prompt": "a city", "seed": task}
    return replace(task_record(json.dumps(body).encode()), offset=task)


def _cancel(watch: CancelWatch) -> None:
    watch.command = CancelCommand(request_id="any", at=datetime.now(UTC))
    watch.on_cancel()


def worker_of(*plans: Plan) -> Worker:
    worker = Worker(list(plans))
    worker.run()
    return worker


def test_a_task_that_prepares_longer_than_the_next_one_is_drawn_first() -> None:
    worker = worker_of(Plan(prepares_seconds=2, records_seconds=1), Plan())
    assert worker.engine.submitted == [(0, 3.0), (1, 3.0)]


def test_a_preparation_that_hangs_holds_up_the_next_task_for_its_own_limit_alone() -> None:
    worker = worker_of(Plan(prepares_seconds=100), Plan(prepares_seconds=1), Plan(), Plan())
    assert worker.engine.submitted[:3] == [(1, PREPARATION_SECONDS), (2, PREPARATION_SECONDS + 1), (3, 7.0)]
    assert sorted(worker.ended) == [0, 1, 2, 3]


def test_a_task_that_is_canceled_while_it_prepares_leaves_its_place() -> None:
    worker = worker_of(Plan(records_seconds=4, canceled_after_seconds=1), Plan())
    assert worker.engine.submitted == [(1, 1.0)]


def test_a_task_that_is_tried_again_has_the_place_of_its_new_slot() -> None:
    worker = worker_of(Plan(failures=1), Plan(), Plan())
    assert [task for task, _ in worker.engine.submitted] == [0, 1, 2, 0]


def test_a_task_that_must_run_alone_leaves_its_place_while_it_waits() -> None:
    worker = worker_of(Plan(runs_seconds=3), Plan(crashes=1), Plan())
    assert worker.engine.submitted == [(0, 0.0), (2, 0.0), (1, 4.0)]


SECONDS = st.sampled_from([0.0, 0.25, 1.0, 3.0, PREPARATION_SECONDS, 8.0])
PLANS = st.builds(
    Plan,
    prepares_seconds=SECONDS,
    records_seconds=SECONDS,
    runs_seconds=st.sampled_from([0.25, 1.0, 6.0]),
    failures=st.integers(0, 1),
    canceled_after_seconds=st.none() | SECONDS,
    crashes=st.integers(0, 1),
)


@given(st.lists(PLANS, min_size=2, max_size=7))
@settings(deadline=None)
def test_in_any_interleaving_no_task_overtakes_one_that_prepares_in_time_and_none_waits_longer(
    plans: list[Plan],
) -> None:
    worker = worker_of(*plans)
    assert sorted(worker.ended) == list(range(len(plans)))
    first: dict[int, float] = {}
    for task, at in worker.engine.submitted:
        first.setdefault(task, at)
    place = {task: index for index, task in enumerate(worker.order)}
    for task, at in first.items():
        earlier = [other for other in first if other < task]
        for other in earlier:
            if place[other] > place[task]:
                # A crashed task has a second slot, and with it a second place.
                assert plans[other].crashes or at >= worker.taken_at[other] + PREPARATION_SECONDS
        if not plans[task].crashes:
            # A task that is tried again, or alone, has another slot, taken at any time before this one's.
            limits = [
                worker.taken_at[task if plans[other].failures or plans[other].crashes else other] + PREPARATION_SECONDS
                for other in range(task)
            ]
            assert at <= max([worker.lane.ready_at[task], *limits])
