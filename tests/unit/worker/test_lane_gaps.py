"""A lane whose log loses records or whose topic is replaced, on a modelled Kafka with controlled timing."""

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
import structlog
from aiokafka import TopicPartition
from aiokafka.errors import TopicAuthorizationFailedError
from aiokafka.structs import ConsumerRecord, OffsetAndMetadata

from fluxpool_contract.kafka.ledger import LedgerEntry, committed_topic_id, encode_ledger
from fluxpool_worker.agent.consumer.assignment_loader import TOPIC_CHECK_SECONDS, TopicReplacedError
from fluxpool_worker.agent.consumer.events import LaneEvents
from fluxpool_worker.agent.consumer.lane import HEADS_PER_PARTITION, STABLE_SECONDS, ClaimedRecord, LaneConsumer
from fluxpool_worker.agent.task.holds import HoldExpiredError, Holds
from kit.models.modelled_kafka import Link, LinkState, ModelConsumer, ModelGroup, SteppedLoop

TOPIC = "tasks"
PARTITION = TopicPartition(TOPIC, 0)
LONG_SECONDS = 20.0
"""Longer than any deadline of the lane."""


class Bench(LaneEvents):
    """One lane, alone in its group on one partition."""

    def __init__(self, loop: SteppedLoop, *, hold_limit_seconds: float = float("inf")) -> None:
        self.loop = loop
        self.link, self.leaders = Link(), Link()
        self.lost: list[int] = []
        self.commits: list[int] = []
        self.consumers: list[ModelConsumer] = []
        self.given_up: list[int] = []
        self.failures = 0
        self.group = ModelGroup(
            TOPIC,
            partitions=1,
            on_commit=lambda _commit, _partition, committed: self.commits.append(committed.offset),
            on_removed=lambda _consumer: None,
        )
        self.topic_id: str | None = None
        self.holds = Holds(limit_seconds=hold_limit_seconds, clock=loop.time)
        self.start()

    def start(self) -> None:
        """Start a worker."""
        self.lane = LaneConsumer(
            name="standard",
            topic=TOPIC,
            build_consumer=self.build_consumer,
            ask_topic_id=self.ask_topic_id,
            events=self,
            holds=self.holds,
            revoke_wait_seconds=0,
        )
        self.running = self.loop.create_task(self.lane.run())
        self.run_for()

    def stop(self) -> None:
        """Kill the worker and let its session expire."""
        self.running.cancel()
        self.run_for()
        self.group.remove(self.consumers[-1])

    def restart(self, *, topic_id: str | None) -> None:
        """Replace the worker with a new one, while the topic has that id."""
        self.stop()
        self.topic_id = topic_id
        self.start()

    async def ask_topic_id(self) -> str | None:
        return self.topic_id

    def on_records_lost(self, count: int) -> None:
        self.lost.append(count)

    def on_consumer_failed(self) -> None:
        self.failures += 1

    def crashes_of(self, entry: LedgerEntry) -> int:
        return entry.crashes

    def build_consumer(self) -> Any:
        self.consumers.append(ModelConsumer(self.group, self.link, leaders=self.leaders))
        return self.consumers[-1]

    def run_for(self, seconds: float = 1.0) -> None:
        self.loop.run_for(seconds)

    def produce(self, count: int) -> None:
        for _ in range(count):
            offset = self.group.ends[PARTITION]
            self.group.append(ConsumerRecord(TOPIC, 0, offset, offset, 0, None, b"", None, -1, -1, ()))
        self.run_for()

    def claim(self) -> ClaimedRecord:
        claimed = self.lane.claim_next()
        assert claimed is not None
        claimed.on_lost = lambda: self.given_up.append(claimed.record.offset)
        self.run_for()
        return claimed

    def record(self, claimed: ClaimedRecord) -> None:
        entry = LedgerEntry(task="t", worker="pod", started_at=0, crashes=0, released=False)
        recorded = self.loop.create_task(self.lane.record(claimed, entry))
        self.run_for()
        recorded.result()

    def finish(self, claimed: ClaimedRecord) -> None:
        finished = self.loop.create_task(self.lane.finish(claimed))
        self.run_for()
        finished.result()

    def do_next(self, count: int = 1) -> list[int]:
        done = []
        for _ in range(count):
            claimed = self.claim()
            self.finish(claimed)
            done.append(claimed.record.offset)
        return done

    def lose_in_front(self, count: int) -> None:
        """Produce and delete records before the consumer fetches any of them."""
        self.link.become(LinkState.SLOW)
        self.produce(count)
        self.group.delete_before(PARTITION, self.group.ends[PARTITION])
        self.link.become(LinkState.UP)
        self.run_for()

    @property
    def committed(self) -> int:
        return self.group.committed_offset(PARTITION)


@pytest.fixture
def logged() -> Iterator[list[Any]]:
    with structlog.testing.capture_logs() as logged:
        yield logged


@pytest.fixture(params=[float("inf")])
def bench(logged: list[Any], request: pytest.FixtureRequest) -> Iterator[Bench]:
    assert logged == []
    loop = SteppedLoop()
    asyncio.set_event_loop(loop)
    bench = Bench(loop, hold_limit_seconds=request.param)
    yield bench
    tasks = asyncio.all_tasks(loop)
    for task in tasks:
        task.cancel()
    loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
    loop.close()
    asyncio.set_event_loop(None)


def lost_ranges(logged: list[Any]) -> list[range]:
    return [range(line["first"], line["end"]) for line in logged if line["event"] == "records_lost"]


def test_records_deleted_behind_full_heads_are_logged_once_with_the_exact_range(
    bench: Bench, logged: list[Any]
) -> None:
    bench.produce(HEADS_PER_PARTITION + 20)
    gone_before = HEADS_PER_PARTITION + 11
    bench.group.delete_before(PARTITION, gone_before)
    kept = range(HEADS_PER_PARTITION)
    assert bench.do_next(len(kept) + 2) == [*kept, gone_before, gone_before + 1]
    assert lost_ranges(logged) == [range(HEADS_PER_PARTITION, gone_before)]
    assert bench.lost == [11]
    assert bench.committed == gone_before + 2


def test_markers_and_compacted_records_cost_a_request_and_log_no_loss(bench: Bench, logged: list[Any]) -> None:
    bench.produce(2)
    for _ in range(3):
        bench.group.append_marker(PARTITION)
    bench.produce(1)
    assert bench.do_next(3) == [0, 1, 5]
    assert bench.consumers[0].asked_for_starts == 1
    assert (lost_ranges(logged), bench.lost) == ([], [])


def test_no_request_is_sent_without_a_gap(bench: Bench) -> None:
    bench.produce(9)
    bench.do_next(9)
    bench.group.rebalance()
    bench.run_for()
    bench.produce(2)
    bench.do_next(2)
    assert bench.consumers[0].asked_for_starts == 0


def test_a_loss_is_logged_before_the_position_after_it_is_committed(bench: Bench, logged: list[Any]) -> None:
    bench.produce(1)
    bench.do_next()
    bench.leaders.become(LinkState.SLOW)
    bench.lose_in_front(6)
    assert (lost_ranges(logged), bench.committed) == ([], 1)
    bench.leaders.become(LinkState.UP)
    bench.run_for()
    assert lost_ranges(logged) == [range(1, 7)]
    assert bench.committed == 7


def test_an_unconfirmed_loss_delays_a_commit_for_a_limited_time_and_is_logged_later(
    bench: Bench, logged: list[Any]
) -> None:
    bench.produce(1)
    bench.do_next()
    bench.leaders.become(LinkState.SLOW)
    bench.lose_in_front(6)
    bench.run_for(LONG_SECONDS)
    assert (lost_ranges(logged), bench.committed) == ([], 7)
    bench.leaders.become(LinkState.UP)
    bench.run_for(LONG_SECONDS)
    assert lost_ranges(logged) == [range(1, 7)]
    assert bench.lost == [6]


def test_a_loss_noticed_before_a_rebalance_is_logged_once(bench: Bench, logged: list[Any]) -> None:
    bench.produce(1)
    bench.do_next()
    bench.leaders.become(LinkState.SLOW)
    bench.lose_in_front(6)
    bench.group.rebalance()
    bench.run_for()
    bench.leaders.become(LinkState.UP)
    bench.run_for(LONG_SECONDS)
    assert lost_ranges(logged) == [range(1, 7)]
    assert bench.committed == 7


def test_records_lost_during_a_rebalance_are_logged(bench: Bench, logged: list[Any]) -> None:
    bench.produce(12)
    claimed = [bench.claim() for _ in range(2)]
    bench.record(claimed[0])
    bench.link.become(LinkState.SLOW)
    bench.group.delete_before(PARTITION, 10)
    bench.link.become(LinkState.UP)
    bench.group.rebalance()
    bench.run_for(LONG_SECONDS)
    for one in claimed:
        bench.finish(one)
    assert bench.do_next(2) == [10, 11]
    assert lost_ranges(logged) == [range(2, 10)]
    assert bench.committed == 12


def test_a_log_that_goes_back_ends_the_lane_and_is_read_from_its_beginning_by_the_next(bench: Bench) -> None:
    bench.produce(4)
    bench.do_next(2)
    old = bench.claim()
    bench.record(old)
    bench.group.make_again(PARTITION)
    bench.run_for()
    with pytest.raises(TopicReplacedError, match="topic tasks went back to offset 0 in partition 0"):
        bench.running.result()
    assert (bench.given_up, bench.committed) == ([2], 0)
    bench.produce(5)
    bench.start()
    assert bench.do_next(5) == [0, 1, 2, 3, 4]
    assert bench.committed == 5


def test_a_topic_with_another_id_ends_the_lane_at_the_next_assignment_or_within_a_minute(bench: Bench) -> None:
    bench.restart(topic_id="former")
    bench.produce(1)
    bench.do_next()
    bench.topic_id = "present"
    bench.run_for(TOPIC_CHECK_SECONDS - 10)
    assert not bench.running.done()
    bench.run_for(10)
    with pytest.raises(TopicReplacedError, match=r"deleted and created again \(id former before, present now\)"):
        bench.running.result()
    bench.start()
    bench.topic_id = "later"
    bench.group.rebalance()
    bench.run_for()
    with pytest.raises(TopicReplacedError):
        bench.running.result()


def test_no_record_of_another_topic_is_started_where_its_commits_went_with_the_former_one(bench: Bench) -> None:
    bench.restart(topic_id="former")
    bench.produce(1)
    bench.do_next()
    bench.topic_id = "present"
    del bench.group.committed[PARTITION]
    bench.group.rebalance()
    bench.produce(2)
    with pytest.raises(TopicReplacedError):
        bench.running.result()
    assert bench.lane.claim_next() is None
    assert PARTITION not in bench.group.committed


def test_a_topic_whose_id_is_unknown_for_a_while_is_the_same_topic(bench: Bench) -> None:
    bench.restart(topic_id="present")
    bench.produce(1)
    bench.do_next()
    for topic_id in (None, "present"):
        bench.topic_id = topic_id
        bench.run_for(2 * TOPIC_CHECK_SECONDS)
    assert not bench.running.done()
    assert committed_topic_id(bench.group.committed[PARTITION].metadata) == "present"


def test_a_commit_of_a_former_topic_is_not_used_and_the_present_one_is_processed_from_its_first_record(
    bench: Bench, logged: list[Any]
) -> None:
    bench.stop()
    bench.group.committed[PARTITION] = OffsetAndMetadata(2, encode_ledger({}, topic_id="former"))
    bench.restart(topic_id="present")
    bench.run_for()
    committed = bench.group.committed[PARTITION]
    assert (committed.offset, committed_topic_id(committed.metadata)) == (0, "present")
    bench.produce(5)
    assert bench.do_next(5) == [0, 1, 2, 3, 4]
    assert bench.committed == 5
    assert lost_ranges(logged) == []


def test_a_commit_of_a_former_topic_is_not_used_where_the_present_one_has_more_records(bench: Bench) -> None:
    bench.stop()
    bench.produce(5)
    bench.group.committed[PARTITION] = OffsetAndMetadata(2, encode_ledger({}, topic_id="former"))
    bench.restart(topic_id="present")
    assert bench.do_next(5) == [0, 1, 2, 3, 4]
    assert bench.committed == 5


def test_a_late_commit_for_the_former_topic_loses_no_record_of_the_present_one(bench: Bench) -> None:
    bench.restart(topic_id="present")
    bench.produce(5)
    assert bench.do_next(2) == [0, 1]
    in_flight = bench.claim()
    bench.group.committed[PARTITION] = OffsetAndMetadata(4, encode_ledger({}, topic_id="former"))
    bench.group.rebalance()
    bench.run_for()
    assert bench.committed == 2
    bench.finish(in_flight)
    assert bench.do_next(2) == [3, 4]
    assert (bench.committed, bench.given_up) == (5, [])


def test_a_ledger_of_a_later_topic_ends_a_lane_that_has_the_former_id(bench: Bench) -> None:
    bench.restart(topic_id="former")
    bench.topic_id = "present"
    bench.group.committed[PARTITION] = OffsetAndMetadata(3, encode_ledger({}, topic_id="present"))
    bench.group.rebalance()
    bench.run_for()
    with pytest.raises(TopicReplacedError):
        bench.running.result()
    assert bench.committed == 3


def test_an_idle_member_commits_no_offset_of_the_former_topic(bench: Bench) -> None:
    bench.produce(3)
    bench.do_next(3)
    bench.leaders.become(LinkState.SLOW)
    bench.link.become(LinkState.SLOW)
    bench.group.make_again(PARTITION)
    bench.link.state = LinkState.UP
    leaving = bench.loop.create_task(bench.lane.leave())
    bench.run_for(LONG_SECONDS)
    assert leaving.done()
    assert bench.commits == [1, 2, 3, 0]
    assert isinstance(bench.running.exception(), TopicReplacedError)


def test_commits_that_a_coordinator_lost_do_not_undo_a_running_workers_progress(bench: Bench) -> None:
    bench.produce(4)
    bench.do_next(2)
    committed = bench.group.committed.pop(PARTITION)
    bench.group.rebalance()
    bench.run_for(LONG_SECONDS)
    bench.group.committed[PARTITION] = committed
    assert bench.do_next(2) == [2, 3]
    assert bench.committed == 4
    assert not bench.running.done()


def test_a_missing_topic_is_logged_with_the_remedy_and_processed_when_it_is_back(
    bench: Bench, logged: list[Any]
) -> None:
    bench.produce(3)
    bench.record(bench.claim())
    log = bench.group.log.pop(PARTITION)
    bench.group.rebalance()
    bench.run_for()
    assert [line["remedy"] for line in logged if line["event"] == "topic_missing"] == ["create the topic"]
    assert bench.given_up == [0]
    bench.group.log[PARTITION] = log
    bench.group.rebalance()
    bench.run_for()
    assert bench.do_next(3) == [0, 1, 2]
    assert bench.committed == 3


def test_an_internal_error_of_a_consumer_only_replaces_the_consumer(
    bench: Bench, logged: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def poll(**_arguments: Any) -> None:
        raise UnicodeDecodeError("utf-8", b"\xe9", 0, 1, "invalid start byte")

    bench.produce(2)
    assert bench.do_next(1) == [0]
    monkeypatch.setattr(bench.consumers[-1], "getmany", poll)
    bench.run_for(LONG_SECONDS)
    assert [line["event"] for line in logged if line["log_level"] == "error"] == ["lane_failed"]
    assert (len(bench.consumers), bench.failures, bench.running.done()) == (2, 1, False)
    assert bench.do_next(1) == [1]
    assert bench.committed == 2


@pytest.mark.parametrize("bench", [20.0], indirect=True)
def test_a_lane_whose_consumers_all_fail_ends_within_the_hold_limit(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def poll(_consumer: ModelConsumer, **_arguments: Any) -> None:
        raise TopicAuthorizationFailedError(TOPIC)

    monkeypatch.setattr(ModelConsumer, "getmany", poll)
    bench.run_for(15)
    assert not bench.running.done()
    assert bench.failures <= 16
    bench.run_for(10)
    with pytest.raises(HoldExpiredError, match=r"consumer of lane standard failed.*TopicAuthorizationFailedError"):
        bench.running.result()


@pytest.mark.parametrize("bench", [20.0], indirect=True)
def test_failures_far_apart_do_not_end_the_lane(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    async def poll(**_arguments: Any) -> None:
        raise TopicAuthorizationFailedError(TOPIC)

    for number in range(1, 4):
        monkeypatch.setattr(bench.consumers[-1], "getmany", poll)
        bench.run_for(2 * STABLE_SECONDS)
        assert (bench.failures, bench.running.done()) == (number, False)
