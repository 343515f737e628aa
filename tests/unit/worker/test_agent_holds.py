"""Holds, engine slots and abandoned operations: what a worker waits for, how long, and in which order."""

import asyncio

import pytest

from fluxpool_worker.agent.engine.slots import EngineSlots
from fluxpool_worker.agent.task.holds import HoldCause, HoldExpiredError, Holds
from fluxpool_worker.agent.task.run_until import AbandonedError, run_until


class Away(Exception):  # noqa: N818 - reads as what it is
    """The infrastructure is."""


class Clock:
    """A clock that the test advances."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Service:
    """Fails until it is back, and then answers; every call takes some seconds of a clock."""

    def __init__(self, clock: Clock, *, failures: int, seconds: float = 1.0) -> None:
        self.clock = clock
        self.failures = failures
        self.seconds = seconds
        self.called = asyncio.Event()

    async def __call__(self) -> str:
        self.called.set()
        self.clock.now += self.seconds
        if self.failures > 0:
            self.failures -= 1
            raise Away
        return "answer"


def metrics_of(holds: Holds) -> dict[tuple[str, str], float]:
    return {
        (sample.name, sample.labels["cause"]): sample.value for metric in holds.collect() for sample in metric.samples
    }


async def test_an_outage_is_a_hold_that_ends_with_it() -> None:
    clock = Clock()
    holds = Holds(limit_seconds=100, clock=clock)
    service = Service(clock, failures=2)
    answering = asyncio.ensure_future(holds.through(service, cause=HoldCause.OBJECT_STORE, retry_on=(Away,)))
    await service.called.wait()
    assert holds.causes == {HoldCause.OBJECT_STORE}
    assert metrics_of(holds)["fluxpool_held", "object-store"] == 1
    clearing = asyncio.ensure_future(holds.wait_clear())

    assert await answering == "answer"
    await clearing
    assert holds.causes == frozenset()
    assert metrics_of(holds)["fluxpool_hold_seconds_total", "object-store"] == 2
    assert metrics_of(holds)["fluxpool_held", "kafka"] == 0


async def test_other_errors_are_not_outages() -> None:
    holds = Holds(limit_seconds=100)

    async def broken() -> None:
        raise KeyError("x")

    with pytest.raises(KeyError):
        await holds.through(broken, cause=HoldCause.DISK, retry_on=(Away,))
    assert holds.seconds(HoldCause.DISK) == 0


async def test_a_hold_past_its_limit_names_the_setting() -> None:
    clock = Clock()
    holds = Holds(limit_seconds=5, clock=clock)
    service = Service(clock, failures=1000, seconds=3.0)
    with pytest.raises(
        HoldExpiredError, match="object-store was unavailable for 6 s, longer than infra_hold_limit_seconds"
    ):
        await holds.through(service, cause=HoldCause.OBJECT_STORE, retry_on=(Away,))
    assert holds.causes == frozenset()


async def test_a_held_operation_ends_when_it_is_abandoned() -> None:
    clock = Clock()
    holds = Holds(limit_seconds=1e9, clock=clock)
    abandoned = asyncio.Event()
    service = Service(clock, failures=1_000_000)
    held = asyncio.ensure_future(
        holds.through(service, cause=HoldCause.OBJECT_STORE, retry_on=(Away,), abandoned=abandoned)
    )
    await service.called.wait()
    abandoned.set()
    with pytest.raises(AbandonedError):
        await held
    assert holds.causes == frozenset()


def test_holds_of_one_cause_that_overlap_count_once() -> None:
    clock = Clock()
    holds = Holds(limit_seconds=100, clock=clock)
    first = holds.begin(HoldCause.KAFKA)
    clock.now = 2
    second = holds.begin(HoldCause.KAFKA)
    other = holds.begin(HoldCause.DISK)
    clock.now = 5
    holds.end(first)
    assert holds.causes == {HoldCause.KAFKA, HoldCause.DISK}
    clock.now = 9
    holds.end(second)
    holds.end(second)
    holds.end(None)
    assert holds.causes == {HoldCause.DISK}
    clock.now = 20
    holds.end(other)
    assert (holds.seconds(HoldCause.KAFKA), holds.seconds(HoldCause.DISK)) == (9, 18)


def test_an_outage_is_a_hold_that_lasted_and_its_end_is_remembered() -> None:
    clock = Clock()
    holds = Holds(limit_seconds=100, outage_seconds=10, clock=clock)
    hold = holds.begin(HoldCause.KAFKA)
    clock.now = 9
    assert holds.seconds_since_outage(HoldCause.KAFKA) is None
    clock.now = 10
    assert holds.seconds_since_outage(HoldCause.KAFKA) == 0
    clock.now = 12
    holds.end(hold)
    clock.now = 20
    short = holds.begin(HoldCause.KAFKA)
    clock.now = 22
    holds.end(short)
    assert holds.seconds_since_outage(HoldCause.KAFKA) == 10
    assert holds.seconds_since_outage(HoldCause.DISK) is None


def test_an_outage_that_nothing_waited_for_is_remembered_when_it_is_noted() -> None:
    clock = Clock()
    holds = Holds(limit_seconds=100, outage_seconds=10, clock=clock)
    clock.now = 7
    holds.note_outage(HoldCause.KAFKA)
    clock.now = 9
    assert holds.seconds_since_outage(HoldCause.KAFKA) == 2
    assert (holds.causes, holds.seconds(HoldCause.KAFKA)) == (frozenset(), 0)


async def test_an_operation_that_ended_before_it_is_abandoned_has_its_result() -> None:
    async def work() -> int:
        return 7

    abandoned = asyncio.Event()
    assert await run_until(abandoned, work()) == 7
    abandoned.set()
    assert await run_until(abandoned, work(), last_try_seconds=60) == 7


async def test_abandoned_work_is_cancelled() -> None:
    ended = asyncio.Event()

    async def work() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    abandoned = asyncio.Event()
    abandoned.set()
    with pytest.raises(AbandonedError):
        await run_until(abandoned, work())
    async with asyncio.timeout(10):
        await ended.wait()


async def run_ready() -> None:
    """Run the event loop until nothing is ready."""
    for _ in range(20):
        await asyncio.sleep(0)


async def test_the_number_of_engine_slots_is_limited() -> None:
    slots = EngineSlots(jobs=2)
    first, second = await slots.acquire(), await slots.acquire()
    third = asyncio.ensure_future(slots.acquire())
    await run_ready()
    assert not third.done()
    first.release()
    first.release()
    await run_ready()
    assert third.done()
    fourth = asyncio.ensure_future(slots.acquire())
    await run_ready()
    assert not fourth.done()
    second.release()
    await fourth


async def test_a_task_that_must_be_alone_is_next_and_runs_alone() -> None:
    slots = EngineSlots(jobs=2)
    running = await slots.acquire()
    later = [asyncio.ensure_future(slots.acquire(alone=True))]
    await run_ready()
    others = [asyncio.ensure_future(slots.acquire()) for _ in range(2)]
    await run_ready()
    assert not any(task.done() for task in [*later, *others])
    running.release()
    await run_ready()
    assert [task.done() for task in [*later, *others]] == [True, False, False]
    (await later[0]).release()
    await run_ready()
    assert all(task.done() for task in others)


async def test_a_cancelled_wait_to_be_alone_unblocks_the_others() -> None:
    slots = EngineSlots(jobs=2)
    running = await slots.acquire()
    waiting = asyncio.ensure_future(slots.acquire(alone=True))
    await run_ready()
    waiting.cancel()
    await run_ready()
    await slots.acquire()
    running.release()
