"""The estimated work of each worker, from successive readings of the lag."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fluxpool_contract.kafka.ledger import LedgerEntry, encode_ledger
from fluxpool_transport.lag.group_offsets import GroupMember
from fluxpool_transport.lag.lag_reader import GroupLag, PartitionLag, StalePartition
from fluxpool_transport.partitioner.member_load import MAX_KNOWN_TASKS, WorkEstimate
from fluxpool_transport.partitioner.topic_partitioner import OwnerLoad

TOPIC = "tasks"


def partition(number: int, *, committed: int, end: int, ledger: str = "") -> PartitionLag:
    return PartitionLag(
        partition=number, committed_offset=committed, log_start_offset=0, log_end_offset=end, metadata=ledger
    )


def begun(*offsets: int, started_at: int = 0, generated: bool = False) -> str:
    entry = LedgerEntry(task="t", worker="w", started_at=started_at, generated=generated)
    return encode_ledger(dict.fromkeys(offsets, entry))


def lag(*partitions: PartitionLag | StalePartition, owned: dict[str, tuple[int, ...]] | None = None) -> GroupLag:
    """By default, each partition has a member of its own."""
    dealt = owned or {f"m{item.partition}": (item.partition,) for item in partitions}
    members = tuple(
        GroupMember(member_id=name, client_id=name, partitions={TOPIC: numbers}) for name, numbers in dealt.items()
    )
    return GroupLag(
        group="g",
        topic=TOPIC,
        partitions=partitions,
        member_count=len(members),
        state="Stable",
        members=members,
    )


def works(owners: tuple[OwnerLoad, ...]) -> list[float]:
    return [round(owner.work, 3) for owner in owners]


def learned(*, seconds_per_task: float = 4.0, tasks: int = 20) -> tuple[WorkEstimate, float]:
    """An estimate after one member finished tasks back to back on partition 0; and the time of its last reading.

    The member has just begun the next task.
    """
    estimate = WorkEstimate()
    now = 0.0
    for done in range(tasks + 1):
        now = done * seconds_per_task
        estimate.owners(lag(partition(0, committed=done, end=tasks + 1)), now=now)
    return estimate, now


def test_before_anything_is_known_every_record_counts_as_one() -> None:
    estimate = WorkEstimate()
    owners = estimate.owners(lag(partition(0, committed=3, end=5), partition(1, committed=7, end=7)), now=0)
    assert works(owners) == [2.0, 0.0]
    assert [dict(owner.records) for owner in owners] == [{0: 2}, {1: 0}]
    assert estimate.seconds_per_work is None


def test_a_member_has_the_work_of_all_its_partitions() -> None:
    read = lag(partition(0, committed=0, end=2), partition(1, committed=0, end=3), owned={"a": (0, 1), "b": ()})
    (owner,) = WorkEstimate().owners(read, now=0)
    assert (round(owner.work, 3), dict(owner.records)) == (5.0, {0: 2, 1: 3})


def test_partitions_that_could_not_be_read_are_left_out() -> None:
    read = lag(
        partition(0, committed=0, end=1),
        StalePartition(partition=1, reason="leader moves"),
        StalePartition(partition=2, reason="leader moves"),
        owned={"a": (0, 1), "b": (2,)},
    )
    (owner,) = WorkEstimate().owners(read, now=0)
    assert dict(owner.records) == {0: 1}


def test_tasks_of_known_size_count_by_it() -> None:
    estimate = WorkEstimate()
    estimate.owners(lag(partition(0, committed=0, end=0), partition(1, committed=0, end=0)), now=0)
    for offset, work in enumerate([4.0, 0.5]):
        estimate.acknowledged(partition=0, offset=offset, work=work)
    owners = estimate.owners(lag(partition(0, committed=0, end=2), partition(1, committed=0, end=2)), now=1)
    known, unknown = works(owners)
    assert known == 4.5
    # The average moved a little, towards the size that was sent.
    assert 2.0 < unknown < 2.2


def test_a_task_acknowledged_after_the_end_was_read_is_left_to_the_sender() -> None:
    estimate = WorkEstimate()
    estimate.owners(lag(partition(0, committed=0, end=0)), now=0)
    estimate.acknowledged(partition=0, offset=0, work=2.0)
    estimate.acknowledged(partition=0, offset=1, work=3.0)
    assert works(estimate.owners(lag(partition(0, committed=0, end=1)), now=1)) == [2.0]


def test_finished_tasks_are_dropped() -> None:
    estimate = WorkEstimate()
    estimate.owners(lag(partition(0, committed=0, end=0)), now=0)
    for offset, work in enumerate([0.5, 0.6, 4.0]):
        estimate.acknowledged(partition=0, offset=offset, work=work)
    assert works(estimate.owners(lag(partition(0, committed=2, end=3)), now=1)) == [4.0]
    assert works(estimate.owners(lag(partition(0, committed=3, end=3)), now=2)) == [0.0]


def test_a_recreated_topic_has_other_tasks_at_the_same_offsets() -> None:
    estimate = WorkEstimate()
    estimate.owners(lag(partition(0, committed=5, end=5)), now=0)
    estimate.acknowledged(partition=0, offset=5, work=8.0)
    assert works(estimate.owners(lag(partition(0, committed=5, end=6)), now=1)) == [8.0]
    (work,) = works(estimate.owners(lag(partition(0, committed=0, end=1)), now=2))
    assert work < 2


def test_the_speed_is_learned_from_members_that_are_busy_all_the_time() -> None:
    estimate, _ = learned(seconds_per_task=4.0)
    assert estimate.seconds_per_work == pytest.approx(4.0, rel=0.05)


def test_idle_time_does_not_make_a_member_slow() -> None:
    estimate, now = learned(seconds_per_task=4.0)
    idle = lag(partition(0, committed=21, end=21))
    for second in range(1, 60):
        estimate.owners(idle, now=now + second)
    assert estimate.seconds_per_work == pytest.approx(4.0, rel=0.1)


@pytest.mark.parametrize(
    ("elapsed_seconds", "expected"),
    [
        pytest.param(1.0, 0.875, id="just begun: since the middle of the readings it was seen between"),
        pytest.param(3.0, 0.375, id="more than half of it"),
        pytest.param(5.0, 0.1, id="past the expected time: nearly done"),
        pytest.param(40.0, 7.9, id="far past it: unknown"),
    ],
)
def test_the_task_in_progress_counts_with_its_remaining_part(elapsed_seconds: float, expected: float) -> None:
    estimate, now = learned(seconds_per_task=4.0)
    estimate.owners(lag(partition(0, committed=21, end=21)), now=now + 4)
    begin = now + 5
    one = lag(partition(0, committed=21, end=22))
    estimate.owners(one, now=begin)
    (work,) = works(estimate.owners(one, now=begin + elapsed_seconds - 1))
    assert work == pytest.approx(expected, abs=0.2)


def test_the_ledger_names_the_task_in_progress() -> None:
    estimate, now = learned(seconds_per_task=4.0)
    estimate.owners(lag(partition(0, committed=21, end=21)), now=now + 4)
    estimate.acknowledged(partition=0, offset=21, work=6.0)
    estimate.acknowledged(partition=0, offset=22, work=1.0)
    estimate.owners(lag(partition(0, committed=21, end=23, ledger=begun(21))), now=now + 5)
    # Begun at now + 4.5; after 4 seconds about one unit is done, of six and one.
    (work,) = works(estimate.owners(lag(partition(0, committed=21, end=23, ledger=begun(21))), now=now + 8.5))
    assert work == pytest.approx(6.0, abs=0.2)


def test_a_task_with_generated_images_counts_no_work() -> None:
    estimate = WorkEstimate()
    generated = lag(partition(0, committed=0, end=1, ledger=begun(0, generated=True)))
    assert works(estimate.owners(generated, now=0)) == [0.0]
    assert works(estimate.owners(generated, now=500)) == [0.0]


def test_tasks_that_this_process_did_not_send_are_those_of_others() -> None:
    estimate = WorkEstimate()
    for second in range(60):
        estimate.owners(lag(partition(0, committed=3 * second, end=3 * second)), now=second)
        estimate.acknowledged(partition=0, offset=3 * second, work=1.0)
    assert estimate.others_per_second == pytest.approx(2.0, rel=0.1)


def test_a_single_sender_counts_no_others() -> None:
    estimate = WorkEstimate()
    for second in range(60):
        estimate.owners(lag(partition(0, committed=second, end=second)), now=second)
        estimate.acknowledged(partition=0, offset=second, work=1.0)
    assert estimate.others_per_second == 0


def test_memory_is_bounded() -> None:
    estimate = WorkEstimate()
    estimate.owners(lag(partition(0, committed=0, end=0)), now=0)
    for offset in range(2 * MAX_KNOWN_TASKS):
        estimate.acknowledged(partition=0, offset=offset, work=1.0)
    (work,) = works(estimate.owners(lag(partition(0, committed=0, end=2 * MAX_KNOWN_TASKS)), now=1))
    assert work == pytest.approx(2 * MAX_KNOWN_TASKS)


@given(
    steps=st.lists(st.tuples(st.floats(0.01, 20), st.integers(0, 3), st.integers(0, 3), st.floats(0.1, 8)), max_size=40)
)
def test_work_is_never_negative_and_nothing_to_do_is_no_work(
    steps: list[tuple[float, int, int, float]],
) -> None:
    estimate = WorkEstimate()
    now, committed, end = 0.0, 0, 0
    for seconds, arrived, finished, size in steps:
        now += seconds
        for offset in range(end, end + arrived):
            estimate.acknowledged(partition=0, offset=offset, work=size)
        end += arrived
        committed = min(end, committed + finished)
        (owner,) = estimate.owners(lag(partition(0, committed=committed, end=end)), now=now)
        assert owner.work >= 0
        assert (owner.work == 0) == (committed == end)


def test_a_task_of_another_sender_counts_by_its_size() -> None:
    estimate = WorkEstimate()
    assert estimate.arrived(partition=0, offset=1, work=0.25)
    # Acknowledgements and arrivals are not ordered among each other.
    assert estimate.acknowledged(partition=0, offset=0, work=3.0)
    (owner,) = estimate.owners(lag(partition(0, committed=0, end=2)), now=0)
    (later,) = estimate.owners(lag(partition(0, committed=1, end=2)), now=1)
    assert owner.work == pytest.approx(2 * estimate.mean_work), "what came before the first reading is of unknown size"
    assert later.work < owner.work


def test_a_record_is_known_once() -> None:
    estimate = WorkEstimate()
    assert estimate.acknowledged(partition=0, offset=7, work=1.0)
    assert not estimate.arrived(partition=0, offset=7, work=1.0)
    assert estimate.arrived(partition=0, offset=8, work=1.0)
    assert not estimate.acknowledged(partition=0, offset=8, work=1.0)


def test_sizes_that_come_out_of_order_are_finished_in_order() -> None:
    estimate = WorkEstimate()
    estimate.owners(lag(partition(0, committed=0, end=0)), now=0)
    for offset, size in ((1, 5.0), (0, 0.5), (2, 2.0)):
        estimate.arrived(partition=0, offset=offset, work=size)
    all_three = estimate.owners(lag(partition(0, committed=0, end=3)), now=1)
    two = estimate.owners(lag(partition(0, committed=1, end=3)), now=2)
    assert works((*all_three, *two)) == [7.5, 7.0]
