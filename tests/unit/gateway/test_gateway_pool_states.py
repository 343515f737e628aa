"""The states of pools at a gateway: which lane has which, until when, and what they add to places and ETAs."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from fluxpool_contract.kafka.topics import TopicNames
from fluxpool_contract.messages import PoolLane, PoolState
from fluxpool_gateway.queue.lane_watch import LaneWatch
from fluxpool_gateway.queue.lanes import ServedLane, served_lanes
from fluxpool_gateway.queue.place import Estimate
from fluxpool_gateway.queue.pool_states import MAX_STATES, PoolStates
from kit.gateways.keyed_gateway import Gateway, keyed_gateway, keyed_settings
from kit.scaling.lag_readings import GROUPS, STANDARD, VIP, lag, partition, teach_speed

LANES = served_lanes(GROUPS[STANDARD], (), TopicNames())
NOW = datetime(2026, 4, 5, 10, tzinfo=UTC)


def state(**fields: Any) -> PoolState:
    """A pool of both lanes that grows from two workers to five."""
    usual: dict[str, Any] = {
        "namespace": "images",
        "pool": "standard",
        "lanes": [PoolLane(name=topic, topic=topic, consumer_group=group) for topic, group in GROUPS.items()],
        "desired_replicas": 5,
        "ready_replicas": 2,
        "starting_replicas": 3,
        "min_replicas": 0,
        "max_replicas": 6,
        "constraint": "lag",
        "reason": "The lag is 24.",
        "start_seconds": 90,
        "decided_at": NOW,
    }
    return PoolState.model_validate(usual | fields)


class Watch:
    """A watch at a time of its own."""

    def __init__(self) -> None:
        self.seconds = 1000.0
        self.watch = LaneWatch(LANES, clock=lambda: self.seconds, wall_clock=self.wall_seconds)

    def wall_seconds(self) -> float:
        return NOW.timestamp() + self.seconds - 1000

    def tell(self, told: PoolState) -> None:
        self.watch.pools.take(told.key.encode(), told.to_json(), written_at=self.wall_seconds())

    def after(self, seconds: float) -> datetime:
        return datetime.fromtimestamp(self.wall_seconds() + seconds, UTC)

    def new(self) -> Estimate:
        return self.watch.place_of_new(self.watch.queue().by_topic[STANDARD])


def at_zero(waiting: int) -> Watch:
    """No worker is ready, and one took 4 s for a task before."""
    here = Watch()
    teach_speed(here.watch, seconds_per_task=4, until=here.seconds, tasks=20)
    here.watch.observe(lag(partition(0, 20, 20 + waiting), owned={}), here.seconds)
    return here


# States


def test_a_lane_has_the_latest_state_of_a_pool_that_serves_it() -> None:
    clock = NOW.timestamp()
    states = PoolStates(LANES, wall_clock=lambda: clock + 5)
    for pool, seconds in (("old", 1.0), ("new", 3.0)):
        told = state(pool=pool)
        states.take(told.key.encode(), told.to_json(), written_at=clock + seconds)
    found = states.of_lane(LANES[0])
    assert found is not None
    assert (found.state.pool, found.age_seconds, found.is_current) == ("new", 2.0, True)
    states.take(b"images/new", None, written_at=clock + 4)
    found = states.of_lane(LANES[0])
    assert found is not None
    assert found.state.pool == "old"


def test_a_state_of_an_operator_whose_clock_is_ahead_grows_old_and_hides_no_later_one() -> None:
    clock = [NOW.timestamp()]
    states = PoolStates(LANES, wall_clock=lambda: clock[0])
    ahead, right = state(pool="z-ahead"), state(pool="a-right")
    states.take(ahead.key.encode(), ahead.to_json(), written_at=clock[0] + 86_400)
    clock[0] += ahead.valid_seconds + 1
    found = states.of_lane(LANES[0])
    assert found is not None
    assert (found.state.pool, found.is_current) == ("z-ahead", False)
    states.take(ahead.key.encode(), ahead.to_json(), written_at=clock[0] + 86_400)
    states.take(right.key.encode(), right.to_json(), written_at=clock[0])
    found = states.of_lane(LANES[0])
    assert found is not None
    assert (found.state.pool, found.age_seconds) == ("a-right", 0.0)


def test_pools_of_other_lanes_and_groups_are_not_kept() -> None:
    states = PoolStates(LANES, wall_clock=NOW.timestamp)
    for lanes in (
        [{"name": "a", "topic": STANDARD, "consumer_group": "another"}],
        [{"name": "a", "topic": "another", "consumer_group": GROUPS[STANDARD]}],
        [],
    ):
        told = state(lanes=lanes)
        states.take(told.key.encode(), told.to_json(), written_at=NOW.timestamp())
        assert states.of_lane(LANES[0]) is None


@pytest.mark.parametrize("value", [b"{", b"[]", b"null", b"\xff", b'{"pool": 1}', b'{"pool": "p"}'])
def test_what_cannot_be_read_replaces_what_was_known(value: bytes) -> None:
    states = PoolStates(LANES, wall_clock=NOW.timestamp)
    told = state()
    states.take(told.key.encode(), told.to_json(), written_at=NOW.timestamp())
    states.take(told.key.encode(), value, written_at=NOW.timestamp())
    assert states.of_lane(LANES[0]) is None


@pytest.mark.parametrize("key", [None, b""])
def test_a_record_without_a_key_is_ignored(key: bytes | None) -> None:
    states = PoolStates(LANES, wall_clock=NOW.timestamp)
    states.take(key, state().to_json(), written_at=NOW.timestamp())
    assert states.of_lane(LANES[0]) is None


def test_the_number_of_states_is_bounded() -> None:
    states = PoolStates(LANES, wall_clock=NOW.timestamp)
    for number in range(MAX_STATES + 1):
        told = state(pool=f"p{number}")
        states.take(told.key.encode(), told.to_json(), written_at=NOW.timestamp() + number)
    for number in range(1, MAX_STATES + 1):
        states.take(f"images/p{number}".encode(), None, written_at=NOW.timestamp())
    # The first one was dropped.
    assert states.of_lane(LANES[0]) is None


def test_an_outdated_state_is_told_and_not_used() -> None:
    here = Watch()
    here.tell(state(next_ready_at=here.after(40)))
    here.seconds += 120
    here.watch.observe(lag(partition(0, 0, 3)), here.seconds)
    assert here.watch.queue().lanes[0].pool is not None
    here.seconds += 5
    here.watch.observe(lag(partition(0, 0, 3)), here.seconds)
    lane = here.watch.queue().lanes[0]
    assert (lane.pool, lane.operator_silent_seconds) == (None, 125.0)
    assert "pool" not in here.new().why
    here.seconds += 3600
    here.watch.observe(lag(partition(0, 0, 3)), here.seconds)
    assert here.watch.queue().lanes[0].operator_silent_seconds is None


# Places and ETAs


def test_the_sentence_joins_workers_and_the_plan() -> None:
    here = Watch()
    here.tell(state(next_ready_at=here.after(40)))
    here.watch.observe(lag(partition(0, 0, 5), partition(1, 0, 7)), here.seconds)
    assert here.new().why == (
        "12 tasks of the lane standard are before it; 2 workers are ready; "
        "3 workers are starting, the first is expected in about 40 s; "
        "too few tasks were finished lately to know how long one takes; "
        "the pool standard grows to 5 workers: The lag is 24"
    )


@pytest.mark.parametrize(
    ("told", "words"),
    [
        ({"desired_replicas": 1, "starting_replicas": 0}, "the pool standard shrinks to 1 worker: The lag is 24"),
        ({"desired_replicas": 2, "starting_replicas": 0}, "the pool standard stays at 2 workers: The lag is 24"),
        ({"starting_replicas": 1}, "; 1 worker is starting; "),
        # A pod that has no node yet.
        ({"starting_replicas": 0}, "; 3 workers are starting; "),
    ],
    ids=str,
)
def test_the_sentence_follows_the_plan(told: dict[str, Any], words: str) -> None:
    here = Watch()
    here.tell(state(**told))
    here.watch.observe(lag(partition(0, 0, 5), partition(1, 0, 7)), here.seconds)
    assert words in here.new().why


def test_workers_that_joined_since_are_not_counted_twice() -> None:
    here = Watch()
    here.tell(state(next_ready_at=here.after(40)))
    here.watch.observe(lag(*(partition(number, 0, 5) for number in range(5))), here.seconds)
    assert here.watch.queue().lanes[0].coming_workers == 0
    assert "starting" not in here.new().why


def test_without_a_worker_a_task_begins_when_one_is_ready() -> None:
    here = at_zero(waiting=0)
    here.tell(state(ready_replicas=0, starting_replicas=1, desired_replicas=1, next_ready_at=here.after(600)))
    here.watch.observe(lag(partition(0, 20, 20), owned={}), here.seconds)
    place = here.new()
    assert (place.position, place.starts_in_seconds) == (0, 600)
    assert place.eta_seconds == pytest.approx(604, rel=0.01)


def test_waiting_tasks_are_shared_by_the_workers_that_start() -> None:
    here = at_zero(waiting=40)
    here.tell(state(ready_replicas=0, starting_replicas=4, desired_replicas=4, next_ready_at=here.after(60)))
    here.watch.observe(lag(partition(0, 20, 60), owned={}), here.seconds)
    assert here.new().starts_in_seconds == pytest.approx(60 + 40 * 4 / 4, rel=0.02)
    # The one in the middle of them.
    assert here.watch.place_of((STANDARD, 0, 40)).starts_in_seconds == pytest.approx(60 + 20 * 4 / 4, rel=0.02)


def test_workers_that_start_shorten_the_wait_and_never_lengthen_it() -> None:
    here = Watch()
    teach_speed(here.watch, seconds_per_task=4, until=here.seconds, tasks=20)
    before = here.new()
    assert before.eta_seconds is not None
    for ready_in in (0, 10, 40, 4000):
        here.tell(state(desired_replicas=2, starting_replicas=1, next_ready_at=here.after(ready_in)))
        here.watch.observe(lag(partition(0, 20, 31)), here.seconds)
        after = here.new()
        assert after.eta_seconds is not None
        assert after.eta_seconds <= before.eta_seconds + 0.1
        if ready_in < 10:
            assert after.eta_seconds < 0.7 * before.eta_seconds


def test_a_process_that_saw_too_little_uses_the_plan() -> None:
    here = Watch()
    here.tell(state(desired_replicas=2, starting_replicas=0, eta_seconds=600))
    here.watch.observe(lag(partition(0, 0, 5), partition(1, 0, 7)), here.seconds)
    assert (here.new().starts_in_seconds, here.new().eta_seconds) == (600, 600)
    # Where nothing waits, the lag of the pool is another lane's.
    here = Watch()
    here.tell(state(desired_replicas=2, starting_replicas=0, eta_seconds=600))
    here.watch.observe(lag(partition(0, 5, 5), partition(1, 7, 7)), here.seconds)
    assert here.new().starts_in_seconds is None


def test_a_start_of_unknown_length_makes_no_estimate() -> None:
    here = at_zero(waiting=3)
    here.tell(state(ready_replicas=0, start_seconds=None))
    here.watch.observe(lag(partition(0, 20, 23), owned={}), here.seconds)
    place = here.new()
    assert (place.position, place.starts_in_seconds, place.eta_seconds) == (3, None, None)
    assert "starting; " in place.why


def served(topic: str) -> ServedLane:
    return next(lane for lane in LANES if lane.topic == topic)


def test_every_lane_of_a_pool_has_its_state() -> None:
    here = Watch()
    here.tell(state())
    assert {here.watch.pools.of_lane(served(topic)) is not None for topic in (STANDARD, VIP)} == {True}


# Routes


@pytest.fixture
async def gateway(tmp_path: Path) -> AsyncIterator[Gateway]:
    async with keyed_gateway(keyed_settings(tmp_path)) as opened:
        yield opened


async def test_the_route_of_pools_shows_the_plan(gateway: Gateway) -> None:
    lanes, wall_seconds = gateway.one.app.state.services.lanes, gateway.clock.now_ms / 1000
    told = state(next_ready_at=datetime.fromtimestamp(wall_seconds, UTC) + timedelta(seconds=40), eta_seconds=75)
    lanes.pools.take(told.key.encode(), told.to_json(), written_at=wall_seconds)
    for reading in (lag(partition(0, 3, 9), partition(1, 4, 4)), lag(partition(0, 2, 2), topic=VIP)):
        lanes.observe(reading, gateway.clock.monotonic())
    shown = (await gateway.one.ask("GET", "/v1/pools", gateway.admin)).json()
    [pool] = shown["data"]
    assert shown["left_out"] is None
    assert {
        "name": "standard",
        "ready": 2,
        "desired": 5,
        "starting": 3,
        "draining": 0,
        "min": 0,
        "max": 6,
        "paused": False,
        "constraint": "lag",
        "reason": "The lag is 24.",
        "next_ready_in_seconds": 40,
        "start_seconds": 90,
        "lag_eta_seconds": 75,
        "reported_at": "2026-04-05T10:00:00Z",
        "problem": None,
    }.items() <= pool.items()
    queue = (await gateway.one.ask("GET", "/v1/queue", gateway.admin)).json()
    assert "the pool standard grows to 5 workers" in queue["lanes"][0]["why"]
    # Its operator goes away.
    gateway.clock.pass_seconds(130)
    for reading in (lag(partition(0, 3, 9), partition(1, 4, 4)), lag(partition(0, 2, 2), topic=VIP)):
        lanes.observe(reading, gateway.clock.monotonic())
    shown = (await gateway.one.ask("GET", "/v1/pools", gateway.admin)).json()
    assert (shown["data"][0]["name"], shown["data"][0]["ready"]) == (None, 2)
    assert "its operator has not reported for 130 s" in shown["data"][0]["problem"]
    assert shown["left_out"] is not None
