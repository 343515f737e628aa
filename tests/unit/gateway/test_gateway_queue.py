"""The queue: what readings of the lag tell of the lanes, and the place of a task; over a real task store."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fluxpool_contract.kafka.topics import TopicNames
from fluxpool_gateway.queue.lane_watch import LaneWatch
from fluxpool_gateway.queue.lanes import LaneQueue, PartitionQueue, Queue, ServedLane, served_lanes
from fluxpool_gateway.queue.place import Estimate, estimate
from fluxpool_gateway.settings import GatewaySettings
from fluxpool_gateway.store.task_state import TaskSeen
from fluxpool_transport.lag.lag_reader import GroupLag, PartitionLag, StalePartition
from kit.gateways.keyed_gateway import Gateway, keyed_gateway, keyed_settings
from kit.scaling.lag_readings import GROUPS, STANDARD, VIP, lag, partition, teach_speed

GROUP = GROUPS[STANDARD]
TOLD = [
    "name",
    "desired",
    "starting",
    "draining",
    "min",
    "max",
    "paused",
    "constraint",
    "reason",
    "next_ready_in_seconds",
    "start_seconds",
    "lag_eta_seconds",
    "model",
    "model_family",
    "license",
    "reported_at",
]
"""Fields of a pool that its operator tells."""
WALL_SECONDS = 1_775_000_000.0
LANES = served_lanes(GROUP, (), TopicNames())


class Time:
    """Both clocks."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def watch(self) -> LaneWatch:
        return LaneWatch(LANES, clock=lambda: self.seconds, wall_clock=lambda: WALL_SECONDS + self.seconds)


def busy_watch(*, seconds_per_task: int = 4, tasks: int = 20) -> tuple[Time, LaneWatch]:
    """One worker on partition 0 finished tasks back to back, and is at offset `tasks` with ten behind it."""
    time = Time()
    time.seconds = float(seconds_per_task * tasks)
    watch = time.watch()
    teach_speed(watch, seconds_per_task=seconds_per_task, until=time.seconds, tasks=tasks)
    return time, watch


def standard(watch: LaneWatch) -> LaneQueue:
    return watch.queue().by_topic[STANDARD]


def test_before_the_first_reading_nothing_is_known_and_the_reason_is_said() -> None:
    watch = Time().watch()
    assert standard(watch).partitions == {}
    assert watch.place_of((STANDARD, 0, 3)) == Estimate(
        position=None, eta_seconds=None, why="the lane standard: was not read yet"
    )
    assert watch.place_of_new(standard(watch)).why == "the lane standard: was not read yet"


def test_the_speed_is_learned_from_what_busy_workers_finish() -> None:
    time, watch = busy_watch(seconds_per_task=4)
    assert watch.queue().seconds_per_task == pytest.approx(4, rel=0.05)
    assert standard(watch).completed_per_minute == pytest.approx(15, abs=1)
    # Ten are before it, and it takes its own time.
    place = watch.place_of((STANDARD, 0, 30))
    assert place.position == 10
    assert place.eta_seconds == pytest.approx(44, rel=0.05)
    assert place.why == "10 tasks of the lane standard are before it; 1 worker is ready; one takes a worker about 4.0 s"
    time.seconds += 1
    watch.observe(lag(partition(0, 20, 31)), time.seconds)
    assert watch.place_of((STANDARD, 0, 30)).position == 10


def test_idle_workers_do_not_make_tasks_look_slow() -> None:
    time, watch = busy_watch(seconds_per_task=4)
    for second in range(500):
        time.seconds += 1
        watch.observe(lag(partition(0, min(20 + second // 4, 31), 31), partition(1, 0, 0)), time.seconds)
    assert watch.queue().seconds_per_task == pytest.approx(4, rel=0.1)


def test_time_between_readings_that_are_far_apart_is_not_counted() -> None:
    time, watch = busy_watch(seconds_per_task=4)
    time.seconds += 3600
    watch.observe(lag(partition(0, 20, 31)), time.seconds)
    assert watch.queue().seconds_per_task == pytest.approx(4, rel=0.05)


def test_two_workers_with_one_client_id_are_two() -> None:
    time = Time()
    watch = time.watch()
    for second in range(81):
        time.seconds = float(second)
        done = second // 4
        reading = lag(partition(0, done, 99), partition(1, done, 99), client_ids={"w0": "same", "w1": "same"})
        watch.observe(reading, time.seconds)
    assert len(standard(watch).workers) == 2
    assert watch.queue().seconds_per_task == pytest.approx(4, rel=0.05)


def test_a_worker_of_two_lanes_is_one_worker() -> None:
    time = Time()
    watch = time.watch()
    for second in range(81):
        time.seconds = float(second)
        done = second // 4
        watch.observe(lag(partition(0, done, 99)) | lag(partition(0, 5, 6), topic=VIP), time.seconds)
    assert len(watch.queue().workers) == 1
    assert watch.queue().seconds_per_task == pytest.approx(4, rel=0.05)


def test_the_oldest_waiting_task_is_as_old_as_the_reading_that_found_it_first() -> None:
    time = Time()
    watch = time.watch()
    watch.observe(lag(partition(0, 0, 0)), 0)
    assert standard(watch).oldest_waiting_seconds is None
    for second, end in ((10.0, 1), (20.0, 2), (30.0, 3)):
        time.seconds = second
        watch.observe(lag(partition(0, 0, end)), second)
    assert standard(watch).oldest_waiting_seconds == 20
    # One that a worker has begun does not wait.
    watch.observe(lag(partition(0, 0, 3, begun={0: 0})), 30)
    assert standard(watch).oldest_waiting_seconds == 10
    watch.observe(lag(partition(0, 2, 3)), 30)
    assert standard(watch).oldest_waiting_seconds == 0


def test_ages_stay_right_with_more_arrivals_than_are_remembered() -> None:
    time = Time()
    watch = time.watch()
    for second in range(1, 2000):
        time.seconds = float(second)
        watch.observe(lag(partition(0, 0, second)), second)
    oldest = standard(watch).oldest_waiting_seconds
    assert oldest is not None
    assert 0 < oldest <= 1998
    for second in range(2000, 2600):
        time.seconds = float(second)
        watch.observe(lag(partition(0, second - 100, second)), second)
    oldest = standard(watch).oldest_waiting_seconds
    assert oldest is not None
    assert 50 < oldest <= 100


def test_a_recreated_topic_begins_again() -> None:
    time, watch = busy_watch()
    for second in range(3):
        watch.observe(lag(partition(0, 20, 1 + second)), time.seconds + second)
    time.seconds += 2
    assert standard(watch).waiting == 3
    assert standard(watch).oldest_waiting_seconds == 2
    assert watch.queue().seconds_per_task == pytest.approx(4, rel=0.1)


@pytest.mark.parametrize(
    ("reading", "record", "why"),
    [
        (
            lag(partition(0, 0, 5), owned={}),
            3,
            "3 tasks of the lane standard are before it; no worker is ready, and it begins when one is",
        ),
        (
            lag(partition(0, 0, 5), owned={"w0": ()}),
            0,
            "no task of the lane standard is before it; 1 worker is ready, and partitions are being assigned to them",
        ),
        (lag(partition(0, 3, 5)), 2, "a worker has taken it: another attempt"),
        (lag(partition(0, 0, 5, begun={1: 0})), 1, "a worker has begun it"),
        (
            lag(StalePartition(partition=0, reason="no leader"), partition(1, 0, 0)),
            1,
            "the lane standard: 1 of 2 partitions could not be read",
        ),
    ],
)
def test_without_an_estimate_the_reason_is_said(reading: dict[str, GroupLag], record: int, why: str) -> None:
    watch = Time().watch()
    watch.observe(reading, 0)
    place = watch.place_of((STANDARD, 0, record))
    assert place.eta_seconds is None
    assert place.why.startswith(why)


def test_a_topic_without_a_lane_and_an_unknown_record_have_no_place() -> None:
    watch = Time().watch()
    watch.observe(lag(partition(0, 0, 1)), 0)
    assert watch.place_of(("other", 0, 0)).why == "no lane of this gateway has the topic other"
    assert watch.place_of(None).position is None


def test_an_old_reading_says_nothing_of_now() -> None:
    time, watch = busy_watch()
    time.seconds += 60
    assert (
        watch.place_of((STANDARD, 0, 30)).why == "the lane standard: was not read for 60 s, because no broker answers"
    )
    assert standard(watch).partitions == {}


def test_a_reading_with_a_problem_keeps_the_one_before_and_says_so() -> None:
    time, watch = busy_watch()
    failed = GroupLag(group=GROUP, topic=STANDARD, partitions=(), member_count=None, state=None, problem="no leader")
    time.seconds += 1
    watch.observe({GROUP: failed}, time.seconds)
    place = watch.place_of((STANDARD, 0, 30))
    assert place.position == 10
    assert place.why.endswith("; no leader")


def test_preferred_tasks_come_first_up_to_the_share_of_the_others() -> None:
    time, watch = busy_watch(seconds_per_task=4)
    time.seconds += 1
    watch.observe(lag(partition(0, 20, 31)) | lag(partition(0, 0, 3), topic=VIP), time.seconds)
    some = watch.place_of((STANDARD, 0, 30))
    assert (some.position, some.why[:76]) == (
        13,
        "10 tasks of the lane standard and 3 tasks of preferred lanes are before it; ",
    )
    assert some.eta_seconds == pytest.approx(56, rel=0.05)
    watch.observe(lag(partition(0, 20, 31)) | lag(partition(0, 0, 3000), topic=VIP), time.seconds)
    # Of five tasks one is not of the preferred lane.
    assert watch.place_of((STANDARD, 0, 20)).position == 4
    assert watch.place_of((VIP, 0, 2)).position == 2


def test_what_a_worker_has_begun_is_waited_for() -> None:
    time, watch = busy_watch(seconds_per_task=4)
    begun_at = int(WALL_SECONDS + time.seconds)
    watch.observe(lag(partition(0, 20, 31, begun={20: begun_at - 1})), time.seconds)
    assert watch.place_of((STANDARD, 0, 21)).eta_seconds == pytest.approx(3 + 4, rel=0.05)
    assert watch.place_of((STANDARD, 0, 20)).eta_seconds == pytest.approx(3, rel=0.1)
    # Overdue, or with a clock that is ahead.
    watch.observe(lag(partition(0, 20, 31, begun={20: 0})), time.seconds)
    assert watch.place_of((STANDARD, 0, 21)).eta_seconds == pytest.approx(0.4 + 4, rel=0.05)
    watch.observe(lag(partition(0, 20, 31, begun={20: begun_at + 3600})), time.seconds)
    assert watch.place_of((STANDARD, 0, 21)).eta_seconds == pytest.approx(4 + 4, rel=0.05)


def test_a_new_task_is_sent_to_the_worker_that_is_free_first() -> None:
    time, watch = busy_watch(seconds_per_task=4)
    watch.observe(lag(partition(0, 20, 31), partition(1, 0, 2)), time.seconds)
    place = watch.place_of_new(standard(watch))
    assert place.position == 13
    assert place.eta_seconds == pytest.approx(12, rel=0.05)


@st.composite
def queues(draw: st.DrawFn) -> Queue:
    def lane(served: ServedLane) -> LaneQueue:
        workers = draw(st.lists(st.sampled_from(["a", "b", "c"]), unique=True))
        partitions = {}
        for number in range(draw(st.integers(1, 4))):
            first, waiting = draw(st.integers(0, 50)), draw(st.integers(0, 30))
            begun = draw(st.lists(st.integers(first, first + 30), max_size=3, unique=True))
            partitions[number] = PartitionQueue(
                next_offset=first,
                end_offset=first + waiting,
                running={offset: draw(st.floats(0, 2e9)) for offset in begun if offset < first + waiting},
                worker=draw(st.sampled_from(workers)) if workers else None,
            )
        return LaneQueue(lane=served, partitions=partitions, workers=frozenset(workers))

    return Queue(
        lanes=tuple(map(lane, LANES)), seconds_per_task=draw(st.none() | st.floats(0.01, 1000, allow_nan=False))
    )


@given(queue=queues(), topic=st.sampled_from([STANDARD, VIP]), wall_seconds=st.floats(0, 2e9))
def test_a_later_place_in_a_partition_never_has_an_earlier_position_or_time(
    queue: Queue, topic: str, wall_seconds: float
) -> None:
    for number, read in queue.by_topic[topic].partitions.items():
        waiting = [offset for offset in range(read.next_offset, read.end_offset) if offset not in read.running]
        places = [estimate(queue, (topic, number, offset), wall_seconds=wall_seconds) for offset in waiting]
        positions = [place.position for place in places if place.position is not None]
        etas = [place.eta_seconds for place in places if place.eta_seconds is not None]
        assert len(positions) == len(places)
        assert positions == sorted(positions)
        assert all(position >= 0 for position in positions)
        assert len(etas) in {0, len(places)}
        assert etas == sorted(etas)
        assert all(eta > 0 for eta in etas)
        assert all(place.why for place in places)


@pytest.fixture
async def gateway(tmp_path: Path) -> AsyncIterator[Gateway]:
    async with keyed_gateway(keyed_settings(tmp_path)) as running:
        yield running


def waiting_task(request_id: str) -> TaskSeen:
    return TaskSeen(request_id=request_id, body="{}", priority="standard", tenant="default", created_at_ms=1)


def read_lag(gateway: Gateway, *partitions: PartitionLag, topic: str = STANDARD) -> None:
    for replica in (gateway.one, gateway.two):
        replica.app.state.services.lanes.observe(lag(*partitions, topic=topic), gateway.clock.monotonic())


def project(gateway: Gateway, request_id: str, *, offset: int) -> None:
    gateway.tasks.apply([((STANDARD, 0, offset), waiting_task(request_id))], {}, now_ms=1)


async def answer_of(gateway: Gateway, path: str, **headers: str) -> Any:
    return await gateway.one.ask("GET", path, gateway.admin, headers=headers)


async def test_a_waiting_task_shows_its_place_by_itself_and_in_lists(gateway: Gateway) -> None:
    project(gateway, "r-1", offset=7)
    read_lag(gateway, partition(0, 3, 9))
    place = (await answer_of(gateway, "/v1/generations/r-1")).json()["queue"]
    assert place == {
        "position": 4,
        "eta_seconds": None,
        "why": "4 tasks of the lane standard are before it; 1 worker is ready; "
        "too few tasks were finished lately to know how long one takes",
    }
    (listed,) = (await answer_of(gateway, "/v1/generations")).json()["data"]
    assert listed["queue"] == place


async def test_a_task_that_is_accepted_and_not_projected_yet_shows_its_place(gateway: Gateway) -> None:
    accepted = (await gateway.one.submit(gateway.admin)).json()
    read_lag(gateway, *(partition(number, 0, 5) for number in range(3)))
    state = (await answer_of(gateway, f"/v1/generations/{accepted['request_id']}")).json()
    assert state["queue"]["position"] is not None


async def test_the_tag_follows_the_place_and_a_wait_does_not(gateway: Gateway) -> None:
    project(gateway, "r-1", offset=7)
    read_lag(gateway, partition(0, 3, 9))
    before = await answer_of(gateway, "/v1/generations/r-1")
    tag = before.headers["etag"]
    assert (await answer_of(gateway, "/v1/generations/r-1", **{"if-none-match": tag})).status_code == 304
    read_lag(gateway, partition(0, 4, 9))
    gateway.clock.now_ms += 1000
    after = await answer_of(gateway, "/v1/generations/r-1", **{"if-none-match": tag, "prefer": "wait=1"})
    assert after.status_code == 200
    assert after.elapsed.total_seconds() >= 0.9
    assert after.json()["queue"]["position"] == 3
    assert after.headers["etag"] != tag


async def test_the_queue_shows_each_lane(gateway: Gateway) -> None:
    read_lag(gateway, partition(0, 3, 9, begun={3: 0}))
    shown = (await answer_of(gateway, "/v1/queue")).json()
    assert shown["seconds_per_task"] is None
    standard_lane, vip_lane = shown["lanes"]
    assert standard_lane == {
        "name": "standard",
        "priority": "standard",
        "waiting": 5,
        "running": 1,
        "workers": 1,
        "oldest_waiting_seconds": 0,
        "completed_per_minute": None,
        "eta_seconds": None,
        "why": "5 tasks of the lane standard are before it; 1 worker is ready; "
        "too few tasks were finished lately to know how long one takes",
    }
    assert (vip_lane["priority"], vip_lane["waiting"], vip_lane["why"]) == (
        "vip",
        None,
        "the lane vip: was not read yet",
    )


async def test_a_pool_has_the_workers_of_its_lanes_once(gateway: Gateway) -> None:
    for lane in (lag(partition(0, 3, 9, begun={3: 0}), partition(1, 4, 4)), lag(partition(0, 2, 2), topic=VIP)):
        gateway.one.app.state.services.lanes.observe(lane, gateway.clock.monotonic())
    shown = (await answer_of(gateway, "/v1/pools")).json()
    [pool] = shown["data"]
    assert [name for name, value in pool.items() if value is None][1:-1] == TOLD
    assert {name: value for name, value in pool.items() if name not in TOLD} == (
        {
            "consumer_group": GROUP,
            "lanes": ["standard", "vip"],
            "ready": 2,
            "busy": 1,
            "lag": 6,
            "waiting": 5,
            "completed_per_minute": None,
            "problem": None,
        }
    )
    assert "Kubernetes" in shown["left_out"]


async def test_what_is_not_known_of_a_pool_is_null_with_the_reason(gateway: Gateway) -> None:
    read_lag(gateway, partition(0, 3, 9))
    (pool,) = (await answer_of(gateway, "/v1/pools")).json()["data"]
    assert (pool["ready"], pool["lag"], pool["waiting"]) == (None, None, None)
    assert pool["problem"] == "the lane vip: was not read yet"


def test_lanes_have_the_names_of_the_settings(tmp_path: Path) -> None:
    settings = keyed_settings(tmp_path)
    lanes = [
        {"name": "slow", "topic": STANDARD, "preference": 3},
        {"name": "mine", "topic": "else"},
        {"name": "own", "topic": VIP, "consumer_group": "vip-pool"},
    ]
    named = GatewaySettings.model_validate(settings.model_dump() | {"lanes": lanes})
    served = served_lanes(named.consumer_group, named.lanes, named.topics)
    assert {lane.group: lane.topic for lane in served} == named.groups()
    assert [(lane.name, lane.priority, lane.preference, lane.group, lane.pool) for lane in served] == [
        ("slow", "standard", 3, GROUP, GROUP),
        ("mine", None, 0, f"{GROUP}-mine", GROUP),
        ("own", "vip", 0, "vip-pool", "vip-pool"),
    ]
