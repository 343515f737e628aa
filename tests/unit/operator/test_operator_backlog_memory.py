"""The stored backlog of a pool: missing and implausible readings never become zero."""

import math
from dataclasses import replace

import pytest

from fluxpool_contract.kafka.ledger import LedgerEntry, encode_ledger
from fluxpool_operator.backlog import LaneObservation, LaneTarget, PoolBacklog
from fluxpool_operator.backlog.memory import CONFIRMING_SECONDS
from fluxpool_operator.backlog.observation import RetryTier
from fluxpool_operator.backlog.reading import Head, LaneReading
from fluxpool_transport.lag.lag_reader import PartitionLag, StalePartition

LANE = LaneTarget(name="standard", topic="tasks", consumer_group="group")
RETRYING = replace(
    LANE, retry_tiers=(RetryTier(topic="retry-15s", group="group-retry", delay_seconds=15.0, origins=("tasks",)),)
)
WALL = 1_700_000_000.0


def partition(
    number: int = 0, *, committed: int | None = 0, start: int = 0, end: int = 0, metadata: str = ""
) -> PartitionLag:
    return PartitionLag(
        partition=number, committed_offset=committed, log_start_offset=start, log_end_offset=end, metadata=metadata
    )


def stale(number: int = 0) -> StalePartition:
    return StalePartition(partition=number, reason="leader moves")


def reading(*partitions: PartitionLag | StalePartition, **fields: object) -> LaneReading:
    return replace(LaneReading(target=LANE, partitions=partitions), **fields)  # type: ignore[arg-type]


def pool(*readings: LaneReading, expired_before: int = 0) -> PoolBacklog:
    """A pool that was read once a second, the last time at second 0."""
    backlog = PoolBacklog([LANE], {LANE.name: expired_before})
    for place, item in enumerate(readings):
        backlog.update([item], place + 1.0 - len(readings))
    return backlog


def seen(backlog: PoolBacklog, *, now: float = 0.0) -> LaneObservation:
    (lane,) = backlog.observe(now, WALL)
    return lane


# Counts


@pytest.mark.parametrize(
    ("item", "waiting"),
    [
        (partition(committed=2, end=5), 3),
        (partition(committed=5, end=5), 0),
        (partition(committed=None, start=3, end=9), 6),
        (partition(committed=2, start=6, end=9), 3),
        (partition(committed=70, end=3), 3),
    ],
    ids=["lag", "caught up", "never committed", "expired", "made again"],
)
def test_pending_records_are_those_between_the_commit_and_the_end(item: PartitionLag, waiting: int) -> None:
    assert seen(pool(reading(item))).pending_records == waiting


def test_tasks_of_the_ledger_are_in_flight_with_their_pod_and_not_pending() -> None:
    ledger = encode_ledger({3: LedgerEntry(task="t-3", worker="pod-a", started_at=17, crashes=1)})
    lane = seen(pool(reading(partition(committed=3, end=6, metadata=ledger))))
    assert dict(lane.partitions[0].in_flight) == {3: LedgerEntry(task="t-3", worker="pod-a", started_at=17, crashes=1)}
    assert lane.pending_records == 2


def test_offsets_before_the_first_record_are_not_pending() -> None:
    marker = Head(offset=3, end_offset=4, record_offset=None)
    assert seen(pool(reading(partition(committed=3, end=4), heads={0: marker}))).pending_records == 0
    later = Head(offset=3, end_offset=9, record_offset=5, timestamp_ms=1)
    assert seen(pool(reading(partition(committed=3, end=9), heads={0: later}))).pending_records == 4


def test_a_head_is_remembered_until_the_commit_advances() -> None:
    marker = Head(offset=3, end_offset=4, record_offset=None)
    first = reading(partition(committed=3, end=4), heads={0: marker})
    assert seen(pool(first, reading(partition(committed=3, end=4)))).pending_records == 0
    assert seen(pool(first, reading(partition(committed=3, end=6)))).pending_records == 2
    assert seen(pool(first, reading(partition(committed=4, end=6)))).pending_records == 2


def test_the_oldest_age_is_that_of_the_oldest_head() -> None:
    heads = {
        0: Head(offset=0, end_offset=2, record_offset=0, timestamp_ms=int((WALL - 30) * 1000)),
        1: Head(offset=0, end_offset=2, record_offset=0, timestamp_ms=int((WALL - 90) * 1000)),
    }
    lane = seen(pool(reading(partition(0, end=2), partition(1, end=2), heads=heads)))
    assert lane.oldest_age_seconds == pytest.approx(90)


def test_without_pending_records_there_is_no_oldest_age() -> None:
    assert seen(pool(reading(partition(committed=2, end=2)))).oldest_age_seconds is None


# Missing readings


def test_a_lane_that_was_never_read_is_infinitely_old() -> None:
    lane = seen(PoolBacklog([LANE], {}))
    assert (lane.partitions, lane.age_seconds, lane.problem) == ((), math.inf, None)


def test_an_unreadable_partition_keeps_its_last_value_and_grows_old() -> None:
    backlog = pool(reading(partition(0, end=4), partition(1, end=2)), reading(stale(0), partition(1, end=3)))
    lane = seen(backlog, now=9.0)
    assert (lane.pending_records, lane.age_seconds) == (7, 10.0)
    assert lane.problem == "partition 0: leader moves"


def test_a_partition_that_was_never_read_makes_the_lane_infinitely_old() -> None:
    lane = seen(pool(reading(partition(0, end=4), stale(1))))
    assert (lane.pending_records, lane.age_seconds) == (4, math.inf)


def test_an_unreachable_broker_changes_nothing_but_the_age() -> None:
    backlog = pool(reading(partition(end=4)), LaneReading(target=LANE, problem="no broker answers"))
    lane = seen(backlog)
    assert (lane.pending_records, lane.age_seconds, lane.problem) == (4, 1.0, "no broker answers")


def test_a_good_reading_ends_the_problem() -> None:
    backlog = pool(LaneReading(target=LANE, problem="no broker answers"), reading(partition(end=4)))
    assert (seen(backlog).problem, seen(backlog).age_seconds) == (None, 0.0)


def test_unreadable_due_retries_keep_their_count_and_grow_old() -> None:
    backlog = PoolBacklog([RETRYING], {})
    backlog.update([reading(partition(), target=RETRYING, due_retries=3)], -1.0)
    backlog.update([reading(partition(), target=RETRYING, due_retries=None)], 0.0)
    assert (seen(backlog).due_retries, seen(backlog).age_seconds) == (3, 1.0)


def test_retry_topics_that_were_never_read_make_the_lane_infinitely_old() -> None:
    backlog = PoolBacklog([RETRYING], {})
    backlog.update([reading(partition(end=4), target=RETRYING, due_retries=None)], 0.0)
    assert (seen(backlog).pending_records, seen(backlog).age_seconds) == (4, math.inf)


def test_readings_of_foreign_lanes_are_ignored() -> None:
    foreign = replace(reading(partition(end=9)), target=replace(LANE, topic="other"))
    assert seen(pool(foreign)).partitions == ()


# Implausible readings

SURPRISES = [
    (reading(partition(committed=5, end=5)), reading(partition(committed=None, end=5)), 5),
    (reading(partition(committed=5, end=5)), reading(partition(committed=3, end=5)), 2),
    (reading(partition(committed=50, end=50)), reading(partition(committed=50, end=3)), 3),
    (reading(partition(0, end=4), partition(1, end=2)), reading(partition(0, end=4)), 4),
]
surprising = pytest.mark.parametrize(
    ("known", "surprise", "believed"), SURPRISES, ids=["commit gone", "set back", "made again", "missing"]
)


@surprising
def test_an_implausible_answer_is_ignored_until_it_is_confirmed(
    known: LaneReading, surprise: LaneReading, believed: int
) -> None:
    backlog = pool(known)
    before = seen(backlog).pending_records
    for now in (1.0, 5.0, CONFIRMING_SECONDS):
        backlog.update([surprise], now)
        lane = seen(backlog, now=now)
        assert (lane.pending_records, lane.age_seconds) == (before, now)
        assert lane.problem is not None
    backlog.update([surprise], CONFIRMING_SECONDS + 1.0)
    lane = seen(backlog, now=CONFIRMING_SECONDS + 1.0)
    assert (lane.pending_records, lane.age_seconds, lane.problem) == (believed, 0.0, None)


@surprising
def test_one_plausible_answer_ends_the_doubt(known: LaneReading, surprise: LaneReading, believed: int) -> None:
    backlog = pool(known)
    before = seen(backlog).pending_records
    for now in (1.0, 15.0):
        backlog.update([surprise], now)
    backlog.update([known], 20.0)
    backlog.update([surprise], 25.0)
    assert (seen(backlog).pending_records, before != believed) == (before, True)


def test_an_answer_with_errors_confirms_no_missing_partition() -> None:
    backlog = pool(reading(partition(0, end=4), partition(1, end=2)))
    for now in (1.0, 50.0, 100.0):
        backlog.update([reading(stale(0))], now)
    assert seen(backlog, now=100.0).pending_records == 6


def test_a_topic_that_is_gone_keeps_its_last_values() -> None:
    backlog = pool(reading(partition(end=4)))
    for now in (1.0, 50.0, 100.0):
        backlog.update([LaneReading(target=LANE, problem="unknown topic")], now)
    assert (seen(backlog, now=100.0).pending_records, seen(backlog, now=100.0).age_seconds) == (4, 100.0)


# Expired records


def test_records_that_expire_are_counted_once() -> None:
    gap = reading(partition(committed=2, start=6, end=9))
    lane = seen(pool(reading(partition(committed=2, end=9)), gap, gap))
    assert lane.expired_records_total == 4


def test_every_further_loss_is_added() -> None:
    readings = [reading(partition(committed=2, start=start, end=20)) for start in (0, 6, 8)]
    later = reading(partition(committed=10, start=8, end=20)), reading(partition(committed=10, start=15, end=20))
    assert seen(pool(*readings, *later)).expired_records_total == 4 + 2 + 5


def test_a_gap_that_an_earlier_operator_counted_is_not_counted_again() -> None:
    gap = reading(partition(committed=2, start=6, end=9))
    assert seen(pool(gap, expired_before=10)).expired_records_total == 10
    assert seen(pool(gap, expired_before=1)).expired_records_total == 4
    wider = reading(partition(committed=2, start=8, end=9))
    assert seen(pool(gap, wider, expired_before=10)).expired_records_total == 12


def test_records_of_a_group_without_commits_expire_from_when_they_were_observed() -> None:
    first = reading(partition(committed=None, start=5, end=9))
    second = reading(partition(committed=None, start=7, end=9))
    assert seen(pool(first)).expired_records_total == 0
    assert seen(pool(first, second)).expired_records_total == 2


def test_a_recreated_topic_has_no_expired_records() -> None:
    assert seen(pool(reading(partition(committed=70, start=2, end=9)))).expired_records_total == 0


# Idle ends


def test_a_lane_without_pending_records_is_watched_from_the_ends_that_were_read() -> None:
    backlog = pool(reading(partition(0, committed=4, end=4), partition(1, committed=None)))
    assert backlog.idle_ends() == {("tasks", 0): 4, ("tasks", 1): 0}


def test_tasks_in_flight_leave_a_lane_idle_and_pending_ones_do_not() -> None:
    ledger = encode_ledger({3: LedgerEntry(task="t", worker="pod", started_at=1)})
    assert pool(reading(partition(committed=3, end=4, metadata=ledger))).idle_ends() == {("tasks", 0): 4}
    assert pool(reading(partition(0, committed=3, end=4), partition(1))).idle_ends() == {}


def test_a_lane_that_was_never_read_has_no_ends_to_watch() -> None:
    assert pool(reading(stale())).idle_ends() == {}


# Input of the plan


def test_due_retries_are_lag_of_every_partition() -> None:
    backlog = pool(reading(partition(0, end=1), partition(1), partition(2), due_retries=4))
    (lane,) = backlog.observe(0.0, WALL)
    assert (lane.lag_records, lane.partitions_with_lag) == (5, 3)


@pytest.mark.parametrize(("due", "partitions"), [(0, 1), (1, 2), (2, 3), (3, 3)])
def test_due_retries_give_lag_to_idle_partitions(due: int, partitions: int) -> None:
    backlog = pool(reading(partition(0), partition(1, end=1), partition(2), due_retries=due))
    (lane,) = backlog.observe(0.0, WALL)
    assert lane.partitions_with_lag == partitions
