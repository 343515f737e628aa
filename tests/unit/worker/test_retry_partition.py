"""The commits of a pool's relay on a partition of a retry topic, also after other agents relayed."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fluxpool_contract.kafka.ledger import committed_topic_id
from fluxpool_contract.kafka.retries import relayed_ahead
from fluxpool_worker.agent.retry.retry_partition import (
    MAX_PENDING_BYTES,
    MAX_PENDING_RECORDS,
    PendingRetry,
    RetryPartition,
)

MAX_METADATA_BYTES = 4096
"""Kafka's `offset.metadata.max.bytes`."""


def pending(due_seconds: float = 0.0, *, size_bytes: int = 100, is_stray: bool = False) -> PendingRetry:
    return PendingRetry(record=None, due_seconds=due_seconds, size_bytes=size_bytes, is_stray=is_stray)


def partition(*due_seconds: float | None, start: int = 0) -> RetryPartition:
    """A partition with one record for each time at which it is due; None for another pool's record."""
    state = RetryPartition(start=start, topic_id="id")
    for offset, due in enumerate(due_seconds, start):
        state.see(offset, None if due is None else pending(due))
    return state


def commit(state: RetryPartition) -> tuple[int, str]:
    committed = state.commit_offset, state.metadata()
    state.commit_done(*committed)
    return committed


def test_records_of_other_pools_are_passed_over() -> None:
    assert partition(None, None, None).commit_offset == 3


def test_a_record_that_is_not_relayed_holds_back_the_commit_and_nothing_else() -> None:
    state = partition(None, 50.0, 10.0, None)
    assert (state.commit_offset, [offset for offset, _ in state.due(20.0)]) == (1, [2])
    state.relayed(2)
    assert state.commit_offset == 1
    state.relayed(1)
    assert (state.commit_offset, state.next_due_seconds()) == (4, None)


def test_a_record_without_an_origin_is_due_no_sooner_than_those_before_it() -> None:
    state = RetryPartition(start=0)
    for offset, (due, is_stray) in enumerate([(10.0, True), (5.0, True), (5.0, False), (20.0, True), (15.0, True)]):
        state.see(offset, pending(due, is_stray=is_stray))
    assert {offset: item.due_seconds for offset, item in state.due(100.0)} == {0: 10, 1: 10, 2: 5, 3: 20, 4: 20}


def test_what_was_relayed_ahead_of_the_commit_is_not_relayed_by_the_next_relay() -> None:
    first = partition(50.0, 10.0, 60.0)
    first.relayed(1)
    offset, metadata = commit(first)
    assert (offset, committed_topic_id(metadata)) == (0, "id")

    second = RetryPartition(start=offset, relayed=relayed_ahead(metadata, offset))
    for number in range(3):
        second.see(number, pending())
    assert [number for number, _ in second.due(0.0)] == [0, 2]


def test_what_another_relay_committed_meanwhile_is_not_relayed_here() -> None:
    state = partition(0.0, 0.0, 0.0, 0.0)
    state.catch_up(2, json.dumps({"relayed": [1]}))
    assert [offset for offset, _ in state.due(0.0)] == [2]
    state.catch_up(9, "")
    assert (state.due(0.0), state.commit_offset, state.is_changed) == ([], 9, True)
    state.see(4, pending())
    assert state.due(0.0) == []
    assert not state.goes_back(5)


def test_an_older_offset_from_the_coordinator_changes_nothing_and_is_committed_over() -> None:
    state = partition(None, None, 50.0)
    commit(state)
    assert not state.is_changed
    state.catch_up(0, "")
    assert (state.commit_offset, state.is_changed) == (2, True)


def test_a_lower_offset_than_the_last_one_shows_that_the_log_is_another_one() -> None:
    state = partition(None, None)
    assert (state.goes_back(1), state.goes_back(2)) == (True, False)


def test_what_could_not_be_committed_is_remembered_for_the_same_topic_only() -> None:
    former = partition(0.0, 0.0)
    former.relayed(1)
    for topic_id, expected in (("id", [0]), ("another", [0, 1]), (None, [0, 1])):
        state = RetryPartition(start=0, topic_id=topic_id)
        state.remember(former)
        state.see(0, pending())
        state.see(1, pending())
        assert [offset for offset, _ in state.due(0.0)] == expected


@pytest.mark.parametrize("text", ["", "x", "[]", '{"relayed": 3}', '{"relayed": ["1", -2, null]}', "[" * 2000])
def test_metadata_of_another_client_is_ignored(text: str) -> None:
    assert (relayed_ahead(text, 5), committed_topic_id(text)) == (frozenset(), None)


def test_memory_and_the_text_beside_the_commit_are_bounded() -> None:
    state = RetryPartition(start=0, topic_id="x" * 22)
    state.see(0, pending(1e12))
    for offset in range(1, MAX_PENDING_RECORDS + 200):
        far = offset * 10_000_000
        state.see(far, pending())
        state.relayed(far)
    assert state.is_full
    assert len(state.metadata()) <= MAX_METADATA_BYTES
    assert not partition(0.0).is_full
    large = RetryPartition(start=0)
    large.see(0, pending(size_bytes=MAX_PENDING_BYTES))
    assert large.is_full
    large.relayed(0)
    assert not large.is_full


@given(
    st.lists(st.tuples(st.booleans(), st.integers(0, 10)), max_size=20),
    st.lists(st.tuples(st.integers(0, 10), st.integers(1, 5)), max_size=8),
)
def test_every_record_of_the_pool_is_relayed_once_across_rebalances(
    records: list[tuple[bool, int]], terms: list[tuple[int, int]]
) -> None:
    relayed: list[int] = []
    offset, metadata = 0, ""
    for now, at_most in [*terms, (10, len(records))]:
        state = RetryPartition(start=offset, relayed=relayed_ahead(metadata, offset), topic_id="id")
        for number, (is_own, due) in enumerate(records[offset:], offset):
            state.see(number, pending(due) if is_own else None)
        for number, _ in state.due(now)[:at_most]:
            relayed.append(number)
            state.relayed(number)
        before, (offset, metadata) = offset, commit(state)
        assert offset >= before
        assert {number for number in range(offset) if records[number][0]} <= set(relayed)
    assert offset == len(records)
    assert sorted(relayed) == [number for number, (is_own, _) in enumerate(records) if is_own]
