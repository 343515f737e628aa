"""The partition of a task for given loads: tables, and properties for any loads."""

import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fluxpool_transport.partitioner.topic_partitioner import (
    MAX_SNAPSHOT_AGE_SECONDS,
    SETTLING_SECONDS,
    LoadSnapshot,
    OwnerLoad,
    TopicPartitioner,
)

NOW = 1000.0
# Work of an owner and the records of each of its partitions.
Load = tuple[float, dict[int, int]]


def snapshot(*loads: Load, partitions: int | None = None, taken_at: float = NOW) -> LoadSnapshot:
    return LoadSnapshot(
        taken_at=taken_at,
        partition_count=sum(len(records) for _, records in loads) if partitions is None else partitions,
        owners=tuple(OwnerLoad(work=work, records=records) for work, records in loads),
    )


def new_choice(seed: int = 0) -> TopicPartitioner:
    return TopicPartitioner(random.Random(seed))  # noqa: S311 - no secret


def choice_by(*loads: Load, seed: int = 0, partitions: int | None = None, taken_at: float = NOW) -> TopicPartitioner:
    choice = new_choice(seed)
    choice.begin_reading(now=taken_at)
    choice.use(snapshot(*loads, partitions=partitions, taken_at=taken_at))
    return choice


def chosen(choice: TopicPartitioner, count: int, *, partitions: int, now: float = NOW, work: float = 1.0) -> list[int]:
    return [choice.choose(partitions=partitions, work=work, now=now) for _ in range(count)]


@pytest.mark.parametrize(
    ("loads", "expected"),
    [
        pytest.param(
            [(2.0, {0: 2, 1: 0}), (1.0, {2: 1, 3: 0})], [3], id="the least loaded owner, its emptiest partition"
        ),
        pytest.param([(3.0, {0: 1, 1: 2}), (2.0, {2: 2})], [2], id="a fuller partition of a less loaded owner"),
        pytest.param([(0.0, {0: 0}), (2.0, {1: 2})], [0, 0], id="own sends count"),
        pytest.param([(0.0, {0: 0, 1: 0}), (9.0, {2: 9})], [0, 1], id="own sends count on partitions too"),
        pytest.param([(0.4, {0: 1}), (1.0, {1: 1})], [0], id="the owner that is free first"),
        pytest.param([(0.0, {4: 0})], [4, 4, 4], id="only partitions that have an owner"),
    ],
)
def test_a_task_goes_to_the_owner_with_least_to_do(loads: list[Load], expected: list[int]) -> None:
    partitions = 6
    for seed in range(20):
        choice = choice_by(*loads, seed=seed, partitions=partitions)
        assert sorted(chosen(choice, len(expected), partitions=partitions)) == expected


def test_a_large_task_keeps_its_owner_out_of_the_choice_for_longer() -> None:
    choice = choice_by((0.0, {0: 0}), (1.5, {1: 1}))
    assert choice.choose(partitions=2, work=4.0, now=NOW) == 0
    assert chosen(choice, 2, partitions=2) == [1, 1]


def test_equal_owners_are_chosen_at_random() -> None:
    loads: list[Load] = [(0.0, {0: 0}), (0.0, {1: 0}), (0.0, {2: 0}), (0.0, {3: 0})]
    firsts = Counter(chosen(choice_by(*loads, seed=seed), 1, partitions=4)[0] for seed in range(400))
    assert set(firsts) == {0, 1, 2, 3}
    assert min(firsts.values()) > 60


@pytest.mark.parametrize(
    "choice",
    [
        pytest.param(new_choice(), id="never read"),
        pytest.param(choice_by(partitions=4), id="no owners"),
        pytest.param(choice_by((0.0, {0: 0, 1: 0, 2: 0, 3: 0}), taken_at=NOW - 2.1), id="a stale snapshot"),
        pytest.param(choice_by((0.0, {0: 0, 1: 0}), partitions=2), id="partitions were added since"),
    ],
)
def test_without_usable_loads_the_partitions_are_chosen_round_robin(choice: TopicPartitioner) -> None:
    assert not choice.is_by_load(partitions=4, now=NOW)
    order = chosen(choice, 12, partitions=4)
    assert order == [(order[0] + step) % 4 for step in range(12)]


def test_round_robin_continues_when_the_number_of_partitions_changes() -> None:
    choice = new_choice()
    chosen(choice, 5, partitions=4)
    assert set(chosen(choice, 6, partitions=6)) == set(range(6))


def test_a_snapshot_is_used_until_it_expires() -> None:
    choice = choice_by((5.0, {0: 5}), (0.0, {1: 0}))
    assert choice.is_by_load(partitions=2, now=NOW + MAX_SNAPSHOT_AGE_SECONDS)
    assert not choice.is_by_load(partitions=2, now=NOW + MAX_SNAPSHOT_AGE_SECONDS + 0.01)


def test_tasks_sent_while_loads_are_read_are_added_to_them() -> None:
    idle = snapshot((0.0, {0: 0}), (0.5, {1: 1}), taken_at=NOW)
    choice = choice_by((0.0, {0: 0}), (9.0, {1: 9}), taken_at=NOW - 1)
    choice.begin_reading(now=NOW)
    assert chosen(choice, 1, partitions=2, now=NOW) == [0]
    choice.use(idle)
    assert chosen(choice, 1, partitions=2, now=NOW) == [1]


@pytest.mark.parametrize(
    ("before_seconds", "expected"),
    [
        pytest.param(SETTLING_SECONDS / 2, 1, id="may not be in the log yet"),
        pytest.param(SETTLING_SECONDS * 2, 0, id="is in the log, and so in the loads"),
    ],
)
def test_tasks_sent_shortly_before_a_reading_are_added_to_it(before_seconds: float, expected: int) -> None:
    choice = choice_by((0.0, {0: 0}), (9.0, {1: 9}), taken_at=NOW - 1)
    assert chosen(choice, 1, partitions=2, now=NOW - before_seconds) == [0]
    choice.begin_reading(now=NOW)
    choice.use(snapshot((0.0, {0: 0}), (0.5, {1: 1}), taken_at=NOW))
    assert chosen(choice, 1, partitions=2) == [expected]


def test_senders_with_the_same_loads_spread_over_the_owners_they_need_together() -> None:
    loads = LoadSnapshot(
        taken_at=NOW,
        partition_count=4,
        owners=tuple(OwnerLoad(work=0.1 * number, records={number: 1}) for number in range(4)),
        others_per_second=2.0,
    )
    firsts: Counter[int] = Counter()
    for seed in range(400):
        choice = new_choice(seed)
        choice.begin_reading(now=NOW)
        choice.use(loads)
        # In the second since the reading two other senders have chosen; together they need the best three.
        firsts[choice.choose(partitions=4, work=1.0, now=NOW + 1)] += 1
    assert min(firsts[number] for number in range(3)) > 90


def test_tasks_of_other_senders_are_added_once() -> None:
    choice = new_choice()
    choice.begin_reading(now=NOW)
    choice.use(
        LoadSnapshot(
            taken_at=NOW,
            partition_count=2,
            owners=(OwnerLoad(work=0.0, records={0: 0}), OwnerLoad(work=50.0, records={1: 50})),
            others_per_second=1.0,
            others_work=10.0,
        )
    )
    moment = NOW + 1.95
    # Two others, of ten units each: the idle owner has twenty, and thirty of fifty remain.
    assert Counter(choice.choose(partitions=2, work=1.0, now=moment) for _ in range(29)) == {0: 29}


def read_to(*ends: int) -> LoadSnapshot:
    """Two idle owners of a partition each."""
    return LoadSnapshot(
        taken_at=NOW,
        partition_count=2,
        owners=(OwnerLoad(work=0.0, records={0: 0}), OwnerLoad(work=0.0, records={1: 0})),
        end_offsets=dict(enumerate(ends)),
    )


def test_what_others_sent_counts_from_its_arrival_on() -> None:
    choice = new_choice()
    choice.use(read_to(5, 5))
    choice.arrived(partition=0, offset=5, work=2.5, now=NOW)
    assert chosen(choice, 2, partitions=2) == [1, 1]


@pytest.mark.parametrize(
    ("end", "expected"),
    [pytest.param(5, [1, 1], id="not in the loads"), pytest.param(6, [0, 1], id="in the loads")],
)
def test_an_arrival_counts_beside_the_next_loads_unless_they_hold_it(end: int, expected: list[int]) -> None:
    choice = new_choice()
    choice.use(read_to(5, 5))
    choice.arrived(partition=0, offset=5, work=2.5, now=NOW)
    choice.use(read_to(end, 5))
    # Late, and known by the reading.
    choice.arrived(partition=0, offset=4, work=2.5, now=NOW)
    assert sorted(chosen(choice, 2, partitions=2)) == expected


def test_a_choice_that_was_announced_counts_once_when_its_record_arrives() -> None:
    choice = new_choice()
    choice.use(read_to(5, 5))
    choice.announced(partition=0, work=1.5, now=NOW)
    choice.arrived(partition=0, offset=5, work=1.5, now=NOW)
    assert chosen(choice, 2, partitions=2) == [1, 1]
    assert chosen(choice, 1, partitions=2) == [0]


def test_a_choice_that_was_announced_counts_beside_the_next_loads_until_its_record_is_in_them() -> None:
    choice = new_choice()
    choice.announced(partition=0, work=2.5, now=NOW)
    choice.begin_reading(now=NOW)
    choice.use(read_to(5, 5))
    assert chosen(choice, 2, partitions=2) == [1, 1]
    choice = new_choice()
    choice.announced(partition=0, work=2.5, now=NOW)
    choice.begin_reading(now=NOW)
    choice.use(read_to(6, 5))
    choice.arrived(partition=0, offset=5, work=2.5, now=NOW)
    assert sorted(chosen(choice, 2, partitions=2)) == [0, 1]


def test_a_choice_that_was_announced_and_never_written_is_dropped() -> None:
    choice = new_choice()
    choice.announced(partition=0, work=50.0, now=NOW)
    choice.begin_reading(now=NOW + 2 * SETTLING_SECONDS)
    choice.use(read_to(5, 5))
    assert sorted(chosen(choice, 2, partitions=2)) == [0, 1]


def test_an_own_record_that_arrives_before_its_acknowledgement_counts_once() -> None:
    choice = new_choice()
    choice.use(read_to(5, 5))
    (own,) = chosen(choice, 1, partitions=2)
    choice.arrived(partition=own, offset=5, work=1.0, now=NOW)
    choice.is_own(partition=own, offset=5)
    other = 1 - own
    assert chosen(choice, 1, partitions=2) == [other]
    assert sorted(chosen(choice, 2, partitions=2)) == [0, 1]


def test_arrivals_of_a_topic_that_was_recreated_expire() -> None:
    choice = new_choice()
    choice.arrived(partition=0, offset=900, work=50.0, now=NOW - MAX_SNAPSHOT_AGE_SECONDS - 1)
    choice.use(read_to(0, 0))
    assert sorted(chosen(choice, 2, partitions=2)) == [0, 1]


def test_arrivals_on_partitions_without_an_owner_change_nothing() -> None:
    choice = choice_by((0.0, {0: 0}), partitions=2)
    choice.arrived(partition=1, offset=0, work=1.0, now=NOW)
    assert chosen(choice, 2, partitions=2) == [0, 0]


def test_without_owners_partitions_are_chosen_round_robin() -> None:
    choice = choice_by((0.0, {0: 0, 1: 0}))
    choice.begin_reading(now=NOW)
    choice.use(snapshot(partitions=2))
    assert not choice.is_by_load(partitions=2, now=NOW)
    assert set(chosen(choice, 2, partitions=2)) == {0, 1}


@st.composite
def _loads(draw: st.DrawFn) -> list[Load]:
    numbers = list(range(draw(st.integers(1, 24))))
    owners = draw(st.integers(1, min(8, len(numbers))))
    records = [{number: draw(st.integers(0, 20)) for number in numbers[owner::owners]} for owner in range(owners)]
    return [(draw(st.floats(0, 50)), owned) for owned in records]


@given(loads=_loads(), seed=st.integers(0, 99), works=st.lists(st.floats(0.1, 8), min_size=1, max_size=60))
def test_every_choice_is_the_emptiest_partition_of_an_owner_with_least_work(
    loads: list[Load], seed: int, works: list[float]
) -> None:
    choice = choice_by(*loads, seed=seed)
    load = [work for work, _ in loads]
    records = [dict(owned) for _, owned in loads]
    partitions = sum(map(len, records))
    for work in works:
        number = choice.choose(partitions=partitions, work=work, now=NOW)
        owner = next(index for index, owned in enumerate(records) if number in owned)
        assert load[owner] == min(load)
        assert records[owner][number] == min(records[owner].values())
        load[owner] += work
        records[owner][number] += 1


@given(loads=_loads(), seed=st.integers(0, 99), count=st.integers(1, 200))
def test_equal_tasks_level_the_owners(loads: list[Load], seed: int, count: int) -> None:
    levelled: list[Load] = [(0.0, records) for _, records in loads]
    partitions = sum(len(records) for _, records in loads)
    numbers = Counter(chosen(choice_by(*levelled, seed=seed), count, partitions=partitions))
    sums = [sum(numbers[number] for number in records) for _, records in levelled]
    assert max(sums) - min(sums) <= 1


@given(seed=st.integers(0, 99), partitions=st.integers(1, 60), count=st.integers(1, 200))
def test_round_robin_counts_differ_by_at_most_one(seed: int, partitions: int, count: int) -> None:
    numbers = Counter(chosen(new_choice(seed), count, partitions=partitions))
    assert all(0 <= number < partitions for number in numbers)
    assert max(numbers.values()) - min(numbers[number] for number in range(partitions)) <= 1
