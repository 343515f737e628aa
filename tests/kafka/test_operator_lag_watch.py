"""When a pool's backlog is read, on a real broker."""

from collections.abc import Sequence

import pytest

from fluxpool_contract.kafka.connection import KafkaConnection
from fluxpool_operator.backlog import BacklogHub, LaneTarget
from fluxpool_operator.backlog.reading import LaneReading
from fluxpool_operator.reconcile.kafka.lag_watch import BURST_SECONDS, GROWING_INTERVAL_SECONDS, TICK_SECONDS, LagWatch
from kit.brokers.kafka import create_topics, produce, unique_name

pytestmark = pytest.mark.kafka

INTERVAL_SECONDS = 10.0


class _Clock:
    def __init__(self) -> None:
        self.seconds = 1000.0

    def __call__(self) -> float:
        return self.seconds


class _BusyHub(BacklogHub):
    """A hub of a topic that gets one more task after each of the next `tasks_to_come` readings."""

    def __init__(self, topic: str, clock: _Clock, *, seconds_per_reading: float = 0.0) -> None:
        super().__init__()
        self.topic = topic
        self.tasks_to_come = 0
        self.readings = 0
        self._clock = clock
        self._seconds_per_reading = seconds_per_reading

    async def read(self, connection: KafkaConnection, targets: Sequence[LaneTarget]) -> tuple[LaneReading, ...]:
        readings = await super().read(connection, targets)
        self.readings += 1
        self._clock.seconds += self._seconds_per_reading
        if self.tasks_to_come:
            self.tasks_to_come -= 1
            await self.add_task(connection.bootstrap_servers[0])
        return readings

    async def add_task(self, bootstrap_servers: str) -> None:
        await produce(bootstrap_servers, self.topic, [(None, b"x")])


@pytest.fixture
async def topic(bootstrap_servers: str) -> str:
    name = unique_name("paced")
    await create_topics(bootstrap_servers, {name: 1})
    return name


def _target(hub: BacklogHub, bootstrap_servers: str, topic: str, clock: _Clock) -> LagWatch:
    watch = LagWatch(hub, key="pool", wake=lambda: None, clock=clock)
    connection = KafkaConnection(bootstrap_servers=(bootstrap_servers,))
    watch.configure(connection, (LaneTarget(name="standard", topic=topic, consumer_group=topic),), expired_before={})
    return watch


def _waiting(watch: LagWatch) -> int:
    return sum(lane.pending_records for lane in watch.observe())


async def test_a_wait_for_the_next_reading_does_not_end_early(bootstrap_servers: str, topic: str) -> None:
    """A wait that ended early would be repeated, ever shorter, with a reconcile each time."""
    clock = _Clock()
    async with BacklogHub() as hub:
        watch = _target(hub, bootstrap_servers, topic, clock)
        assert watch.seconds_until_due(INTERVAL_SECONDS) <= 0
        waits = []
        for _ in range(20):
            await watch.read(is_burst=False)
            waits.append(watch.seconds_until_due(INTERVAL_SECONDS))
            clock.seconds += waits[-1]
            assert watch.seconds_until_due(INTERVAL_SECONDS) == pytest.approx(0, abs=1e-6)
    assert all(0.9 * INTERVAL_SECONDS <= wait <= INTERVAL_SECONDS for wait in waits)
    assert len(set(waits)) > 1, "the readings of many pools would not spread"


async def test_pools_are_read_at_the_same_times(bootstrap_servers: str, topic: str) -> None:
    clock = _Clock()
    async with BacklogHub() as hub:
        due_in_ticks = []
        for _ in range(20):
            watch = _target(hub, bootstrap_servers, topic, clock)
            await watch.read(is_burst=False)
            due_in_ticks.append((clock.seconds + watch.seconds_until_due(INTERVAL_SECONDS)) / TICK_SECONDS)
            clock.seconds += TICK_SECONDS / 7
    assert due_in_ticks == pytest.approx([round(ticks) for ticks in due_in_ticks], abs=1e-6)


async def test_a_reading_with_the_first_tasks_of_a_burst_waits_for_the_rest(bootstrap_servers: str, topic: str) -> None:
    clock = _Clock()
    async with _BusyHub(topic, clock) as hub:
        watch = _target(hub, bootstrap_servers, topic, clock)
        await watch.read(is_burst=False)
        assert (hub.readings, _waiting(watch)) == (1, 0)
        await hub.add_task(bootstrap_servers)
        hub.tasks_to_come = 3
        await watch.read(is_burst=False)
        assert _waiting(watch) == 4
        # Tasks that are added to pending ones are normal traffic.
        hub.tasks_to_come = 3
        before = hub.readings
        clock.seconds += BURST_SECONDS
        await watch.read(is_burst=False)
        assert hub.readings == before + 1


async def test_a_burst_that_does_not_end_in_time_is_read_again_soon_until_it_does(
    bootstrap_servers: str, topic: str
) -> None:
    clock = _Clock()
    async with _BusyHub(topic, clock, seconds_per_reading=0.5) as hub:
        watch = _target(hub, bootstrap_servers, topic, clock)
        await watch.read(is_burst=False)
        await hub.add_task(bootstrap_servers)
        hub.tasks_to_come = 5
        await watch.read(is_burst=True)
        seen = _waiting(watch)
        assert seen < 6
        assert watch.seconds_until_due(INTERVAL_SECONDS) == pytest.approx(GROWING_INTERVAL_SECONDS)
        while watch.seconds_until_due(INTERVAL_SECONDS) <= GROWING_INTERVAL_SECONDS:
            clock.seconds += GROWING_INTERVAL_SECONDS
            await watch.read(is_burst=False)
        assert _waiting(watch) == 6


async def test_a_steadily_growing_backlog_is_read_at_the_polling_interval(bootstrap_servers: str, topic: str) -> None:
    clock = _Clock()
    async with _BusyHub(topic, clock, seconds_per_reading=0.5) as hub:
        watch = _target(hub, bootstrap_servers, topic, clock)
        await hub.add_task(bootstrap_servers)
        hub.tasks_to_come = 10_000
        began_at = clock.seconds
        await watch.read(is_burst=True)
        while watch.seconds_until_due(INTERVAL_SECONDS) <= GROWING_INTERVAL_SECONDS:
            clock.seconds += GROWING_INTERVAL_SECONDS
            await watch.read(is_burst=False)
        assert BURST_SECONDS <= clock.seconds - began_at < BURST_SECONDS + 3
