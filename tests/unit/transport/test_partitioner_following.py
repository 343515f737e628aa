"""Which partitions are followed for the arrivals in them, and when what others sent is known."""

from fluxpool_transport.partitioner.arrival_reader import BEHIND_SECONDS, MOST_FOLLOWED_PER_SECOND, Following

A, B, C = ("tasks", 0), ("tasks", 1), ("tasks", 2)


def followed(ends: dict[tuple[str, int], int]) -> Following:
    following = Following()
    following.use(ends, now=0)
    return following


def test_partitions_are_followed_from_the_ends_that_were_read_first() -> None:
    following = Following()
    assert not following.use({A: 5, B: 0}, now=0)
    assert following.positions == {A: 5, B: 0}


def test_others_are_known_once_all_before_the_reading_before_has_arrived() -> None:
    following = followed({A: 5, B: 0})
    assert following.use({A: 7, B: 0}, now=1)
    assert not following.use({A: 7, B: 0}, now=2)
    following.advance({A: 7})
    assert following.use({A: 9, B: 0}, now=3)


def test_a_partition_that_was_added_is_followed_from_its_end_and_the_others_go_on() -> None:
    following = followed({A: 5})
    following.advance({A: 8})
    following.use({A: 6, C: 2}, now=1)
    assert following.positions == {A: 8, C: 2}


def test_what_is_left_of_a_partition_that_is_not_followed_changes_nothing() -> None:
    following = followed({A: 5})
    following.advance({C: 8})
    assert following.positions == {A: 5}


def test_nothing_is_followed_while_too_much_arrives() -> None:
    following = followed({A: 0})
    many = int(MOST_FOLLOWED_PER_SECOND) + 1
    assert not following.use({A: many}, now=1)
    assert following.positions == {}
    assert not following.use({A: 2 * many}, now=2)
    assert following.positions == {}
    assert not following.use({A: 2 * many + 1}, now=3)
    assert following.positions == {A: 2 * many + 1}
    assert following.use({A: 2 * many + 1}, now=4)


def test_a_reader_that_is_behind_for_long_begins_again_at_the_ends() -> None:
    following = followed({A: 0})
    following.use({A: 1}, now=1)
    assert not following.use({A: 1}, now=2)
    assert following.positions == {A: 0}
    assert not following.use({A: 1}, now=1 + BEHIND_SECONDS + 1)
    assert following.positions == {}
    following.use({A: 3}, now=BEHIND_SECONDS + 3)
    assert following.positions == {A: 3}


def test_offsets_of_a_recreated_topic_are_followed() -> None:
    following = followed({A: 50})
    # The consumer finds the offset out of range, and the new end.
    following.advance({A: 0})
    following.use({A: 0}, now=1)
    assert following.use({A: 1}, now=2)
