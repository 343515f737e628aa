"""What is passed over in a log, and what of that is lost: every record that went away unseen, and nothing else."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fluxpool_worker.agent.consumer.gap_tracker import FetchGaps, lost_range


def started(low_watermark: int | None) -> FetchGaps:
    fetched = FetchGaps()
    fetched.set_start(low_watermark)
    return fetched


def see_record(fetched: FetchGaps, offset: int) -> None:
    fetched.see(offset, next_offset=offset + 1)


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
    fetched = started(5)
    for offset in (5, 6, 7):
        see_record(fetched, offset)
    fetched.see(8, next_offset=8)
    assert fetched.gaps == []


def test_the_first_record_is_held_against_what_the_group_committed() -> None:
    fetched = started(5)
    see_record(fetched, 8)
    see_record(fetched, 11)
    assert fetched.gaps == [range(5, 8), range(9, 11)]


def test_a_group_that_has_committed_nothing_misses_nothing_before_its_first_record() -> None:
    fetched = started(None)
    see_record(fetched, 100)
    assert fetched.gaps == []
    see_record(fetched, 102)
    assert fetched.gaps == [range(101, 102)]


def test_the_position_shows_a_gap_where_no_record_follows() -> None:
    fetched = started(3)
    fetched.see(3, next_offset=3)
    fetched.see(9, next_offset=9)
    assert fetched.gaps == [range(3, 9)]
    assert fetched.explain([range(3, 9)], log_start=9) == [range(3, 9)]
    assert fetched.gaps == []


def test_what_is_in_flight_or_done_here_is_no_loss_when_it_does_not_come_again() -> None:
    fetched = started(8)
    see_record(fetched, 5)
    see_record(fetched, 11)
    assert fetched.gaps == [range(8, 11)]


def test_a_gap_is_explained_once_and_only_while_it_is_open() -> None:
    fetched = started(0)
    see_record(fetched, 4)
    asked = list(fetched.gaps)
    see_record(fetched, 9)
    assert fetched.explain(asked, log_start=2) == [range(2)]
    assert fetched.gaps == [range(5, 9)]
    assert fetched.explain(asked, log_start=2) == []


def test_an_open_gap_outlives_a_rebalance_as_far_as_it_is_not_seen_again() -> None:
    fetched = started(0)
    see_record(fetched, 4)
    see_record(fetched, 9)
    fetched.has_start = False
    fetched.set_start(2)
    assert fetched.gaps == [range(2)]
    see_record(fetched, 4)
    assert fetched.gaps == [range(2), range(2, 4)]


def test_an_assignment_that_was_never_read_leaves_the_gaps_before_it_open() -> None:
    fetched = started(0)
    see_record(fetched, 4)
    fetched.has_start = False
    fetched.set_start(5)
    assert fetched.gaps == [range(4)]


def test_only_what_was_seen_in_the_same_assignment_tells_that_the_log_goes_back() -> None:
    fetched = started(5)
    assert not fetched.goes_back(0)
    see_record(fetched, 5)
    assert [offset for offset in range(8) if fetched.goes_back(offset)] == [0, 1, 2, 3, 4, 5]
    fetched.set_start(5)
    assert not fetched.goes_back(0)


@given(
    low_watermark=st.integers(0, 10),
    steps=st.lists(st.tuples(st.integers(0, 4), st.booleans()), max_size=12),
    log_start=st.integers(0, 60),
)
def test_lost_and_seen_together_are_all_that_lies_before_the_beginning_of_the_log(
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
