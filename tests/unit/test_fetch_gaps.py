"""What is passed over in a log, and what of that is lost: every record that went away unseen, and nothing else."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fluxpool_worker.agent.consumer.fetch_gaps import FetchGaps, is_another_log, lost_range


def settled(low_watermark: int | None) -> FetchGaps:
    reading = FetchGaps()
    reading.set_start(low_watermark)
    return reading


def see_record(reading: FetchGaps, offset: int) -> None:
    reading.see(offset, next_offset=offset + 1)


@pytest.mark.parametrize(
    ("expected", "seen", "log_start", "lost"),
    [
        (5, 8, 8, [5, 6, 7]),
        (5, 8, 7, [5, 6]),
        (5, 8, 20, [5, 6, 7]),
        (5, 8, 5, []),
        (5, 8, 0, []),
        (5, 5, 9, []),
    ],
)
def test_lost_is_what_was_passed_over_and_lies_before_the_beginning_of_the_log(
    expected: int, seen: int, log_start: int, lost: list[int]
) -> None:
    assert list(lost_range(expected=expected, seen=seen, log_start=log_start)) == lost


def test_records_one_after_the_other_leave_no_gap() -> None:
    reading = settled(5)
    for offset in (5, 6, 7):
        see_record(reading, offset)
    reading.see(8, next_offset=8)
    assert reading.gaps == []


def test_the_first_record_is_held_against_what_the_group_committed_whichever_is_known_first() -> None:
    known_first = settled(5)
    see_record(known_first, 8)
    seen_first = FetchGaps()
    see_record(seen_first, 8)
    see_record(seen_first, 11)
    assert seen_first.goes_back(9)
    seen_first.set_start(5)
    assert known_first.gaps == [range(5, 8)]
    assert seen_first.gaps == [range(5, 8), range(9, 11)]


def test_a_group_that_has_committed_nothing_misses_nothing_before_its_first_record() -> None:
    reading = settled(None)
    see_record(reading, 100)
    assert reading.gaps == []
    see_record(reading, 102)
    assert reading.gaps == [range(101, 102)]


def test_the_position_shows_a_gap_where_no_record_follows() -> None:
    reading = settled(3)
    reading.see(3, next_offset=3)
    reading.see(9, next_offset=9)
    assert reading.gaps == [range(3, 9)]
    assert reading.explain([range(3, 9)], log_start=9) == [range(3, 9)]
    assert reading.gaps == []


def test_what_is_in_flight_or_done_here_is_no_loss_when_it_does_not_come_again() -> None:
    reading = settled(8)
    see_record(reading, 5)
    see_record(reading, 11)
    assert reading.gaps == [range(8, 11)]


def test_a_gap_is_explained_once_and_only_while_it_is_open() -> None:
    reading = settled(0)
    see_record(reading, 4)
    asked = list(reading.gaps)
    see_record(reading, 9)
    assert reading.explain(asked, log_start=2) == [range(2)]
    assert reading.gaps == [range(5, 9)]
    assert reading.explain(asked, log_start=2) == []


def test_an_open_gap_outlives_a_rebalance_as_far_as_it_is_not_seen_again() -> None:
    reading = settled(0)
    see_record(reading, 4)
    see_record(reading, 9)
    reading.begin()
    reading.set_start(2)
    assert reading.gaps == [range(2)]
    see_record(reading, 4)
    assert reading.gaps == [range(2), range(2, 4)]


def test_an_assignment_that_was_never_read_leaves_the_gaps_before_it_open() -> None:
    reading = settled(0)
    see_record(reading, 4)
    reading.begin()
    reading.begin()
    reading.set_start(5)
    assert reading.gaps == [range(4)]


def test_only_what_was_seen_in_the_same_assignment_tells_that_the_log_goes_back() -> None:
    reading = settled(5)
    assert not reading.goes_back(0)
    see_record(reading, 5)
    assert [offset for offset in range(8) if reading.goes_back(offset)] == [0, 1, 2, 3, 4, 5]
    reading.begin()
    assert not reading.goes_back(0)


@pytest.mark.parametrize(
    ("next_offset", "known", "committed", "log_end", "another"),
    [
        (None, None, None, None, False),
        (None, None, 7, None, False),
        (5, 5, 5, 5, False),
        (5, 5, 5, 9, False),
        (5, 5, 5, 4, True),
        (5, 5, 5, None, False),
        (5, None, None, 5, False),
        (5, None, None, 4, True),
        (5, 3, None, 90, True),
        (5, 3, None, None, True),
        (0, 0, None, 1, True),
    ],
)
def test_another_log_shows_by_its_end_or_by_commits_that_the_broker_forgot(
    *, next_offset: int | None, known: int | None, committed: int | None, log_end: int | None, another: bool
) -> None:
    found = is_another_log(next_offset=next_offset, known_committed=known, committed=committed, log_end=log_end)
    assert found is another


@pytest.mark.parametrize(
    ("known_topic", "committed_topic", "another"),
    [("a", "a", False), ("a", "b", True), (None, "b", False), ("a", None, False), (None, None, False)],
)
def test_another_log_shows_by_the_topic_that_commits_are_about(
    *, known_topic: str | None, committed_topic: str | None, another: bool
) -> None:
    found = is_another_log(
        next_offset=5,
        known_committed=5,
        committed=5,
        log_end=9,
        known_topic=known_topic,
        committed_topic=committed_topic,
    )
    assert found is another


@given(
    low_watermark=st.integers(0, 10),
    steps=st.lists(st.tuples(st.integers(0, 4), st.booleans()), max_size=12),
    settled_after=st.integers(0, 12),
    log_start=st.integers(0, 60),
)
def test_lost_and_seen_together_are_all_that_lies_before_the_beginning_of_the_log(
    low_watermark: int, steps: list[tuple[int, bool]], settled_after: int, log_start: int
) -> None:
    reading, offset, seen = FetchGaps(), low_watermark, set[int]()
    for number, (skipped, is_record) in enumerate(steps):
        if number == settled_after:
            reading.set_start(low_watermark)
        offset += skipped
        reading.see(offset, next_offset=offset + is_record)
        if is_record:
            seen.add(offset)
        offset += is_record
    if not reading.has_start:
        reading.set_start(low_watermark)
    lost = [offset for gap in reading.explain(list(reading.gaps), log_start=log_start) for offset in gap]
    expected = [passed for passed in range(low_watermark, min(offset, log_start)) if passed not in seen]
    assert sorted(lost) == expected
    assert len(lost) == len(set(lost))
