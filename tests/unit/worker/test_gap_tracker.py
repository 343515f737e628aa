"""Gaps in a log, and which of their records are lost: exactly those deleted before they were consumed."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fluxpool_worker.agent.consumer.gap_tracker import FetchGaps


def started(low_watermark: int | None) -> FetchGaps:
    fetched = FetchGaps()
    fetched.set_start(low_watermark)
    return fetched


def consume(fetched: FetchGaps, offset: int) -> None:
    fetched.see(offset, next_offset=offset + 1)


@pytest.mark.parametrize(
    ("expected", "seen", "log_start", "lost"),
    [
        (5, 8, 8, [range(5, 8)]),
        (5, 8, 7, [range(5, 7)]),
        (5, 8, 20, [range(5, 8)]),
        (5, 8, 5, []),
        (5, 8, 0, []),
        (5, 5, 9, []),
    ],
)
def test_skipped_offsets_below_the_low_watermark_are_lost(
    expected: int, seen: int, log_start: int, lost: list[range]
) -> None:
    fetched = started(expected)
    consume(fetched, seen)
    assert fetched.explain(list(fetched.gaps), log_start=log_start) == lost
    assert fetched.gaps == []


def test_consecutive_records_leave_no_gap() -> None:
    fetched = started(5)
    for offset in (5, 6, 7):
        consume(fetched, offset)
    fetched.see(8, next_offset=8)
    assert fetched.gaps == []


def test_the_first_record_is_compared_with_the_committed_offset() -> None:
    fetched = started(5)
    consume(fetched, 8)
    consume(fetched, 11)
    assert fetched.gaps == [range(5, 8), range(9, 11)]


def test_a_group_that_has_committed_nothing_misses_nothing_before_its_first_record() -> None:
    fetched = started(None)
    consume(fetched, 100)
    assert fetched.gaps == []
    consume(fetched, 102)
    assert fetched.gaps == [range(101, 102)]


def test_the_position_shows_a_gap_where_no_record_follows() -> None:
    fetched = started(3)
    fetched.see(3, next_offset=3)
    fetched.see(9, next_offset=9)
    assert fetched.gaps == [range(3, 9)]
    assert fetched.explain([range(3, 9)], log_start=9) == [range(3, 9)]
    assert fetched.gaps == []


def test_records_in_flight_or_done_are_not_lost_when_they_are_not_delivered_again() -> None:
    fetched = started(8)
    consume(fetched, 5)
    consume(fetched, 11)
    assert fetched.gaps == [range(8, 11)]


def test_a_gap_is_explained_once_and_only_while_it_is_open() -> None:
    fetched = started(0)
    consume(fetched, 4)
    asked = list(fetched.gaps)
    consume(fetched, 9)
    assert fetched.explain(asked, log_start=2) == [range(2)]
    assert fetched.gaps == [range(5, 9)]
    assert fetched.explain(asked, log_start=2) == []


def test_an_open_gap_remains_after_a_rebalance_where_it_is_not_consumed() -> None:
    fetched = started(0)
    consume(fetched, 4)
    consume(fetched, 9)
    fetched.has_start = False
    fetched.set_start(2)
    assert fetched.gaps == [range(2)]
    consume(fetched, 4)
    assert fetched.gaps == [range(2), range(2, 4)]


def test_an_assignment_without_records_leaves_earlier_gaps_open() -> None:
    fetched = started(0)
    consume(fetched, 4)
    fetched.has_start = False
    fetched.set_start(5)
    assert fetched.gaps == [range(4)]


def test_only_records_of_the_same_assignment_show_that_the_log_went_back() -> None:
    fetched = started(5)
    assert not fetched.goes_back(0)
    consume(fetched, 5)
    assert [offset for offset in range(8) if fetched.goes_back(offset)] == [0, 1, 2, 3, 4, 5]
    fetched.set_start(5)
    assert not fetched.goes_back(0)


@given(
    low_watermark=st.integers(0, 10),
    steps=st.lists(st.tuples(st.integers(0, 4), st.booleans()), max_size=12),
    log_start=st.integers(0, 60),
)
def test_lost_and_consumed_records_are_all_below_the_low_watermark(
    low_watermark: int, steps: list[tuple[int, bool]], log_start: int
) -> None:
    fetched, offset, seen = started(low_watermark), low_watermark, set[int]()
    for skipped, is_record in steps:
        offset += skipped
        fetched.see(offset, next_offset=offset + is_record)
        if is_record:
            seen.add(offset)
        offset += is_record
    lost = [offset for gap in fetched.explain(list(fetched.gaps), log_start=log_start) for offset in gap]
    expected = [passed for passed in range(low_watermark, min(offset, log_start)) if passed not in seen]
    assert sorted(lost) == expected
    assert len(lost) == len(set(lost))
