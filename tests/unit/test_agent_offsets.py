"""Commit points and the ledger: no interleaving may commit past unfinished work or send an offset back."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from fluxpool_contract.kafka.ledger import MAX_METADATA_BYTES, LedgerEntry, decode_ledger, encode_ledger
from fluxpool_worker.agent.consumer.offsets import PartitionOffsets


def entry(task: str = "t", *, crashes: int = 0, released: bool = False) -> LedgerEntry:
    return LedgerEntry(task=task, worker="pod", started_at=1_700_000_000, crashes=crashes, released=released)


def test_nothing_is_committed_before_anything_was_started() -> None:
    assert PartitionOffsets().commit_point() is None


def test_the_commit_point_is_the_lowest_offset_in_flight() -> None:
    offsets = PartitionOffsets()
    for offset in (5, 6, 9):
        offsets.start(offset)
    offsets.finish(6)
    assert offsets.commit_point() == 5
    offsets.finish(5)
    assert offsets.commit_point() == 9
    offsets.finish(9)
    assert offsets.commit_point() == 10


def test_a_record_that_was_started_is_not_accepted_again() -> None:
    offsets = PartitionOffsets()
    offsets.start(5)
    offsets.start(6)
    offsets.finish(5)
    assert [offset for offset in range(4, 9) if offsets.accepts(offset)] == [7, 8]
    with pytest.raises(ValueError, match="started before"):
        offsets.start(6)


def test_what_is_gone_from_the_log_is_passed_over_unless_something_is_in_flight() -> None:
    offsets = PartitionOffsets()
    assert offsets.seek_past_gap(8)
    assert (offsets.commit_point(), offsets.accepts(7), offsets.accepts(8)) == (8, False, True)
    assert not offsets.seek_past_gap(8)
    offsets.start(9)
    assert not offsets.seek_past_gap(12)
    assert offsets.commit_point() == 9


def test_nothing_is_skipped_that_the_group_has_passed_already() -> None:
    offsets = PartitionOffsets()
    offsets.advance_to_committed(8)
    assert not offsets.seek_past_gap(8)
    assert offsets.commit_point() is None
    assert offsets.seek_past_gap(9)
    assert offsets.commit_point() == 9


def test_the_ledger_travels_with_the_offset_and_releases_are_taken_back() -> None:
    offsets = PartitionOffsets()
    offsets.start(7)
    assert decode_ledger(offsets.metadata()) == {}
    offsets.record(7, entry("seven"))
    offsets.release(for_good=False)
    assert decode_ledger(offsets.metadata()) == {7: entry("seven", released=True)}
    offsets.resume()
    assert decode_ledger(offsets.metadata()) == {7: entry("seven")}
    offsets.finish(7)
    assert offsets.metadata() == encode_ledger({})


def test_what_the_group_has_committed_can_be_committed_again_before_anything_is_started() -> None:
    offsets = PartitionOffsets()
    offsets.recommits = True
    assert offsets.commit_point() is None
    offsets.advance_to_committed(8)
    assert offsets.commit_point() == 8
    assert offsets.accepts(3), "a topic made again begins below what was committed"
    offsets.start(9)
    offsets.finish(9)
    assert offsets.commit_point() == 10


def test_what_was_given_up_for_good_is_not_taken_back_by_a_rebalance() -> None:
    offsets = PartitionOffsets()
    for offset in (7, 8):
        offsets.start(offset)
        offsets.record(offset, entry(str(offset)))
    offsets.release(7)
    offsets.release(for_good=False)
    offsets.resume()
    assert decode_ledger(offsets.metadata()) == {7: entry("7", released=True), 8: entry("8")}


def test_the_ledger_of_a_release_is_written_in_the_form_others_read() -> None:
    text = encode_ledger({12: entry("req", crashes=2, released=True)})
    assert json.loads(text) == {
        "v": 1,
        "tasks": {"12": {"task": "req", "crashes": 2, "pod": "pod", "started_at": 1_700_000_000, "released": True}},
    }


@given(st.dictionaries(st.integers(0, 2**62), st.builds(entry, st.text(max_size=400)), max_size=40))
def test_an_encoded_ledger_fits_the_broker_and_keeps_its_lowest_offsets(entries: dict[int, LedgerEntry]) -> None:
    text = encode_ledger(entries)
    assert len(text.encode()) <= MAX_METADATA_BYTES
    kept = decode_ledger(text)
    assert kept == {offset: entries[offset] for offset in sorted(entries)[: len(kept)]}


@pytest.mark.parametrize(
    "metadata", [None, "", "a consumer's own text", "{}", '{"tasks": 1}', '{"tasks": {"x": {}}}', "[]"]
)
def test_metadata_of_anybody_else_is_an_empty_ledger(metadata: str | None) -> None:
    assert decode_ledger(metadata) == {}


class PartitionMachine(RuleBasedStateMachine):
    """Random records, finishes in any order, and rebalances that hand out everything uncommitted again."""

    @initialize(first=st.integers(0, 5))
    def begin(self, first: int) -> None:
        self.offsets = PartitionOffsets()
        self.committed = first
        self.log_end = first
        self.position = first
        self.finished: set[int] = set()
        self.existing: set[int] = set()

    @rule(gap=st.integers(0, 2))
    def produce(self, gap: int) -> None:
        self.existing.add(self.log_end + gap)
        self.log_end += gap + 1

    @rule()
    def hand_out_next(self) -> None:
        for offset in sorted(offset for offset in self.existing if offset >= self.position)[:1]:
            self.position = offset + 1
            if self.offsets.accepts(offset):
                assert offset not in self.finished, "a finished task was started again"
                self.offsets.start(offset)

    @rule()
    def delete_what_nobody_had_done(self) -> None:
        log_start = self.log_end - 1
        if log_start > self.committed and not self.offsets.in_flight:
            self.existing = {offset for offset in self.existing if offset >= log_start}
            self.offsets.seek_past_gap(log_start)
            self.position = max(self.position, log_start)

    @rule()
    def skip_what_nobody_can_read(self) -> None:
        if all(offset < self.position for offset in self.existing):
            self.position = self.log_end
        self.offsets.seek_past_gap(self.position)

    @precondition(lambda self: self.offsets.in_flight)
    @rule(data=st.data())
    def finish(self, data: st.DataObject) -> None:
        offset = data.draw(st.sampled_from(sorted(self.offsets.in_flight)))
        self.offsets.finish(offset)
        self.finished.add(offset)

    @rule()
    def commit(self) -> None:
        commit_point = self.offsets.commit_point()
        if commit_point is not None:
            assert commit_point >= self.committed, "an offset was sent back"
            self.committed = commit_point

    @rule()
    def keep_the_partition_through_a_rebalance(self) -> None:
        self.offsets.release(for_good=False)
        self.commit()
        self.offsets.resume()
        self.position = self.committed

    @rule()
    def lose_the_partition_and_get_it_back(self) -> None:
        self.finished = {offset for offset in self.finished if offset < self.committed}
        self.offsets = PartitionOffsets()
        self.position = self.committed

    @invariant()
    def the_committed_offset_never_passes_unfinished_work(self) -> None:
        if hasattr(self, "existing"):
            assert all(offset in self.finished for offset in self.existing if offset < self.committed)


TestPartitionMachine = PartitionMachine.TestCase
